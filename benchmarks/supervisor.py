"""One run on one node: start the workers, watch them, and leave a record whatever happens."""

from __future__ import annotations

import signal
import tempfile
import time
from pathlib import Path

from benchmarks import agent, merge
from benchmarks.config import RunConfig
from benchmarks.environment import host_environment
from benchmarks.folder import now
from benchmarks.hardware import count_oom_kills
from benchmarks.interruption import Interrupted, signals_ignored, signals_raise
from benchmarks.merge import RankResult
from benchmarks.record import RECORD_NAME, Reason, Record, Status, archive, write_record

_LOG_TAIL_LINES = 20


def supervise(run: RunConfig, folder: Path, attempt: int = 1) -> Record:
    """Make one attempt at a run and write its record into `folder`; the record of an earlier attempt is kept beside it.

    Raises:
        Interrupted: a signal arrived; a `cancelled` record was written, no worker is left.
        OSError: the record could not be written.
    """
    started_ns, started_at = time.monotonic_ns(), now()
    logs = folder / f"attempt{attempt}"
    logs.mkdir(parents=True, exist_ok=True)
    oom_kills = count_oom_kills()
    interruption: Interrupted | None = None
    ended = agent.Exit()
    agent.preload()
    with signals_raise(), tempfile.TemporaryDirectory(prefix="scalebench-") as scratch:
        try:
            ended = agent.run_workers(run, logs, Path(scratch) / "heartbeat", started_ns)
        except Interrupted as stop:
            interruption = stop
        with signals_ignored():
            results = merge.read_results(logs, run.workers)
            status, reason = (
                _cancelled(interruption, results)
                if interruption
                else _verdict(run, logs, ended, results, count_oom_kills() - oom_kills)
            )
            record = _record(run, attempt, (status, reason), results, (started_at, started_ns))
            if attempt > 1 and (folder / RECORD_NAME).exists():
                archive(folder, attempt - 1)
            write_record(folder, record)
            for result in results:
                merge.result_path(logs, result.rank).unlink()
    if interruption:
        raise interruption
    return record


def _record(
    run: RunConfig,
    attempt: int,
    verdict: tuple[Status, Reason | None],
    results: list[RankResult],
    started: tuple[str, int],
) -> Record:
    status, reason = verdict
    ended_ns = time.monotonic_ns()
    whole = len(results) == run.workers and not any(result.failure for result in results)
    first = results[0] if results else None
    return Record(
        run_id=run.run_id,
        cell_id=run.cell_id,
        sweep=run.sweep,
        repeat=run.repeat,
        attempt=attempt,
        status=status,
        reason=reason,
        config=run.as_dict(),
        workers=run.workers,
        nodes=1,
        started_at=started[0],
        wall_time_s=(ended_ns - started[1]) / 1e9,
        window=merge.merge_window(results) if whole else None,
        ranks=[merge.summarise(result) for result in results] if whole else [],
        evaluation=first.evaluations if first and whole else [],
        memory=merge.merge_memory(results) if whole else None,
        energy=None,
        ledger=merge.ledger(first, started[1], ended_ns),
        ceilings=None,
        sanity=merge.merge_checks(results) if whole else [],
        notes=["oversubscribed"] if run.oversubscribed else [],
        environment=host_environment() | (first.environment if first else {}),
    )


def _verdict(
    run: RunConfig, logs: Path, ended: agent.Exit, results: list[RankResult], oom_kills: int
) -> tuple[Status, Reason | None]:
    """The run's state, from what the watch did, what the workers said, and how they ended."""
    if ended.ended_by_watch:
        return "timeout", _timeout(run, logs, ended)
    failed = [result for result in results if result.failure]
    # A worker that lost its peer fails too; the cause is the worker that failed otherwise, or died without a word.
    causes = [result for result in failed if result.failure and result.failure.status != "comm_error"]
    silent = ended.rank is not None and ended.rank not in {result.rank for result in results}
    if causes or (failed and not silent):
        result = (causes or failed)[0]
        failure = result.failure
        assert failure
        return failure.status, Reason(
            phase=failure.phase,
            kind=failure.kind,
            message=failure.message,
            rank=result.rank,
            log_tail=_log_tail(logs, result.rank),
        )
    if ended.rank is not None:
        return _death(logs, ended, ended.rank, oom_kills)
    for check in merge.merge_checks(results):
        if not check.passed:
            status: Status = "diverged" if check.name == "finite_loss" else "invalid"
            return status, Reason(phase="checks", kind=check.name, message=check.detail)
    return "ok", None


def _timeout(run: RunConfig, logs: Path, ended: agent.Exit) -> Reason:
    slowest = max(range(len(ended.pulses)), key=lambda rank: ended.pulses[rank].age_s or float("inf"), default=0)
    pulse = ended.pulses[slowest]
    limit = (
        f"no progress for hang_limit_s={run.hang_limit_s:g}"
        if ended.ended_by_watch == "hang"
        else f"longer than run_limit_s={run.run_limit_s:g}"
    )
    return Reason(
        phase=pulse.phase,
        kind=str(ended.ended_by_watch),
        message=f"{limit}; rank {slowest} was in {pulse.phase}, step {pulse.step} of {pulse.steps}",
        rank=slowest,
        log_tail=_log_tail(logs, slowest),
    )


def _death(logs: Path, ended: agent.Exit, rank: int, oom_kills: int) -> tuple[Status, Reason]:
    """A worker that ended without a word: killed, crashed, or never come to speak."""
    if ended.code == merge.CANNOT_WRITE:
        message = f"rank {rank} could not write its result into {logs}; is the disk full?"
        return "error", Reason(phase="teardown", kind="disk", message=message, rank=rank)
    by_signal = -ended.code in set(signal.Signals)
    kind = f"signal {signal.Signals(-ended.code).name}" if by_signal else f"exit {ended.code}"
    out_of_memory = oom_kills > 0 and -ended.code == signal.SIGKILL
    message = f"rank {rank} ended by {kind}" + (": the kernel's out-of-memory killer" if out_of_memory else "")
    phase = ended.pulses[rank].phase if rank < len(ended.pulses) else "start"
    reason = Reason(phase=phase, kind=kind, message=message, rank=rank, log_tail=_log_tail(logs, rank))
    return "oom" if out_of_memory else "error", reason


def _cancelled(interruption: Interrupted, results: list[RankResult]) -> tuple[Status, Reason]:
    name = signal.Signals(interruption.number).name
    return "cancelled", Reason(
        phase=results[0].phases[-1][0] if results else "start", kind=f"signal {name}", message=f"stopped by {name}"
    )


def _log_tail(logs: Path, rank: int) -> list[str]:
    try:
        lines = merge.log_path(logs, rank).read_text(errors="replace").splitlines()
    except OSError:
        return []
    return lines[-_LOG_TAIL_LINES:]
