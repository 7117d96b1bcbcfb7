"""Read a sweep's folder: what was planned, and of every record the few numbers that its cell needs.

Raw series are not kept: a record shrinks to its time per step and the resampled means of its steps, so memory stays
bounded and time grows linearly with the number of records.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from analysis import energy, metrics, oddities
from analysis.course import Epoch, course
from analysis.diagnosis import Waits, slowest_in_words, waits_of
from analysis.energy import Spent
from analysis.oddities import Oddity, Slowest
from analysis.origins import origin_of
from analysis.plausible import Physics, physics_of
from analysis.statistics import Floats, step_factors
from benchmarks.config import flatten
from benchmarks.errors import UserError
from benchmarks.folder import MANIFEST_NAME, NO_SWEEP, Manifest, SweepFolder, record_files, sweep_files
from benchmarks.profile import RankProfile
from benchmarks.record import Memory, Record, RecordError, read_record
from benchmarks.variants import Option

MANIFEST_VERSION = 1


@dataclass(kw_only=True, slots=True)
class Measured:
    """The numbers of one `ok` run."""

    step_time_s: float
    factors: Floats
    steps: int
    slow_steps_s: dict[int, float]
    """Percentiles of single steps' times, by the percentage; see `metrics.slow_steps_s`."""
    epoch_time_s: float | None
    accuracy: float | None
    straggler_ratio: float | None
    exposed_comm_s: float | None
    bytes_per_step: int | None
    peak_memory_bytes: int | None
    allreduce_gb_per_s: float | None = None
    loading_gb_per_s: float | None = None
    server_busy_fraction: float | None = None
    """Of the busiest parameter server's time in the window."""
    course: list[Epoch] = field(default_factory=list)
    ledger_s: dict[str, float] = field(default_factory=dict)
    """The whole run's seconds by phase, in order."""
    ceilings: dict[str, float] = field(default_factory=dict)
    """As in the record; empty where they were not asked for."""
    waits: Waits
    slowest: str | None
    """Which rank, and how much slower than the others; in words."""
    oddities: list[Oddity]
    slowest_rank: Slowest | None
    physics: Physics
    energy: Spent
    cost_per_million_samples: float | None
    """In the cluster's currency; None without a price."""
    wall_time_s: float
    """Of the window, as the samples."""
    samples: int


@dataclass(kw_only=True, slots=True)
class Run:
    """One record. `measured` is None where the run gives no number, and then `status` is not `ok`."""

    run_id: str
    repeat: int
    status: str
    reason: str | None
    measured: Measured | None
    origin: dict[str, str]
    """What it was made with; see `analysis.origins`."""
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


def read_entry(path: Path) -> Entry:
    """Read one record. Raises RecordError or ValueError where it cannot be read, or contradicts itself."""
    record = read_record(path)
    cell = _cell(record.cell_id, record.config)
    if record.workers != cell.workers:
        raise ValueError(f"workers={record.workers}, but {cell.workers} in its configuration")
    run = _run(record)
    ranks = record.profile if run.status == "profiled" else []
    return Entry(cell=cell, run=run, ranks=ranks if record.config.get("profile") else None, notes=record.notes)


