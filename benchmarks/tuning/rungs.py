"""Successive halving: which trials go on to a longer run, and what that saves. Pure.

A trial is run for a few epochs first. Of all trials that have been run so long, the best one in `reduction` goes on to
a run that is `reduction` times as long, and so on up to the full length; the others are pruned. So the epochs go to the
settings that deserve them: Jamieson and Talwalkar, arXiv 1502.07943; Li et al., Hyperband, arXiv 1603.06560.

Trials that are asked for together are halved among themselves where there are at least `reduction` of them. Fewer are
compared with all trials before them, too, and judged at once, as in ASHA's stopping variant (Li et al., arXiv
1810.05934, section 3). Either way no trial waits for later ones, so a study can be extended.

Each rung is a run of its own that begins anew. It has its own schedule of the learning rate from beginning to end, it
is an ordinary run with an ordinary record, and a strategy need not be able to stop in between; the price is that a
trial which goes on trains its first epochs again. `epochs_not_trained` counts that, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec


class Pruning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `tune.pruning`."""

    first_epochs: Annotated[int, msgspec.Meta(ge=1)] = 1
    """The length of a trial's first run."""
    reduction: Annotated[int, msgspec.Meta(ge=2)] = 3
    """One trial in so many goes on to a run that is so many times as long."""


def rungs(pruning: Pruning | None, full: int) -> list[int]:
    """The lengths of a trial's runs. Without pruning the full length alone.

    The last length below the full one is left out where the full one is less than `reduction` times as long and it is
    not the first: such a run would cost about as much as it could save.
    """
    if pruning is None:
        return [full]
    lengths = [pruning.first_epochs]
    while lengths[-1] * pruning.reduction**2 <= full:
        lengths.append(lengths[-1] * pruning.reduction)
    return [*lengths, full]


def promoted(value: float, competing: Iterable[float], reduction: int, maximises: bool) -> bool:
    """Whether a trial goes on: it is among the best one in `reduction` of those it competes with, itself included.

    With fewer than `reduction` of them, the best one goes on. Equal values are promoted alike.
    """
    ordered = sorted(competing, reverse=maximises)
    last = ordered[max(1, len(ordered) // reduction) - 1]
    return value >= last if maximises else value <= last


def epochs_not_trained(reached: Sequence[int], lengths: Sequence[int]) -> int:
    """How many epochs of one repeat pruning has saved, against running each trial once at its full length.

    Args:
        reached: For each trial the number of rungs that it was run on.
        lengths: Of the rungs, in epochs.

    Returns:
        Negative where the short runs of those that went on cost more than was saved.
    """
    return sum(lengths[-1] - sum(lengths[:count]) for count in reached)
