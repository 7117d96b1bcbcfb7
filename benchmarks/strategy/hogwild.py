"""Lock-free training in shared memory by the processes of one node."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data import Split
from benchmarks.data.batches import Batch, Feed, Loader
from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Step, Strategy, strategies
from benchmarks.strategy.traffic import size_bytes

_LINE_BYTES = 64
"""A cache line: tensors begin at one, as those of torch's own allocator do, and each process's count has its own."""


@strategies.register("hogwild")
class Hogwild(Strategy):
    """Hogwild! (Recht, Re, Wright, Niu 2011, arXiv 1106.5730): one model, which all processes update without a lock.

    Parameters and buffers lie in memory that all processes map. Each computes a gradient of its own batch from what it
    reads there, and subtracts its step in place: nobody waits, and no message is sent within a span. Others may write
    while a process reads, and of two that add to the same number at the same moment, one may lose its update; the
    paper (section 4) bounds what this costs where updates are sparse. Those of a dense network are not, so whether it
    trains is a question to measure.

    A step is one update by each process, at full length: N processes move the parameters as far as N steps of one
    process do, and about N times as far as a step of ddp, which averages the gradients.

    Gradients and the optimiser's state are each process's own. So a momentum is a mean over one process's gradients,
    and goes on where that process was heading, whatever the others have done since; in the sum each gradient still
    counts for lr / (1 - momentum). Adam's moments are estimated from 1/N of the gradients.

    Batch norm's running averages and counts are shared as the parameters are, so that they see the samples of all
    processes and there is one model to evaluate.
    """

    communicates = True  # between spans only: the processes meet there
    memory: SharedMemory

    def __init__(self, place: Place, *, split: str) -> None:
        super().__init__(place)
        self.split = split

    def make_loader(self, split: Split, /, *, global_batch: int, seed: int, feed: Feed | None = None) -> Loader:
        """A share of each batch, or every N-th epoch."""
        loader = {"batches": Loader, "epochs": WholeEpochs}[self.split]
        device, division = self.place.device, self.division
        return loader(split, device=device, division=division, global_batch=global_batch, seed=seed, feed=feed)

    def wrap(self, model: nn.Module, _precision: Precision, /) -> nn.Module:
        """The same model, its parameters and buffers moved into the memory of all; their values are rank 0's.

        Raises:
            ImpossibleRunError: this process cannot map rank 0's memory.
            OSError: there is not enough memory.
        """
        self.memory = SharedMemory([*model.parameters(), *model.buffers()], self.place)
        return model

    def make_step(self, step: Step, /) -> Step:
        """The plain step, which is counted."""
        return step.made(CountedStep, updates=self.memory.updates[self.place.rank])

    def bytes_per_step(self) -> int:
        """Nothing is sent: what others have written, a process reads from memory."""
        return 0

    def forget(self) -> None:
        """All values and counts as they were at first.

        While a process put its own back, another may still have been warming up; now all have finished.
        """
        dist.barrier()
        self.memory.reset()
        dist.barrier()

    @contextmanager
    def evaluating(self, _model: nn.Module, /) -> Iterator[None]:
        """The one model, after all processes' last update and before the next one of any."""
        dist.barrier()
        yield
        dist.barrier()

    def copies(self, model: nn.Module, /) -> Copies:
        """All parameters and buffers, and the counts of updates, as each process sees them.

        Only memory that is really shared makes them equal: each process has trained on samples of its own.
        """
        dist.barrier()  # all have made their last update
        return Copies(tensors=[*model.parameters(), *model.buffers(), self.memory.updates])

    def facts(self) -> dict[str, Any]:
        """How the work was shared out, and the updates that arrived, by process; one that overflowed counts, too."""
        return {
            "processes": self.place.workers,
            "split": self.split,
            "updates_by_process": self.memory.updates[:, 0].tolist(),
            "shared_bytes": self.memory.size_bytes,
        }


@dataclass(frozen=True, kw_only=True)
class CountedStep(Step):
    """A step that counts itself, where all processes can see it."""

    updates: Tensor

    def update(self) -> None:
        """The plain update; it reads and writes the shared parameters in place."""
        super().update()
        self.updates[0] += 1


