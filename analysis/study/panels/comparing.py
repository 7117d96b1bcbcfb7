"""Panels that hold cells against each other: bars, stacked parts, and a measure over a setting."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cells.labels import axis_label
from analysis.cells.measures import MEASURES, draws_of, estimate_of, label_of, measure
from analysis.runs.load import Cell
from analysis.statistics.bootstrap import Floats, estimate, interval
from analysis.study.panels import Subject, panel_kind, same_unit
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from analysis.wording import number
from benchmarks.core.errors import ConfigError


def repeats_with_number(cell: Cell) -> int:
    """How many repeats give numbers."""
    return len(cell.measured())


@panel_kind("bars", lambda options: [options["y"]])
def bars(subject: Subject, *, y: str, base: str | None = None, best: bool = False) -> Panel:
    """A bar for each cell, with its interval; beside it the ratio to the cell whose label is `base`."""
    _must_have_a_better_side(y, best)
    lines = subject.lines()
    if base is not None and lines and base not in lines:
        raise ConfigError(f"base={base}: no cell of that label in panel {subject.title}; allowed: {'; '.join(lines)}")
    of_base = draws_of(lines[base][0], y) if base in lines else None
    points = []
    for name, cells in lines.items():
        found = draws_of(cells[0], y)
        if found is None:
            continue
        over = None
        if of_base is not None and name != base and of_base[1].min() > 0:
            over = estimate(found[0] / of_base[0], found[1] / of_base[1])
        points.append(PanelPoint(x=name, y=estimate(*found), n=repeats_with_number(cells[0]), y_over=over))
    return Panel(
        kind="bars",
        mark="bars",
        title=subject.title,
        x_label="",
        y_label=label_of(y, subject.cells),
        series=[PanelSeries(label=label_of(y, subject.cells), points=points)],
        missing=subject.missing(y),
        notes=best_of([cells[0] for cells in lines.values()], list(lines), y) if best else [],
    )


@panel_kind("parts", lambda options: options["parts"])
def parts(subject: Subject, *, parts: list[str]) -> Panel:
    """A bar for each cell, of measures in the same unit that add up."""
    labels = [measure(part).label for part in parts]
    series = []
    for part, name in zip(parts, labels, strict=True):
        found = {key: (cells[0], estimate_of(cells[0], part)) for key, cells in subject.lines().items()}
        points = [
            PanelPoint(x=key, y=value, n=repeats_with_number(cell)) for key, (cell, value) in found.items() if value
        ]
        series.append(PanelSeries(label=name, points=points))
    unit = same_unit(labels)
    return Panel(
        kind="parts",
        mark="stack",
        title=subject.title,
        x_label="",
        y_label=f"time {unit}" if unit == "[s]" else unit,
        series=series,
        missing=subject.missing(*parts),
    )


@panel_kind("over", lambda options: [options["y"]])
def over(subject: Subject, *, x: str, y: str, best: bool = False, log_x: bool = False, log_y: bool = False) -> Panel:
    """A measure over a numeric setting; one line for all cells that differ in it alone."""
    _must_have_a_better_side(y, best)
    lines = subject.lines(x)
    if subject.cells and not any(_number(cell, x) is not None for cell in subject.cells):
        raise ConfigError(f"x={x}: no cell of the panel {subject.title} has a number there; name a numeric setting")
    series, notes = [], []
    for name, cells in lines.items():
        numeric = sorted(
            (cell for cell in cells if _number(cell, x) is not None), key=lambda cell: _number(cell, x) or 0
        )
        points = [
            PanelPoint(x=float(_number(cell, x) or 0), y=value, n=repeats_with_number(cell))
            for cell in numeric
            if (value := estimate_of(cell, y))
        ]
        if not points:
            continue
        series.append(PanelSeries(label=name, points=points))
        if best:
            words = best_of(numeric, [f"{_number(cell, x):g}" for cell in numeric], y)
            notes += [f"{name}: {line}" if len(lines) > 1 else line for line in words]
    return Panel(
        kind="over",
        mark="line",
        title=subject.title,
        x_label=axis_label(x),
        y_label=label_of(y, subject.cells),
        series=series,
        log_x=log_x,
        log_y=log_y,
        missing=subject.missing(y),
        notes=notes,
    )


def _must_have_a_better_side(y: str, best: bool) -> None:
    if best and MEASURES[y].better is None:
        raise ConfigError(f"best=true: neither more nor less of y={y} is better")


def _number(cell: Cell, key: str) -> float | None:
    value = cell.config.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def best_of(cells: Sequence[Cell], names: Sequence[str], name: str) -> list[str]:
    """The best cell by a measure, and those that the measurement cannot tell from it, in a sentence.

    Two cells are told apart where the 95 % interval of their ratio leaves out 1; with one repeat it holds the noise of
    steps only.
    """
    better = MEASURES[name].better
    known = [(label, found) for label, cell in zip(names, cells, strict=True) if (found := draws_of(cell, name))]
    if not known or better is None:
        return []
    pick = min if better == "low" else max
    first, (value, draws) = pick(known, key=lambda item: item[1][0])
    like = []
    for label, (_, other) in known:
        if label != first and not _told_apart(draws, other):
            like.append(label)
    best = f"best: {first} ({number(value)} {MEASURES[name].label.rpartition('[')[2].removesuffix(']')})"
    return [f"{best}, not told apart from {', '.join(like)}" if like else best]


def _told_apart(draws: Floats, others: Floats) -> bool:
    """By their ratio; by their difference where the first may be 0."""
    low, high = interval(others / draws) if draws.min() > 0 else interval(1 + others - draws)
    return not low <= 1 <= high
