"""The live state of a sweep: `python -m slurm.status [DIR]`, or `make status`.

Asks Slurm once, settles runs whose job ended without a word, and shows the rest as it is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from benchmarks.core.errors import UserError, told
from benchmarks.core.folder import SweepFolder, newest_sweep
from slurm.reconcile import reconciled
from slurm.state import RunState, SweepState, look

_ORDER = ("ok", "profiled", "running", "submitted", "planned")
_SHOWN = 20
_REFRESH_S = 10.0
_WIDTH_OF_FILES = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        folder = SweepFolder(options.dir or newest_sweep(options.results))
        if options.json:
            sys.stdout.write(
                msgspec.json.format(msgspec.json.encode(as_plain(current(folder))), indent=2).decode() + "\n"
            )
        elif options.watch:
            watch(folder, Console(highlight=False))
        else:
            _console().print(shown(current(folder)))
    except (UserError, OSError) as error:
        line, code = told(error)
        sys.stderr.write(f"error: {line}\n")
        return code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slurm.status", description="The live state of a sweep.")
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="a sweep's folder; default: the newest")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="the folder of all results (results)"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--watch", action="store_true", help=f"stay, and look again every {_REFRESH_S:g} s")
    way.add_argument("--json", action="store_true", help="print everything as JSON, for programs")
    return parser


def current(folder: SweepFolder) -> SweepState:
    """The state now; runs whose job vanished are settled, unless somebody else holds the sweep or may not write it."""
    if folder.manifest() is None:
        return look(folder)  # says so; a folder that is no sweep's gets no lock
    try:
        with folder.lock():
            return reconciled(folder)
    except (UserError, OSError):
        return look(folder)


def watch(folder: SweepFolder, console: Console) -> SweepState:
    """Show the state until all submitted runs have ended; returns the last one."""
    state = current(folder)
    with Live(shown(state), console=console, auto_refresh=False) as live:
        while state.in_flight:
            time.sleep(_REFRESH_S)
            state = current(folder)
            live.update(shown(state), refresh=True)
    return state


def as_plain(state: SweepState) -> dict[str, object]:
    """What `--json` prints: the runs as they are, and what follows from them."""
    runs = [{key: value for key, value in msgspec.to_builtins(run).items() if key != "past"} for run in state.runs]
    return {
        "folder": state.folder,
        "sweep": state.sweep,
        "cluster": state.cluster,
        "counts": state.counts,
        "worker_hours_used": state.worker_hours_used,
        "worker_hours_left": state.worker_hours_left,
        "time_left_s": state.time_left_s,
        "warnings": state.warnings,
        "runs": runs,
    }


def shown(state: SweepState) -> Group:
    """The state for eyes: a line of counts, then what runs, what waits and what failed."""
    counts = state.counts
    others = sorted(name for name in counts if name not in _ORDER)
    line = ", ".join(f"{counts[name]} {name}" for name in (*_ORDER, *others) if name in counts)
    left = state.time_left_s
    parts = [
        Text(f"{state.folder}: {line}", style="bold"),
        Text(
            f"{state.worker_hours_used:.2f} worker-hours used, at most {state.worker_hours_left:.2f} to come"
            + (f", about {_duration(left)} left" if left else "")
        ),
        *(Text(f"warning: {warning}") for warning in state.warnings),
        *_waiting(state.runs),
        *_running(state.runs),
        *_failed(state.runs),
    ]
    return Group(*parts)


def _waiting(runs: Sequence[RunState]) -> list[Text]:
    reasons = Counter(run.reason or "" for run in runs if run.state == "submitted")
    return [Text(f"queued: {count} ({reason})") for reason, count in reasons.most_common()]


def _running(runs: Sequence[RunState]) -> list[Table | Text]:
    running = [run for run in runs if run.state == "running"]
    if not running:
        return []
    table = Table("running", "job", "nodes", "phase", "step", "samples/s", box=None, header_style="bold")
    for run in running[:_SHOWN]:
        table.add_row(
            run.run_id,
            run.job or "",
            run.nodes or "",
            run.reason or "",
            f"{run.step} of {run.steps}" if run.steps else "",
            f"{run.samples_per_s:,.0f}" if run.samples_per_s else "",
        )
    return [table, *_more(len(running))]


def _failed(runs: Sequence[RunState]) -> list[Text]:
    failed = [run for run in runs if run.state not in _ORDER]
    lines = [Text(f"{run.state}: {run.run_id} (attempt {run.attempt}) {run.reason or ''}") for run in failed[:_SHOWN]]
    return [*lines, *_more(len(failed))]


def _more(count: int) -> list[Text]:
    return [Text(f"... and {count - _SHOWN} more; --json has all")] if count > _SHOWN else []


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_WIDTH_OF_FILES)


if __name__ == "__main__":
    sys.exit(main())
