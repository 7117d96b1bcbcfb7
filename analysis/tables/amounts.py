"""Columns of energy and money, shown where a cell has them, and the words that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from analysis.schema import Point
from analysis.statistics.estimate import Estimate

AMOUNTS = ("energy_j_per_million_samples", "mean_power_w", "cost_per_million_samples")
"""As fields of a point, and columns of files for programs."""


class Amount(NamedTuple):
    """One column: its heading with the unit, and a cell's number before it is multiplied by the factor."""

    header: str
    of: Callable[[Point], Estimate | None]
    factor: float = 1.0


def amounts(points: Sequence[Point], currency: str | None) -> list[Amount]:
    """Those which any of the points has."""
    known = (
        Amount("energy [kJ/1e6]", lambda point: point.energy_j_per_million_samples, 1e-3),
        Amount("power [W]", lambda point: point.mean_power_w),
        Amount(f"cost [{currency}/1e6]", lambda point: point.cost_per_million_samples),
    )
    return [amount for amount in known if any(amount.of(point) for point in points)]


def amount_notes(points: Sequence[Point], currency: str | None) -> list[str]:
    """What the columns mean."""
    notes = []
    scopes = dict.fromkeys(point.energy_scope for point in points if point.energy_scope)
    if scopes:
        notes.append(f"energy: for a million samples, in the window alone; {'; or '.join(scopes)}.")
    if any(point.cost_per_million_samples for point in points):
        notes.append(
            f"cost: {currency} for a million samples, by time per step, workers and the price of a worker-hour."
        )
    return notes


def unknown_energy(points: Sequence[Point]) -> list[str]:
    """Why measured cells have no energy, in one line; nothing where all have it, or none was ever looked for."""
    measured = [point for point in points if point.repeats_ok]
    reasons = [point.energy_unknown_because for point in measured if point.energy_unknown_because]
    if not reasons:
        return []
    several = list(dict.fromkeys(reasons))
    more = f" (and {len(several) - 1} more reasons)" if len(several) > 1 else ""
    which = "" if len(reasons) == len(measured) else f" of {len(reasons)} of {len(measured)} cells"
    return [f"Energy{which} is unknown: {several[0]}{more}"]
