"""Numbers, amounts and texts as people read them, the same in tables, figures and answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.statistics.estimate import Estimate

_SECONDS = ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172800.0, "h", 3600.0), (math.inf, "days", 86400.0))
_JOULES = ((1e3, "J", 1.0), (1e6, "kJ", 1e3), (1e9, "MJ", 1e6), (math.inf, "GJ", 1e9))
_LONGEST_TEXT = 80


def number(value: float) -> str:
    """Three significant digits, all digits before the point: 0.886, 18.1, 4103."""
    if value == 0:
        return "0"
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:#.3g}"


def clean_long(text: str) -> str:
    """One printable line, however long."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def clean(value: object) -> str:
    """A value as one short line, without the control characters that move cursors and end rows."""
    text = "".join(char if char.isprintable() else " " for char in str(value))
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def duration(seconds: float) -> str:
    """Seconds: `45.2 s`, `3.1 min`, `2.4 h`, `5 days`."""
    unit, size = _unit_for(seconds, _SECONDS)
    return f"{seconds / size:.3g} {unit}"


def between(time: Estimate) -> str:
    """The interval of a duration, in the unit of its middle."""
    size = _unit_for(time.value, _SECONDS)[1]
    return f"[{time.low / size:.3g}, {time.high / size:.3g}]"


def energy_words(joules: float) -> str:
    """Joules: `850 J`, `12.3 kJ`, `4.56 MJ`, `1.2 GJ`."""
    unit, size = _unit_for(joules, _JOULES)
    return f"{joules / size:.3g} {unit}"


def _unit_for(amount: float, units: Sequence[tuple[float, str, float]]) -> tuple[str, float]:
    """The unit to say an amount in, and its size: the first whose limit, the largest last, lies above."""
    return next(((unit, size) for limit, unit, size in units if amount < limit), units[-1][1:])
