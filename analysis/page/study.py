"""The panels of a study's figure as charts: the same marks as in the drawn figure, with hover texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from analysis.page.chart import (
    DASHES,
    INK,
    MUTED,
    SYMBOLS,
    Chart,
    colour,
    error_bars,
    exact,
    faint,
    log_scale,
    log_ticks,
    number_text,
    plotly_text,
    said,
)
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from analysis.wording import clean_long, number

_BAR_PX, _AROUND_PX, _LEAST_PX = 34, 150, 260
_MOST_BARS = 60
_FEW_POINTS = 15
"""Up to here a line has a mark and an interval at each point; beyond, a band."""


def panel_chart(panel: Panel) -> Chart:
    """The chart of one panel."""
    lying = panel.mark in ("bars", "stack")
    layout = _lying_axes(panel) if lying else _standing_axes(panel)
    points = [point for series in panel.series for point in series.points]
    categories = len({str(point.x) for point in points})
    notes = [*panel.notes, *(f"no number: {line}" for line in panel.missing)]
    if lying and categories > _MOST_BARS:
        notes.append(f"The first {_MOST_BARS} of {categories} bars are drawn.")
    return Chart(
        title=clean_long(panel.title or panel.y_label),
        words=clean_long(f"{panel.y_label} over {panel.x_label or 'configurations'}. {_extremes(points)}"),
        traces=_MARKS[panel.mark](panel),
        layout=layout,
        header=["series", panel.x_label or "configuration", panel.y_label, "repeats"],
        rows=[
            [clean_long(series.label), clean_long(_place(point.x)), said(point.y), str(point.n)]
            for series in panel.series
            for point in series.points
        ],
        notes=[clean_long(note) for note in notes],
        wide=lying,
    )


def _place(x: float | str) -> str:
    return x if isinstance(x, str) else number_text(x)


def _extremes(points: list[PanelPoint]) -> str:
    if not points:
        return "Nothing is measured yet."
    low, high = min(points, key=lambda one: one.y.value), max(points, key=lambda one: one.y.value)
    return f"From {number(low.y.value)} at {_place(low.x)} to {number(high.y.value)} at {_place(high.x)}."


def _lying_axes(panel: Panel) -> dict[str, Any]:
    names = _categories(panel)
    return {
        "barmode": "relative" if panel.mark == "stack" else "overlay",
        "xaxis": {"title": {"text": plotly_text(panel.y_label, 90)}, "rangemode": "tozero"},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False, "ticks": ""}
        | {"categoryorder": "array", "categoryarray": names, "tickvals": names}
        | {"ticktext": [plotly_text(name, 44) for name in names]},
        "height": max(_LEAST_PX, _AROUND_PX + _BAR_PX * len(names)),
    }


def _standing_axes(panel: Panel) -> dict[str, Any]:
    points = [point for series in panel.series for point in series.points]
    x = [float(point.x) for point in points]
    y = [point.y.value for point in points]
    scale = {"x": log_scale(x) if panel.mark == "scatter" else log_ticks(x), "y": log_scale(y)}

    def axis(name: str, label: str, is_log: bool) -> dict[str, Any]:
        return {"title": {"text": plotly_text(label, 90)}} | (scale[name] if is_log else {"rangemode": "tozero"})

    return {"xaxis": axis("x", panel.x_label, panel.log_x), "yaxis": axis("y", panel.y_label, panel.log_y)}


def _categories(panel: Panel) -> list[str]:
    names = dict.fromkeys(plotly_text(point.x, 200) for series in panel.series for point in series.points)
    return list(names)[:_MOST_BARS]


def _hover(series: PanelSeries, point: PanelPoint, panel: Panel) -> str:
    lines = [f"<b>{said(point.y)}</b>", plotly_text(panel.y_label, 90)]
    if point.y_over:
        lines.append(f"{said(point.y_over)} x the base")
    lines += [plotly_text(series.label, 90), f"{plotly_text(panel.x_label, 60)} {plotly_text(_place(point.x))}".strip()]
    return "<br>".join([*lines, f"n={point.n}"])


def _trace(panel: Panel, series: PanelSeries, points: list[PanelPoint], **more: Any) -> dict[str, Any]:
    """What all marks share: names and hover texts."""
    hover = {"hovertext": [_hover(series, point, panel) for point in points], "hoverinfo": "text"}
    label = plotly_text(series.label)
    return {"name": label, "legendgroup": label, "showlegend": len(panel.series) > 1} | hover | more


def _bars(panel: Panel) -> list[dict[str, Any]]:
    names = set(_categories(panel))
    traces: list[dict[str, Any]] = []
    for index, series in enumerate(panel.series):
        points = [point for point in series.points if plotly_text(point.x, 200) in names]
        traces.append(
            _trace(
                panel,
                series,
                points,
                type="bar",
                orientation="h",
                y=[plotly_text(point.x, 200) for point in points],
                x=[exact(point.y.value) for point in points],
                error_x=error_bars([point.y for point in points]) | {"color": INK},
                marker={"color": colour(index), "opacity": 0.85},
                width=0.62,
            )
        )
    return traces


def _lines(panel: Panel) -> list[dict[str, Any]]:
    traces: list[dict[str, Any]] = []
    for index, series in enumerate(panel.series):
        points = series.points
        is_short = len(points) <= _FEW_POINTS
        if not is_short:
            traces += _band(series, index)
        more: dict[str, Any] = {"error_y": error_bars([point.y for point in points])} if is_short else {}
        traces.append(
            _trace(
                panel,
                series,
                points,
                type="scatter",
                mode="lines+markers" if is_short else "lines",
                x=[point.x for point in points],
                y=[exact(point.y.value) for point in points],
                line={"color": colour(index), "dash": DASHES[index % len(DASHES)], "width": 1.6},
                marker={"color": colour(index), "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7},
                **more,
            )
        )
    return traces


def _band(series: PanelSeries, index: int) -> Iterable[dict[str, Any]]:
    shared = {"type": "scatter", "mode": "lines", "x": [point.x for point in series.points], "showlegend": False}
    shared |= {"legendgroup": plotly_text(series.label), "hoverinfo": "skip", "line": {"width": 0}}
    yield shared | {"y": [exact(point.y.low) for point in series.points]}
    fill = {"fill": "tonexty", "fillcolor": faint(colour(index), 0.15)}
    yield shared | fill | {"y": [exact(point.y.high) for point in series.points]}


def _scatter(panel: Panel) -> list[dict[str, Any]]:
    traces = []
    for index, series in enumerate(panel.series):
        points = series.points
        across = [point.x_interval or point.y for point in points]
        has_x = all(point.x_interval for point in points)
        traces.append(
            _trace(
                panel,
                series,
                points,
                type="scatter",
                mode="markers",
                x=[point.x for point in points],
                y=[exact(point.y.value) for point in points],
                error_y=error_bars([point.y for point in points]),
                error_x=error_bars(across) if has_x else {"visible": False},
                marker={
                    "color": colour(index),
                    "size": 10,
                    "symbol": [_symbol(index, is_open=not point.on_front) for point in points],
                },
            )
        )
    front = sorted((float(p.x), p.y.value) for series in panel.series for p in series.points if p.on_front)
    return [*_steps(front, "the front"), *traces]


def _symbol(index: int, *, is_open: bool) -> str:
    return SYMBOLS[index % len(SYMBOLS)] + ("-open" if is_open else "")


def _steps(front: list[tuple[float, float]], name: str) -> list[dict[str, Any]]:
    if len(front) < 2:
        return []
    line = {"color": MUTED, "dash": "dot", "shape": "hv", "width": 1.3}
    step = {"type": "scatter", "mode": "lines", "name": name, "hoverinfo": "skip", "line": line}
    return [step | {"x": [exact(x) for x, _ in front], "y": [exact(y) for _, y in front]}]


def _history(panel: Panel) -> list[dict[str, Any]]:
    """A mark for each try, the best until then as steps; a cross below where there is no value."""
    traces = []
    for index, series in enumerate(panel.series):
        symbol = _symbol(index, is_open=index > 0)
        traces.append(
            _trace(
                panel,
                series,
                series.points,
                type="scatter",
                mode="markers",
                x=[point.x for point in series.points],
                y=[exact(point.y.value) for point in series.points],
                marker={"color": colour(index), "size": 8, "symbol": symbol},
            )
        )
    best = sorted((float(p.x), p.y.value) for series in panel.series for p in series.points if p.on_front)
    traces += _steps(best, "best so far")
    if panel.x_of_missing:
        cross = {"type": "scatter", "mode": "markers", "name": "no value", "x": panel.x_of_missing, "hoverinfo": "x"}
        traces.append(cross | {"y": [0] * len(panel.x_of_missing), "marker": {"color": INK, "symbol": "x-thin-open"}})
    return traces


_MARKS: dict[str, Callable[[Panel], list[dict[str, Any]]]] = {
    "bars": _bars,
    "stack": _bars,
    "line": _lines,
    "scatter": _scatter,
    "history": _history,
}
