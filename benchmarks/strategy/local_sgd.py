"""Data parallelism by averaging parameters now and then, instead of gradients at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data.batches import Batch
from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Step, Strategy, SyncSwitch, strategies
from benchmarks.strategy.traffic import size_bytes, traffic_of

_LINE_BYTES = 64
_CHUNK = 2**20


@strategies.register("local_sgd")
class LocalSgd(Strategy):
    """Local SGD (Stich 2019, arXiv 1805.09767, algorithm 1): averaging after `every` steps.

    With `outer: nesterov` an outer optimiser steps instead, as in DiLoCo (Douillard et al. 2023, arXiv 2311.08105,
    algorithm 1): what all workers began with, less the mean of what they have come to, is a gradient for SGD with
    Nesterov's momentum. An `outer_lr` of 1 without momentum is the average. In the long run parameters move
    outer_lr / (1 - outer_momentum) times as far as the workers alone would, so the inner optimiser needs a smaller
    step: 7 times smaller by default.

    Each worker's own optimiser keeps its state when the workers meet, and never sends it, as in DiLoCo. Where the step
    is a linear function of the gradients, as with SGD and its momentum, `every: 1` is ddp; with Adam it is not.

    A share's mean loss is weighted as in ddp, so a short batch that is shared unequally moves each worker by what its
    own samples are worth.

    Batch norm's running averages are averaged at the same moments and take no part in the outer step: they are
    observations, nothing is optimised in them. In between, each worker's follow its own samples.

    In fp16 each worker scales its own loss, and one whose gradients overflow skips a step of its own; in ddp all do.
    """

    communicates = True
    flat: Tensor
    """All that is averaged, in one vector: the parameters, and from `_parameters_end` on batch norm's averages."""
    anchor: Tensor
    """`flat` after the last averaging, where all workers were equal."""
    velocity: Tensor
    """The outer optimiser's momentum: one number for each parameter, none where there is no outer optimiser."""

    def __init__(self, place: Place, *, every: int, outer: str, outer_lr: float, outer_momentum: float) -> None:
        super().__init__(place)
        self.every = every
        self.outer = outer
        self.outer_lr = outer_lr
        self.outer_momentum = outer_momentum
        self.steps = self.averagings = 0
        self.sync = SyncSwitch()
        self._parameters_end = 0
        self._own_work_done: Callable[[], None] = lambda: None

    def wrap(self, model: nn.Module, _precision: Precision, /) -> nn.Module:
        """The same model, its parameters and batch norm's averages moved into one vector; the values are rank 0's.

        Raises:
            ImpossibleRunError: they are not all in one number format.
        """
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        formats = sorted({str(tensor.dtype) for tensor in (*parameters, *_running(model))})
        if len(formats) > 1:
            raise ImpossibleRunError(f"strategy=local_sgd: cannot average {', '.join(formats)} as one vector")
        self.flat, self._parameters_end = _one_vector(parameters, _running(model))
        self.anchor = self.flat.clone()
        self.velocity = torch.zeros_like(self.flat[: self._parameters_end if self.outer == "nesterov" else 0])
        return model

    def make_step(self, step: Step, /) -> Step:
        """The step, after which the workers may meet."""
        return step.made(LocalStep, own_work_done=self._own_work_done, meet=self._meet)

    def without_sync(self) -> AbstractContextManager[None]:
        """The workers do not meet."""
        return self.sync.off()

    def bytes_per_step(self) -> int:
        """2 (N-1)/N x the bytes of parameters and batch norm's averages, every so many steps: the mean over steps."""
        return round(traffic_of().all_reduce(size_bytes([self.flat])) / self.every)

    def forget(self) -> None:
        """Begin anew from the values that are there: warm-up is undone, so they are the same on all workers.

        Warm-up may have been too short for an averaging, the first of which takes longer than those that follow: here
        is one, and it leaves no trace.
        """
        first = self.flat.clone()
        self._average()
        self.flat.copy_(first)
        self.anchor.copy_(first)
        self.velocity.zero_()
        self.steps = self.averagings = 0

    def copies(self, _model: nn.Module, /) -> Copies:
        """What all workers began their current steps of their own with; the parameters, if they have just begun."""
        now = [] if self._away else [self.flat]
        return Copies(tensors=[part for whole in (self.anchor, *now) for part in whole.split(_CHUNK)])

    @contextmanager
    def evaluating(self, _model: nn.Module, /) -> Iterator[None]:
        """Within: the mean of all workers' parameters as they are now; with an outer optimiser, its own.

        The mean is what local SGD's analysis is about, and its result (Stich 2019, section 2). DiLoCo's model are
        the outer optimiser's parameters, which change at averagings only: steps since then do not count yet. No worker
        keeps any of this.
        """
        if not self._away:
            yield
            return
        own = self.flat.clone()
        if self.outer == "average":
            self._to_mean()
        else:
            self.flat.copy_(self.anchor)
        try:
            yield
        finally:
            self.flat.copy_(own)

    def facts(self) -> dict[str, Any]:
        """How often the workers have met, and how many steps they have taken since."""
        return {
            "averagings": self.averagings,
            "every": self.every,
            "outer": self.outer,
            "steps_since_averaging": self.steps % self.every,
        }

    def on_last_gradient(self, _model: nn.Module, call: Callable[[], None], /) -> bool:
        """Called after the worker's own update: what follows is waiting for the others, and the averaging."""
        self._own_work_done = call
        return True

    @property
    def _away(self) -> bool:
        """Whether the workers have taken steps of their own since they last met."""
        return self.steps % self.every != 0

    def _meet(self) -> None:
        if not self.sync.on:
            return
        self.steps += 1
        if not self._away:
            self._average()

    def _average(self) -> None:
        self._to_mean()
        if self.outer == "nesterov":
            self._outer_step()
        self.anchor.copy_(self.flat)
        self.averagings += 1

    def _to_mean(self) -> None:
        dist.all_reduce(self.flat)
        self.flat.div_(self.place.workers)

    def _outer_step(self) -> None:
        """SGD with Nesterov's momentum, as torch has it: v <- m v + g, then a step along g + m v."""
        parameters, anchor = self.flat[: self._parameters_end], self.anchor[: self._parameters_end]
        gradient = anchor - parameters
        self.velocity.mul_(self.outer_momentum).add_(gradient)
        gradient.add_(self.velocity, alpha=self.outer_momentum)
        parameters.copy_(anchor).sub_(gradient, alpha=self.outer_lr)


