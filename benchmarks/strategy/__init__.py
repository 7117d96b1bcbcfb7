"""Strategies: how a training step is spread over workers.

A strategy is applied from outside to a single-device model, after it was built and before its optimiser is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.data import Split
from benchmarks.data.batches import Batch, Division, Feed, Loader
from benchmarks.measuring.step_times import StepTimes
from benchmarks.precision import Precision
from benchmarks.registry import Registry

StepKind = TypeVar("StepKind", bound="Step")


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
    others: Sequence[Copies] = ()
    """What must be equal on the ranks of other groups."""


class Strategy(ABC):
    """One way to spread the step. Subclasses take their YAML file's options as keywords.

    A worker's calls come in the order of the methods below; those from `make_loader` to `make_step` once, before the
    process group is used for anything else.
    """

    communicates: bool
    """Whether the workers form a process group."""
    shards_gradients = False
    """Whether a rank's optimiser sees a part of the gradients only, so that an overflow must be told to all."""

    summed_bytes_per_step = 0.0
    """What `sum_over_replicas` is given, as a mean over steps; whoever calls it says so."""
    counts_samples = True
    """Whether this rank's samples and losses count. Of the workers that hold one replica together, one's do."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.division = Division(place.rank, place.workers)
        """Each worker holds a replica of the model and takes its own share of a batch; or as a subclass says."""

    def make_loader(self, split: Split, /, *, global_batch: int, seed: int, feed: Feed | None = None) -> Loader:
        """This rank's batches of this split, which `feed` brings; without one, plainly in this process."""
        device, division = self.place.device, self.division
        return Loader(split, device=device, division=division, global_batch=global_batch, seed=seed, feed=feed)

    def take_part(self, model: nn.Module, _sample: Tensor, /) -> nn.Module:
        """What this rank holds of the model, which is on the host, built from the same seed on every rank.

        `sample` are some images, on the host. A part's parameters and buffers keep the names they had in the model.
        """
        return model

    @abstractmethod
    def wrap(self, model: nn.Module, precision: Precision, /) -> nn.Module:
        """This rank's part of the model as it runs it; it is on its device."""

    def make_optimizer(self, make: Callable[[Iterable[Parameter]], Optimizer], model: nn.Module, /) -> Optimizer:
        """The optimiser of what this rank updates; `model` is the wrapped one."""
        return make(model.parameters())

    def make_step(self, step: Step, /) -> Step:
        """The step as this strategy takes it, made of the plain one's parts."""
        return step

    def sum_over_replicas(self, _tensors: Sequence[Tensor], /) -> None:
        """Add up, in place and on all of them, what the optimisers of the model's replicas found in their shares.

        Raises NotImplementedError where there are several, and nobody has said how.
        """
        if self.division.replicas > 1:
            raise NotImplementedError(f"{type(self).__name__} sums nothing over replicas")

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

    def span_done(self, _times: StepTimes, _samples: Sequence[int], /) -> None:  # noqa: B027 - as for most
        """A span of the window is over, the next has not begun: this rank's times and own samples, step by step."""

    def evaluating(self, _model: nn.Module, /) -> AbstractContextManager[None]:
        """Within: this rank's part of the model is what is to be evaluated, on all ranks at once."""
        return nullcontext()

    def predict(self, model: nn.Module, inputs: Tensor, /) -> Tensor:
        """Logits (batch, classes) of the whole model, on every rank; all ranks call it with the same inputs."""
        logits: Tensor = model(inputs)
        return logits

    def copies(self, _model: nn.Module, /) -> Copies | None:
        """What must be the same on several ranks after each step; None where no rank holds another's tensors."""
        return None

    def align(self) -> None:
        """Wait for all workers, so that a span's first step does not hold what some of them were late by."""
        if self.communicates:
            dist.barrier()

    def facts(self) -> dict[str, Any]:
        """What the strategy decided and observed, for the record: plain values; rank 0's are kept."""
        return {}

    def close(self) -> None:  # noqa: B027 - nothing to end is the rule
        """End what the strategy has started besides this worker; all ranks have measured."""

    def on_last_gradient(self, _model: nn.Module, _call: Callable[[], None], /) -> bool:
        """Arrange for a call in each backward pass, when this rank has computed all but has yet to wait for others.

        Returns False where there is no such moment.
        """
        return False


class SyncSwitch:
    """Whether workers synchronise, for strategies that can go on without."""

    on = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within: they do not."""
        self.on = False
        try:
            yield
        finally:
            self.on = True


def _nothing(_batch: Batch) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step on one batch."""

    model: nn.Module
    loss: nn.Module
    optimizer: Optimizer
    precision: Precision
    after_backward: Callable[[], None]
    before_forward: Callable[[Batch], None] = _nothing

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss on the device, without waiting for the device."""
        loss = self.backward(batch)
        self.after_backward()
        self.update()
        return loss

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of a batch; returns its mean loss."""
        self.before_forward(batch)
        with self.precision.autocast():
            loss: Tensor = self.loss(self.model(batch.inputs), batch.targets)
        weighted = loss if batch.weight == 1.0 else loss * batch.weight
        self.precision.scale(weighted).backward()
        return loss.detach()

    def made(self, kind: Callable[..., StepKind], **more: Any) -> StepKind:
        """A step of another kind, of the same parts and more."""
        return kind(**{part.name: getattr(self, part.name) for part in fields(self)}, **more)

    def update(self) -> None:
        """New parameters from the gradients, which are then dropped."""
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)


strategies: Registry[Strategy] = Registry("strategy")
