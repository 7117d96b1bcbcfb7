"""A worker made slower by a known factor, as a slower device would be."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.data.batches import Batch

_KERNELS = r"""
__device__ unsigned long long now_ns() {
    unsigned long long now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}
extern "C" __global__ void mark(unsigned long long* since) { *since = now_ns(); }
extern "C" __global__ void stretch(unsigned long long* since) {
    const unsigned long long now = now_ns();
    const unsigned long long until = now + (unsigned long long)((now - *since) * (FACTOR - 1.0));
    while (now_ns() < until) {}
    *since = now_ns();
}
"""


def kernels(factor: float) -> str:
    """The source of `mark` and `stretch`; the factor is a constant, so that no number has to cross a boundary."""
    return _KERNELS.replace("FACTOR", repr(float(factor)))


class Slowdown(ABC):
    """Waits that follow work and take (factor - 1) x its time, whatever the work is: a batch that shrinks waits less.

    A wait takes no memory, no core of another worker and no change of the model, which repeated work would. The time
    is that of the very work, not of an earlier calibration.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor

    @abstractmethod
    def mark(self) -> None:
        """Work begins."""

    @abstractmethod
    def stretch(self) -> None:
        """Work ends, factor x as long after its mark; more work begins."""


class HostSlowdown(Slowdown):
    """The worker's own thread sleeps; what one wait takes too long, the next ones take less."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        self._since = time.perf_counter()
        self._overslept_s = 0.0

    def mark(self) -> None:
        self._since = time.perf_counter()

    def stretch(self) -> None:
        begin = time.perf_counter()
        wait_s = (begin - self._since) * (self.factor - 1.0) - self._overslept_s
        if wait_s > 0:
            time.sleep(wait_s)
        self.mark()
        self._overslept_s = self._since - begin - wait_s


class CudaSlowdown(Slowdown):
    """Kernels of one thread in the device's current stream: the device's own clock times the work, and the wait."""

    def __init__(self, factor: float) -> None:
        super().__init__(factor)
        compile_kernel: Any = torch.cuda._compile_kernel
        self._mark, self._stretch = (compile_kernel(kernels(factor), name) for name in ("mark", "stretch"))
        self._since = torch.zeros(1, dtype=torch.uint64, device="cuda")
        self.mark()

    def mark(self) -> None:
        self._mark((1, 1, 1), (1, 1, 1), (self._since,))

    def stretch(self) -> None:
        self._stretch((1, 1, 1), (1, 1, 1), (self._since,))


def slowdown_for(device: torch.device, factor: float) -> Slowdown:
    """The slowdown of a device's kind."""
    return CudaSlowdown(factor) if device.type == "cuda" else HostSlowdown(factor)


@dataclass(frozen=True, kw_only=True)
class SlowedStep:
    """A step on a slowed worker.

    Its forward and backward pass are stretched when this rank has its last gradient, before the other ranks get it;
    where the strategy has no such moment, after the backward pass, with all communication in it. Then the update is
    stretched. Loading the batch is not.
    """

    step: Callable[[Batch], Tensor]
    slowdown: Slowdown

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch, slowly."""
        self.slowdown.mark()
        loss = self.step(batch)
        self.slowdown.stretch()
        return loss
