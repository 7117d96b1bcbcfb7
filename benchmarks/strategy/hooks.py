"""Communication hooks of DistributedDataParallel: gradients sent in fewer bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from benchmarks.strategy.traffic import size_bytes


class Hook(ABC):
    """One way to reduce gradients over workers."""

    @abstractmethod
    def register(self, model: DistributedDataParallel) -> None:
        """From now on, the model's gradients are reduced this way."""

    @abstractmethod
    def reduced_bytes(self, gradients: Sequence[Tensor]) -> int:
        """What is all-reduced in place of gradients of these shapes."""

    def forget(self) -> None:  # noqa: B027 - most leave nothing
        """Drop what earlier steps left."""


class NoHook(Hook):
    """Gradients as they are."""

    def register(self, model: DistributedDataParallel) -> None:
        """DistributedDataParallel's own all-reduce."""

    def reduced_bytes(self, gradients: Sequence[Tensor]) -> int:
        """All of them."""
        return size_bytes(gradients)


class Rounded(Hook):
    """Gradients rounded to a shorter format for the journey, summed in it, and widened again."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def register(self, model: DistributedDataParallel) -> None:
        """torch's own hooks; gradients are divided by the number of workers before they are summed."""
        hooks = {torch.float16: default_hooks.fp16_compress_hook, torch.bfloat16: default_hooks.bf16_compress_hook}
        model.register_comm_hook(None, hooks[self.dtype])

    def reduced_bytes(self, gradients: Sequence[Tensor]) -> int:
        """Two bytes for each number."""
        return size_bytes(gradients, self.dtype)


class PowerSgd(Hook):
    """Each gradient matrix M as P Q^T of low rank (Vogels et al. 2019, arXiv 1905.13727), with error feedback.

    The first two steps send all of M: torch rebuilds its buckets in between. A tensor of one dimension, and a matrix
    that would not be halved at least, is sent as it is.
    """

    plain_steps = 2
    min_compression_rate = 2.0

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.state = self._new_state()

    def _new_state(self) -> PowerSGDState:
        return PowerSGDState(
            process_group=None,
            matrix_approximation_rank=self.rank,
            start_powerSGD_iter=self.plain_steps,
            min_compression_rate=self.min_compression_rate,
            orthogonalization_epsilon=1e-8,  # a gradient of zeros has no direction
        )

    def register(self, model: DistributedDataParallel) -> None:
        """torch's own hook; on a machine with a GPU it waits for the device in every bucket."""
        compress = _one_by_one if dist.get_backend() == "gloo" else _compress
        model.register_comm_hook(self, lambda hook, bucket: compress(hook, bucket))  # torch cannot read annotations

    def reduced_bytes(self, gradients: Sequence[Tensor]) -> int:
        """From the third step on: a matrix (n, m) becomes rank x (n + m) numbers."""
        count = 0
        for gradient in gradients:
            n = gradient.shape[0] if gradient.ndim > 1 else 1
            m = gradient.numel() // n
            compressed = (n + m) * self.rank
            worth_it = gradient.ndim > 1 and compressed * self.min_compression_rate < n * m
            count += (n + m) * min(n, m, self.rank) if worth_it else gradient.numel()
        return 4 * count

    def forget(self) -> None:
        """No error is fed back, no Q reused; and the first two steps are plain again."""
        self.state = self._new_state()


def _compress(hook: PowerSgd, bucket: Any) -> Future[Tensor]:
    return powerSGD_hook(hook.state, bucket)


def _one_by_one(hook: PowerSgd, bucket: Any) -> Future[Tensor]:
    """Each bucket's three all-reduces before the next bucket's.

    torch chains them by callbacks, which with gloo run on several threads: with two buckets under way, ranks would
    begin all-reduces in different orders, and add up what does not belong together.
    """
    future = powerSGD_hook(hook.state, bucket)
    future.wait()
    return future


HOOKS: dict[str, Callable[[int], Hook]] = {
    "none": lambda _rank: NoHook(),
    "fp16": lambda _rank: Rounded(torch.float16),
    "bf16": lambda _rank: Rounded(torch.bfloat16),
    "powersgd": PowerSgd,
}
