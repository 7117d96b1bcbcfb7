"""Learning rates that rise at first and fall later, as functions of the part of the run's samples trained on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

from benchmarks.lr_schedule import LrSchedule, lr_schedules


class RisingAndFalling(LrSchedule):
    """From `initial_factor` up to 1 in the first part `warmup` of the run, then down to `final_factor` at its end."""

    changes = True

    def __init__(self, *, warmup: float, initial_factor: float, final_factor: float) -> None:
        self.warmup, self.initial_factor, self.final_factor = warmup, initial_factor, final_factor

    def factor(self, progress: float, /) -> float:
        if progress < self.warmup:
            return self.rise(self.initial_factor, 1.0, progress / self.warmup)
        return self.fall(1.0, self.final_factor, (progress - self.warmup) / (1 - self.warmup))

    @abstractmethod
    def rise(self, start: float, end: float, part: float, /) -> float:
        """The way from one factor to the other; `part` of it, from 0 to 1, is gone."""

    @abstractmethod
    def fall(self, start: float, end: float, part: float, /) -> float:
        """As `rise`, on the way down."""


@lr_schedules.register("cosine")
class Cosine(RisingAndFalling):
    """A straight rise (Goyal et al. 2017, arXiv 1706.02677, section 2.2), then half a cosine.

    Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """

    def rise(self, start: float, end: float, part: float, /) -> float:
        return along_line(start, end, part)

    def fall(self, start: float, end: float, part: float, /) -> float:
        return along_cosine(start, end, part)


@lr_schedules.register("linear")
class Linear(RisingAndFalling):
    """A straight rise and a straight fall (Devlin et al. 2019, arXiv 1810.04805, appendix A.2)."""

    def rise(self, start: float, end: float, part: float, /) -> float:
        return along_line(start, end, part)

    def fall(self, start: float, end: float, part: float, /) -> float:
        return along_line(start, end, part)


@lr_schedules.register("one_cycle")
class OneCycle(RisingAndFalling):
    """One long rise and one long fall, both half a cosine, to far below the rate at the start.

    Smith and Topin 2019, arXiv 1708.07120, section 3, in the form of torch's OneCycleLR with two phases. Momentum stays
    as it is. The optimiser's own rate is the peak.
    """

    def rise(self, start: float, end: float, part: float, /) -> float:
        return along_cosine(start, end, part)

    def fall(self, start: float, end: float, part: float, /) -> float:
        return along_cosine(start, end, part)


@lr_schedules.register("steps")
class Steps(LrSchedule):
    """Multiplied by `decay` at each of the `milestones`, parts of the run (He et al. 2016, arXiv 1512.03385, 4.2)."""

    changes = True

    def __init__(self, *, milestones: Sequence[float], decay: float) -> None:
        self.milestones, self.decay = milestones, decay

    def factor(self, progress: float, /) -> float:
        return float(self.decay ** sum(progress >= milestone for milestone in self.milestones))


def along_line(start: float, end: float, part: float) -> float:
    """What lies at this part of a straight way."""
    return start + (end - start) * part


def along_cosine(start: float, end: float, part: float) -> float:
    """What lies at this part of a way along half a cosine: slow at both ends."""
    return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
