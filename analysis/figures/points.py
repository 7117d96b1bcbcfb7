"""Panels of single points: cells against two measures, and the tries of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.figures.axes import plain_axes, sides
from analysis.figures.style import COLOURS, GREY, MARKERS, plain_text
from analysis.study_schema import Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scatter(axes: Axes, panel: Panel) -> None:
    """A point for each cell with its name; those on the front are filled and joined by steps."""
    for index, series in enumerate(panel.series):
        colour = COLOURS[index % len(COLOURS)]
        for point in series.points:
            across = [[side] for side in sides(point.x_interval)] if point.x_interval else None
            axes.errorbar(
                float(point.x), point.y.value, xerr=across, yerr=[[side] for side in sides(point.y)],
                marker=MARKERS[index % len(MARKERS)], color=colour, mfc=colour if point.on_front else "white", ms=5,
                elinewidth=0.8, capsize=2, ls="",
            )  # fmt: skip
            if point.y.is_bound:  # it lies further out, by how much nobody knows
                axes.annotate(
                    "", (float(point.x), point.y.value), xytext=(16, 16), textcoords="offset points",
                    arrowprops={"arrowstyle": "<-", "color": colour, "lw": 0.9},
                )  # fmt: skip
            axes.annotate(
                plain_text(": ".join(filter(None, [series.label, point.y.words])), 60),
                (float(point.x), point.y.value), xytext=(5, 4), textcoords="offset points", fontsize=6.5,
            )  # fmt: skip
    front = sorted((float(p.x), p.y.value) for series in panel.series for p in series.points if p.on_front)
    if len(front) > 1:
        axes.step([x for x, _ in front], [y for _, y in front], where="post", color=GREY, ls="--", lw=0.9, zorder=1)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    axes.margins(0.18)
    plain_axes(axes, panel)


def history(axes: Axes, panel: Panel) -> None:
    """A mark for each try, the best until then as steps; a cross on the axis where there is no value."""
    from matplotlib.ticker import MaxNLocator

    for number, series in enumerate(panel.series):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            [float(point.x) for point in series.points], [point.y.value for point in series.points], ls="",
            marker=MARKERS[number % len(MARKERS)], color=colour, mfc="white" if number else colour, ms=4, mew=0.9,
            label=plain_text(f"{series.label} ({len(series.points)})", 48),
        )  # fmt: skip
    best = sorted((float(p.x), p.y.value) for series in panel.series for p in series.points if p.on_front)
    last = max(float(point.x) for series in panel.series for point in series.points)
    if best:
        best.append((max([last, *panel.x_of_missing]), best[-1][1]))
        axes.step(
            [x for x, _ in best], [y for _, y in best], where="post", color=GREY, lw=1.0, zorder=1, label="best so far"
        )
    axes.plot(
        panel.x_of_missing, [0.0] * len(panel.x_of_missing), "x", color="0.2", ms=5, mew=1.4, clip_on=False, zorder=4,
        transform=axes.get_xaxis_transform(), label="no value" if panel.x_of_missing else "_",
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain_axes(axes, panel)
