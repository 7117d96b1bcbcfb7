"""The tables of cells: those of a series with their ratios, and those outside any series."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.schema import Kind, Point, Report, Series
from analysis.statistics.estimate import Estimate
from analysis.tables.amounts import amount_notes, amounts
from analysis.tables.columns import (
    BOTTLENECK,
    NO_NUMBER,
    Entry,
    Marks,
    TextTable,
    bottleneck,
    bottleneck_notes,
    estimated,
    interval_notes,
    plain,
    repeats,
    status,
    value_of,
)
from analysis.wording import clean, number
from benchmarks.core.variants import Option


def _ratio(estimate: Estimate | None) -> Entry:
    if estimate is not None and estimate.low == estimate.high == 1.0:
        return Entry("1")
    return estimated(estimate)


_DETAILS = ("p95 [ms]", "exposed [ms]", "sent [MB]", "MFU", "MFU of ceiling")


def _details(point: Point) -> list[Entry]:
    sent = plain(point.bytes_per_step, 1e-6)
    shares = [estimated(point.mfu), estimated(point.mfu_of_ceiling)]
    return [plain(point.step_time_p95_s, 1e3), plain(point.exposed_comm_s, 1e3), sent, *shares]


def _failure(point: Point) -> str:
    workers = f"{point.workers} worker{'s' if point.workers > 1 else ''}"
    return f"{workers}: {clean(point.reason)}" if point.reason else ""


def _settings(settings: dict[str, Option], keys: Sequence[str]) -> list[Entry]:
    return [Entry(NO_NUMBER if settings.get(key) is None else clean(settings[key])) for key in keys]


def base_line(series: Series) -> str:
    """What the ratios refer to, with its absolute value."""
    if series.base is None:
        return "no base yet: nothing of it is measured"
    base = series.base
    smaller = [f"{p.workers}: {p.status}" for p in series.points if p.workers < base.workers]
    return (
        f"base: {base.workers} worker{'s' if base.workers > 1 else ''}, {number(base.step_time_s * 1e3)} ms per step, "
        f"{number(base.throughput_samples_per_s)} samples/s"
        + (f" (without a number: {', '.join(smaller)})" if smaller else "")
    )


def law_line(series: Series) -> str:
    """The series' scaling law in words, with its forecast beyond what was measured; nothing where there is none."""
    law = series.fit
    if law is None or law.model is None:
        return ""
    values = ", ".join(
        f"{name.removesuffix('_s')}={number(value)}{' s' if name.endswith('_s') else ''}"
        for name, value in law.parameters.items()
    )
    ahead = [point for point in law.curve if not point.measured and point.workers > series.points[-1].workers]
    forecasts = [
        f"{point.workers} workers {' '.join(filter(None, estimated(point.step_time_s, 1e3)))} ms" for point in ahead[:1]
    ]
    miss = f", held out {law.held_out.workers} workers: misses by {law.held_out.miss:+.0%}" if law.held_out else ""
    return f"; law: {law.model} ({values}){miss}; forecast: {', '.join(forecasts)}"


_TITLES: dict[Kind, str] = {
    "strong": "Strong scaling: the global batch is fixed, speed-up = T(N0)/T(N), efficiency = speed-up x N0/N",
    "weak": "Weak scaling: the batch per worker is fixed, efficiency = T(N0)/T(N), scaled speed-up = efficiency x N/N0",
}


_KIND_NOTES: dict[Kind, list[str]] = {
    "strong": [],
    "weak": [
        "T is the time per step. With a fixed data set the time per epoch has the scaled speed-up as its speed-up, "
        "since more workers make fewer steps.",
        "A ratio below 1 of weak-scaling times is an efficiency, not a speed-up.",
    ],
}


def _base_notes(report: Report) -> list[str]:
    """What a speed-up of a sweep over strategies must not be taken for."""
    if "strategy" not in report.setting_keys:
        return []
    return [
        "N0 is the same strategy's fewest workers: a strategy that is slow on one worker has an easy base. Against "
        "`single`, compare times."
    ]


