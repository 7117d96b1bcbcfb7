"""What runs in a job: a supervisor on each of its nodes. Plain data comes in, nothing but a record goes out."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec

JOB_START = "SCALEBENCH_JOB_START"
"""The variable in which a job's script leaves the moment of its first line, in seconds since 1970."""


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt at a run."""

    config: dict[str, Any]
    """`RunConfig.as_dict()`."""
    folder: str
    """The run's, which all nodes see."""
    attempt: int
    minutes: int
    """What the job asked Slurm for."""


def run(payload: dict[str, Any]) -> None:
    """The entry point that submitit calls.

    Raises:
        SystemExit: the run did not end well; so Slurm shows the job as failed, too.
    """
    started_s = time.time()
    signal.signal(signal.SIGUSR2, lambda *_: None)  # submitit's own handler would have Slurm requeue the job

    # Here, not above: the login node reads this module, and need not have torch.
    from benchmarks.core.config import RunConfig
    from benchmarks.core.folder import SweepFolder
    from benchmarks.core.record import WELL
    from benchmarks.supervision.interruption import Interrupted
    from benchmarks.supervision.launch_times import before_supervisor
    from benchmarks.supervision.supervisor import supervise
    from benchmarks.supervision.team import team_here

    order = msgspec.convert(payload, Payload)
    folder = Path(order.folder)
    # A job that somebody has put back into the queue finds the record that its first try has left.
    earlier = SweepFolder(folder.parent).head(folder.name)
    try:
        record = supervise(
            RunConfig.from_mapping(order.config),
            folder,
            max(order.attempt, earlier.attempt + 1 if earlier else 1),
            team_here(),
            ends_at_s=_ends_at_s(started_s, order.minutes),
            before=before_supervisor(os.environ.get(JOB_START)),
        )
    except Interrupted as stop:
        raise SystemExit(128 + stop.number) from None
    if record is not None and record.status not in WELL:
        raise SystemExit(1)


def _ends_at_s(started_s: float, minutes: int) -> float:
    """When Slurm will end the job, in seconds since 1970: newer versions say it, for others it is reckoned."""
    said = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(said) if said.isdigit() else started_s + 60 * minutes
