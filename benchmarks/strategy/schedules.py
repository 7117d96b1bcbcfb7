"""In which order the stages of a pipeline take the micro-batches of a batch.

The schedules are those of torch.distributed.pipelining. Their stages exchange tensors of one shape, so micro-batches
are of one size, and a batch that they do not divide is filled up with samples that do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from benchmarks.data.batches import Batch
from benchmarks.precision import Precision

IGNORED = -100
"""The target of a sample that does not count: what torch's cross entropy ignores by default."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A schedule: torch's class, which worker holds which stage, and which numbers of micro-batches it can take."""

    make: Callable[..., Any]
    owner: Callable[[int, int], int]
    """Of a stage, among the workers of a pipeline."""
    allows: Callable[[int, int], bool]
    """A number of micro-batches with a number of workers."""


def _in_turn(stage: int, workers: int) -> int:
    """0 1 2 0 1 2."""
    return stage % workers


def _there_and_back(stage: int, workers: int) -> int:
    """0 1 2 2 1 0."""
    return stage if stage < workers else 2 * workers - 1 - stage


def _any(_micro_batches: int, _workers: int) -> bool:
    return True


def _fills_the_pipeline(micro_batches: int, workers: int) -> bool:
    return micro_batches >= workers


def _in_equal_rounds(micro_batches: int, workers: int) -> bool:
    """A stage of each worker takes as many in a row as there are workers, or a few more."""
    return micro_batches % max(1, micro_batches // workers) == 0


SCHEDULES: dict[str, Kind] = {
    # Huang et al. 2019, arXiv 1811.06965: all forward passes, then all backward passes
    "gpipe": Kind(make=ScheduleGPipe, owner=_in_turn, allows=_any),
    # Narayanan et al. 2019 (PipeDream, SOSP), flushed at each step (arXiv 2104.04473, section 2.2.1)
    "1f1b": Kind(make=Schedule1F1B, owner=_in_turn, allows=_fills_the_pipeline),
    # Narayanan et al. 2021, arXiv 2104.04473, section 2.2.2
    "interleaved_1f1b": Kind(make=ScheduleInterleaved1F1B, owner=_in_turn, allows=_in_equal_rounds),
    # Lamy-Poirier 2022, arXiv 2211.05953: gpipe over several stages on each worker
    "looped_bfs": Kind(make=ScheduleLoopedBFS, owner=_in_turn, allows=_any),
    # Qi et al. 2023, arXiv 2401.10241: ZB1P; backward passes for weights fill the bubbles
    "zero_bubble": Kind(make=ScheduleInterleavedZeroBubble, owner=_in_turn, allows=_in_equal_rounds),
    # the same, section 6: ZB-V; the first worker also has the last stage
    "zbv": Kind(make=ScheduleZBVZeroBubble, owner=_there_and_back, allows=_any),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of one pipeline and the micro-batches that pass through them."""

    schedule: str
    workers: int
    stages_per_worker: int
    micro_batches: int | None
    micro_batch_size: int | None
    """Give this or `micro_batches`; without either it is four micro-batches for each worker, from which on the bubble
    hardly counts (Huang et al. 2019, section 2.3)."""
    full_samples: int
    """A replica's share of a full global batch."""

    @property
    def kind(self) -> Kind:
        """The schedule."""
        return SCHEDULES[self.schedule]

    @property
    def stages(self) -> int:
        """Of the whole pipeline."""
        return self.workers * self.stages_per_worker

    def owner(self, stage: int) -> int:
        """The worker, from 0 within the pipeline, that holds a stage."""
        return self.kind.owner(stage, self.workers)

    def stages_of(self, worker: int) -> list[int]:
        """The stages that a worker holds."""
        return [stage for stage in range(self.stages) if self.owner(stage) == worker]

    def cut(self, samples: int) -> MicroBatches:
        """The micro-batches of a replica's share of a batch. A short batch has as many as a full one, or as large."""
        if self.micro_batch_size is not None:
            count = -(-samples // self.micro_batch_size)
        elif self.micro_batches is not None:
            count = self.micro_batches
        else:
            count = max(1, min(4 * self.workers, self.full_samples // 2))
        while not self.kind.allows(count, self.workers):
            count += 1
        return MicroBatches(count=count, size=max(2, -(-samples // count)))  # batch norm needs two samples

    def make(self, stages: list[Any], micro_batches: int, loss: Callable[..., Any]) -> Any:
        """torch's schedule of this worker's stages. Losses are sums, so gradients are, too."""
        alone = isinstance(self.kind.make, type) and issubclass(self.kind.make, PipelineScheduleSingle)
        return self.kind.make(stages[0] if alone else stages, micro_batches, loss_fn=loss, scale_grads=False)


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """So many micro-batches of so many samples each."""

    count: int
    size: int

    def fill(self, batch: Batch) -> Batch:
        """The batch with as many samples as all micro-batches hold.

        The samples that fill it up repeat the batch from its beginning, and their target makes them count for nothing;
        but batch norm sees them.
        """
        samples, wanted = len(batch), self.count * self.size
        if samples == wanted:
            return batch
        chosen = torch.arange(wanted, device=batch.inputs.device) % samples
        targets = batch.targets[chosen]
        targets[samples:] = IGNORED
        return Batch(batch.inputs[chosen], targets, batch.weight)


class BatchLoss:
    """The mean loss over a replica's share of a batch, as a sum over its micro-batches: exact for any division."""

    def __init__(self, precision: Precision, device: torch.device, *, label_smoothing: float = 0.0) -> None:
        self.precision = precision
        self.sum = nn.CrossEntropyLoss(reduction="sum", ignore_index=IGNORED, label_smoothing=label_smoothing)
        self.total = torch.zeros((), device=device)
        self.targets, self.weight = 1, 1.0

    def begin(self, batch: Batch) -> None:
        """A new batch, before it is filled up."""
        self.total = torch.zeros_like(self.total)
        self.targets, self.weight = batch.targets.numel(), batch.weight

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """What a micro-batch's backward pass starts from."""
        with self.precision.autocast():
            part: Tensor = self.sum(logits.flatten(0, -2), targets.flatten())
        self.total += part.detach()
        return self.precision.scale(part * (self.weight / self.targets))

    def mean(self) -> Tensor:
        """Of all micro-batches since `begin`; 0 where no loss was computed."""
        return self.total / self.targets


@contextmanager
def unwrapped() -> Iterator[None]:
    """Within: an error in a stage is raised as what it was, such as no memory left: torch wraps it."""
    try:
        yield
    except RuntimeError as error:
        if error.__cause__ is None:
            raise
        raise error.__cause__ from None