class WholeEpochs(Loader):
    """Every process passes over all the data, in an order of its own: process p of N takes epochs p, N + p, 2N + p.

    A global batch is what the processes take at the same step, `global_batch` / N samples each. So N processes take
    from one epoch the batches that a single process with that batch size does, and the same epochs together.
    """

    @property
    def epochs_in_span(self) -> int:  # type: ignore[override]
        """One for each process."""
        return self.division.replicas

    def epoch_sizes(self) -> list[int]:
        """The sizes of all processes' batches together, step by step."""
        return [size * self.division.replicas for size in self._own().epoch_sizes()]

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """This process's one of the epochs that begin together."""
        return self._own().epoch(epoch * self.division.replicas + self.division.replica)

    def full(self, epoch: int) -> Iterator[Batch]:
        """The full batches of this process's one of the epochs that begin together."""
        return self._own().full(epoch * self.division.replicas + self.division.replica)

    def _full_batches(self) -> int:
        return self._own()._full_batches()

    def same(self, size: int) -> Iterator[Batch]:
        """The first batch of the first epoch that has this process's part of `size`, again and again."""
        return self._own().same(size // self.division.replicas)

    def _own(self) -> Loader:
        """What this process would load if it were alone."""
        alone = type(self.division)(0, 1)
        return Loader(
            self.split,
            device=self.device,
            division=alone,
            global_batch=self.global_batch // self.division.replicas,
            seed=self.seed,
            feed=self.feed,
        )


class SharedMemory:
    """Tensors that all workers of a node hold in the same memory, and each worker's count of updates.

    The memory is an anonymous file: it never has a name in any folder, and ends with the last process that has mapped
    it, however that ends.
    """

    def __init__(self, tensors: Sequence[Tensor], place: Place) -> None:
        dense = [tensor.detach().clone() for tensor in tensors]  # keeps the memory format
        sizes = [place.workers * _LINE_BYTES, *(_whole_lines(size_bytes([tensor])) for tensor in dense)]
        *starts, self.size_bytes = accumulate(sizes, initial=0)
        self._bytes = _mapped(self.size_bytes, place)
        self.updates = self._view(0, torch.zeros(place.workers, _LINE_BYTES // 8, dtype=torch.int64))
        """Updates (workers, 8): the first number of a row counts, the others keep rows apart."""
        places = [self._view(start, tensor) for start, tensor in zip(starts[1:], dense, strict=True)]
        self._initial: Tensor | None = None
        if place.rank == 0:
            _copy(dense, places)
            self._initial = self._bytes.clone()
        for tensor, shared in zip(tensors, places, strict=True):
            tensor.data = shared
        dist.barrier()

    def reset(self) -> None:
        """The first values again, written by rank 0; nobody else may read or write meanwhile."""
        if self._initial is not None:
            self._bytes.copy_(self._initial)

    def _view(self, start: int, like: Tensor) -> Tensor:
        """The memory from byte `start` on as a tensor of this format, shape and order."""
        flat = self._bytes[start : start + size_bytes([like])].view(like.dtype)
        return flat.as_strided(like.size(), like.stride())


def _copy(values: Iterable[Tensor], places: Iterable[Tensor]) -> None:
    for value, place in zip(values, places, strict=True):
        place.copy_(value)


def _whole_lines(size: int) -> int:
    return -(-size // _LINE_BYTES) * _LINE_BYTES


def _mapped(size: int, place: Place) -> Tensor:
    """`size` bytes of zeros that all workers map.

    Rank 0 makes the file, and tells the others where its open file is found; it stays open until they all have theirs.
    """
    file, names = -1, [""]
    if place.rank == 0:
        file = os.memfd_create("scalebench-parameters")
        os.posix_fallocate(file, 0, size)  # so that memory that is not there fails here, not at the first write
        names = [f"/proc/{os.getpid()}/fd/{file}"]
    dist.broadcast_object_list(names)
    try:
        if place.rank != 0:
            file = os.open(names[0], os.O_RDWR)
        shared = mmap.mmap(file, size)
    except OSError as error:
        raise ImpossibleRunError(
            f"strategy=hogwild: rank {place.rank} cannot map the parameters of rank 0 ({error.strerror}); "
            "all workers must be one user's processes on one machine"
        ) from error
    dist.barrier()
    os.close(file)
    return torch.frombuffer(shared, dtype=torch.uint8)
