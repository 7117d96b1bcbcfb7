"""Take a sweep's jobs back: `python -m slurm.cancel [DIR]`, or `make cancel`. Results stay."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core.errors import UserError, told
from benchmarks.core.folder import CANCEL_NAME, SweepFolder, newest_sweep
from slurm import commands
from slurm.state import look
from slurm.submit import settle

_LOCK_PATIENCE_S = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m slurm.cancel", description="Cancel a sweep's jobs; results stay.")
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="a sweep's folder; default: the newest")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="the folder of all results (results)"
    )
    options = parser.parse_args(arguments)
    try:
        folder = SweepFolder(options.dir or newest_sweep(options.results))
        count = cancel(folder)
    except (UserError, OSError) as error:
        line, code = told(error)
        sys.stderr.write(f"error: {line}\n")
        return code
    sys.stdout.write(f"{count} runs cancelled; the same `make sweep` submits them again\n")
    return 0


def cancel(folder: SweepFolder) -> int:
    """Cancel all jobs of a sweep that have not ended; returns how many runs that are.

    Raises:
        UserError: no sweep there, or Slurm refuses.
    """
    look(folder)  # before anything is written: is it a sweep at all?
    with folder.lock(_LOCK_PATIENCE_S):
        settle(folder)
        state = look(folder)
        jobs = [run.job for run in state.runs if run.run_id in state.in_flight and run.job]
        if jobs:
            # A supervisor that cannot ask Slurm tells by this file that people, not Slurm, have stopped it.
            (folder.path / CANCEL_NAME).touch()
            commands.cancel(_whole_arrays(jobs))
            folder.note("cancelling", jobs=jobs)
    return len(jobs)


def _whole_arrays(jobs: Sequence[str]) -> list[str]:
    """Arrays by their own id: ended tasks do not mind, and thousands of ids become a few."""
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


if __name__ == "__main__":
    sys.exit(main())
