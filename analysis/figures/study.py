"""A study's figure: its panels, drawn from their data alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby, zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING, Literal

from analysis.figures.axes import FEW_POINTS, plain_axes, reach, sides
from analysis.figures.points import history, scatter
from analysis.figures.style import COLOURS, LINES, MARKERS, plain_text
from analysis.study_schema import Panel, PanelPoint, PanelSeries, Study
from analysis.wording import clean_long, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_WIDTH_IN = 3.6
_LINES_HEIGHT_IN = 2.9
_BAR_HEIGHT_IN = 0.24
_ROW_PT = 10.5
"""Of a legend or of notes."""
_BELOW_AXES_PT = 35.0
"""Room for ticks and the axis' label; what else is said comes below."""
_MOST_IN_ROW = 4
_MOST_SERIES = 12
_MOST_BARS = 40
_MOST_MISSING = 5
_REMARK_LENGTH = 60
_LONG_NAME = 20
"""Of a category: longer ones make the panel wider."""
_LONGEST_NAME = 44
_SHORT_LABEL = 20
"""Labels up to this length stand in two columns."""


def study_drawing(study: Study) -> dict[str, Callable[[], Figure]]:
    """What draws the figure, by its name. Empty where no panel has a number yet."""
    panels = [panel for panel in study.panels if any(series.points for series in panel.series)]
    return {"study": lambda: _draw(panels)} if panels else {}


def _draw(panels: Sequence[Panel]) -> Figure:
    from matplotlib.figure import Figure

    rows = _rows(panels)
    heights = [max(map(_height_in, row)) for row in rows]
    columns = max(map(len, rows))
    width = columns * max(map(_width_in, panels)) * (1.25 if columns == 1 else 1.0)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    figure.get_layout_engine().set(wspace=0.05, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
    for (part,), row in zip(parts, rows, strict=True):
        for axes, panel in zip_longest(part.subplots(1, columns, squeeze=False)[0], row):
            if panel is None:
                axes.set_axis_off()
                continue
            _MARKS[panel.mark](axes, panel)
            axes.set_title(_title(panel))
            _say(axes, panel)
    return figure


def _rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """The panels of an entry that has several begin a row; entries of one panel share rows."""
    entries = [list(group) for _, group in groupby(panels, key=lambda panel: panel.entry)]
    rows: list[list[Panel]] = []
    for alone, several in groupby(entries, key=lambda entry: len(entry) == 1):
        for group in [[panel for (panel,) in several]] if alone else several:
            at_most = 3 if alone else _MOST_IN_ROW
            in_row = math.ceil(len(group) / math.ceil(len(group) / at_most))
            rows += [group[first : first + in_row] for first in range(0, len(group), in_row)]
    return rows


def _width_in(panel: Panel) -> float:
    longest = max((len(plain_text(name, _LONGEST_NAME)) for name in _categories(panel)), default=0)
    return _PANEL_WIDTH_IN + 0.05 * max(0, longest - _LONG_NAME) * (panel.mark in ("bars", "stack"))


def _height_in(panel: Panel) -> float:
    below = _ROW_PT * (_legend_rows(panel) + len(_remarks(panel))) / 72
    if panel.mark in ("bars", "stack"):
        bar = _BAR_HEIGHT_IN * (1.25 if any(point.y_over for one in panel.series for point in one.points) else 1.0)
        return 0.9 + below + bar * max(3, min(_MOST_BARS, len(_categories(panel))))
    return _LINES_HEIGHT_IN + below


def _title(panel: Panel) -> str:
    """With the number of repeats, where it is the same for all points."""
    numbers = _repeats(panel)
    return plain_text(panel.title, 48) + (f" (n={numbers[0]})" if len(numbers) == 1 else "")


def _repeats(panel: Panel) -> list[int]:
    return sorted({point.n for series in panel.series for point in series.points})


def _legend_entries(panel: Panel) -> int:
    """None where there is one series, or names stand at the points; a search has its best, and what has no value."""
    if panel.mark == "scatter":
        return 0
    shown = len(panel.series[:_MOST_SERIES])
    if panel.mark == "history":
        return shown + 1 + bool(panel.x_of_missing)
    return shown if shown > 1 else 0


def _legend_rows(panel: Panel) -> int:
    entries = _legend_entries(panel)
    return math.ceil(entries / _legend_columns(panel)) + (len(panel.series) > _MOST_SERIES) if entries else 0


def _legend_columns(panel: Panel) -> int:
    longest = max(len(_series_text(series, panel)) for series in panel.series[:_MOST_SERIES])
    return 2 if longest <= _SHORT_LABEL else 1


def _series_text(series: PanelSeries, panel: Panel) -> str:
    """With the number of repeats, where it is not the same for all of the panel."""
    numbers = sorted({point.n for point in series.points})
    if len(_repeats(panel)) == 1 or not numbers or panel.mark == "stack":
        return plain_text(series.label, 52)
    n = f"n={numbers[0]}" if len(numbers) == 1 else f"n={numbers[0]}..{numbers[-1]}"
    return plain_text(series.label, 44) + f" ({n})"


def _categories(panel: Panel) -> list[str]:
    return list(dict.fromkeys(str(point.x) for series in panel.series for point in series.points))


def _bars(axes: Axes, panel: Panel) -> None:
    """Lying bars, the first on top, each with its interval; beside them the values and the ratios to the base."""
    names = _categories(panel)[:_MOST_BARS]
    for series in panel.series:
        for point in series.points:
            if str(point.x) not in names:
                continue
            place = names.index(str(point.x))
            bar = axes.barh(place, point.y.value, height=0.62, color=COLOURS[0], alpha=0.75, lw=0)
            if point.y.is_bound:
                bar.patches[0].set(alpha=0.35, hatch="////", edgecolor="white")
            axes.errorbar(
                point.y.value, place, xerr=reach(point.y), fmt="none", ecolor="0.15", elinewidth=0.9, capsize=2
            )
            axes.annotate(
                _value_text(point, several=len(_repeats(panel)) > 1), (1, place), xycoords=axes.get_yaxis_transform(),
                xytext=(4, 0), textcoords="offset points", va="center", fontsize=6.5, linespacing=1.0,
                annotation_clip=False,
            )  # fmt: skip
    _category_axis(axes, names)
    axes.set_xlabel(panel.y_label)
    axes.margins(x=0.05)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))


