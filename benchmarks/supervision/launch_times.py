"""What a job's time went into before its supervisor began: Slurm's step, the container's start, imports."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

CONTAINER_START = "SCALEBENCH_CONTAINER_START"
"""The variable in which `containers/run.sh` leaves the moment at which it starts the container."""


def before_supervisor(job_start: str | None) -> dict[str, float]:
    """Seconds by phase, in order, from a moment (seconds since 1970) until now.

    `launch`: from the first line of the job's script to the container, or to Python where there is none; `container`:
    until Python begins in it; `imports`: until now. What is not known is left out.
    """
    marks = [("launch", _moment(job_start)), ("container", _moment(os.environ.get(CONTAINER_START)))]
    marks += [("imports", _process_start_s()), ("", time.time())]
    known = [(phase, at_s) for phase, at_s in marks if at_s is not None]
    return {phase: max(0.0, end_s - at_s) for (phase, at_s), (_, end_s) in itertools.pairwise(known)}


def _moment(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _process_start_s() -> float | None:
    """When this process began, to a clock tick (10 ms)."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
    # The 22nd field of stat; the command's name, the 2nd, may hold blanks.
    age_s = uptime_s - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
