"""Charts of the scaling series: throughput, speed-up and efficiency over workers, with intervals, ideal and law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.page.chart import (
    DASHES,
    MUTED,
    SURFACE,
    SYMBOLS,
    Chart,
    colour,
    error_bars,
    exact,
    faint,
    log_ticks,
    number_text,
    plotly_text,
    said,
    tags,
)
from analysis.schema import Kind, Prediction, Report, ScalingPoint, Series
from analysis.statistics.estimate import Estimate
from analysis.wording import clean, number
from benchmarks.core.variants import VARIANT_AXES

_MOST_LINES = 8
_MOST_CHARTS = 12
"""Of one measure and kind; the tables have all series."""


@dataclass(frozen=True, kw_only=True)
class _Measure:
    title: str
    axis: Callable[[Kind], str]
    of: Callable[[ScalingPoint], Estimate | None]
    of_law: Callable[[Series, Prediction], Estimate | None]
    ideal: Literal["none", "proportional", "one"]


def _batch(series: Series, workers: int) -> int:
    return series.fixed_batch * (workers if series.kind == "weak" else 1)


def _law_rate(series: Series, point: Prediction) -> Estimate | None:
    return _over(float(_batch(series, point.workers)), point.step_time_s)


def _law_efficiency(series: Series, point: Prediction) -> Estimate | None:
    """From the base that was measured, as the efficiencies that were measured."""
    if series.base is None:
        return None
    share = series.base.workers / point.workers if series.kind == "strong" else 1.0
    return _over(series.base.step_time_s * share, point.step_time_s)


def _law_speedup(series: Series, point: Prediction) -> Estimate | None:
    efficiency = _law_efficiency(series, point)
    if efficiency is None or series.base is None:
        return None
    factor = point.workers / series.base.workers
    return Estimate(value=efficiency.value * factor, low=efficiency.low * factor, high=efficiency.high * factor)


def _over(amount: float, time: Estimate) -> Estimate | None:
    """The ends of the interval change places."""
    if time.low <= 0:
        return None
    return Estimate(value=amount / time.value, low=amount / time.high, high=amount / time.low)


_MEASURES = (
    _Measure(
        title="Throughput",
        axis=lambda _: "samples/s",
        of=lambda point: point.throughput_samples_per_s,
        of_law=_law_rate,
        ideal="none",
    ),
    _Measure(
        title="Speed-up",
        axis=lambda kind: "speed-up T(N0)/T(N)" if kind == "strong" else "scaled speed-up",
        of=lambda point: point.speedup,
        of_law=_law_speedup,
        ideal="proportional",
    ),
    _Measure(
        title="Efficiency",
        axis=lambda _: "efficiency",
        of=lambda point: point.efficiency,
        of_law=_law_efficiency,
        ideal="one",
    ),
    _Measure(
        title="Share of the hardware's bound",
        axis=lambda _: "MFU of a measured matrix product",
        of=lambda point: point.mfu_of_ceiling,
        of_law=lambda _series, _point: None,
        ideal="one",
    ),
)


def scaling_charts(report: Report) -> tuple[list[Chart], int]:
    """All charts, and how many series of the tables have none."""
    charts, left_out = [], 0
    for found in (report.strong, report.weak):
        parts = [part for group in _grouped(found) for part in _parts(group)]
        left_out += sum(len(part) for _, part in parts[_MOST_CHARTS:])
        for title, part in parts[:_MOST_CHARTS]:
            charts += [_chart(title, part, measure) for measure in _MEASURES if _is_known(part, measure)]
    return charts, left_out


def _is_known(found: Sequence[Series], measure: _Measure) -> bool:
    return any(series.base and any(map(measure.of, series.points)) for series in found)


def _grouped(found: Sequence[Series]) -> list[list[Series]]:
    groups: dict[str, list[Series]] = {}
    for series in found:
        groups.setdefault(series.group, []).append(series)
    return list(groups.values())


def _parts(group: Sequence[Series]) -> list[tuple[str, list[Series]]]:
    """A group in charts that are not crowded, with their titles."""
    parts = [list(group[start : start + _MOST_LINES]) for start in range(0, len(group), _MOST_LINES)]
    name = clean(group[0].group)
    return [(f"{name} ({i} of {len(parts)})" if len(parts) > 1 else name, part) for i, part in enumerate(parts, 1)]


def _short_labels(found: Sequence[Series]) -> list[str]:
    """Each series by what tells it from the others of its chart."""
    keys = [key for key in found[0].settings if len({repr(series.settings.get(key)) for series in found}) > 1]
    labels = []
    for series in found:
        words = [
            str(series.settings[key]) if key in VARIANT_AXES else f"{key}={series.settings[key]}"
            for key in keys
            if series.settings.get(key) is not None
        ]
        batch = f"batch {series.fixed_batch}" + ("/worker" if series.kind == "weak" else "")
        labels.append(clean(", ".join([*words, batch])))
    return labels


def _chart(title: str, found: Sequence[Series], measure: _Measure) -> Chart:
    kind = found[0].kind
    labels = _short_labels(found)
    workers = sorted({p.workers for one in found for p in [*one.points, *(one.fit.curve if one.fit else ())]})
    traces = _ideals(found, measure, workers)
    rows: list[list[str]] = []
    for index, (series, label) in enumerate(zip(found, labels, strict=True)):
        law = _law(series, index, label, measure)
        traces += law
        drawn = [(point, value) for point in series.points if (value := measure.of(point))]
        if drawn:
            traces.append(_line(series, index, label, drawn, joined=not law))
        rows += [[label, str(point.workers), said(value), str(point.repeats_ok)] for point, value in drawn]
        rows += [[label, str(p.workers), p.status, "0"] for p in series.points if not p.repeats_ok]
    y_axis: dict[str, Any] = {"title": {"text": measure.axis(kind)}, "rangemode": "tozero"}
    if measure.ideal == "proportional":
        y_axis = {
            "title": {"text": measure.axis(kind)},
            **log_ticks([2.0**power for power in range(-4, 21)], rarely=30),
        }
    return Chart(
        title=f"{measure.title}, {kind} scaling: {title}",
        words=_words(found, labels, measure),
        traces=traces,
        layout={"xaxis": {"title": {"text": "workers"}, **log_ticks(workers)}, "yaxis": y_axis},
        header=["series", "workers", f"{measure.axis(kind)} [95 % interval]", "repeats"],
        rows=rows,
    )


def _line(
    series: Series, index: int, label: str, drawn: Sequence[tuple[ScalingPoint, Estimate]], *, joined: bool
) -> dict[str, Any]:
    """The marks; where the law is drawn, it says how they go on, and a line that joins them would only hide it."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if joined else "markers",
        "name": plotly_text(label),
        "legendgroup": label,
        "showlegend": True,
        "x": [point.workers for point, _ in drawn],
        "y": [exact(value.value) for _, value in drawn],
        "error_y": error_bars([value for _, value in drawn]),
        "text": [_hover(label, point, value) for point, value in drawn],
        "hoverinfo": "text",
        "line": {"color": colour(index), "width": 1.6, "dash": DASHES[index % len(DASHES)]},
        "marker": {
            "color": colour(index),
            "symbol": SYMBOLS[index % len(SYMBOLS)],
            "size": 8,
            "line": {"color": SURFACE, "width": 1},
        },
        "meta": tags(series.settings),
    }


