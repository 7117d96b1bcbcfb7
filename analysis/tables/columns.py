"""What the tables say: numbers, intervals, marks, titles and notes, the same for every format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from analysis.runs.diagnosis import EXPLAINED, Bottleneck, Cause
from analysis.schema import Point, Report
from analysis.statistics.bootstrap import DRAWS, ENOUGH_REPEATS
from analysis.statistics.estimate import Estimate
from analysis.tables.amounts import unknown_energy
from analysis.wording import clean, clean_long, number

TERMINAL_WIDTH = 100
OVERSUBSCRIBED = "oversubscribed"
_MEANINGS = {
    OVERSUBSCRIBED: "oversubscribed: more threads than cores, so workers slow each other down",
    "imitated": "imitated: the CPU has no instructions for bfloat16, and is some hundred times slower with it",
}
"""Of the notes that records make of themselves."""
_MARKS = "†‡§¶"
NO_NUMBER = "-"


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


def estimated(estimate: Estimate | None, factor: float = 1.0) -> Entry:
    """A number with its interval."""
    if estimate is None:
        return Entry(NO_NUMBER)
    text = number(estimate.value * factor)
    if estimate.is_bound:
        return Entry(f"> {text}", estimate.words)
    if estimate.low == estimate.high and not estimate.open_above:
        return Entry(text, estimate.words)  # of one number there is no interval
    low, high = number(estimate.low * factor), "inf" if estimate.open_above else number(estimate.high * factor)
    return Entry(text, f"[{low}, {high}]" + (f", {estimate.words}" if estimate.words else ""))


def value_of(estimate: Estimate | None, factor: float = 1.0) -> Entry:
    """A number without its interval, where there is no room for it."""
    return plain(estimate.value if estimate else None, factor)


def plain(value: float | None, factor: float = 1.0) -> Entry:
    """A number without one."""
    return Entry(NO_NUMBER if value is None else number(value * factor))


BOTTLENECK = "bottleneck"
_BOTTLENECKS: dict[Cause, str] = {"communication": "comm", "stragglers": "slow rank"}


def bottleneck(found: Bottleneck | None) -> Entry:
    """What limits a cell, with its share of the step's time."""
    if found is None:
        return Entry(NO_NUMBER)
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


def repeats(point: Point) -> str:
    """Repeats and the steps of each: `3 x 40`."""
    return f"{point.repeats_ok} x {point.steps}" if point.repeats_ok else "0"


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
        lines.append(f"{len(report.dropped)} of the grid's cells are dropped by the plan: their table says why.")
    if not report.strong and not report.weak:
        lines.append("No scaling series: no two cells differ in the number of workers alone.")
    lines += map(clean_long, unknown_energy(report.cells))
    return lines + [f"Warning: {clean_long(line)}" for line in report.mixed]
