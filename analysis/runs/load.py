"""Read a sweep's folder: what was planned, and of every record the few numbers that its cell needs.

What is kept of a record is in `analysis/runs/measured.py`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.helpers import count_helpers, helpers
from analysis.runs.course import Epoch, course
from analysis.runs.measured import Measured, defect_of, epochs_of, measure
from analysis.runs.origins import origin_of
from benchmarks.core.config import flatten
from benchmarks.core.errors import UserError
from benchmarks.core.folder import MANIFEST_NAME, NO_SWEEP, Manifest, SweepFolder, record_files, sweep_files
from benchmarks.core.profile import RankProfile
from benchmarks.core.record import Record, RecordError, read_record
from benchmarks.core.variants import Option

MANIFEST_VERSION = 1
_MANY_RECORDS = 2000
"""From here on it pays to start processes that read them; their imports take half a second."""
_RECORDS_AT_ONCE = 50


@dataclass(kw_only=True, slots=True)
class Run:
    """One record. `measured` is None where the run gives no number, and then `status` is not `ok`."""

    run_id: str
    repeat: int
    status: str
    reason: str | None
    measured: Measured | None
    origin: dict[str, str]
    """What it was made with; see `analysis.runs.origins`."""
    trained: list[Epoch] = field(default_factory=list)
    """Also of a run that was cut short, or has diverged: how far it came."""
    hosts: frozenset[str] = frozenset()
    """Where its workers ran."""
    epochs: int | None = None
    """That it trained; None where it counts steps, or did not end by itself."""


@dataclass(kw_only=True, slots=True)
class Profile:
    """The record of a profiled run."""

    run_id: str
    status: str
    reason: str | None
    ranks: list[RankProfile]
    """Empty where it failed."""


@dataclass(kw_only=True, slots=True)
class Cell:
    """One point of the grid with the records of its repeats."""

    cell_id: str
    config: dict[str, Option]
    """Flat, with dotted keys."""
    workers: int
    global_batch: int
    batch_per_worker: int
    planned: set[str] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    profiles_planned: set[str] = field(default_factory=set)
    profiles: list[Profile] = field(default_factory=list)
    """Profiled repeats, which are none of `runs`: they give no times."""
    place: float = math.inf
    """In the order of the sweep's file."""

    def measured(self) -> list[Measured]:
        """The numbers of the repeats that have them."""
        return [run.measured for run in self.runs if run.measured]

    def state(self) -> str:
        """How its repeats ended, in a word or a few: `ok`, `oom`, `planned`, or `ok, but 1 oom, 2 missing`."""
        ended = Counter(run.status for run in self.runs if not run.measured and run.status != "profiled")
        others = [f"{n} {status}" for status, n in ended.items()]
        missing = len(self.planned - {run.run_id for run in self.runs})
        others += [f"{missing} missing"] * bool(missing)
        if self.measured():
            return f"ok, but {', '.join(others)}" if others else "ok"
        if not self.runs:
            return "planned"
        return self.runs[0].status if len(others) == 1 else ", ".join(others)


@dataclass(kw_only=True, slots=True)
class Loaded:
    """A sweep's folder as read."""

    folder: Path
    manifest: Manifest | None
    cells: list[Cell]
    problems: list[str]
    """One line for each file that was skipped."""
    unreadable: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What is kept of one record."""

    cell: Cell
    """As the record's configuration describes it; never counted into, since an entry may be used again."""
    run: Run
    ranks: list[RankProfile] | None
    """Of a profiled run, empty where it failed; None where the run was to be timed."""
    notes: list[str]


Unreadable = RecordError | ValueError


def read_entry(path: Path) -> Entry:
    """Read one record. Raises RecordError or ValueError where it cannot be read, or contradicts itself."""
    record = read_record(path)
    cell = _cell(record.cell_id, record.config)
    if record.workers != cell.workers:
        raise ValueError(f"workers={record.workers}, but {cell.workers} in its configuration")
    run = _run(record)
    ranks = record.profile if run.status == "profiled" else []
    return Entry(cell=cell, run=run, ranks=ranks if record.config.get("profile") else None, notes=record.notes)


def read_entries(paths: Sequence[Path], then: Callable[[], None] | None = None) -> Iterator[Entry | Unreadable]:
    """Read records, in order: of each what is kept, or why it cannot be read.

    Args:
        paths: the records'.
        then: what each helper does after reading, where there are any.
    """
    helping = count_helpers() if len(paths) >= _MANY_RECORDS else 0
    shared = len(paths) * helping // (helping + 1)
    entries = helpers().map(_tried, paths[:shared], chunksize=_RECORDS_AT_ONCE) if helping else ()
    if then:
        for _ in range(helping):
            helpers().submit(then)
    own = [*map(_tried, paths[shared:])]
    yield from entries
    yield from own


def _tried(path: Path) -> Entry | Unreadable:
    try:
        return read_entry(path)
    except (RecordError, ValueError) as error:
        return error


