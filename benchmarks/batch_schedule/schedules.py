"""A fixed batch, one that grows, and one that follows the gradient's noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.batch_schedule import BatchSchedule, batch_schedules
from benchmarks.core.record import finite


@batch_schedules.register("fixed")
class Fixed(BatchSchedule):
    """The same global batch in all epochs."""

    def possible(self, _epochs: int) -> list[int]:
        return [self.first]

    def after(self, _epoch: int, _noise_scale: Callable[[int], float]) -> int:
        return self.first


@batch_schedules.register("growing")
class Growing(BatchSchedule):
    """Larger by a factor after every so many epochs (Smith et al. 2018, arXiv 1711.00489).

    Growing the batch lowers the gradient's noise as decaying the learning rate would, in fewer and larger steps; the
    learning rate stays.
    """

    def __init__(self, first: int, *, factor: int, every: int, most: int) -> None:
        super().__init__(first)
        self.factor, self.every, self.most = factor, every, most

    def possible(self, epochs: int) -> list[int]:
        return sorted({self._in(epoch) for epoch in range(epochs)})

    def after(self, epoch: int, _noise_scale: Callable[[int], float]) -> int:
        return self._in(epoch + 1)

    def _in(self, epoch: int) -> int:
        return self.first * int(min(self.factor ** (epoch // self.every), self.most))


@batch_schedules.register("noise")
class Noise(BatchSchedule):
    """As large as the gradient's noise scale (McCandlish et al. 2018, arXiv 1812.06162), in powers of two.

    At that batch, a step makes half the progress that it would make without noise; far below it, twice the batch makes
    twice the progress, and far above it none. The scale is measured after each epoch, outside the window, and the
    batch is the nearest power of two times the first one, by ratio; the largest where no gradient shows in the noise.
    """

    def __init__(self, first: int, *, most: int, measured_samples: int) -> None:
        super().__init__(first)
        self.factors = [2**power for power in range(most.bit_length())]
        self.measured_batches = measured_samples // first
        self.measured: list[float] = []

    def possible(self, epochs: int) -> list[int]:
        return [self.first * factor for factor in self.factors[: None if epochs > 1 else 1]]

    def after(self, _epoch: int, noise_scale: Callable[[int], float]) -> int:
        self.measured.append(noise_scale(self.measured_batches))
        wanted = min(max(self.measured[-1] / self.first, 1.0), self.factors[-1])
        return self.first * int(min(self.factors, key=lambda factor: max(factor / wanted, wanted / factor)))

    def facts(self) -> dict[str, Any]:
        """The noise scale after each epoch but the last; null where it was too large to be seen."""
        return {"noise_scale_samples_by_epoch": [finite(scale) for scale in self.measured]}
