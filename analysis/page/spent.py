"""What runs take: the phases of a run's wall time, and time against worker-hours or money."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.advice.answers import Choice
from analysis.cells.labels import cell_name
from analysis.page.chart import (
    MUTED,
    SYMBOLS,
    Chart,
    colour,
    error_bars,
    exact,
    log_scale,
    plotly_text,
    said,
    tags,
)
from analysis.recommend import Recommendation
from analysis.schema import Point, Report
from analysis.statistics.estimate import Estimate
from analysis.wording import duration, number

_MOST_BARS = 40
_MOST_POINTS = 400
_BAR_PX, _AROUND_PX = 24, 170


def ledger_chart(report: Report) -> Chart | None:
    """Where a run's wall time goes, a bar for each cell with a number; None where no record says."""
    cells = [point for point in report.cells if point.ledger_s]
    if not cells:
        return None
    shown = cells[:_MOST_BARS]
    phases = list(dict.fromkeys(phase for point in cells for phase in point.ledger_s))
    names = [plotly_text(cell_name(point), 200) for point in shown]
    traces = []
    for index, phase in enumerate(phases):
        has = [(name, point) for name, point in zip(names, shown, strict=True) if phase in point.ledger_s]
        traces.append(_phase(phase, index, has))
    whole = sum(sum(point.ledger_s.values()) for point in cells)
    timed = sum(point.ledger_s.get("window", 0.0) for point in cells)
    notes = [f"The first {_MOST_BARS} of {len(cells)} cells are drawn."] if len(cells) > _MOST_BARS else []
    return Chart(
        title="Seconds of a run by phase, for each cell",
        words=f"Seconds of each phase, medians over a cell's repeats. Timed steps are {timed / whole:.0%} of the time."
        if whole
        else "No phase took any time.",
        traces=traces,
        layout={
            "barmode": "stack",
            "xaxis": {"title": {"text": "seconds of one run"}},
            "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "showgrid": False, "ticks": ""}
            | {"tickvals": names, "ticktext": [plotly_text(cell_name(point), 40) for point in shown]},
            "height": _AROUND_PX + _BAR_PX * len(shown),
        },
        header=["cell", *(f"{phase} [s]" for phase in phases)],
        rows=[
            [cell_name(point), *(number(point.ledger_s[phase]) if phase in point.ledger_s else "-" for phase in phases)]
            for point in cells
        ],
        notes=notes,
        wide=True,
    )


def _phase(phase: str, index: int, has: Sequence[tuple[str, Point]]) -> dict[str, Any]:
    """The timed window in the strongest colour: all else is what it costs to get there."""
    return {
        "type": "bar",
        "orientation": "h",
        "name": plotly_text(phase),
        "y": [name for name, _ in has],
        "x": [exact(point.ledger_s[phase]) for _, point in has],
        "hovertext": [
            f"<b>{number(point.ledger_s[phase])} s</b> {plotly_text(phase)}<br>{name}" for name, point in has
        ],
        "hoverinfo": "text",
        "marker": {"color": colour(index)} | ({"pattern": {"shape": "/"}} if index >= 10 else {}),
    }


def pareto_chart(advice: Recommendation, report: Report) -> Chart | None:
    """Time against cost of all measured cells, the front joined; forecasts are open and on no front."""
    if not advice.measured:
        return None
    paid = all(choice.cost for choice in advice.measured)
    measured = sorted(advice.measured, key=lambda one: not one.on_front)[:_MOST_POINTS]
    settings = {point.cell_id: tags(point.settings) for point in report.cells}
    front = [choice for choice in measured if choice.on_front]
    traces = [_front(answer.measured, paid, is_first=number == 0) for number, answer in enumerate(advice.answers)]
    groups: dict[tuple[tuple[str, str], ...], list[Choice]] = {}
    for choice in measured:
        groups.setdefault(tuple(settings.get(choice.cell_id or "", {}).items()), []).append(choice)
    traces += [_points(group, dict(key), index, paid) for index, (key, group) in enumerate(groups.items())]
    left_out = len(advice.measured) - len(measured)
    return Chart(
        title="Time against cost, for each measured configuration",
        words=f"Time for {advice.samples:.3g} samples over {'cost' if paid else 'worker-hours'}; further down is "
        f"faster, further left is cheaper. {len(front)} of {len(advice.measured)} configurations are on the front: no "
        "other for the same model and data is both faster and cheaper.",
        traces=traces,
        layout={
            "xaxis": {"title": {"text": "cost" if paid else "worker-hours"}}
            | log_scale([_spent(choice, paid).value for choice in measured]),
            "yaxis": {"title": {"text": "time [s]"}} | log_scale([choice.time_s.value for choice in measured]),
        },
        header=[
            "configuration",
            "time",
            "interval of the time [s]",
            "cost" if paid else "worker-hours",
            "on the front",
        ],
        rows=[
            [one.label, duration(one.time_s.value), said(one.time_s), said(_spent(one, paid)), "yes" * one.on_front]
            for one in measured
        ],
        notes=[f"{left_out} more configurations, none of them on the front, are not drawn."] if left_out else [],
        wide=True,
    )


def _front(measured: Sequence[Choice], paid: bool, *, is_first: bool) -> dict[str, Any]:
    """The line that joins the front of one task."""
    front = sorted((one for one in measured if one.on_front), key=lambda one: one.time_s.value)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "front of time and cost",
        "showlegend": is_first,
        "x": [exact(_spent(one, paid).value) for one in front],
        "y": [exact(one.time_s.value) for one in front],
        "line": {"color": MUTED, "dash": "dot", "width": 1.3, "shape": "vh"},
        "hoverinfo": "skip",
    }


def _spent(choice: Choice, paid: bool) -> Estimate:
    return choice.cost if paid and choice.cost else choice.worker_hours


def _points(group: Sequence[Choice], tagged: dict[str, str], index: int, paid: bool) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plotly_text(", ".join(tagged.values()) or "measured"),
        "x": [exact(_spent(one, paid).value) for one in group],
        "y": [exact(one.time_s.value) for one in group],
        "error_y": error_bars([one.time_s for one in group]),
        "text": [
            f"<b>{duration(one.time_s.value)}</b>, {said(_spent(one, paid))} {'cost' if paid else 'worker-hours'}<br>"
            f"{plotly_text(one.label, 90)}{'<br>on the front' * one.on_front}"
            for one in group
        ],
        "hoverinfo": "text",
        "marker": {
            "color": colour(index),
            "size": 9,
            "symbol": [SYMBOLS[index % len(SYMBOLS)] + ("" if one.on_front else "-open") for one in group],
        },
        "meta": tagged,
    }
