"""Optimisers: makers take the parameters and the options of the YAML file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.data.batches import Batch, Division
from benchmarks.registry import Registry

TakeStep = Callable[[Batch], Tensor]


class Replicas(Protocol):
    """What a strategy tells an optimiser of the model's replicas."""

    division: Division
    summed_bytes_per_step: float

    def sum_over_replicas(self, tensors: Sequence[Tensor], /) -> None:
        """Add up tensors over replicas, in place and on each of them."""


class WatchingOptimizer(Optimizer):
    """An optimiser that must know more of a model than its parameters."""

    @abstractmethod
    def watch(self, model: nn.Module, step: TakeStep, replicas: Replicas, /) -> TakeStep:
        """Look at the model, once, before the first step; returns the step to take, which may do more than `step`."""


optimizers: Registry[Optimizer] = Registry("optimizer")
