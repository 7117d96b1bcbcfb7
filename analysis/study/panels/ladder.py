"""Panels that show what changes bring, one by one and added up."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.cells.labels import label, telling
from analysis.cells.measures import draws_of, measure
from analysis.runs.load import Cell
from analysis.statistics.bootstrap import estimate
from analysis.study.panels import Subject, panel_kind
from analysis.study.panels.comparing import repeats_with_number
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from benchmarks.core.variants import Option


@panel_kind("ladder", lambda options: [options["y"]])
def ladder(subject: Subject, *, y: str) -> Panel:
    """A bar for each cell, named by the settings in which it differs from the first one, the baseline.

    Beside it, how many times better than the baseline it is: a measure of which less is better is divided into the
    baseline's, any other by it.
    """
    one = measure(y)
    points, missing = [], []
    base = draws_of(subject.cells[0], y) if subject.cells else None
    for cell, (name, changed) in zip(subject.cells, _rungs(subject.cells), strict=True):
        found = draws_of(cell, y)
        if found is None:
            missing.append(f"{name}: {cell.runs[0].status if cell.runs else 'planned'}")
            continue
        over = None
        if base is not None and changed:
            over = (
                estimate(base[0] / found[0], base[1] / found[1])
                if one.better == "low"
                else estimate(found[0] / base[0], found[1] / base[1])
            )
        points.append(PanelPoint(x=name, y=estimate(*found), n=repeats_with_number(cell), y_over=over))
    return Panel(
        kind="ladder",
        mark="bars",
        title=subject.title,
        x_label="",
        y_label=one.label,
        series=[PanelSeries(label=one.label, points=points)],
        missing=missing,
    )


def _rungs(cells: Sequence[Cell]) -> list[tuple[str, bool]]:
    """Each cell's name, and whether it differs from the baseline; a rung on top of the one before says what it adds."""
    keys = telling([cell.config for cell in cells])
    found: list[tuple[str, bool]] = []
    below: dict[str, Option] = {}
    for cell in cells:
        changed = {key: cell.config.get(key) for key in keys if cell.config.get(key) != cells[0].config.get(key)}
        added = [key for key in changed if key not in below]
        stands_on = bool(below) and bool(added) and all(changed.get(key) == value for key, value in below.items())
        name = f"... + {label(cell.config, added)}" if stands_on else label(cell.config, list(changed))
        found.append((name if changed else "baseline", bool(changed)))
        below = changed
    return found
