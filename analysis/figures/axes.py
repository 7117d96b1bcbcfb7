"""Axes: labels, ticks and grids that all kinds of panels share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.statistics.estimate import Estimate
from analysis.study_schema import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS = 15
"""Up to here each has its marker, and whole numbers their ticks."""


def plain_axes(axes: Axes, panel: Panel) -> None:
    """Labels, a light grid, and ticks with plain numbers: at the values themselves where there are few."""
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=True, lw=0.4, color="0.9")
    axes.set_axisbelow(True)
    if panel.log_y:
        _plain_log_axis(axes)
    xs = sorted({float(point.x) for series in panel.series for point in series.points})
    if panel.mark == "line" and (panel.log_x or (len(xs) <= FEW_POINTS and all(x == int(x) for x in xs))):
        from matplotlib.ticker import NullLocator

        axes.set_xticks(kept := _spaced(xs, logarithmic=panel.log_x), [f"{x:g}" for x in kept])
        axes.xaxis.set_minor_locator(NullLocator())


def _plain_log_axis(axes: Axes) -> None:
    """Plain numbers at the y axis, as many as there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axes.get_ylim()
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 30 * low else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _spaced(values: Sequence[float], *, logarithmic: bool) -> list[float]:
    """The values, less those whose labels would touch the one before."""
    at = [math.log2(value) if logarithmic else value for value in values]
    kept = [0]
    for index in range(1, len(values)):
        wide = 0.02 + 0.026 * len(f"{values[index]:g}")  # of the axis, with digits of 7 points
        if at[index] - at[kept[-1]] >= wide * (at[-1] - at[0]):
            kept.append(index)
    return [values[index] for index in kept]


def reach(value: Estimate) -> Any:
    """An interval as matplotlib's error bars want it."""
    return [[side] for side in sides(value)]


def sides(value: Estimate) -> tuple[float, float]:
    """How far the interval reaches to either side; a percentile interval need not hold the median."""
    return max(0.0, value.value - value.low), max(0.0, value.high - value.value)
