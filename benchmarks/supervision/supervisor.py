"""One run: start this node's workers, watch them, and leave a record whatever happens."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.core.config import RunConfig
from benchmarks.core.energy import precision_notes
from benchmarks.core.errors import UserError
from benchmarks.core.folder import now
from benchmarks.core.record import RECORD_NAME, Record, archive, write_record
from benchmarks.supervision import agent, merge, verdict
from benchmarks.supervision.environment import host_environment
from benchmarks.supervision.hardware import count_oom_kills, has_bf16
from benchmarks.supervision.interruption import Interrupted, signals_ignored, signals_raise
from benchmarks.supervision.merge import RankResult
from benchmarks.supervision.reporter import Reporter
from benchmarks.supervision.team import Team, Word, collect_words, leave_word, meet, part
from benchmarks.supervision.watch import Limits

ALONE = Team()
NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    run: RunConfig
    folder: Path
    number: int
    team: Team
    limits: Limits
    started_at: str
    reporter: Reporter
    before: Mapping[str, float]


def supervise(
    run: RunConfig,
    folder: Path,
    attempt: int = 1,
    team: Team = ALONE,
    *,
    ends_at_s: float | None = None,
    before: Mapping[str, float] = NOTHING,
) -> Record | None:
    """Make one attempt at a run; the team's leader writes its record into `folder`, beside those of earlier attempts.

    Args:
        run: What to run.
        folder: The run's folder, in that of its sweep.
        attempt: Its number, from 1.
        team: This supervisor among those of all nodes.
        ends_at_s: When the allocation ends, in UNIX time: the workers are ended some time before, so that a record
            with what was measured can be left. None where there is no such end.
        before: Seconds that the job has already spent on this run, by phase: they begin the record's ledger.

    Returns:
        The record; None on the other nodes of a team.

    Raises:
        Interrupted: a signal arrived; a record was written that says so, no worker is left.
        UserError: the other nodes of the team were not found.
        OSError: the record could not be written.
    """
    limits, started_at = Limits.from_now(ends_at_s), now()
    folder.mkdir(parents=True, exist_ok=True)
    reporter = Reporter(run, folder, attempt, started_at)
    if team.leads:
        reporter.start()
    try:
        return _make(
            _Attempt(
                run=run,
                folder=folder,
                number=attempt,
                team=team,
                limits=limits,
                started_at=started_at,
                reporter=reporter,
                before=before,
            )
        )
    finally:
        reporter.stop()


def _make(this: _Attempt) -> Record | None:
    run, team = this.run, this.team
    logs = this.folder / f"attempt{this.number}"
    oom_kills = count_oom_kills()
    interruption: Interrupted | None = None
    accident: Exception | None = None
    ended = agent.Exit()
    agent.preload()
    with signals_raise():
        try:
            store, meeting = meet(team, this.folder, this.number)
            logs = this.folder / f"attempt{meeting.attempt}"
            logs.mkdir(exist_ok=True)
            watching = agent.Watching(limits=this.limits, show=this.reporter.show)
            ended = agent.run_workers(run, team, store, logs, watching)
        except Interrupted as stop:
            interruption = stop
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever befell the supervisor becomes a failed record
            accident = error
        with signals_ignored():
            part(team, this.folder)
            results = merge.read_results(logs, run.workers)
            word = (
                verdict.of_interruption(interruption.number, this.folder.parent, this.reporter.phase)
                if interruption
                else verdict.of_accident(accident)
                if accident
                else verdict.of_node(logs, ended, results, count_oom_kills() - oom_kills)
            )
            record = None
            if team.leads:
                limit_s = this.limits.word_limit_s(ended.ended_by_watch)
                words = [word] if interruption else collect_words(team, logs, word, limit_s)
                record = _leave_record(this, words, ended, logs)
            elif logs.exists():
                leave_word(team, logs, word)
    if interruption:
        interruption.status = word.status
        raise interruption
    return record


def _leave_record(this: _Attempt, words: list[Word], ended: agent.Exit, logs: Path) -> Record:
    record = _record(this, words, ended, logs)
    if this.number > 1 and (this.folder / RECORD_NAME).exists():
        archive(this.folder, this.number - 1)
    write_record(this.folder, record)
    for rank in range(this.run.workers):
        merge.result_path(logs, rank).unlink(missing_ok=True)
    return record


def _record(this: _Attempt, words: list[Word], ended: agent.Exit, logs: Path) -> Record:
    run = this.run
    results = merge.read_results(logs, run.workers)  # again: other nodes' workers have ended since
    whole = len(results) == run.workers and not any(result.failure for result in results)
    checks = merge.merge_checks(results) if whole else []
    word = verdict.of_run(words, checks, well="profiled" if run.profile else "ok")
    first = results[0] if results else None
    # A run that was cut short keeps what it has measured; any other failure leaves no number.
    measured = results if whole else merge.steps_of_all(results) if word.status == "timeout" else []
    if run.profile:
        measured = []  # the profiler slows what it watches: no time, no memory of such a run is a result
    energy = merge.energy_of(measured, run.device)
    span_times_s = [span.wall_time_s for result in measured for span in result.spans]
    ended_ns = time.monotonic_ns()
    return Record(
        run_id=run.run_id,
        cell_id=run.cell_id,
        sweep=run.sweep,
        repeat=run.repeat,
        attempt=this.number,
        status=word.status,
        reason=word.reason,
        config=run.as_dict(),
        workers=run.workers,
        nodes=this.team.nodes,
        started_at=this.started_at,
        wall_time_s=sum(this.before.values()) + (ended_ns - this.limits.started_ns) / 1e9,
        window=merge.merge_window(measured) if measured and len(measured) == run.workers else None,
        ranks=[merge.summarise(result) for result in measured],
        evaluation=measured[0].evaluations if measured else [],
        memory=merge.merge_memory(measured) if measured else None,
        communication=merge.merge_communication(results) if whole else None,
        model=first.model if first and whole else None,
        data=first.data if first and whole else None,
        strategy_facts=first.strategy_facts if first and whole else {},
        stopped_after_epochs=first.stopped_after_epochs if first and whole else None,
        profile=[result.profile for result in results if result.profile] if whole else [],
        energy=energy,
        ledger={**this.before, **merge.ledger(_of_this_node(results, ended), this.limits.started_ns, ended_ns)},
        ceilings=merge.merge_ceilings(results) if whole else None,
        sanity=checks,
        notes=_notes(run) + precision_notes(energy, span_times_s),
        environment=host_environment() | (first.environment if first else {}),
    )


def _notes(run: RunConfig) -> list[str]:
    """What a reader of the numbers must know of where they were made."""
    imitates = run.device == "cpu" and run.precision.name == "bf16" and has_bf16() is False
    return ["oversubscribed"] * run.oversubscribed + ["imitated"] * imitates


def _of_this_node(results: list[RankResult], ended: agent.Exit) -> RankResult | None:
    """A worker whose clock is this host's; another host's monotonic clock began at another time."""
    return next((result for result in results if result.rank in (ended.ranks or (0,))), None)
