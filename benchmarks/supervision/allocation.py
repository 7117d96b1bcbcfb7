"""The Slurm job that this process runs in, if any: its name, and why it was told to end."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from benchmarks.core.folder import CANCEL_NAME
from benchmarks.core.record import Status

_ASK_LIMIT_S = 3.0
_NO_TIME = {"None", "N/A", "Unknown"}


def job() -> str | None:
    """The job as Slurm's commands name it, "123" or "123_4" for a task of an array; None outside Slurm.

    A task's SLURM_JOB_ID will not do: the last one's is the array's, which stands for all of its tasks.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def why_terminated(sweep_folder: Path) -> tuple[Status, str]:
    """What a SIGTERM to this job means, and in words how that is known. Takes _ASK_LIMIT_S at most.

    Without an answer it is `preempted`: the signal that nobody has announced comes from Slurm most often.
    """
    if (sweep_folder / CANCEL_NAME).exists():
        return "cancelled", "the sweep was cancelled"
    fields = _show_job()
    if fields is None:
        return "preempted", "Slurm could not be asked why, and nobody cancelled the sweep"
    if fields.get("PreemptTime", "None") not in _NO_TIME:
        return "preempted", f"Slurm preempted the job at {fields['PreemptTime']}"
    if int(fields.get("Restarts", 0)) > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return "preempted", "Slurm has put the job back into the queue"  # and has forgotten PreemptTime
    if fields.get("Reason") == "TimeLimit":
        return "timeout", f"the allocation's time limit, {fields.get('TimeLimit')}"
    # While a job ends, JobState hides the state it ends in behind COMPLETING; the other causes are excluded by now.
    return "cancelled", f"the job or its step was cancelled (Slurm: {fields.get('JobState', 'state unknown')})"


def _show_job() -> dict[str, str] | None:
    try:
        shown = subprocess.run(
            ["scontrol", "-o", "show", "job", job() or ""], capture_output=True, text=True, timeout=_ASK_LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    fields = dict(re.findall(r"(?:^|\s)([\w/:&]+)=(\S*)", shown.stdout))
    return fields if shown.returncode == 0 and "JobState" in fields else None
