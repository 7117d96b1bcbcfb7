"""What a recommendation makes small: time, money or energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from analysis.advice.candidates import Candidate
from analysis.statistics.bootstrap import Floats
from benchmarks.core.errors import UserError

Goal = Literal["time", "cost", "energy"]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """One goal."""

    amount: Callable[[Candidate], float]
    """Infinite where it is unknown, as of the energy of what was not measured."""
    draws: Callable[[Candidate], Floats]
    """Of the amount; of candidates that have one."""
    verb: str
    """What a candidate does with the amount."""


def _energy_draws(one: Candidate) -> Floats:
    assert one.energy is not None
    return one.energy.draws


AIMS: dict[Goal, Aim] = {
    "time": Aim(amount=lambda one: one.time_s, draws=lambda one: one.time_draws, verb="takes"),
    "cost": Aim(
        amount=lambda one: one.price, draws=lambda one: one.time_draws * (one.price / one.time_s), verb="costs"
    ),
    "energy": Aim(amount=lambda one: one.energy.joules if one.energy else math.inf, draws=_energy_draws, verb="uses"),
}


def comparable(found: Sequence[Candidate], goal: Goal, folder: Path) -> tuple[list[Candidate], list[str]]:
    """The candidates whose amount is known, and why that of the others is not.

    Raises:
        UserError: that of none is.
    """
    known = [one for one in found if math.isfinite(AIMS[goal].amount(one))]
    unknown = [one for one in found if not math.isfinite(AIMS[goal].amount(one))]
    if unknown and not known:
        why = unknown[0].energy_unknown_because or "unknown why"
        raise UserError(f"--goal {goal}: no cell of {folder} has measured {goal} ({why})")
    return known, [f"{one.label}: no measured {goal} ({one.energy_unknown_because})" for one in unknown]


def scopes_differ(found: Sequence[Candidate]) -> str:
    """A warning where counters of different kinds are held against each other; nothing where they are not."""
    scopes = dict.fromkeys(one.energy.scope for one in found if one.energy)
    return f" Their energies are not alike: {'; '.join(scopes)}." if len(scopes) > 1 else ""
