"""From a cell with its records to a point of the report: medians over repeats with their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from analysis.cells.intervals import shortfalls, step_time
from analysis.cells.measures import estimate_of
from analysis.cells.profiles import ranks_of
from analysis.runs import metrics, oddities
from analysis.runs.diagnosis import Bottleneck, diagnose
from analysis.runs.load import Cell, Run
from analysis.runs.measured import Measured
from analysis.runs.plausible import doubts
from analysis.schema import Point
from analysis.statistics.bootstrap import Floats
from analysis.statistics.estimate import Estimate
from benchmarks.core.repeat_target import RepeatTarget
from benchmarks.core.telling import telling_keys
from benchmarks.core.variants import Option

SIZES = ("workers", "global_batch", "batch_per_worker")


@dataclass(kw_only=True)
class Result:
    """A cell with its numbers: the point of the report, and the draws that ratios are made from."""

    cell: Cell
    point: Point
    draws: Floats | None
    """Of the time per step; shape (DRAWS,), seconds. None where no repeat gives a number."""


def setting_keys(configs: Sequence[Mapping[str, Option]]) -> list[str]:
    """The keys in which cells differ, apart from workers and batch sizes."""
    return [key for key in telling_keys(configs) if key not in SIZES]


def result_of(cell: Cell, keys: Sequence[str], target: RepeatTarget | None) -> Result:
    """All numbers of a cell that do not depend on other cells.

    Args:
        cell: With the records of its repeats.
        keys: `setting_keys` of the sweep.
        target: How narrow intervals were to be; None where nobody asked.
    """
    measured = cell.measured()
    failed = Counter(run.status for run in cell.runs if not run.measured)
    missing = len(cell.planned - {run.run_id for run in cell.runs})
    time, draws = step_time(cell) or (None, None)
    epoch_time_s = _known_median([one.epoch_time_s for one in measured])
    cost = _known_median([one.cost_per_million_samples for one in measured])
    point = Point(
        cell_id=cell.cell_id,
        settings={key: cell.config.get(key) for key in keys},
        workers=cell.workers,
        global_batch=cell.global_batch,
        batch_per_worker=cell.batch_per_worker,
        status="ok" if measured else failed.most_common(1)[0][0] if failed else _unmeasured(cell),
        reason=_reason(cell.runs, failed, missing),
        repeats_planned=len(cell.planned | {run.run_id for run in cell.runs}),
        repeats_ok=len(measured),
        failed=dict(sorted(failed.items())),
        repeats_missing=missing,
        steps=min((one.steps for one in measured), default=0),
        step_time_s=time,
        repeat_step_times_s=[one.step_time_s for one in measured],
        step_time_p95_s=_known_median([one.slow_steps_s.get(95) for one in measured]),
        step_time_p99_s=_known_median([one.slow_steps_s.get(99) for one in measured]),
        throughput_samples_per_s=_rate(time, cell.global_batch),
        epoch_time_s=_scaled(time, epoch_time_s / time.value) if epoch_time_s and time else None,
        accuracy=_known_median([one.accuracy for one in measured]),
        straggler_ratio=_known_median([one.straggler_ratio for one in measured]),
        exposed_comm_s=_known_median([one.exposed_comm_s for one in measured]),
        bytes_per_step=_known_median([one.bytes_per_step for one in measured]),
        peak_memory_bytes=_known_median([one.peak_memory_bytes for one in measured]),
        notes=[*sorted(cell.notes), *shortfalls(cell, time, target)],
        bottleneck=_bottleneck(cell, time),
        mfu=_of_throughput([one.physics.mfu for one in measured], time),
        mfu_of_ceiling=_of_throughput([one.physics.mfu_of_ceiling for one in measured], time),
        doubts=doubts([one.physics for one in measured]),
        oddities=oddities.of_cell(
            [one.oddities for one in measured],
            [one.step_time_s for one in measured],
            [one.slowest_rank for one in measured if one.slowest_rank],
        ),
        ceilings=_medians([one.ceilings for one in measured]),
        allreduce_gb_per_s=_known_median([one.allreduce_gb_per_s for one in measured]),
        ledger_s=_medians([one.ledger_s for one in measured]),
        energy_j_per_million_samples=estimate_of(cell, "energy_j_per_million_samples"),
        energy_scope=next((one.energy.scope for one in measured if one.energy.scope), None),
        energy_unknown_because=_no_energy(measured),
        mean_power_w=estimate_of(cell, "mean_power_w"),
        idle_power_w=_known_median([one.energy.idle_w for one in measured]),
        cost_per_million_samples=_scaled(time, cost / time.value) if cost is not None and time else None,
    )
    return Result(cell=cell, point=point, draws=draws)


def _of_throughput(values: Sequence[float | None], time: Estimate | None) -> Estimate | None:
    """The median over repeats; its interval is that of the throughput."""
    value = _known_median(values)
    if value is None or time is None:
        return None
    return Estimate(value=value, low=value * time.value / time.high, high=value * time.value / time.low)


def _bottleneck(cell: Cell, time: Estimate | None) -> Bottleneck | None:
    measured = [run.measured for run in cell.runs if run.measured]
    if time is None:
        return None
    slowest = next((one.slowest for one in measured if one.slowest), None)
    return diagnose([one.waits for one in measured], slowest, ranks_of(cell), time.value)


def _no_energy(measured: Sequence[Measured]) -> str | None:
    if any(one.energy.joules is not None for one in measured):
        return None
    return next((one.energy.unknown_because for one in measured if one.energy.unknown_because), None)


def _unmeasured(cell: Cell) -> str:
    return "profiled" if not cell.planned and any(profile.ranks for profile in cell.profiles) else "planned"


def _known_median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _medians(repeats: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each name over the repeats that have it, in the order in which names come."""
    names = dict.fromkeys(name for repeat in repeats for name in repeat)
    return {name: median(repeat[name] for repeat in repeats if name in repeat) for name in names}


def _reason(runs: Sequence[Run], failed: Counter[str], missing: int) -> str | None:
    """For people: `1 of 3 failed: timeout (hang: rank 1 is silent)`; None where every planned repeat gives a number."""
    total = len(runs) + missing
    parts = []
    for status, number in sorted(failed.items()):
        why = next((run.reason for run in runs if run.status == status and run.reason), None)
        parts.append(f"{number} of {total} failed: {status}" + (f" ({why})" if why else ""))
    if missing and missing < total:
        parts.append(f"{missing} of {total} not run yet")
    return "; ".join(parts) or None


def _scaled(time: Estimate, factor: float) -> Estimate:
    return Estimate(value=time.value * factor, low=time.low * factor, high=time.high * factor)


def _rate(time: Estimate | None, global_batch: int) -> Estimate | None:
    """The throughput that belongs to a time; the ends of the interval change places."""
    if time is None:
        return None
    value, low, high = (metrics.throughput_samples_per_s(t, global_batch) for t in (time.value, time.high, time.low))
    return Estimate(value=value, low=low, high=high)
