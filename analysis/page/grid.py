"""The grid of workers and batch sizes as heat maps in which a cell without a number says why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.page.chart import MUTED, SURFACE, Chart, exact, plotly_text, said, setting_text, tags
from analysis.schema import Point, Report
from analysis.tables.columns import status
from analysis.wording import number

_MOST_MAPS = 12
_COLOURS = [[0, "#e6f0f8"], [0.5, "#6aa9d6"], [1, "#0b4f86"]]
_ROW_PX, _AROUND_PX = 46, 130


def heat_maps(report: Report) -> tuple[list[Chart], int]:
    """One for each combination of the other settings that has several workers and batches; and how many more."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in report.cells:
        groups.setdefault(tuple(map(repr, point.settings.values())), []).append(point)
    batch = _batch_key(report.cells)
    found = [group for group in groups.values() if _is_grid(group, batch)]
    return [_heat_map(group, batch) for group in found[:_MOST_MAPS]], max(0, len(found) - _MOST_MAPS)


def _batch_key(points: Sequence[Point]) -> str:
    """The batch size that has fewer values: the one that was chosen, not the one that follows from the workers."""
    sizes = {key: len({getattr(point, key) for point in points}) for key in ("global_batch", "batch_per_worker")}
    return min(sizes, key=lambda key: sizes[key])


def _is_grid(points: Sequence[Point], batch: str) -> bool:
    places = {(point.workers, getattr(point, batch)) for point in points}
    several = all(len({place[axis] for place in places}) > 1 for axis in (0, 1))
    return several and len(places) == len(points)


def _heat_map(points: Sequence[Point], batch: str) -> Chart:
    columns = sorted({point.workers for point in points})
    lines = sorted({getattr(point, batch) for point in points})
    at = {(getattr(point, batch), point.workers): point for point in points}
    settings = points[0].settings
    name = ", ".join(setting_text(value) for value in settings.values() if value is not None) or "all cells"
    grid = [[at.get((line, column)) for column in columns] for line in lines]
    x, y = [str(column) for column in columns], [str(line) for line in lines]
    words = batch.replace("_", " ")
    bad = [point for point in points if not point.repeats_ok]
    return Chart(
        title=f"Throughput of each cell: {name}",
        words=f"Workers across, {words} from bottom to top; colour and text: samples per second. "
        + (f"{len(bad)} of {len(points)} cells have no number." if bad else "Every cell has a number."),
        traces=[_numbers(grid, x, y) | {"meta": tags(settings)}, _states(grid, x, y) | {"meta": tags(settings)}],
        layout={
            "xaxis": {"title": {"text": "workers"}, "type": "category", "showgrid": False, "ticks": ""},
            "yaxis": {"title": {"text": words}, "type": "category", "showgrid": False, "ticks": ""},
            "height": _AROUND_PX + _ROW_PX * len(lines),
        },
        header=[words, *(f"{column} workers" for column in x)],
        rows=[[y[i], *(_entry(point) for point in line)] for i, line in enumerate(grid)],
    )


def _entry(point: Point | None) -> str:
    if point is None:
        return "not in the sweep"
    return said(point.throughput_samples_per_s) if point.throughput_samples_per_s else point.status


def _numbers(grid: Sequence[Sequence[Point | None]], x: list[str], y: list[str]) -> dict[str, Any]:
    def rate(point: Point | None) -> float | None:
        found = point.throughput_samples_per_s if point else None
        return exact(found.value) if found else None

    values = [[rate(point) for point in line] for line in grid]
    texts = [["" if value is None else _marked(value, point) for value, point in zip(*pair, strict=True)]
             for pair in zip(values, grid, strict=True)]  # fmt: skip
    return {
        "type": "heatmap",
        "x": x,
        "y": y,
        "z": values,
        "text": texts,
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "customdata": [[_hover(point) for point in line] for line in grid],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "colorscale": _COLOURS,
        "showscale": False,
        "xgap": 3,
        "ygap": 3,
    }


def _marked(value: float, point: Point | None) -> str:
    """The number, and whether repeats are missing behind it."""
    lacking = point is not None and point.repeats_ok < point.repeats_planned
    return number(value) + (f"<br>{point.repeats_ok} of {point.repeats_planned}" if lacking and point else "")


def _states(grid: Sequence[Sequence[Point | None]], x: list[str], y: list[str]) -> dict[str, Any]:
    """What stands where a number is missing: a second map of one colour."""
    missing = [[point if point and not point.repeats_ok else None for point in line] for line in grid]
    return {
        "type": "heatmap",
        "x": x,
        "y": y,
        "z": [[None if point is None else 0 for point in line] for line in missing],
        "text": [["" if point is None else plotly_text(point.status, 12) for point in line] for line in missing],
        "texttemplate": "%{text}",
        "textfont": {"color": SURFACE, "size": 11},
        "customdata": [[_hover(point) for point in line] for line in missing],
        "hovertemplate": "%{customdata}<extra></extra>",
        "hoverongaps": False,
        "colorscale": [[0, MUTED], [1, MUTED]],
        "zmin": 0,
        "zmax": 1,
        "showscale": False,
        "xgap": 3,
        "ygap": 3,
    }


def _hover(point: Point | None) -> str:
    if point is None:
        return ""
    rate = point.throughput_samples_per_s
    head = f"<b>{said(rate)} samples/s</b>" if rate else f"<b>{plotly_text(point.status)}</b>"
    size = f"{point.workers} workers, global batch {point.global_batch}, {point.batch_per_worker} per worker"
    return f"{head}<br>{size}<br>{plotly_text(status(point), 120)}"
