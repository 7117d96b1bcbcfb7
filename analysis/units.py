"""Amounts as people say them, each in the unit that suits it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from analysis.estimate import Estimate

_SECONDS = ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172800.0, "h", 3600.0), (math.inf, "days", 86400.0))
_JOULES = ((1e3, "J", 1.0), (1e6, "kJ", 1e3), (1e9, "MJ", 1e6), (math.inf, "GJ", 1e9))


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
