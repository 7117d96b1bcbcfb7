"""What a record says of its energy: joules of each span, why there are none, and clocks that fell."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

from analysis.runs.oddities import Oddity
from benchmarks.core.energy import CounterReading, Energy
from benchmarks.core.record import Record

NOT_RECORDED = "its records are older than the measurement of energy"
_FEWEST_SAMPLES = 12
_LEAST_FALL = 0.05
"""Of the clock: from here on it is said."""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """The energy of one run's window."""

    joules: float | None
    scope: str | None
    """What the counters count, in words; None where nothing is known."""
    unknown_because: str | None
    idle_w: float | None = None
    """Power of all devices before they were used; None where it was not measured."""


def spent(record: Record) -> Spent:
    """The run's energy, all spans together."""
    energy = record.energy
    if energy is None:
        return Spent(joules=None, scope=None, unknown_because=NOT_RECORDED)
    spans = energy.joules_by_span()
    if spans is None or None in spans:
        why = energy.unknown.get(energy.source, "a counter failed within the window")
        return Spent(joules=None, scope=None, unknown_because=why)
    return Spent(
        joules=sum(joules or 0.0 for joules in spans),
        scope=energy.scope,
        unknown_because=None,
        idle_w=_idle_w([counter.idle_w for counter in energy.counters if counter.source == energy.source]),
    )


def _idle_w(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def of_clocks(energy: Energy | None) -> list[Oddity]:
    """The GPU whose clock fell most over the window, if it is by 5 % or more: it was too hot, or at its power limit."""
    falls = [(fall, counter) for counter in (energy.counters if energy else ()) if (fall := _clock_fall(counter))]
    if not falls:
        return []
    (first_mhz, last_mhz), counter = max(falls, key=lambda one: 1 - one[0][1] / one[0][0])
    degrees = [value for value in counter.series.temperature_c if value is not None] if counter.series else []
    heat = f", at up to {max(degrees):.0f} °C" if degrees else ""
    return [
        Oddity(
            kind="clock",
            words=f"the clock of rank {counter.rank}'s GPU on {counter.host} fell by {1 - last_mhz / first_mhz:.0%} "
            f"during the window, from {first_mhz:.0f} to {last_mhz:.0f} MHz{heat}",
        )
    ]


def _clock_fall(counter: CounterReading) -> tuple[float, float] | None:
    """Median clocks of the first and the last third of the window; None where it did not fall by much."""
    clocks = [mhz for mhz in counter.series.sm_clock_mhz if mhz is not None] if counter.series else []
    if len(clocks) < _FEWEST_SAMPLES:
        return None
    third = len(clocks) // 3
    first, last = median(clocks[:third]), median(clocks[-third:])
    return (first, last) if last < (1 - _LEAST_FALL) * first else None