def scaling_table(report: Report, kind: Kind) -> TextTable | None:
    """The table of one kind of scaling; None where the sweep has no series of it."""
    found = report.strong if kind == "strong" else report.weak
    if not found:
        return None
    points = [point for series in found for point in series.points]
    has_epochs = any(point.epoch_time_s for point in points)
    spent = amounts(points, report.currency)
    marks = Marks()
    rows = []
    for series in found:
        for point in series.points:
            batches = [Entry(str(point.global_batch)), Entry(str(point.batch_per_worker))]
            rows.append(
                [Entry(str(series.number)), *_settings(point.settings, report.setting_keys)]
                + [Entry(f"{point.workers}{marks.of(point)}"), *batches, Entry(repeats(point))]
                + [estimated(point.step_time_s, 1e3), estimated(point.throughput_samples_per_s)]
                + ([estimated(point.epoch_time_s)] if has_epochs else [])
                + [_ratio(point.speedup), _ratio(point.efficiency)]
                + [plain(point.accuracy), plain(point.straggler_ratio), *_details(point)]
                + [estimated(amount.of(point), amount.factor) for amount in spent]
                + [bottleneck(point.bottleneck), Entry(status(point))]
            )
    header = ["series", *map(clean, report.setting_keys), "workers", "global batch", "batch per worker", "n"]
    header += ["step [ms]", "samples/s", *(["epoch [s]"] if has_epochs else [])]
    header += ["speed-up" if kind == "strong" else "scaled speed-up", "efficiency", "accuracy", "straggler"]
    header += [*_DETAILS, *(amount.header for amount in spent), BOTTLENECK, "status"]
    return TextTable(
        name=kind,
        title=_TITLES[kind],
        header=header,
        rows=rows,
        sections=[
            (
                f"series {series.number}: {clean(series.label)}; {base_line(series)}{law_line(series)}",
                len(series.points),
            )
            for series in found
        ],
        failures=[_failure(point) for point in points],
        notes=[
            *marks.lines(),
            *_KIND_NOTES[kind],
            *_base_notes(report),
            *bottleneck_notes(points),
            *amount_notes(points, report.currency),
            *interval_notes(points),
        ],
        hidden_in_terminal=frozenset(
            {"series", *map(clean, report.setting_keys), "batch per worker", "global batch", "epoch [s]", "straggler"}
            | {"accuracy", *_DETAILS, *(amount.header for amount in spent)}
        ),
    )


def cells_table(report: Report) -> TextTable | None:
    """Cells that belong to no series; None where there is none."""
    outside = set(report.outside_series)
    points = [point for point in report.cells if point.cell_id in outside]
    if not points:
        return None
    spent = amounts(points, report.currency)
    marks = Marks()
    rows = [
        [
            *_settings(point.settings, report.setting_keys),
            Entry(f"{point.workers}{marks.of(point)}"),
            Entry(str(point.global_batch)),
            Entry(str(point.batch_per_worker)),
            Entry(repeats(point)),
            estimated(point.step_time_s, 1e3),
            estimated(point.throughput_samples_per_s),
            plain(point.accuracy),
            plain(point.straggler_ratio),
            *_details(point),
            *(value_of(amount.of(point), amount.factor) for amount in spent),
            bottleneck(point.bottleneck),
            Entry(status(point)),
        ]
        for point in points
    ]
    header = [
        *map(clean, report.setting_keys),
        "workers",
        "global batch",
        "batch per worker",
        "n",
        "step [ms]",
        "samples/s",
    ]
    return TextTable(
        name="cells",
        title="Cells outside any series: no other number of workers to compare with",
        header=[*header, "accuracy", "straggler", *_DETAILS, *(one.header for one in spent), BOTTLENECK, "status"],
        rows=rows,
        notes=[
            *marks.lines(),
            *bottleneck_notes(points),
            *amount_notes(points, report.currency),
            *interval_notes(points),
        ],
        hidden_in_terminal=frozenset({"batch per worker", "straggler", *_DETAILS, *(one.header for one in spent[1:])}),
    )
