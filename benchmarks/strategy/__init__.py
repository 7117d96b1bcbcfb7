"""Strategies: how a training step is spread over workers.

A strategy is applied from outside to a single-device model, after it was built and before its optimiser is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
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


class Strategy(ABC):
    """One way to spread the step. Subclasses take their YAML file's options as keywords."""

    communicates: bool
    """Whether the workers form a process group."""
    replicated: bool
    """Whether every rank holds all parameters, equal to every other rank's after each step."""

    def __init__(self, place: Place) -> None:
        self.place = place

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as this rank runs it; it was built from the same seed on every rank, and is on its device."""

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
        with self.precision.autocast():
            loss: Tensor = self.loss(self.model(batch.inputs), batch.targets)
        weighted = loss if batch.weight == 1.0 else loss * batch.weight
        self.precision.scale(weighted).backward()
        self.after_backward()
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


strategies: Registry[Strategy] = Registry("strategy")
