"""How well a cell's number is to be known, and how many repeats that takes: the rule of `target_ci`. Pure.

A cell has reached its target when the half width of the 95 % interval of its median step time, as the tables show it,
is at most the target's part of that median. Its repeats grow by half, from `sweep.repeats` over `JUDGED_FROM` to
`max_repeats`, and only between two such steps is it looked at: with the defaults after 8, 12, 18 and 20 repeats.

Why so few looks, and none before eight repeats: an interval that is looked at until it is narrow is more often narrow
by chance, and beside the truth, than one of a fixed number of repeats. Simulated for a target of 2 % without a cap,
with log-normal noise of 1.5, 2, 3 and 4 % between repeats, 400 to 500 cells of each, the last interval covers the truth

- where steps vary by 5 %: in 98, 96, 94 and 95 % of cells (judged from six repeats on: 90 to 93 %);
- where they vary by 0.5 %: in 91, 90, 91 and 89 %. With 8, 12 or 20 repeats for all it does in 90, 95 and 93 %.

It is worst where a cell stops at once with eight repeats and many more were needed: 79 % with 4 % noise, which befalls
one cell in six. Repeats were 8, 9, 16 and 27 in the mean, where (1.96 x 1.25 x noise / target)^2, the number for the
median of a normal distribution, is 3, 6, 14 and 24.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise

import msgspec

from benchmarks.core.errors import ConfigError

JUDGED_FROM = 8
"""The fewest repeats that a cell is judged by."""
_GROWTH = 1.5


class RepeatTarget(msgspec.Struct, frozen=True, kw_only=True):
    """What repeats are added for, and how many there may be."""

    half_width: float
    """Of the interval of the median step time, over that median; no unit."""
    max_repeats: int

    def reached(self, width: Width) -> bool:
        """Whether a cell needs no more repeats."""
        return width.repeats_ok >= JUDGED_FROM and width.half_width <= self.half_width


class Width(msgspec.Struct, frozen=True, kw_only=True):
    """How well a cell's number is known by its records."""

    repeats: int
    """The number of the last repeat with a record, plus one."""
    repeats_ok: int
    """Those that give numbers."""
    half_width: float
    """As in `RepeatTarget`; infinite where no repeat gives a number."""


Widths = Mapping[str, Width]
"""By cell; a cell without a record is not there."""


def read_repeat_target(target_ci: object, max_repeats: object) -> RepeatTarget | None:
    """The keys `target_ci` and `max_repeats` of the configuration; None where no repeats are to be added.

    Raises:
        ConfigError: one of them cannot be.
    """
    if target_ci is None:
        return None
    if isinstance(max_repeats, bool) or not isinstance(max_repeats, int) or max_repeats < JUDGED_FROM:
        raise ConfigError(
            f"max_repeats={max_repeats}: must be a whole number from {JUDGED_FROM}, the fewest repeats that "
            "target_ci is judged by"
        )
    part = _part(target_ci)
    if part is None or not 0 < part < 1:
        raise ConfigError(f"target_ci={target_ci}: must be above 0 and below 100 %, as 2% or 0.02; or null")
    return RepeatTarget(half_width=part, max_repeats=max_repeats)


def _part(given: object) -> float | None:
    """`2%` and `0.02` are the same; None where it is neither."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", str(given))
    return float(match[1]) / (100 if match[2] else 1) if match else None


def steps_of(first: int, last: int) -> list[int]:
    """The numbers of repeats after which a cell is looked at, from `first` to `last`."""
    steps = [first]
    while steps[-1] < last:
        steps.append(min(last, max(JUDGED_FROM, math.ceil(steps[-1] * _GROWTH))))
    return steps


def rounds_of(first: int, last: int) -> list[range]:
    """The repeats that each round adds, by their number."""
    return [range(*ends) for ends in pairwise(steps_of(first, last))]


def percent(part: float) -> str:
    """`3.1 %`, `2 %`: two digits."""
    return f"{100 * part:.2g} %" if part < 1 else f"{100 * part:.0f} %"


def shortfall(width: Width, target: RepeatTarget) -> str:
    """Of a cell that has all the repeats it may have, for people."""
    if width.repeats_ok < JUDGED_FROM:
        return f"only {width.repeats_ok} repeats give numbers, too few to judge target_ci"
    return (
        f"interval still +-{percent(width.half_width)} after {width.repeats_ok} repeats "
        f"(target {percent(target.half_width)})"
    )
