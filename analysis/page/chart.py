"""One chart of the page: Plotly's traces and axes as plain data, and the same numbers as a table for those who read.

Colours that differ between the light and the dark page are names (`INK`, `MUTED`, `SURFACE`); the page's script puts
the colours in. Names of configurations go through `plotly_text`, since Plotly reads a few HTML tags in texts.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.figures.style import COLOURS
from analysis.statistics.estimate import Estimate
from analysis.tables.columns import estimated
from analysis.wording import clean, number
from benchmarks.core.variants import Option

INK, MUTED, SURFACE = "@ink", "@muted", "@surface"
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot", "8px 3px 2px 3px", "2px 4px")
FILTERS = ("workload", "strategy", "precision")
"""The settings by which the page's tables and charts can be filtered."""
_LONGEST = 60
_NARROW, _WIDE = 1.7, 20.0
"""Largest over smallest value: below the first an axis is linear, above the second its labels are few."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the page draws, and what it says about it."""

    title: str
    words: str
    """What is to be seen: the text in place of the picture."""
    traces: list[dict[str, Any]]
    layout: dict[str, Any]
    header: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    """The numbers that are drawn."""
    notes: list[str] = field(default_factory=list)
    wide: bool = False


def plotly_text(value: object, longest: int = _LONGEST) -> str:
    """A name as one short line in which Plotly finds no markup."""
    text = clean(value)
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…", quote=False)


def colour(index: int) -> str:
    """Of the series with this index."""
    return COLOURS[index % len(COLOURS)]


def faint(colour: str, opacity: float) -> str:
    """A colour `#rrggbb` that lets through what lies below."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def tags(settings: Mapping[str, Option]) -> dict[str, str]:
    """By what the page's filters find a trace or a row; settings that do not differ are no filters."""
    return {key: setting_text(settings[key]) for key in FILTERS if key in settings}


def setting_text(value: Option) -> str:
    """A setting as the tables say it."""
    return "-" if value is None else clean(value)


def said(value: Estimate | None, factor: float = 1.0) -> str:
    """A number with its interval, for a table or a hover text."""
    return " ".join(filter(None, estimated(value, factor)))


def error_bars(values: Sequence[Estimate], factor: float = 1.0) -> dict[str, Any]:
    """Both sides of the intervals; a percentile interval need not hold the median."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [exact(max(0.0, one.high - one.value) * factor) for one in values],
        "arrayminus": [exact(max(0.0, one.value - one.low) * factor) for one in values],
        "thickness": 1.2,
        "width": 3,
    }


def exact(value: float) -> float:
    """Six digits, more than any eye sees in a chart: the page stays small."""
    return float(f"{value:.6g}")


def log_ticks(values: Sequence[float], *, rarely: int = 12) -> dict[str, Any]:
    """A logarithmic axis that shows just the values that were measured, such as numbers of workers."""
    shown = sorted(set(values))
    step = -(-len(shown) // rarely)
    return {"type": "log", "tickvals": shown[::step], "ticktext": [f"{value:g}" for value in shown[::step]]}


def log_scale(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with whole labels: Plotly's own are the last digit alone, which reads as another number.

    Linear where the values hardly differ, or are not all positive.
    """
    if not values or min(values) <= 0 or max(values) < _NARROW * min(values):
        return {"type": "linear"}
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if max(values) > _WIDE * min(values) else (1, 1.5, 2, 3, 4, 5, 6, 8)
    shown = [step * 10.0**power for power in range(low - 1, high + 1) for step in steps]
    return {"type": "log", "tickvals": shown, "ticktext": [f"{value:g}" for value in shown]}


def number_text(value: float) -> str:
    """A whole number as such, others with three digits."""
    return str(int(value)) if float(value).is_integer() else number(value)