def _value_text(point: PanelPoint, *, several: bool) -> str:
    """The value, where they differ the number of repeats, and below it the ratio to the base; right of the frame."""
    ratio = f"\n{point.y_over.value:.2f}x [{point.y_over.low:.2f}, {point.y_over.high:.2f}]" if point.y_over else ""
    value = f"{'> ' if point.y.is_bound else ''}{number(point.y.value)}"
    words = f"\n{point.y.words}" if point.y.words else ""
    return value + (f" (n={point.n})" if several else "") + words + ratio


def _stack(axes: Axes, panel: Panel) -> None:
    """Lying bars made of parts; an interval at the end of each part. A negative part, which is noise, is not drawn."""
    names = _categories(panel)[:_MOST_BARS]
    ends = dict.fromkeys(names, 0.0)
    for index, series in enumerate(panel.series):
        label = _series_text(series, panel)
        for point in series.points:
            if (name := str(point.x)) not in ends:
                continue
            place, start = names.index(name), ends[name]
            axes.barh(
                place, max(0.0, point.y.value), left=start, height=0.62, color=COLOURS[index % len(COLOURS)], lw=0.4,
                edgecolor="white", label=label,
            )  # fmt: skip
            ends[name] = start + point.y.value
            axes.errorbar(
                ends[name], place, xerr=reach(point.y), fmt="none", ecolor="0.15", elinewidth=0.8, capsize=1.6
            )
            label = "_"
    _category_axis(axes, names)
    axes.set_xlabel(panel.y_label)
    axes.margins(x=0.08)
    _legend(axes, panel)


def _category_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [plain_text(name, _LONGEST_NAME) for name in names])
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=5)
    axes.grid(visible=True, axis="x", lw=0.4, color="0.9")
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _lines(axes: Axes, panel: Panel) -> None:
    """Lines with their intervals, as bars at each point where there are few, else as bands."""
    for index, series in enumerate(panel.series[:_MOST_SERIES]):
        colour, style = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
        xs = [float(point.x) for point in series.points]
        marker = MARKERS[index % len(MARKERS)] if len(xs) <= FEW_POINTS else ""
        label = _series_text(series, panel)
        axes.plot(
            xs, [p.y.value for p in series.points], color=colour, ls=style, lw=1.1, marker=marker, ms=4, label=label
        )
        if len(xs) <= FEW_POINTS:
            reach = [list(side) for side in zip(*(sides(point.y) for point in series.points), strict=True)]
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
    plain_axes(axes, panel)
    _legend(axes, panel)


def _legend(axes: Axes, panel: Panel) -> None:
    """Below the axis' label, at a distance in points: panels differ in height."""
    if not _legend_entries(panel):
        return
    from matplotlib.transforms import offset_copy

    left_out = len(panel.series) - _MOST_SERIES
    # Below lying bars there is room on the left, under the names; below lines on both sides.
    loc: Literal["upper right", "upper center"] = "upper right" if panel.mark == "stack" else "upper center"
    at = 1.0 if panel.mark == "stack" else 0.5
    axes.legend(
        loc=loc, bbox_to_anchor=(at, 0.0), ncols=_legend_columns(panel), frameon=False, handlelength=3.0,
        columnspacing=1.2, borderaxespad=0.0, borderpad=0.0, labelspacing=0.25,
        bbox_transform=offset_copy(axes.transAxes, axes.get_figure(root=True), y=-_BELOW_AXES_PT, units="points"),
        title=f"and {left_out} more, in the table only" if left_out > 0 else None, title_fontsize=7,
    )  # fmt: skip


def _remarks(panel: Panel) -> list[str]:
    """The panel's notes, what has no number, and what is left out."""
    lines = [*panel.notes, *(f"no number: {line}" for line in panel.missing[:_MOST_MISSING])]
    if len(panel.missing) > _MOST_MISSING:
        lines.append(f"and {len(panel.missing) - _MOST_MISSING} more without a number")
    if panel.mark in ("bars", "stack") and (left_out := len(_categories(panel)) - _MOST_BARS) > 0:
        lines.append(f"and {left_out} more, in the table only")
    return [plain_text(part, _REMARK_LENGTH) for line in lines for part in wrap(clean_long(line), _REMARK_LENGTH)[:2]]


def _say(axes: Axes, panel: Panel) -> None:
    """The remarks, below the legend."""
    if lines := _remarks(panel):
        below = _BELOW_AXES_PT + _ROW_PT * _legend_rows(panel) + 4
        side, at = ("right", 1) if panel.mark in ("bars", "stack") else ("left", 0)
        axes.annotate(
            "\n".join(lines), (at, 0), xycoords="axes fraction", xytext=(0, -below), textcoords="offset points",
            va="top", ha=side, multialignment="left", fontsize=6.5, color="0.25", annotation_clip=False,
        )  # fmt: skip


def _history(axes: Axes, panel: Panel) -> None:
    history(axes, panel)
    _legend(axes, panel)


_MARKS = {"bars": _bars, "stack": _stack, "line": _lines, "scatter": scatter, "history": _history}
