"""Strategies: how a training step is spread over workers.

A strategy is applied from outside to a single-device model, after it was built and before its optimiser is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.data.batches import Batch
from benchmarks.precision import Precision
from benchmarks.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Place:
    """A worker's place among all workers."""

    rank: int
    workers: int
    device: torch.device
    nodes: int = 1
    """Ranks are numbered node by node, equally many on each."""


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Tensors that must be equal, bit by bit, on all ranks of a group."""

    tensors: Sequence[Tensor]
    group: dist.ProcessGroup | None = None
    """None is all workers."""


class Strategy(ABC):
    """One way to spread the step. Subclasses take their YAML file's options as keywords."""

    communicates: bool
    """Whether the workers form a process group."""
    shards_gradients = False
    """Whether a rank's optimiser sees a part of the gradients only, so that an overflow must be told to all."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @abstractmethod
    def wrap(self, model: nn.Module, precision: Precision, /) -> nn.Module:
        """The model as this rank runs it; it was built from the same seed on every rank, and is on its device."""

    def make_optimizer(self, make: Callable[[Iterable[Parameter]], Optimizer], model: nn.Module, /) -> Optimizer:
        """The optimiser of what this rank updates; `model` is the wrapped one."""
        return make(model.parameters())

    def make_step(self, step: Step, /) -> Step:
        """The step as this strategy takes it, made of the plain one's parts."""
        return step

    def without_sync(self) -> AbstractContextManager[None] | None:
        """Within: steps that send nothing, each rank's parameters go their own way. None where that cannot be.

        For measuring only, when the model has done its work.
        """
        return None

    def bytes_per_step(self) -> int | None:
        """What a worker sends in a step, as a mean over workers; None where nobody has counted it."""
        return None

    def forget(self) -> None:  # noqa: B027 - nothing to drop is the rule
        """Drop what earlier steps left outside the model and its optimiser, such as a compressor's memory."""

    def copies(self, _model: nn.Module, /) -> Copies | None:
        """What must be the same on several ranks after each step; None where no rank holds another's tensors."""
        return None

    def align(self) -> None:
        """Wait for all workers, so that a span's first step does not hold what some of them were late by."""
        if self.communicates:
            dist.barrier()

    def on_last_gradient(self, _model: nn.Module, _call: Callable[[], None], /) -> bool:
        """Arrange for a call in each backward pass, when this rank has computed all but has yet to wait for others.

        Returns False where there is no such moment.
        """
        return False


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step on one batch."""

    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer
    precision: Precision
    after_backward: Callable[[], None]

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss on the device, without waiting for the device."""
        loss = self.backward(batch)
        self.after_backward()
        self.update()
        return loss

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of a batch; returns its mean loss."""
        with self.precision.autocast():
            loss: Tensor = self.loss(self.model(batch.inputs), batch.targets)
        weighted = loss if batch.weight == 1.0 else loss * batch.weight
        self.precision.scale(weighted).backward()
        return loss.detach()

    def update(self) -> None:
        """New parameters from the gradients, which are then dropped."""
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)


strategies: Registry[Strategy] = Registry("strategy")
