"""Panels of profiled runs. Where a step's time goes is a panel of kind `parts`, of the measures `profile_..._s`."""

from __future__ import annotations

from analysis.cells.profiles import counted, profile_rows, slowed, traces
from analysis.statistics.estimate import Estimate
from analysis.study.panels import Subject, panel_kind
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from benchmarks.core.errors import ConfigError

_LONGEST_NAME = 30


@panel_kind("operators", lambda _options: [])
def operators(subject: Subject, *, most: int = 10) -> Panel:
    """A bar for each of the heaviest operators of one cell, by its own time in a step of rank 0."""
    if len(subject.cells) > 1:
        raise ConfigError(f"figure: operators: {len(subject.cells)} cells in one panel; tell them apart with by")
    rows = profile_rows(subject.cells)
    points = [
        PanelPoint(
            x=_short(operator.name),
            y=Estimate(
                value=(time_ms := operator.self_time_s * 1e3),
                low=time_ms,
                high=time_ms,
                words=f"{operator.calls_per_step:g} calls, {100 * operator.share:.0f} %",
            ),
            n=1,
        )
        for row in rows
        for operator in row.ranks[0].operators[:most]
    ]
    label = "self time per step of rank 0 [ms]"
    return Panel(
        kind="operators",
        mark="bars",
        title=subject.title,
        x_label="",
        y_label=label,
        series=[PanelSeries(label=label, points=points)],
        missing=[] if rows else [f"{subject.title}: no profile"],
        notes=[line for row in rows for line in (*counted(row).split("; "), slowed(row), f"trace: {traces(row)[0]}")],
    )


def _short(name: str) -> str:
    """An operator's name for an axis: torch's own without their name space, long ones without their middle."""
    name = name.removeprefix("aten::").replace("autograd::engine::evaluate_function: ", "engine: ")
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