def load_cells(folder: Path, read: Callable[[Path], Entry] = read_entry) -> Loaded:
    """Read a sweep's manifest and all its records.

    Files that cannot be read are named in `problems`; the rest counts.

    Args:
        folder: the sweep's.
        read: how a record is read.

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


def _read_records(loaded: Loaded, cells: dict[str, Cell], read: Callable[[Path], Entry]) -> None:
    seen: dict[str, Path] = {}
    for path in record_files(loaded.folder):
        try:
            entry = read(path)
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
    measured = None
    if status == "ok":
        defect = _defect(record)
        measured = None if defect else _measure(record)
        status, reason = ("invalid", defect) if defect else (status, reason)
    return Run(
        run_id=record.run_id,
        repeat=record.repeat,
        status=status,
        reason=reason,
        measured=measured,
        origin=origin_of(record.environment),
        trained=course(record) if record.window else [],
        hosts=frozenset(rank.host for rank in record.ranks),
        epochs=_epochs(record) if status == "ok" else None,
    )


def _defect(record: Record) -> str | None:
    """Why a record that calls itself ok gives no number; None where it does."""
    for check in record.sanity:
        if not check.passed:
            return f"check {check.name} failed: {check.detail}"
    window = record.window
    if window is None or not window.spans:
        return "no timed window"
    samples, wall = sum(span.samples for span in window.spans), sum(span.wall_time_s for span in window.spans)
    steps = sum(span.steps for span in window.spans)
    if samples <= 0 or not (math.isfinite(wall) and wall > 0):
        return f"the window has {samples} samples in {wall} s"
    total = sum(window.step_time_s)
    if len(window.step_time_s) != steps or not (math.isfinite(total) and total > 0):
        return f"the window has {len(window.step_time_s)} step times that sum to {total} s, for {steps} steps"
    if sum(window.samples) != samples:
        return f"the window's steps have {sum(window.samples)} samples, its spans {samples}"
    return None


def _measure(record: Record) -> Measured:
    assert record.window is not None
    spans = record.window.spans
    wall, samples = sum(span.wall_time_s for span in spans), sum(span.samples for span in spans)
    epochs, factors = _epochs(record), step_factors(record.window.step_time_s)
    step_time_s = metrics.step_time_s(wall, samples, record.config["global_batch"])
    return Measured(
        step_time_s=step_time_s,
        factors=factors,
        steps=len(record.window.step_time_s),
        slow_steps_s=metrics.slow_steps_s(record.window.step_time_s),
        epoch_time_s=metrics.epoch_time_s(wall, epochs) if epochs else None,
        accuracy=record.evaluation[-1].accuracy if record.evaluation else None,
        straggler_ratio=metrics.straggler_ratio([rank.own_time_s for rank in record.ranks]),
        exposed_comm_s=fmean(record.window.exposed_comm_s) if record.window.exposed_comm_s else None,
        bytes_per_step=record.communication.bytes_per_step if record.communication else None,
        peak_memory_bytes=_peak_bytes(record.memory) if record.memory else None,
        allreduce_gb_per_s=record.communication.allreduce_gb_per_s if record.communication else None,
        loading_gb_per_s=metrics.loading_gb_per_s(
            [rank.loaded_bytes_per_step for rank in record.ranks], record.window.data_wait_s
        ),
        server_busy_fraction=_busiest_server(record.strategy_facts),
        course=course(record),
        waits=waits_of(record),
        slowest=slowest_in_words(record.ranks),
        oddities=[*oddities.of_steps(record.window), *energy.of_clocks(record.energy)],
        slowest_rank=oddities.slowest_of(record.ranks),
        physics=physics_of(record, factors),
        ledger_s=record.ledger,
        ceilings={name: rate for name, rate in (record.ceilings or {}).items() if rate is not None},
        energy=energy.spent(record),
        cost_per_million_samples=_cost(record, step_time_s),
        wall_time_s=wall,
        samples=samples,
    )


def _cost(record: Record, step_time_s: float) -> float | None:
    price, batch = record.config["cluster"].get("price_per_worker_hour"), record.config["global_batch"]
    if not isinstance(price, (int, float)):
        return None
    return metrics.cost_per_million_samples(step_time_s, batch, record.workers, price)


def _epochs(record: Record) -> int | None:
    """Those that were trained, which a target may have made fewer than were asked for."""
    epochs = record.stopped_after_epochs or record.config.get("epochs")
    return epochs if type(epochs) is int and epochs > 0 else None


def _busiest_server(facts: Mapping[str, Any]) -> float | None:
    return max((float(server["busy_fraction"]) for server in facts.get("servers") or ()), default=None)


def _peak_bytes(memory: Memory) -> int:
    return memory.peak_host_bytes if memory.peak_device_bytes is None else memory.peak_device_bytes
