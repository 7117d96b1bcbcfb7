"""Figures of a report: throughput, speed-up and efficiency over the number of workers, strong beside weak."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from analysis.figures.style import GREY, LINES, MARKERS, plain_text
from analysis.runs import metrics
from analysis.schema import Kind, Report, ScalingPoint, Series
from analysis.statistics.estimate import Estimate
from analysis.tables.columns import OVERSUBSCRIBED
from benchmarks.core.variants import VARIANT_AXES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANEL_WIDTH_IN, _PANEL_HEIGHT_IN = 3.5, 3.3
_MOSTLINES = 8
_MOST_ROWS = 6
_MOST_PARTS = 2
"""Of one workload. Where its series are too many for that, the first stand for all: the tables have the rest."""
_LONGEST_LABEL = 24


@dataclass(frozen=True, kw_only=True)
class _Measure:
    """What one figure shows."""

    name: str
    title: str
    label: Callable[[Kind], str]
    of: Callable[[ScalingPoint], Estimate | None]
    ideal: Literal["none", "proportional", "one"]


_MEASURES = (
    _Measure(
        name="throughput",
        title="Throughput",
        label=lambda _: "throughput [samples/s]",
        of=lambda point: point.throughput_samples_per_s,
        ideal="none",
    ),
    _Measure(
        name="speedup",
        title="Speed-up",
        label=lambda kind: "speed-up T(N0)/T(N)" if kind == "strong" else "scaled speed-up",
        of=lambda point: point.speedup,
        ideal="proportional",
    ),
    _Measure(
        name="efficiency",
        title="Efficiency",
        label=lambda kind: "efficiency (strong)" if kind == "strong" else "efficiency (weak)",
        of=lambda point: point.efficiency,
        ideal="one",
    ),
)


def scaling_drawings(report: Report) -> dict[str, Callable[[], Figure]]:
    """What draws each figure, by its name. Empty where no series has a number yet."""
    if not any(series.base for series in [*report.strong, *report.weak]):
        return {}
    rows = _rows(report)
    return {measure.name: partial(_draw, report, rows, measure) for measure in _MEASURES}


def _kinds(report: Report) -> list[Kind]:
    kinds: tuple[Kind, ...] = ("strong", "weak")
    return [kind for kind in kinds if _of_kind(report, kind)]


def _of_kind(report: Report, kind: Kind) -> list[Series]:
    return report.strong if kind == "strong" else report.weak


def _rows(report: Report) -> list[tuple[str, dict[Kind, list[Series]]]]:
    """Title and series of each row of panels: one for a workload, two where its series would crowd one."""
    groups: dict[str, dict[Kind, list[Series]]] = defaultdict(dict)
    for kind in _kinds(report):
        for series in _of_kind(report, kind):
            groups[series.group].setdefault(kind, []).append(series)
    rows = []
    for group, kinds in groups.items():
        parts = math.ceil(max(map(len, kinds.values())) / _MOSTLINES)
        for part in range(parts if parts <= _MOST_PARTS else 1):
            title = plain_text(group, _LONGEST_LABEL) + (f" ({part + 1} of {parts})" if parts > 1 else "")
            shown = slice(part * _MOSTLINES, (part + 1) * _MOSTLINES)
            rows.append((title, {kind: series[shown] for kind, series in kinds.items()}))
    return rows[:_MOST_ROWS]


def _draw(report: Report, rows: Sequence[tuple[str, dict[Kind, list[Series]]]], measure: _Measure) -> Figure:
    from matplotlib.figure import Figure

    kinds = _kinds(report)
    size = (_PANEL_WIDTH_IN * len(kinds), _PANEL_HEIGHT_IN * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rows), len(kinds), squeeze=False)
    for (title, of_kind), line in zip(rows, panels, strict=True):
        for kind, axes in zip(kinds, line, strict=True):
            if of_kind.get(kind):
                axes.set_title(f"{measure.title}, {kind} scaling: {title}")
                _panel(axes, of_kind[kind], kind, measure)
            else:
                axes.set_axis_off()
    left_out = len(report.strong) + len(report.weak) - sum(len(found) for _, of in rows for found in of.values())
    if left_out:
        figure.supxlabel(f"{left_out} more series are in the tables only", fontsize=7, color=GREY)
    return figure


def _panel(axes: Axes, found: Sequence[Series], kind: Kind, measure: _Measure) -> None:
    import seaborn as sns

    colours = sns.color_palette("colorblind", _MOSTLINES)
    _ideal(axes, found, measure)
    failures: Counter[int] = Counter()
    for index, series in enumerate(found):
        colour = colours[index]
        values = [(point, value) for point in series.points if (value := measure.of(point))]
        workers = [point.workers for point, _ in values]
        axes.plot(workers, [value.value for _, value in values], color=colour, ls=LINES[index], lw=1.1)
        for hollow in (False, True):
            marked = [(point, value) for point, value in values if (OVERSUBSCRIBED in point.notes) == hollow]
            _marks(axes, marked, MARKERS[index], colour, "white" if hollow else colour)
        for point in series.points:
            if point.failed and not point.repeats_ok:
                _cross_out(axes, point.workers, failures[point.workers], colour)
                failures[point.workers] += 1
    _axes(axes, found, kind, measure)
    _legend(axes, found, colours, kind, measure)


def _cross_out(axes: Axes, workers: int, others: int, colour: Any) -> None:
    """A cross on the bottom axis itself, where no value can be read off it; several stand side by side."""
    from matplotlib.transforms import offset_copy

    place = offset_copy(axes.get_xaxis_transform(), fig=axes.get_figure(root=True), x=6 * others, units="points")
    axes.plot(workers, 0, "x", color=colour, ms=5, mew=1.6, transform=place, clip_on=False, zorder=4)


def _marks(axes: Axes, marked: Sequence[tuple[ScalingPoint, Estimate]], marker: str, colour: Any, face: Any) -> None:
    """All at once: one by one, figures of many points would take minutes."""
    if not marked:
        return
    # A percentile interval need not hold the median; a bar's length cannot be negative.
    below = [max(0.0, value.value - value.low) for _, value in marked]
    above = [max(0.0, value.high - value.value) for _, value in marked]
    axes.errorbar(
        [point.workers for point, _ in marked], [value.value for _, value in marked], yerr=[below, above], ls="",
        marker=marker, color=colour, mfc=face, mec=colour, ms=4.5, mew=0.9, elinewidth=0.9, capsize=2, zorder=3,
    )  # fmt: skip


def _repeats(series: Series) -> str:
    """`n=3`; where points differ, the repeats of each, by workers: `n=3,3,2`, or `n=1..3` for many points."""
    numbers = [point.repeats_ok for point in series.points if point.repeats_ok]
    if len(set(numbers)) <= 1:
        return f"n={max(numbers, default=0)}"
    return f"n={','.join(map(str, numbers))}" if len(numbers) <= 6 else f"n={min(numbers)}..{max(numbers)}"


def _ideal(axes: Axes, found: Sequence[Series], measure: _Measure) -> None:
    """The line through the base: one for each number of workers that a base has."""
    if measure.ideal == "one":
        axes.axhline(1, color=GREY, ls="--", lw=0.9, zorder=1)
    if measure.ideal == "proportional":
        for base in sorted({series.base.workers for series in found if series.base}):
            most = max(point.workers for series in found for point in series.points)
            axes.plot([base, most], [1, metrics.ideal_speedup(most, base)], color=GREY, ls="--", lw=0.9, zorder=1)


def _axes(axes: Axes, found: Sequence[Series], kind: Kind, measure: _Measure) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    workers = sorted({point.workers for series in found for point in series.points})
    axes.set_xscale("log", base=2)
    axes.set_xlim(workers[0] / 2**0.25, workers[-1] * 2**0.25)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(_ticks(workers))
    axes.xaxis.set_major_formatter(plain)
    axes.set_xlabel("workers")
    axes.set_ylabel(measure.label(kind))
    if measure.ideal == "one":
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))
    elif measure.ideal == "proportional":
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_locator(LogLocator(base=2))
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(visible=True, lw=0.4, color="0.9")
    axes.set_axisbelow(True)


def _ticks(workers: Sequence[int]) -> list[int]:
    """The measured numbers, less those whose labels would touch."""
    span = math.log2(workers[-1] / workers[0]) or 1.0
    kept = [workers[0]]
    for number in workers[1:]:
        if math.log2(number / kept[-1]) > span / 18:
            kept.append(number)
    return kept


def _legend(axes: Axes, found: Sequence[Series], colours: Sequence[Any], kind: Kind, measure: _Measure) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colours[i], ls=LINES[i], lw=1.1, marker=MARKERS[i], ms=4.5, label=_series_text(series))
        for i, series in enumerate(found)
    ]
    points = [point for series in found for point in series.points]
    if measure.ideal != "none":
        handles.append(Line2D([], [], color=GREY, ls="--", lw=0.9, label="ideal, through the base"))
    if any(OVERSUBSCRIBED in point.notes and point.repeats_ok for point in points):
        handles.append(
            Line2D([], [], color="0.2", ls="", marker="o", mfc="white", ms=4.5, label="hollow: oversubscribed")
        )
    if any(point.failed and not point.repeats_ok for point in points):
        handles.append(Line2D([], [], color="0.2", ls="", marker="x", ms=5, mew=1.6, label="failed, no number"))
    batch = "global batch" if kind == "strong" else "batch per worker"
    longest = max(len(handle.get_label()) for handle in handles)  # type: ignore[arg-type]
    axes.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2 if longest < 27 else 1, frameon=False,
        title=f"{batch} (n: repeats); bars: 95 % intervals", title_fontsize=7, handlelength=3.2, columnspacing=1.2,
    )  # fmt: skip


def _series_text(series: Series) -> str:
    """The series' settings but its workload, which the panel's title says."""
    shown = {key: value for key, value in series.settings.items() if key != "workload" and value is not None}
    words = [
        plain_text(str(value) if key in VARIANT_AXES else f"{key.rpartition('.')[2]}={value}", _LONGEST_LABEL)
        for key, value in shown.items()
    ]
    return f"{' '.join([*words, str(series.fixed_batch)])} ({_repeats(series)})"
