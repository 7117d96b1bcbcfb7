"""Panels of what it takes to reach a target, with the cells where too few runs do shown as such."""

from __future__ import annotations

from analysis.cells.measures import estimate_of, label_of, unknown_because
from analysis.cells.target import SPENT, attempts, on_front, target_of
from analysis.statistics.estimate import Estimate
from analysis.study.panels import Subject, panel_kind
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from benchmarks.core.errors import unknown

_TIME, _COST = "time_to_target_s", "cost_to_target"


@panel_kind("to_target", lambda options: [options["y"]])
def to_target(subject: Subject, *, y: str) -> Panel:
    """A bar for each cell; where the median run does not arrive, up to the most that was spent in vain."""
    if y not in SPENT:
        raise unknown("y of to_target:", y, SPENT)
    found = {name: (cells[0], estimate_of(cells[0], y)) for name, cells in subject.lines().items()}
    label = label_of(y, subject.cells)
    return Panel(
        kind="to_target",
        mark="bars",
        title=subject.title,
        x_label="",
        y_label=label,
        series=[
            PanelSeries(
                label=label,
                points=[
                    PanelPoint(x=name, y=value, n=len(attempts(cell))) for name, (cell, value) in found.items() if value
                ],
            )
        ],
        missing=[f"{name}: {_state(subject, name, y)}" for name, (_, value) in found.items() if value is None],
        notes=_notes(subject, [value for _, value in found.values() if value]),
    )


@panel_kind("cost_front", lambda _options: [_TIME, _COST])
def cost_front(subject: Subject, *, log_x: bool = False, log_y: bool = False) -> Panel:
    """Cost over time until the target, a point for each cell; the front is of those that nothing beats in both."""
    lines = subject.lines()
    found = {name: (estimate_of(cells[0], _TIME), estimate_of(cells[0], _COST)) for name, cells in lines.items()}
    known = {name: (time, cost) for name, (time, cost) in found.items() if time and cost}
    arrived = {name: pair for name, pair in known.items() if not pair[0].is_bound}
    front = dict(zip(arrived, on_front([(time.value, cost.value) for time, cost in arrived.values()]), strict=True))
    series = [
        PanelSeries(
            label=name,
            points=[
                PanelPoint(
                    x=time.value,
                    x_interval=time,
                    y=cost,
                    n=len(attempts(lines[name][0])),
                    on_front=front.get(name, False),
                )
            ],
        )
        for name, (time, cost) in known.items()
    ]
    return Panel(
        kind="cost_front",
        mark="scatter",
        title=subject.title,
        x_label=label_of(_TIME, subject.cells),
        y_label=label_of(_COST, subject.cells),
        series=series,
        log_x=log_x,
        log_y=log_y,
        missing=[f"{name}: {_state(subject, name, _COST)}" for name in found if name not in known],
        notes=_notes(subject, [time for time, _ in known.values()]),
    )


def _state(subject: Subject, name: str, y: str) -> str:
    cell = subject.lines()[name][0]
    if target_of(cell) is None:
        return "has no target_value"
    if why := unknown_because(cell, y):
        return why
    return cell.runs[0].status if cell.runs else "planned"


def _notes(subject: Subject, values: list[Estimate]) -> list[str]:
    targets = {(one.metric, one.value) for cell in subject.cells if (one := target_of(cell))}
    notes = [f"target: {metric} {value:g}" for metric, value in sorted(targets)]
    if any(value.is_bound for value in values):
        notes.append("> : too few runs arrived; the number is the most that one spent")
    if any(value.open_above for value in values):
        notes.append("intervals up to the most that a run spent have no upper end")
    return notes
