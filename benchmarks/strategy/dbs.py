"""Dynamic batch size: shares of the global batch that follow the workers' speed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.data.batches import Division
from benchmarks.measuring.step_times import StepTimes
from benchmarks.strategy import Place, strategies
from benchmarks.strategy.ddp import Ddp

_LEAST_SAMPLES = 2


@strategies.register("dbs")
class Dbs(Ddp):
    """DDP whose shares of the batch, and so of the data set, follow measured speed, epoch by epoch.

    Ye et al. 2020, arXiv 2007.11831. Synchronous workers wait for the slowest one; here all are to be ready at the same
    time. A worker's speed is its share over its own time of a step: without its waiting for the others, with its
    loading. The next epoch's shares are in proportion to the speeds. A step's time also has a part that does not shrink
    with the share, so equal times are reached in a few epochs, not in one.

    Gradients are weighted by share, so that their sum is the large batch's mean gradient whatever the shares are. The
    global batches are those of any other strategy, so it trains the same model, but for batch norm, which sees a share.
    A share that grows takes more memory than warm-up has taken, up to `max_share` equal shares' worth.
    """

    def __init__(self, place: Place, *, bucket_mb: float, smoothing: float, min_share: float, max_share: float) -> None:
        super().__init__(
            place,
            bucket_mb=bucket_mb,
            gradient_as_bucket_view=True,
            static_graph=False,
            accumulate=1,
            hook="none",
            powersgd_rank=1,
        )
        self.smoothing = smoothing
        self.division: SpeedDivision = SpeedDivision(place.rank, place.workers, min_share, max_share)
        self.measured: list[list[float]] = []

    def span_done(self, times: StepTimes, samples: Sequence[int], /) -> None:
        """Divide the next epoch's batches by what this one has shown."""
        assert times.sync_wait_s is not None
        full = max(samples)
        own_s = [
            step - wait
            for step, wait, size in zip(times.step_s, times.sync_wait_s, samples, strict=True)
            if size == full
        ]
        speed = torch.tensor(full / median(own_s), dtype=torch.float64, device=self.place.device)
        speeds = [torch.zeros_like(speed) for _ in range(self.place.workers)]
        dist.all_gather(speeds, speed)
        self.measured.append([float(speed) for speed in speeds])
        self.division.follow(smoothed(self.measured, self.smoothing))

    def facts(self) -> dict[str, Any]:
        """Samples per second of each rank alone, in each epoch; the shares are in the record's spans."""
        return {"own_samples_per_s_by_epoch": self.measured}


def smoothed(measured: Sequence[Sequence[float]], newest: float) -> list[float]:
    """The exponential moving average of all ranks' speeds, epoch by epoch, with the weight of the newest."""
    average = list(measured[0])
    for speeds in measured[1:]:
        average = [newest * speed + (1 - newest) * old for speed, old in zip(speeds, average, strict=True)]
    return average


class SpeedDivision(Division):
    """Shares in proportion to speeds; equal ones before any are known."""

    def __init__(self, replica: int, replicas: int, min_share: float, max_share: float) -> None:
        super().__init__(replica, replicas)
        self.min_share, self.max_share = min_share, max_share
        self.follow([1.0] * replicas)

    def follow(self, speeds: Sequence[float]) -> None:
        """From now on, divide by these; the same on all ranks."""
        self.speeds = speeds
        self._parts: dict[int, slice] = {}

    def part(self, size: int) -> slice:
        """The consecutive part of a global batch that this rank takes; together they are all of it."""
        if size not in self._parts:
            shares = self.shares(size)
            first = sum(shares[: self.replica])
            self._parts[size] = slice(first, first + shares[self.replica])
        return self._parts[size]

    def shares(self, size: int) -> list[int]:
        """All ranks' samples of a global batch."""
        equal = size / self.replicas
        least = max(_LEAST_SAMPLES, math.ceil(self.min_share * equal))
        return apportion(size, self.speeds, least, math.floor(self.max_share * equal))


def apportion(total: int, weights: Sequence[float], least: int, most: int) -> list[int]:
    """Whole numbers that sum to `total`, as near to the weights' proportions as bounds and rounding allow.

    Bounds that no equal parts could keep give way to those. Whoever is out of bounds is put on the bound and the others
    share the rest, from the side where more is amiss, until nobody is; then the largest remainders are rounded up
    (Hamilton's method).
    """
    least, most = min(least, total // len(weights)), max(most, -(-total // len(weights)))
    parts: dict[int, float] = {}
    while True:
        free = [index for index in range(len(weights)) if index not in parts]
        scale = (total - sum(parts.values())) / (sum(weights[index] for index in free) or 1.0)
        wanted = {index: weights[index] * scale for index in free}
        above = {index: most for index in free if wanted[index] > most}
        below = {index: least for index in free if wanted[index] < least}
        if not above and not below:
            break
        excess = sum(wanted[index] - most for index in above)
        lack = sum(least - wanted[index] for index in below)
        parts |= above if excess >= lack else below
    parts |= wanted
    whole = [math.floor(parts[index]) for index in range(len(weights))]
    by_remainder = sorted(range(len(weights)), key=lambda index: (whole[index] - parts[index], index))
    for index in by_remainder[: total - sum(whole)]:
        whole[index] += 1
    return whole
