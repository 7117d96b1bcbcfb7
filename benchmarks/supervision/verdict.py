"""Why a run ended as it did: from what the watch did, what the workers said, and how they died."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core.record import Check, Reason, Status
from benchmarks.supervision import agent, allocation, merge
from benchmarks.supervision.merge import RankResult
from benchmarks.supervision.team import Word
from benchmarks.supervision.watch import Ending

_LOG_TAIL_LINES = 20
_FORKED_FROM_NOBODY = 255
"""What `multiprocessing` says of a process whose fork server is gone. The out-of-memory killer takes it next where the
worker that it has killed is slow to let go of its memory."""


def of_node(logs: Path, ended: agent.Exit, results: Sequence[RankResult], oom_kills: int) -> Word:
    """How this node's workers ended; `results` are those that they left."""
    if ended.ended_by_watch:
        return Word(status="timeout", reason=_timeout(logs, ended, ended.ended_by_watch))
    failed = [result for result in results if result.failure]
    # A worker that lost its peer fails too; the cause is the worker that failed otherwise, or died without a word.
    causes = [result for result in failed if result.failure and result.failure.status != "comm_error"]
    silent = ended.rank is not None and ended.rank not in {result.rank for result in results}
    if causes or (failed and not silent):
        result = (causes or failed)[0]
        failure = result.failure
        assert failure
        return Word(
            status=failure.status,
            reason=Reason(
                phase=failure.phase,
                kind=failure.kind,
                message=failure.message,
                rank=result.rank,
                log_tail=_log_tail(logs, result.rank),
            ),
        )
    if ended.rank is not None:
        return _death(logs, ended, ended.rank, oom_kills)
    return Word(status="ok")


def of_interruption(number: int, sweep_folder: Path, phase: str) -> Word:
    """Somebody asked the run to stop with this signal: a person, or Slurm."""
    name = signal.Signals(number).name
    status: Status = "cancelled"
    message = f"stopped by {name}"
    if number == signal.SIGTERM and allocation.job():
        status, why = allocation.why_terminated(sweep_folder)
        message = f"{message}: {why}"
    return Word(status=status, reason=Reason(phase=phase, kind=f"signal {name}", message=message))


def of_accident(error: Exception) -> Word:
    """The supervisor itself failed: no worker could be started, or the agent broke."""
    lines = traceback.format_exception(error)
    reason = Reason(
        phase="start",
        kind=type(error).__name__,
        message=f"the supervisor failed: {error}".splitlines()[0],
        log_tail="".join(lines).splitlines()[-_LOG_TAIL_LINES:],
    )
    return Word(status="error", reason=reason)


def of_run(words: Sequence[Word], checks: Sequence[Check], well: Status = "ok") -> Word:
    """The run's state: the first node's that is a cause and no echo, that of the first check that failed, or `well`."""
    causes = [word for word in words if word.status not in ("ok", "comm_error")]
    echoes = [word for word in words if word.status == "comm_error"]
    if causes or echoes:
        return (causes or echoes)[0]
    for check in checks:
        if not check.passed:
            status: Status = "diverged" if check.name == "finite_loss" else "invalid"
            return Word(status=status, reason=Reason(phase="checks", kind=check.name, message=check.detail))
    return Word(status=well)


def _timeout(logs: Path, ended: agent.Exit, ending: Ending) -> Reason:
    silence = [float("inf") if pulse.age_s is None else pulse.age_s for pulse in ended.pulses]
    slowest = silence.index(max(silence))
    pulse, rank = ended.pulses[slowest], ended.ranks[slowest] if ended.ranks else slowest
    return Reason(
        phase=pulse.phase,
        kind=ending.kind,
        message=f"{ending.message}; rank {rank} was in {pulse.phase}, step {pulse.step} of {pulse.steps}",
        rank=rank,
        log_tail=_log_tail(logs, rank),
    )


def _death(logs: Path, ended: agent.Exit, rank: int, oom_kills: int) -> Word:
    """A worker that ended without a word: killed, crashed, or never come to speak."""
    if ended.code == merge.CANNOT_WRITE:
        message = f"rank {rank} could not write its result into {logs}; is the disk full?"
        return Word(status="error", reason=Reason(phase="teardown", kind="disk", message=message, rank=rank))
    phase = ended.pulses[ended.ranks.index(rank)].phase if rank in ended.ranks else "start"
    if -ended.code == signal.SIGTERM and allocation.job():
        # Slurm's signal goes to all processes of the job; this worker's was faster than the supervisor's.
        return of_interruption(signal.SIGTERM, logs.parents[1], phase)
    by_signal = -ended.code in set(signal.Signals)
    kind = f"signal {signal.Signals(-ended.code).name}" if by_signal else f"exit {ended.code}"
    out_of_memory = oom_kills > 0 and ended.code in (-signal.SIGKILL, _FORKED_FROM_NOBODY)
    message = f"rank {rank} ended by {kind}" + (": the kernel's out-of-memory killer" if out_of_memory else "")
    reason = Reason(phase=phase, kind=kind, message=message, rank=rank, log_tail=_log_tail(logs, rank))
    return Word(status="oom" if out_of_memory else "error", reason=reason)


def _log_tail(logs: Path, rank: int) -> list[str]:
    try:
        lines = merge.log_path(logs, rank).read_text(errors="replace").splitlines()
    except OSError:
        return []
    return lines[-_LOG_TAIL_LINES:]