def _hover(label: str, point: ScalingPoint, value: Estimate) -> str:
    workers = f"{point.workers} worker{'s' * (point.workers > 1)}, global batch {point.global_batch}"
    runs = f"{point.repeats_ok} of {point.repeats_planned} repeats"
    notes = "".join(f"<br>{plotly_text(note)}" for note in point.notes)
    return f"<b>{said(value)}</b><br>{plotly_text(label)}<br>{workers}<br>{runs}{notes}"


def _law(series: Series, index: int, label: str, measure: _Measure) -> list[dict[str, Any]]:
    """The band of the law and its middle, up to the forecasts; nothing without a law."""
    if series.fit is None or series.fit.model is None:
        return []
    drawn = [(point, value) for point in series.fit.curve if (value := measure.of_law(series, point))]
    if not drawn:
        return []
    x = [point.workers for point, _ in drawn]
    shared = {"type": "scatter", "mode": "lines", "legendgroup": label, "showlegend": False, "x": x}
    shared["meta"] = tags(series.settings)
    line = {"color": colour(index), "width": 1.4, "dash": DASHES[index % len(DASHES)]}
    name = plotly_text(series.fit.model)
    text = [
        f"<b>{said(value)}</b><br>law: {name}, {'fitted' if point.measured else 'forecast'}<br>{plotly_text(label)}<br>"
        f"{point.workers} workers"
        for point, value in drawn
    ]
    unseen = {"line": {"width": 0, "color": colour(index)}, "hoverinfo": "skip"}
    return [
        shared | unseen | {"y": [exact(value.low) for _, value in drawn]},
        shared
        | unseen
        | {"y": [exact(value.high) for _, value in drawn], "fill": "tonexty"}
        | {"fillcolor": faint(colour(index), 0.13)},
        shared | {"y": [exact(value.value) for _, value in drawn], "line": line, "text": text, "hoverinfo": "text"},
    ]


def _ideals(found: Sequence[Series], measure: _Measure, workers: Sequence[int]) -> list[dict[str, Any]]:
    """What no series can beat without a reason, from each base that the chart's series have."""
    bases = sorted({series.base.workers for series in found if series.base})
    if measure.ideal == "none":
        return []
    traces: list[dict[str, Any]] = []
    for base in bases if measure.ideal == "proportional" else bases[:1]:
        x = [count for count in workers if count >= base]
        y = [count / base if measure.ideal == "proportional" else 1.0 for count in x]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "ideal",
                "showlegend": not traces,
                "x": x,
                "y": y,
                "line": {"color": MUTED, "width": 1.2, "dash": "dot"},
                "text": [f"ideal: {number_text(value)}" for value in y],
                "hoverinfo": "text",
            }
        )
    return traces


def _words(found: Sequence[Series], labels: Sequence[str], measure: _Measure) -> str:
    """The last measured point of each series."""
    ends = []
    for series, label in zip(found, labels, strict=True):
        last = [(point, value) for point in series.points if (value := measure.of(point))][-1:]
        ends += [f"{label}: {number(value.value)} on {point.workers} workers" for point, value in last]
    return f"{measure.title} over workers. At the largest measured number: {'; '.join(ends)}."