@dataclass(frozen=True, kw_only=True)
class LocalStep(Step):
    """A worker's own step, and then perhaps a meeting.

    Its backward pass counts as done when the meeting is over, so that all waiting for other ranks lies between the
    last gradient and then; the update goes before, as it is a worker's own work.
    """

    own_work_done: Callable[[], None]
    meet: Callable[[], None]

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss."""
        loss = self.backward(batch)
        self.update()
        self.own_work_done()
        self.meet()
        self.after_backward()
        return loss


def _running(model: nn.Module) -> list[Tensor]:
    """Batch norm's running means and variances."""
    return [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
        if buffer.is_floating_point()
    ]


def _one_vector(parameters: Sequence[Tensor], running: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Move tensors, in their memory format, into one vector; returns it, and where the parameters in it end."""
    starts = list(accumulate(map(_aligned, (*parameters, *running)), initial=0))
    flat = parameters[0].detach().new_zeros(starts[-1])
    for tensor, start in zip((*parameters, *running), starts, strict=False):
        dense = tensor.detach().clone()
        place = flat.as_strided(dense.size(), dense.stride(), start)
        tensor.data = place.copy_(dense)
    return flat, starts[len(parameters)]


def _aligned(tensor: Tensor) -> int:
    """How many numbers it takes for the next tensor to begin at a whole cache line, as matrix products like it."""
    line = _LINE_BYTES // tensor.element_size()
    return -(-tensor.numel() // line) * line
