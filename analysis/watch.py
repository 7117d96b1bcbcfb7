"""A sweep's tables while it runs, drawn again as records come: `python -m analysis.scaling --watch`.

Nothing is read twice: a look asks the file system for the records' times, and only what is new or changed is opened.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.runs.load import Entry, Loaded, Read, Unreadable, load_cells, read_entries
from analysis.schema import Report
from analysis.series import build_report
from benchmarks.core.folder import SweepFolder, sweep_files
from benchmarks.core.progress import PROGRESS_NAME
from benchmarks.core.record import OWN_FAULT, WELL

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_INTERVAL_S = 5.0
_REST = 4
"""A look that took long is followed by a rest that is longer by this factor: watching leaves the machine to others."""
_FRESH_S = 90.0
"""A run that lives writes its progress every few seconds; file systems lag, and nodes' clocks differ."""

Stamp = tuple[int, int, int]
Show = Callable[[str, Report], None]
"""Takes a line that says how far the sweep is, and its tables."""


def look(folder: Path, read: Read = read_entries) -> tuple[Loaded, Report]:
    """A sweep as it is now. Raises UserError where there is none."""
    loaded = load_cells(folder, read)
    return loaded, build_report(loaded)


def watch(folder: Path, console: Console) -> tuple[Loaded, Report]:
    """Show a sweep's tables until every planned run has a record that is kept; returns the last look.

    A record of a failure that may pass is not kept: the same command tries such a run again.
    """
    kept = KeptRecords()
    seen: dict[Path, Stamp] | None = None
    with _on_terminal(console) if console.is_terminal else _in_log(console) as show:
        while True:
            began_s = time.monotonic()
            if (stamps := _stamps(folder)) != seen:
                loaded, report = look(folder, kept)
                seen = stamps
            progress = progress_of(loaded)
            if progress.is_over:
                return loaded, report
            show(f"{time.strftime('%H:%M:%S')}  {progress}", report)
            time.sleep(max(_INTERVAL_S, _REST * (time.monotonic() - began_s)))


class KeptRecords:
    """Reads a record once, and again where its file has changed."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp | None, Entry | Unreadable]] = {}

    def __call__(self, paths: Sequence[Path]) -> list[Entry | Unreadable]:
        """As `read_entries`."""
        stamps = {path: _stamp(path) for path in paths}
        changed = [path for path, stamp in stamps.items() if path not in self._known or self._known[path][0] != stamp]
        for path, entry in zip(changed, read_entries(changed), strict=True):
            self._known[path] = stamps[path], entry
        return [self._known[path][1] for path in paths]


def _stamps(folder: Path) -> dict[Path, Stamp]:
    return {path: stamp for path in sweep_files(folder) if (stamp := _stamp(path))}


def _stamp(path: Path) -> Stamp | None:
    """What changes when a file is written anew; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


@dataclass(frozen=True, kw_only=True)
class WatchProgress:
    """The planned runs, by how far they are."""

    done: int
    running: int
    again: int
    """Failed in a way that may pass."""
    missing: int

    @property
    def is_over(self) -> bool:
        """Nothing is to be waited for."""
        return self.running + self.again + self.missing == 0

    def __str__(self) -> str:
        runs = self.done + self.running + self.again + self.missing
        again = f", {self.again} failed and to be tried again" if self.again else ""
        return f"{self.done} of {runs} runs done, {self.running} running{again}, {self.missing} missing"


def progress_of(loaded: Loaded) -> WatchProgress:
    """How far a sweep is, by its records and by what running runs leave in their folders."""
    planned: set[str] = set().union(*(cell.planned | cell.profiles_planned for cell in loaded.cells))
    ended = {run.run_id: run.status for cell in loaded.cells for run in cell.runs}
    ended |= {profile.run_id: profile.status for cell in loaded.cells for profile in cell.profiles}
    done = {run_id for run_id in planned if ended.get(run_id) in WELL | OWN_FAULT}
    running = _running(loaded.folder, planned - done)
    again = (planned - done - running) & ended.keys()
    missing = planned - done - running - again
    return WatchProgress(done=len(done), running=len(running), again=len(again), missing=len(missing))


def _running(folder: Path, candidates: set[str]) -> set[str]:
    """Those with a recent sign of life; the file is gone when a run ends."""
    sweep = SweepFolder(folder)
    there = {path.name for path in folder.iterdir()}  # one question, where most runs have no folder yet
    now_s = time.time()
    return {
        run_id
        for run_id in candidates & there
        if (stamp := _stamp(sweep.run_folder(run_id) / PROGRESS_NAME)) and abs(now_s - stamp[0] / 1e9) < _FRESH_S
    }


@contextlib.contextmanager
def _on_terminal(console: Console) -> Iterator[Show]:
    """One picture that is drawn over; what stands there when all is over is a line, since the tables follow."""
    from rich.live import Live
    from rich.text import Text

    last: tuple[Report, int, Text] | None = None

    def show(line: str, report: Report) -> None:
        nonlocal last
        if last is None or last[0] is not report or last[1] != console.width:
            last = report, console.width, drawn_tables(report, console)
        live.update(picture(line, last[2], console), refresh=True)

    with Live(Text(), console=console, auto_refresh=False) as live:
        yield show
        live.update(Text("all runs have ended"), refresh=True)


@contextlib.contextmanager
def _in_log(console: Console) -> Iterator[Show]:
    """One picture below the other, each time the numbers have changed."""
    shown: list[Report] = []

    def show(line: str, report: Report) -> None:
        if report not in shown[-1:]:
            shown[:] = [report]
            console.print(line, markup=False)
            console.print(drawn_tables(report, console))

    yield show


def picture(line: str, tables: Text, console: Console) -> Text:
    """The line and as much of the tables as the terminal has room for."""
    from rich.text import Text

    lines = list(tables.split("\n"))
    room = max(1, console.height - 2)  # below the line, and above the cursor
    if len(lines) > room:
        hidden = len(lines) - (room - 1)
        lines[room - 1 :] = [Text(f"... {hidden} lines more than this terminal is high", style="italic")]
    return Text("\n").join([Text(line, style="bold"), *lines])


def drawn_tables(report: Report, console: Console) -> Text:
    """What `print_report` prints there."""
    from rich.console import Console
    from rich.text import Text

    from analysis.tables.formats import print_report

    drawn = Console(
        file=io.StringIO(), width=console.width, highlight=False, force_terminal=console.is_terminal,
        color_system=console.color_system,  # type: ignore[arg-type]
    )  # fmt: skip
    with drawn.capture() as capture:
        print_report(report, drawn)
    return Text.from_ansi(capture.get().rstrip("\n"))
