"""What the tables say: numbers, intervals, marks, titles and notes, the same for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from analysis.amounts import amount_notes, amounts, unknown_energy
from analysis.diagnosis import EXPLAINED, Bottleneck, Cause
from analysis.estimate import Estimate
from analysis.schema import Kind, Point, Report, Series
from analysis.statistics import DRAWS, ENOUGH_REPEATS
from benchmarks.variants import Option

TERMINAL_WIDTH = 100
OVERSUBSCRIBED = "oversubscribed"
_MEANINGS = {
    OVERSUBSCRIBED: "oversubscribed: more threads than cores, so workers slow each other down",
    "imitated": "imitated: the CPU has no instructions for bfloat16, and is some hundred times slower with it",
}
"""Of the notes that records make of themselves."""
_MARKS = "†‡§¶"
_LONGEST_TEXT = 80
_NO_NUMBER = "-"


class Entry(NamedTuple):
    """A table's cell: the main text, and its interval or nothing."""

    text: str
    interval: str = ""


@dataclass(kw_only=True)
class TextTable:
    """A table for people."""

    name: str
    title: str
    header: list[str]
    rows: list[list[Entry]]
    sections: list[tuple[str, int]] = field(default_factory=list)
    """Headings and how many rows follow each; empty for a table in one piece."""
    failures: list[str] = field(default_factory=list)
    """For each row why numbers are missing, or nothing: the terminal has no room for it within the row."""
    notes: list[str] = field(default_factory=list)
    hidden_in_terminal: frozenset[str] = frozenset()
    """Columns that the headings of sections say already, or that there is no room for."""


def number(value: float) -> str:
    """Three significant digits, all digits before the point: 0.886, 18.1, 4103."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:#.3g}"


def clean_long(text: str) -> str:
    """One printable line, however long."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def clean(value: object) -> str:
    """A value as one short line, without the control characters that move cursors and end rows."""
    text = "".join(char if char.isprintable() else " " for char in str(value))
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def estimated(estimate: Estimate | None, factor: float = 1.0) -> Entry:
    """A number with its interval."""
    if estimate is None:
        return Entry(_NO_NUMBER)
    text = number(estimate.value * factor)
    if estimate.is_bound:
        return Entry(f"> {text}", estimate.words)
    if estimate.low == estimate.high and not estimate.open_above:
        return Entry(text, estimate.words)  # of one number there is no interval
    low, high = number(estimate.low * factor), "inf" if estimate.open_above else number(estimate.high * factor)
    return Entry(text, f"[{low}, {high}]" + (f", {estimate.words}" if estimate.words else ""))


def _ratio(estimate: Estimate | None) -> Entry:
    if estimate is not None and estimate.low == estimate.high == 1.0:
        return Entry("1")
    return estimated(estimate)


def value_of(estimate: Estimate | None, factor: float = 1.0) -> Entry:
    """A number without its interval, where there is no room for it."""
    return plain(estimate.value if estimate else None, factor)


def plain(value: float | None, factor: float = 1.0) -> Entry:
    """A number without one."""
    return Entry(_NO_NUMBER if value is None else number(value * factor))


_DETAILS = ("p95 [ms]", "exposed [ms]", "sent [MB]", "MFU", "MFU of ceiling")


def _details(point: Point) -> list[Entry]:
    sent = plain(point.bytes_per_step, 1e-6)
    shares = [estimated(point.mfu), estimated(point.mfu_of_ceiling)]
    return [plain(point.step_time_p95_s, 1e3), plain(point.exposed_comm_s, 1e3), sent, *shares]


BOTTLENECK = "bottleneck"
_BOTTLENECKS: dict[Cause, str] = {"communication": "comm", "stragglers": "slow rank"}


def bottleneck(found: Bottleneck | None) -> Entry:
    """What limits a cell, with its share of the step's time."""
    if found is None:
        return Entry(_NO_NUMBER)
    if found.name == "unknown" or found.share is None:
        return Entry("unknown")
    return Entry(_BOTTLENECKS.get(found.name, found.name), f"{found.share:.0%}")


def bottleneck_notes(points: Sequence[Point]) -> list[str]:
    """What the column means; nothing where no point has a bottleneck."""
    return [EXPLAINED] if any(point.bottleneck for point in points) else []


