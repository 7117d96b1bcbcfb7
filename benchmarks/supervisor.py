"""One run: start this node's workers, watch them, and leave a record whatever happens."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import agent, merge, verdict
from benchmarks.config import RunConfig
from benchmarks.environment import host_environment
from benchmarks.errors import UserError
from benchmarks.folder import now
from benchmarks.hardware import count_oom_kills
from benchmarks.interruption import Interrupted, signals_ignored, signals_raise
from benchmarks.merge import RankResult
from benchmarks.record import RECORD_NAME, Record, archive, write_record
from benchmarks.team import Team, Word, collect_words, leave_word, meet, part

ALONE = Team()


def supervise(run: RunConfig, folder: Path, attempt: int = 1, team: Team = ALONE) -> Record | None:
    """Make one attempt at a run; the team's leader writes its record into `folder`, beside those of earlier attempts.

    Returns:
        The record; None on the other nodes of a team.

    Raises:
        Interrupted: a signal arrived; a `cancelled` record was written, no worker is left.
        UserError: the other nodes of the team were not found.
        OSError: the record could not be written.
    """
    started_ns, started_at = time.monotonic_ns(), now()
    folder.mkdir(parents=True, exist_ok=True)
    logs = folder / f"attempt{attempt}"
    oom_kills = count_oom_kills()
    interruption: Interrupted | None = None
    accident: Exception | None = None
    ended = agent.Exit()
    agent.preload()
    with signals_raise():
        try:
            store, meeting = meet(team, folder, attempt)
            logs = folder / f"attempt{meeting.attempt}"
            logs.mkdir(exist_ok=True)
            ended = agent.run_workers(run, team, store, logs, started_ns)
        except Interrupted as stop:
            interruption = stop
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever befell the supervisor becomes a failed record
            accident = error
        with signals_ignored():
            part(team, folder)
            results = merge.read_results(logs, run.workers)
            word = (
                verdict.of_interruption(interruption, results)
                if interruption
                else verdict.of_accident(accident)
                if accident
                else verdict.of_node(run, logs, ended, results, count_oom_kills() - oom_kills)
            )
            record = None
            if team.leads:
                words = [word] if interruption else collect_words(team, logs, word)
                record = _record(run, team, attempt, words, ended, logs, (started_at, started_ns))
                if attempt > 1 and (folder / RECORD_NAME).exists():
                    archive(folder, attempt - 1)
                write_record(folder, record)
                for rank in range(run.workers):
                    merge.result_path(logs, rank).unlink(missing_ok=True)
            elif logs.exists():
                leave_word(team, logs, word)
    if interruption:
        raise interruption
    return record


def _record(
    run: RunConfig, team: Team, attempt: int, words: list[Word], ended: agent.Exit, logs: Path, started: tuple[str, int]
) -> Record:
    results = merge.read_results(logs, run.workers)  # again: other nodes' workers have ended since
    whole = len(results) == run.workers and not any(result.failure for result in results)
    checks = merge.merge_checks(results) if whole else []
    word = verdict.of_run(words, checks)
    first = results[0] if results else None
    ended_ns = time.monotonic_ns()
    return Record(
        run_id=run.run_id,
        cell_id=run.cell_id,
        sweep=run.sweep,
        repeat=run.repeat,
        attempt=attempt,
        status=word.status,
        reason=word.reason,
        config=run.as_dict(),
        workers=run.workers,
        nodes=team.nodes,
        started_at=started[0],
        wall_time_s=(ended_ns - started[1]) / 1e9,
        window=merge.merge_window(results) if whole else None,
        ranks=[merge.summarise(result) for result in results] if whole else [],
        evaluation=first.evaluations if first and whole else [],
        memory=merge.merge_memory(results) if whole else None,
        energy=None,
        ledger=merge.ledger(_of_this_node(results, ended), started[1], ended_ns),
        ceilings=None,
        sanity=checks,
        notes=["oversubscribed"] if run.oversubscribed else [],
        environment=host_environment() | (first.environment if first else {}),
    )


def _of_this_node(results: list[RankResult], ended: agent.Exit) -> RankResult | None:
    """A worker whose clock is this host's; another host's monotonic clock began at another time."""
    return next((result for result in results if result.rank in (ended.ranks or (0,))), None)
