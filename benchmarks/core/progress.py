"""Where a run is while it runs: a small file in its folder, for whoever wants to show it. No torch here."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.core.record import replace

PROGRESS_NAME = "progress.json"


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A run's state at one moment. It may be the last one of a run that was killed: see `at`."""

    run_id: str
    attempt: int
    job: str | None
    """Slurm's name of it, "123" or "123_4"; None outside Slurm."""
    host: str
    """Of the leading supervisor, whose workers are seen here; the other nodes' are not."""
    phase: str
    """The one that the slowest worker is in."""
    step: int
    """Steps of the current span that the slowest worker has finished."""
    steps: int
    samples_per_s: float | None
    """Of all workers, in the current span so far; None outside the window and before its second step."""
    started_at: str
    """UTC, ISO 8601, as is `at`."""
    at: str


def write_progress(folder: Path, progress: Progress) -> None:
    """Put it in place of the last one. Raises OSError where the folder cannot be written."""
    replace(folder / PROGRESS_NAME, msgspec.json.encode(progress))


def read_progress(folder: Path) -> Progress | None:
    """What was last written; None where there is nothing that can be read."""
    try:
        return msgspec.json.decode((folder / PROGRESS_NAME).read_bytes(), type=Progress)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