class Marks:
    """Footnotes of one table: the same note has the same mark; each is explained once."""

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}

    def of(self, point: Point) -> str:
        """The marks of a point, to be put after its number of workers."""
        notes = [*map(clean, point.notes), *point.doubts]
        marks = ""
        for note in notes:
            known = len(self._notes)
            marks += self._notes.setdefault(note, _MARKS[known] if known < len(_MARKS) else f"({known + 1})")
        return f" {marks}" if marks else ""

    def lines(self) -> list[str]:
        """One line for each mark."""
        return [f"{mark} {_MEANINGS.get(note, note)}" for note, mark in self._notes.items()]


def status(point: Point) -> str:
    """The state, and why numbers are missing."""
    return f"{point.status}: {clean(point.reason)}" if point.reason else point.status


def _failure(point: Point) -> str:
    workers = f"{point.workers} worker{'s' if point.workers > 1 else ''}"
    return f"{workers}: {clean(point.reason)}" if point.reason else ""


def repeats(point: Point) -> str:
    """Repeats and the steps of each: `3 x 40`."""
    return f"{point.repeats_ok} x {point.steps}" if point.repeats_ok else "0"


def _settings(settings: dict[str, Option], keys: Sequence[str]) -> list[Entry]:
    return [Entry(_NO_NUMBER if settings.get(key) is None else clean(settings[key])) for key in keys]


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
            *bottleneck_notes(points),
            *amount_notes(points, report.currency),
            *interval_notes(points),
        ],
        hidden_in_terminal=frozenset(
            {"series", *map(clean, report.setting_keys), "batch per worker", "global batch", "epoch [s]", "straggler"}
            | {"accuracy", *_DETAILS, *(amount.header for amount in spent)}
        ),
    )


def interval_notes(points: Sequence[Point]) -> list[str]:
    """What n and the intervals mean for these points."""
    measured = [point.repeats_ok for point in points if point.repeats_ok]
    if not measured:
        return []
    notes = [
        "n: repeats x steps of each. Medians over repeats; [ ]: 95 % interval by hierarchical bootstrap "
        f"({DRAWS} draws, repeats, then steps); ratios carry the base's noise too."
    ]
    if any(point.step_time_p95_s for point in points):
        notes.append("p95: of twenty single steps, each timed on its slowest rank, one takes longer than this.")
    if min(measured) == 1:
        notes.append("With one repeat the interval holds only the noise between steps, not that between runs.")
    few = {n for n in measured if 1 < n < ENOUGH_REPEATS}
    if few:
        covered = ", ".join(f"{100 * (1 - 2 ** (1 - n)):.0f} % with {n}" for n in sorted(few))
        notes.append(
            f"Fewer than {ENOUGH_REPEATS} repeats: the interval hardly reaches beyond the repeats seen and covers the "
            f"true median in about {covered} repeats, not 95 %."
        )
    return notes


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


def dropped_table(report: Report) -> TextTable | None:
    """Points of the grid that the sweep does not run; None where there is none."""
    if not report.dropped:
        return None
    rows = [
        [Entry(clean(", ".join(f"{key}={value}" for key, value in cell.settings.items()))), Entry(clean(cell.reason))]
        for cell in report.dropped
    ]
    return TextTable(name="dropped", title="Dropped: cells that are not run", header=["settings", "reason"], rows=rows)


def summary(report: Report) -> list[str]:
    """What the sweep has and what it lacks, one line each."""
    runs = report.runs
    failed = ", ".join(f"{count} {clean(state)}" for state, count in runs.failed.items())
    parts = [f"{runs.ok} ok", f"{sum(runs.failed.values())} failed{f' ({failed})' if failed else ''}"]
    if runs.profiled:
        parts.insert(1, f"{runs.profiled} profiled")
    if runs.planned:
        parts.append(f"{runs.missing} missing")
    if runs.unreadable:
        parts.append(f"{runs.unreadable} records not readable")
    planned = f"{runs.planned} runs planned" if runs.planned else "What was planned is not known"
    lines = [f"{planned}: {', '.join(parts)}"]
    if runs.missing:
        lines.append("The sweep is not finished: the same command again runs what is missing.")
    if report.dropped:
        lines.append(f"{len(report.dropped)} of the grid's cells dropped by the plan: see the last table.")
    if not report.strong and not report.weak:
        lines.append("No scaling series: no two cells differ in the number of workers alone.")
    lines += map(clean_long, unknown_energy(report.cells))
    return lines + [f"Warning: {clean_long(line)}" for line in report.mixed]
