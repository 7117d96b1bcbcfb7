"""What communication costs: steps without it, and an all-reduce by itself, after the window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.data.batches import Batch
from benchmarks.measuring.step_times import Communication
from benchmarks.measuring.timing import clock_for
from benchmarks.strategy import Place, Strategy

_MOST_REDUCED_BYTES = 2**26
_ALLREDUCES = 5


class Probe:
    """Measures one strategy. Its steps train the model, each rank's in its own way: it is of no use afterwards."""

    def __init__(self, place: Place, strategy: Strategy, step: Callable[[Batch], Tensor], steps: int) -> None:
        self.place, self.strategy, self.step, self.steps = place, strategy, step, steps

    def measure(self, batches: dict[int, Iterator[Batch]], gradient_bytes: int) -> Communication:
        """All that is known of this rank's communication; `batches` by the size of their global batch.

        Without steps to measure with, only what is counted.
        """
        measured = self.steps > 0 and self.place.workers > 1 and self.strategy.communicates
        allreduce_bytes = min(self._largest(gradient_bytes), _MOST_REDUCED_BYTES) if measured else None
        return Communication(
            bytes_per_step=self.strategy.bytes_per_step(),
            unsynchronised_step_s=self._unsynchronised(batches) if measured else None,
            allreduce_bytes=allreduce_bytes,
            allreduce_s=self._allreduce_s(allreduce_bytes) if allreduce_bytes is not None else None,
        )

    def _largest(self, size: int) -> int:
        """Of all workers': an all-reduce is of one size, and their parts of the model may differ."""
        largest = torch.tensor(size, device=self.place.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)

    def _unsynchronised(self, batches: dict[int, Iterator[Batch]]) -> dict[int, float] | None:
        switch = self.strategy.without_sync()
        if switch is None:
            return None
        with switch:
            return {size: self._step_time_s(of_size) for size, of_size in batches.items()}

    def _step_time_s(self, batches: Iterator[Batch]) -> float:
        """The median over steps, loading included as in the window; one more step goes before, for what it settles."""
        clock = clock_for(self.place.device, self.steps)
        self.step(next(batches))
        self.strategy.align()
        clock.start()
        for _ in range(clock.steps):
            batch = next(batches)
            clock.batch_ready()
            self.step(batch)
            clock.step_done()
        clock.stop()
        return median(clock.times().step_s)

    def _allreduce_s(self, size: int) -> float:
        """The median over several all-reduces of one fp32 vector, from when all ranks are ready."""
        vector = torch.zeros(max(1, size // 4), device=self.place.device)
        times = []
        for _ in range(1 + _ALLREDUCES):
            self._settle()
            started = time.perf_counter()
            dist.all_reduce(vector)
            self._settle_device()
            times.append(time.perf_counter() - started)
        return median(times[1:])

    def _settle(self) -> None:
        self.strategy.align()
        self._settle_device()

    def _settle_device(self) -> None:
        if self.place.device.type == "cuda":
            torch.cuda.synchronize()