Read = Callable[[Sequence[Path]], Iterable[Entry | Unreadable]]
"""How records are read: as `read_entries`."""


def load_cells(folder: Path, read: Read = read_entries) -> Loaded:
    """Read a sweep's manifest and all its records.

    Files that cannot be read are named in `problems`; the rest counts.

    Args:
        folder: the sweep's.
        read: how records are read.

    Raises:
        UserError: no such folder, or neither a manifest nor a record in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {NO_SWEEP}")
    if next(sweep_files(folder), None) is None:
        inside = sorted({path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{MANIFEST_NAME}")})
        hint = f"did you mean {', '.join(map(str, inside[:3]))}?" if inside else NO_SWEEP
        raise UserError(f"{folder}: neither a manifest nor a record in this folder; {hint}")
    loaded = Loaded(folder=folder, manifest=None, cells=[], problems=[], unreadable=0)
    cells: dict[str, Cell] = {}
    _read_manifest(loaded, cells)
    _read_records(loaded, cells, read)
    for cell in cells.values():
        cell.runs.sort(key=lambda run: (run.repeat, run.run_id))
    loaded.cells = list(cells.values())
    return loaded


def _read_manifest(loaded: Loaded, cells: dict[str, Cell]) -> None:
    manifest = SweepFolder(loaded.folder).manifest()
    path = loaded.folder / MANIFEST_NAME
    if manifest is None or manifest.schema_version != MANIFEST_VERSION:
        what = (
            "not there"
            if not path.exists()
            else f"schema version {manifest.schema_version}"
            if manifest
            else "not readable"
        )
        loaded.problems.append(f"{path}: {what}; what was planned and dropped is not known")
        return
    loaded.manifest = manifest
    for run in manifest.runs:
        try:
            cell = cells.get(run.cell_id) or cells.setdefault(run.cell_id, _cell(run.cell_id, run.config))
        except ValueError as error:
            loaded.problems.append(f"{path}: run {run.run_id}: {error}")
            continue
        (cell.profiles_planned if run.config.get("profile") else cell.planned).add(run.run_id)
        cell.place = min(cell.place, run.place)


def _read_records(loaded: Loaded, cells: dict[str, Cell], read: Read) -> None:
    seen: dict[str, Path] = {}
    paths = list(record_files(loaded.folder))
    for path, entry in zip(paths, read(paths), strict=True):
        try:
            if not isinstance(entry, Entry):
                raise entry
            run, own = entry.run, entry.cell
            if run.run_id in seen:
                raise ValueError(f"{path}: the same run as {seen[run.run_id]}")
            cell = cells.get(own.cell_id) or _without_runs(own)
            _check_same_point(own, cell)
        except (RecordError, ValueError) as error:
            text = str(error)
            loaded.problems.append(text if text.startswith(str(path)) else f"{path}: {text}")
            loaded.unreadable += 1
            continue
        seen[run.run_id] = path
        cells.setdefault(own.cell_id, cell)
        if entry.ranks is not None:
            cell.profiles.append(Profile(run_id=run.run_id, status=run.status, reason=run.reason, ranks=entry.ranks))
            continue
        cell.runs.append(run)
        if run.measured:
            cell.notes.update(entry.notes)


def _cell(cell_id: str, config: dict[str, Any]) -> Cell:
    """A cell from a canonical configuration. Raises ValueError where that lacks what a cell needs."""
    flat = flatten(config)
    numbers = {key: flat.get(key) for key in ("workers", "global_batch", "batch_per_worker")}
    for key, value in numbers.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"configuration has {key}={value}, not a whole number from 1")
    return Cell(cell_id=cell_id, config=flat, **numbers)  # type: ignore[arg-type]


def _without_runs(cell: Cell) -> Cell:
    """A copy to be counted into."""
    return Cell(
        cell_id=cell.cell_id,
        config=dict(cell.config),
        workers=cell.workers,
        global_batch=cell.global_batch,
        batch_per_worker=cell.batch_per_worker,
    )


def _check_same_point(own: Cell, cell: Cell) -> None:
    """Raise ValueError where a record contradicts the cell that it says it belongs to."""
    if (own.workers, own.global_batch) != (cell.workers, cell.global_batch):
        raise ValueError(
            f"workers={own.workers}, global_batch={own.global_batch}, but its cell {cell.cell_id} has "
            f"workers={cell.workers}, global_batch={cell.global_batch}"
        )


def _run(record: Record) -> Run:
    status: str = record.status
    reason = f"{record.reason.kind}: {record.reason.message}" if record.reason else None
    trained = course(record) if record.window else []
    measured = None
    if status == "ok":
        defect = defect_of(record)
        measured = None if defect else measure(record, trained)
        status, reason = ("invalid", defect) if defect else (status, reason)
    return Run(
        run_id=record.run_id,
        repeat=record.repeat,
        status=status,
        reason=reason,
        measured=measured,
        origin=origin_of(record.environment),
        trained=trained,
        hosts=frozenset(rank.host for rank in record.ranks),
        epochs=epochs_of(record) if status == "ok" else None,
    )
