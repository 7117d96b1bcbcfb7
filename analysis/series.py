"""From cells to series: who is compared with whom, the ratios with their intervals, and the whole report."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from analysis.cells.fits import fit
from analysis.cells.point import SIZES, Result, result_of, setting_keys
from analysis.cells.profiles import profile_rows
from analysis.cells.target import currency, price_per_worker_s
from analysis.runs import metrics, oddities
from analysis.runs.load import Cell, Loaded
from analysis.runs.oddities import Oddity
from analysis.runs.origins import mixed, origins
from analysis.runs.plausible import ABOVE_IDEAL
from analysis.schema import Base, Counts, DroppedCell, Kind, Point, Report, ScalingPoint, Series
from analysis.statistics.bootstrap import estimate
from analysis.statistics.estimate import Estimate
from analysis.study.build import build_study
from analysis.study.search import build_search
from benchmarks.core.errors import UserError
from benchmarks.core.sweep import FIXED_BATCH
from benchmarks.core.telling import is_part_of_cell
from benchmarks.core.variants import VARIANT_AXES, Option

_MOST_FITS = 100
"""Series of a kind beyond which no laws are fitted: each takes some hundredths of a second."""
_ROUNDING = 1e-9
"""Ratios that exceed the ideal by less are rounding, not super-linear."""


class InvariantError(UserError):
    """Cells that cannot be compared: what must be the same in all of them is not."""


def build_report(loaded: Loaded) -> Report:
    """All numbers of a sweep."""
    keys = setting_keys([cell.config for cell in loaded.cells])
    if "nodes" not in keys:
        for cell in loaded.cells:  # more workers take more nodes: what follows from their number is no setting
            cell.config.pop("nodes", None)
    manifest = loaded.manifest
    target = manifest.repeat_target if manifest else None
    results = sorted((result_of(cell, keys, target) for cell in loaded.cells), key=lambda result: _order(result.point))
    problems = list(loaded.problems)
    strong, weak = (_all_series(kind, results, problems) for kind in ("strong", "weak"))
    inside = {point.cell_id for series in [*strong, *weak] for point in series.points}
    return Report(
        sweep=manifest.sweep if manifest else loaded.folder.resolve().name,
        cluster=manifest.cluster if manifest else loaded.folder.resolve().parent.name,
        question=manifest.question if manifest else "",
        folder=str(loaded.folder),
        runs=_counts(loaded),
        setting_keys=keys,
        strong=strong,
        weak=weak,
        cells=[result.point for result in results],
        outside_series=[result.point.cell_id for result in results if result.point.cell_id not in inside],
        study=build_study(
            manifest.figure if manifest else [], [result.cell for result in results], problems, loaded.folder
        ),
        profiles=profile_rows(loaded.cells),
        search=build_search(loaded.folder, problems),
        dropped=[DroppedCell(settings=cell.settings, reason=cell.reason) for cell in manifest.dropped]
        if manifest
        else [],
        oddities=_of_hosts(loaded.cells),
        mixed=mixed(loaded.cells),
        origins=origins(loaded.cells),
        currency=currency(loaded.cells) if any(price_per_worker_s(cell) is not None for cell in loaded.cells) else None,
        problems=problems,
    )


def _order(point: Point) -> tuple[object, ...]:
    return (_settings_order(point.settings), point.workers, point.global_batch, point.cell_id)


def _settings_order(settings: Mapping[str, Option]) -> tuple[tuple[float, str], ...]:
    """Numbers by size, then texts by letter; null and true among the texts."""
    return tuple(
        (float(value), "")
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        else (math.inf, str(value))
        for value in settings.values()
    )


def _of_hosts(cells: Sequence[Cell]) -> list[Oddity]:
    measured = [run.measured for cell in cells for run in cell.runs if run.measured]
    found = oddities.of_hosts([one.slowest_rank for one in measured if one.slowest_rank])
    return [found] if found else []


def _all_series(kind: Kind, results: Sequence[Result], problems: list[str]) -> list[Series]:
    """Every set of cells that differ in the number of workers only, where at least two numbers are planned."""
    groups: dict[object, list[Result]] = defaultdict(list)
    for result in results:
        groups[_key(kind, result.cell)].append(result)
    found = []
    for group in groups.values():
        if len({result.cell.workers for result in group}) < 2:
            continue
        try:
            found.append(build_series(kind, group))
        except InvariantError as error:
            problems.append(str(error))
    found.sort(key=lambda series: (_settings_order(series.settings), series.fixed_batch))
    for number, series in enumerate(found, start=1):
        series.number = number
    if len(found) <= _MOST_FITS:
        for series in found:
            series.fit = fit(kind, {point.workers: point.repeat_step_times_s for point in series.points})
    return found


def _key(kind: Kind, cell: Cell) -> tuple[tuple[str, str], ...]:
    """What must be the same in a series: all but the workers and the batch size that follows from them."""
    free = {*SIZES} - {FIXED_BATCH[kind]}
    kept = ((key, repr(value)) for key, value in cell.config.items() if key not in free and is_part_of_cell(key))
    return tuple(sorted(kept))


def check_invariant(kind: Kind, cells: Sequence[Cell]) -> None:
    """Raise InvariantError unless the cells differ in the number of workers only, each number once.

    Strong scaling needs the same global batch, weak scaling the same batch per worker, both all other settings.
    """
    for cell in cells:
        if cell.global_batch != cell.batch_per_worker * cell.workers:
            raise InvariantError(
                f"cell {cell.cell_id}: global_batch={cell.global_batch} is not batch_per_worker x workers "
                f"= {cell.batch_per_worker} x {cell.workers}"
            )
        if getattr(cell, FIXED_BATCH[kind]) != getattr(cells[0], FIXED_BATCH[kind]):
            raise InvariantError(
                f"cell {cell.cell_id}: {kind} scaling needs the same {FIXED_BATCH[kind]} in all cells, "
                f"not {getattr(cells[0], FIXED_BATCH[kind])} and {getattr(cell, FIXED_BATCH[kind])}"
            )
        if differing := sorted(set(_key(kind, cell)) ^ set(_key(kind, cells[0]))):
            raise InvariantError(f"cell {cell.cell_id}: {kind} scaling needs the same {differing[0][0]} in all cells")
    numbers = Counter(cell.workers for cell in cells)
    if twice := [cell.cell_id for cell in cells if numbers[cell.workers] > 1]:
        raise InvariantError(f"cells {' and '.join(twice[:2])}: the same point of one {kind} series; neither is taken")


def build_series(kind: Kind, results: Sequence[Result]) -> Series:
    """One series from its cells, in any order. Raises InvariantError where they do not belong together."""
    check_invariant(kind, [result.cell for result in results])
    ordered = sorted(results, key=lambda result: result.cell.workers)
    first = ordered[0]
    base = next((result for result in ordered if result.draws is not None), None)
    fixed_batch = getattr(first.cell, FIXED_BATCH[kind])
    return Series(
        kind=kind,
        number=0,
        label=_label(first, kind, fixed_batch),
        settings=first.point.settings,
        group=str(first.cell.config.get("workload")),
        fixed_batch=fixed_batch,
        base=_base(base),
        points=[_scaling_point(kind, result, base) for result in ordered],
    )


def _label(result: Result, kind: Kind, fixed_batch: int) -> str:
    shown = {key: result.cell.config.get(key) for key in ("workload", "strategy")} | result.point.settings
    words = [
        str(value) if key in VARIANT_AXES else f"{key}={value}" for key, value in shown.items() if value is not None
    ]
    return f"{' '.join(words)}, {'global batch' if kind == 'strong' else 'batch per worker'} {fixed_batch}"


def _base(result: Result | None) -> Base | None:
    if result is None or result.point.step_time_s is None or result.point.throughput_samples_per_s is None:
        return None
    return Base(
        cell_id=result.cell.cell_id,
        workers=result.cell.workers,
        step_time_s=result.point.step_time_s.value,
        throughput_samples_per_s=result.point.throughput_samples_per_s.value,
    )


def _scaling_point(kind: Kind, result: Result, base: Result | None) -> ScalingPoint:
    fields = {name: getattr(result.point, name) for name in Point.__struct_fields__}
    if base is None or base.draws is None or result.draws is None:
        return ScalingPoint(**fields)
    assert base.point.step_time_s is not None
    assert result.point.step_time_s is not None
    of_base, of_cell = base.point.step_time_s.value, result.point.step_time_s.value
    if result is base:
        itself = Estimate(value=1.0, low=1.0, high=1.0)
        return ScalingPoint(**fields, speedup=itself, efficiency=itself)
    numbers = base.cell.workers, result.cell.workers
    # The draws of two cells are independent, so the ratio of any two carries the noise of both.
    if kind == "strong":
        speedup = estimate(metrics.speedup(of_base, of_cell), metrics.speedup(base.draws, result.draws))
        efficiency = estimate(
            metrics.efficiency(of_base, of_cell, *numbers), metrics.efficiency(base.draws, result.draws, *numbers)
        )
    else:
        efficiency = estimate(
            metrics.weak_efficiency(of_base, of_cell), metrics.weak_efficiency(base.draws, result.draws)
        )
        speedup = estimate(
            metrics.scaled_speedup(of_base, of_cell, *numbers),
            metrics.scaled_speedup(base.draws, result.draws, *numbers),
        )
    above_ideal = efficiency.low > 1 + _ROUNDING
    fields["doubts"] = [*result.point.doubts, *([ABOVE_IDEAL] if above_ideal else [])]
    return ScalingPoint(**fields, speedup=speedup, efficiency=efficiency, above_ideal=above_ideal)


def _counts(loaded: Loaded) -> Counts:
    runs = [run for cell in loaded.cells for run in cell.runs]
    profiles = [profile for cell in loaded.cells for profile in cell.profiles]
    failed = Counter(run.status for run in runs if not run.measured)
    failed.update(profile.status for profile in profiles if not profile.ranks)
    planned: set[str] = set().union(*(cell.planned | cell.profiles_planned for cell in loaded.cells))
    recorded = {run.run_id for run in runs} | {profile.run_id for profile in profiles}
    return Counts(
        planned=len(planned),
        ok=sum(run.measured is not None for run in runs),
        profiled=sum(bool(profile.ranks) for profile in profiles),
        failed=dict(sorted(failed.items())),
        missing=len(planned - recorded),
        unreadable=loaded.unreadable,
    )
