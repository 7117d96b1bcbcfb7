"""A study's figure: its panels, drawn from their data alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.schema import Estimate, Panel, PanelPoint, PanelSeries, Study
from analysis.style import COLOURS, GREY, LINES, MARKERS, figure_files, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_WIDTH_IN = 3.6
_LINES_HEIGHT_IN = 3.1
_BAR_HEIGHT_IN = 0.24
_MOST_SERIES = 12
_MOST_BARS = 40


def study_figure(study: Study) -> dict[str, bytes]:
    """The figure as files: name to content, PNG and SVG. Empty where no panel has a number yet."""
    panels = [panel for panel in study.panels if any(series.points for series in panel.series)]
    return figure_files({"study": lambda: _draw(panels)}) if panels else {}


def _draw(panels: Sequence[Panel]) -> Figure:
    from matplotlib.figure import Figure

    columns = 1 if len(panels) == 1 else 2 if len(panels) in (2, 4) else 3
    lines = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    heights = [max(map(_height_in, line)) for line in lines]
    width = _PANEL_WIDTH_IN * columns * (1.25 if columns == 1 else 1.0)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(len(lines), columns, height_ratios=heights)
    for row, line in enumerate(lines):
        for column, panel in enumerate(line):
            axes = figure.add_subplot(grid[row, column])
            _MARKS[panel.mark](axes, panel)
            axes.set_title(plain_text(panel.title, 60))
            _say(axes, panel)
    return figure


def _height_in(panel: Panel) -> float:
    words = 0.13 * (len(panel.notes) + len(panel.missing))
    if panel.mark in ("bars", "stack"):
        return (
            0.9 + words + _BAR_HEIGHT_IN * max(3, min(_MOST_BARS, len(_categories(panel)))) + 0.12 * _legend_rows(panel)
        )
    return _LINES_HEIGHT_IN + words + 0.13 * _legend_rows(panel)


def _legend_rows(panel: Panel) -> int:
    shown = len(panel.series[:_MOST_SERIES])
    return 0 if shown < 2 else math.ceil(shown / _legend_columns(panel))


def _legend_columns(panel: Panel) -> int:
    longest = max(len(series.label) for series in panel.series[:_MOST_SERIES])
    return 2 if longest < 24 else 1


def _categories(panel: Panel) -> list[str]:
    return list(dict.fromkeys(str(point.x) for series in panel.series for point in series.points))


def _bars(axes: Axes, panel: Panel) -> None:
    """Lying bars, the first on top, each with its value; beside it the ratio to the base."""
    names = _categories(panel)[:_MOST_BARS]
    for number, series in enumerate(panel.series):
        for point in series.points:
            if str(point.x) not in names:
                continue
            place = names.index(str(point.x))
            axes.barh(place, point.y.value, height=0.62, color=COLOURS[number], alpha=0.75, lw=0)
            axes.errorbar(
                point.y.value, place, xerr=_reach(point.y), fmt="none", ecolor="0.15", elinewidth=0.9, capsize=2
            )
            axes.annotate(
                f"{point.y.value:.3g}{_over(point)}", (max(point.y.high, point.y.value, 0.0), place), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
    _category_axis(axes, names)
    axes.set_xlabel(panel.y_label)
    axes.margins(x=0.32)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _over(point: PanelPoint) -> str:
    ratio = point.y_over
    return f"  ({ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}])" if ratio else ""


def _stack(axes: Axes, panel: Panel) -> None:
    """Lying bars made of parts; an interval at the end of each part."""
    names = _categories(panel)[:_MOST_BARS]
    ends = dict.fromkeys(names, 0.0)
    for number, series in enumerate(panel.series):
        label = plain_text(series.label, 48)
        for point in series.points:
            if (name := str(point.x)) not in ends:
                continue
            place, start = names.index(name), ends[name]
            axes.barh(
                place, point.y.value, left=start, height=0.62, color=COLOURS[number], lw=0.4, edgecolor="white",
                label=label,
            )  # fmt: skip
            ends[name] = start + point.y.value
            axes.errorbar(
                ends[name], place, xerr=_reach(point.y), fmt="none", ecolor="0.15", elinewidth=0.8, capsize=1.6
            )
            label = "_"
    _category_axis(axes, names)
    axes.set_xlabel(panel.y_label)
    axes.margins(x=0.08)
    _legend(axes, panel)


def _category_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [plain_text(name, 44) for name in names])
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x", lw=0.4, color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _lines(axes: Axes, panel: Panel) -> None:
    """Lines with their intervals, as bars at each point where there are few, else as bands."""
    for number, series in enumerate(panel.series[:_MOST_SERIES]):
        colour, style = COLOURS[number % len(COLOURS)], LINES[number % len(LINES)]
        xs = [float(point.x) for point in series.points]
        marker = MARKERS[number % len(MARKERS)] if len(xs) <= 15 else ""
        label = plain_text(f"{series.label} ({_n(series)})", 52)
        axes.plot(
            xs, [p.y.value for p in series.points], color=colour, ls=style, lw=1.1, marker=marker, ms=4, label=label
        )
        if len(xs) <= 15:
            reach = [list(side) for side in zip(*(_sides(point.y) for point in series.points), strict=True)]
            axes.errorbar(
                xs, [p.y.value for p in series.points], yerr=reach, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2
            )
        else:
            axes.fill_between(
                xs, [p.y.low for p in series.points], [p.y.high for p in series.points], color=colour, alpha=0.2, lw=0
            )
    if panel.log_x:
        axes.set_xscale("log", base=2)
    if panel.log_y:
        axes.set_yscale("log")
    _plain_axes(axes, panel)
    _legend(axes, panel)


def _scatter(axes: Axes, panel: Panel) -> None:
    """A point for each cell with its name; those on the front are filled and joined by steps."""
    for number, series in enumerate(panel.series):
        colour = COLOURS[number % len(COLOURS)]
        for point in series.points:
            across = [[side] for side in _sides(point.x_interval)] if point.x_interval else None
            axes.errorbar(
                float(point.x), point.y.value, xerr=across, yerr=[[side] for side in _sides(point.y)],
                marker=MARKERS[number % len(MARKERS)], color=colour, mfc=colour if point.on_front else "white", ms=5,
                elinewidth=0.8, capsize=2, ls="",
            )  # fmt: skip
            axes.annotate(
                plain_text(series.label, 40), (float(point.x), point.y.value), xytext=(5, 4),
                textcoords="offset points", fontsize=6.5,
            )  # fmt: skip
    front = sorted((float(p.x), p.y.value) for series in panel.series for p in series.points if p.on_front)
    if len(front) > 1:
        axes.step([x for x, _ in front], [y for _, y in front], where="post", color=GREY, ls="--", lw=0.9, zorder=1)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    axes.margins(0.18)
    _plain_axes(axes, panel)


def _plain_axes(axes: Axes, panel: Panel) -> None:
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=True, lw=0.4, color="0.9")
    axes.set_axisbelow(True)
    places = [point.x for series in panel.series for point in series.points]
    if panel.log_x:
        from matplotlib.ticker import FuncFormatter

        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif all(isinstance(place, float) and place.is_integer() for place in places):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: Axes, panel: Panel) -> None:
    if len(panel.series) < 2:
        return
    left_out = len(panel.series) - _MOST_SERIES
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=_legend_columns(panel), frameon=False, handlelength=3.0,
        columnspacing=1.2, title=f"{left_out} more in the table" if left_out > 0 else None, title_fontsize=7,
    )  # fmt: skip


def _say(axes: Axes, panel: Panel) -> None:
    """The panel's notes and what has no number, below it."""
    lines = [plain_text(line, 110) for line in panel.notes]
    lines += [plain_text(f"no number: {line}", 110) for line in panel.missing]
    if not lines:
        return
    legend = 0.13 * _legend_rows(panel)
    below = (0.42 + legend) / (axes.get_position().height * _height_of(axes))
    axes.text(0.0, -below - 0.04, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=6.5, color="0.25")


def _height_of(axes: Axes) -> float:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return float(figure.get_figheight())


def _n(series: PanelSeries) -> str:
    numbers = sorted({point.n for point in series.points})
    return f"n={numbers[0]}" if len(numbers) == 1 else f"n={numbers[0]}..{numbers[-1]}"


def _reach(value: Estimate) -> Any:
    return [[side] for side in _sides(value)]


def _sides(value: Estimate) -> tuple[float, float]:
    """How far the interval reaches to either side; a percentile interval need not hold the median."""
    return max(0.0, value.value - value.low), max(0.0, value.high - value.value)


_MARKS = {"bars": _bars, "stack": _stack, "line": _lines, "scatter": _scatter}
