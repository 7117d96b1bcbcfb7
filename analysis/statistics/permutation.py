"""Groups of times compared without any assumption on how they are distributed, and exactly also for few repeats.

The permutation test of Fisher and Pitman (Pitman 1937, Supplement to the Journal of the Royal Statistical Society 4):
if nothing differed, any share-out of the values between the two groups would have been as likely. The statistic is the
difference of means of logarithms, which is the logarithm of the ratio of geometric means. The interval are the shifts
that the test does not reject: each share-out has one shift at which it is as extreme as what was seen, and the limits
are order statistics of those (Garthwaite 1996, Biometrics 52, section 2).

Several pairs of groups (cells) are pooled by sharing out within each pair alone, all pairs weighing alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from analysis.statistics.bootstrap import generator

Floats = NDArray[np.float64]
Values = Sequence[float] | Floats
Pair = tuple[Values, Values]

_MOST_EXACT = 20_000
"""Share-outs up to which all are looked at; beyond, as many are drawn at random."""
_DRAWN = 9_999


@dataclass(frozen=True, kw_only=True)
class Shift:
    """How much larger the second groups are, in the unit of the values."""

    value: float
    low: float
    high: float
    p: float
    """Of the test that there is no shift, two-sided."""


def shift(pairs: Sequence[Pair], level: float) -> Shift | None:
    """The shift that all pairs of groups have in common; None where they hold too few values for this level."""
    seen = float(np.mean([np.mean(second) - np.mean(first) for first, second in pairs]))
    statistics, coefficients = _share_outs(pairs)
    # Under a shift d of the second groups the statistic is `statistics - d * coefficients`, and `seen - d` as seen.
    other = coefficients < 1 - 1e-12
    turning = np.sort((seen - statistics[other]) / (1 - coefficients[other]))
    as_seen, ways = len(statistics) - len(turning), len(statistics)
    cut = int((1 - level) / 2 * ways + 1e-9) - as_seen + 1
    if cut < 1 or as_seen > (1 - level) / 2 * ways + 1e-9:
        return None
    above = (as_seen + np.sum(turning <= 0)) / ways
    below = (as_seen + np.sum(turning >= 0)) / ways
    return Shift(
        value=seen, low=float(turning[cut - 1]), high=float(turning[-cut]), p=float(min(1.0, 2 * min(above, below)))
    )


def enough(level: float) -> int:
    """The fewest values in each of two groups of equal size for an interval of this level."""
    return next(n for n in range(2, 100) if int((1 - level) / 2 * comb(2 * n, n) + 1e-9) >= 1)


def _share_outs(pairs: Sequence[Pair]) -> tuple[Floats, Floats]:
    """The statistic of each share-out, also of the one seen, and how it changes with a shift of the second groups."""
    if len(pairs) == 1 and comb(sum(map(len, pairs[0])), len(pairs[0][1])) <= _MOST_EXACT:
        return _of_pair(pairs[0], _all_choices(pairs[0]))
    rng = generator(f"share-outs {[(len(first), len(second)) for first, second in pairs]}")
    drawn = [_of_pair(pair, _random_choices(pair, rng)) for pair in pairs]
    seen = float(np.mean([np.mean(second) - np.mean(first) for first, second in pairs]))
    statistics = np.mean([statistic for statistic, _ in drawn], axis=0)
    coefficients = np.mean([coefficient for _, coefficient in drawn], axis=0)
    return np.append(statistics, seen), np.append(coefficients, 1.0)


def _all_choices(pair: Pair) -> NDArray[np.int64]:
    """Which places the second group's values may take; shape (ways, size of the second group)."""
    first, second = map(len, pair)
    return np.array(list(combinations(range(first + second), second)), dtype=np.int64)


def _random_choices(pair: Pair, rng: np.random.Generator) -> NDArray[np.int64]:
    first, second = map(len, pair)
    order = np.argsort(rng.random((_DRAWN, first + second)), axis=1)
    return order[:, :second]


def _of_pair(pair: Pair, chosen: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """For each choice: the difference of means, and how many of the second group's own places it has, as a share."""
    first, second = map(len, pair)
    values = np.concatenate([np.asarray(pair[0], dtype=np.float64), np.asarray(pair[1], dtype=np.float64)])
    of_second = np.concatenate([np.zeros(first), np.ones(second)])

    def difference(of: Floats) -> Floats:
        inside = of[chosen].sum(axis=1)
        return np.asarray(inside / second - (of.sum() - inside) / first)

    return difference(values), difference(of_second)


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979, Scandinavian Journal of Statistics 6)."""
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted
