"""Which samples make up which batch, on which rank.

The order depends on seed and epoch only. A global batch is the next stretch of the epoch's order, and the model's
replicas take consecutive shares of it; so any number of workers sees the same global batches, and can be compared with
one worker. Workers that hold a replica together take the same share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.data import Split


@dataclass(frozen=True)
class Batch:
    """A replica's share of a global batch, on a rank's device."""

    inputs: Tensor
    targets: Tensor
    weight: float
    """What the local mean loss is multiplied with, so that the mean over replicas is the mean over the global batch:
    1 where all shares are equal."""

    def __len__(self) -> int:
        return len(self.targets)


def global_batch_sizes(samples: int, global_batch: int, replicas: int) -> list[int]:
    """The sizes of an epoch's global batches. The last one may be short.

    A rest of fewer than two samples for each replica is left out: batch norm needs two.
    """
    sizes = [global_batch] * (samples // global_batch)
    rest = samples % global_batch
    return [*sizes, rest] if rest >= 2 * replicas else sizes


class Division:
    """How global batches are divided over the replicas of a model: in parts that differ by one sample at most."""

    def __init__(self, replica: int, replicas: int) -> None:
        self.replica, self.replicas = replica, replicas

    def part(self, size: int) -> slice:
        """The consecutive part of a global batch of `size` samples that this replica takes."""
        return slice(size * self.replica // self.replicas, size * (self.replica + 1) // self.replicas)

    def samples(self, size: int) -> int:
        """How many those are."""
        part = self.part(size)
        return int(part.stop - part.start)

    def weight(self, size: int) -> float:
        """See `Batch.weight`."""
        return self.samples(size) * self.replicas / size

    def whole(self, batch: Batch) -> int:
        """The size of the global batch that a batch of this replica is a share of."""
        return round(len(batch) * self.replicas / batch.weight)


def _order(samples: int, seed: int, epoch: int) -> Tensor:
    # torch's generator on the CPU looks at the lower 32 bits of its seed only, so both numbers must reach them.
    return torch.randperm(samples, generator=torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**32))


class Loader:
    """A rank's batches: read from host memory by index, then copied to the device.

    `global_batch` may be set anew between epochs.
    """

    epochs_in_span = 1
    """Passes over the training data that the ranks make together in one call of `epoch`."""

    def __init__(self, split: Split, *, device: torch.device, division: Division, global_batch: int, seed: int) -> None:
        self.split = split
        self.device = device
        self.division = division
        self.global_batch = global_batch
        self.seed = seed

    def epoch_sizes(self) -> list[int]:
        """The sizes of the global batches of one epoch."""
        return global_batch_sizes(len(self.split), self.global_batch, self.division.replicas)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of an epoch, a short last one included."""
        order = _order(len(self.split), self.seed, epoch)
        first = 0
        for size in self.epoch_sizes():
            yield self._batch(order, first, size)
            first += size

    def endless(self) -> Iterator[Batch]:
        """Full batches only, epoch after epoch."""
        epoch = 0
        while True:
            order = _order(len(self.split), self.seed, epoch)
            for first in range(0, len(order) - self.global_batch + 1, self.global_batch):
                yield self._batch(order, first, self.global_batch)
            epoch += 1

    def same(self, size: int) -> Iterator[Batch]:
        """The first batch of this size of the first epoch, again and again, loaded anew each time."""
        order = _order(len(self.split), self.seed, 0)
        while True:
            yield self._batch(order, 0, size)

    def for_warmup(self, size: int) -> Batch:
        """A batch of random bytes and classes, of the share's size: warm-up must not see the training data."""
        samples = self.division.samples(size)
        generator = torch.Generator().manual_seed(self.seed)
        shape = (samples, *self.split.inputs.shape[1:])
        inputs = torch.randint(256, shape, dtype=self.split.inputs.dtype, generator=generator)
        targets = self.split.targets[torch.randint(len(self.split), (samples,), generator=generator)]
        return Batch(inputs.to(self.device), targets.to(self.device), self.division.weight(size))

    def _batch(self, order: Tensor, first: int, size: int) -> Batch:
        """The share of the global batch that begins at `first`; inside the window every microsecond counts."""
        part = self.division.part(size)
        mine = order[first + part.start : first + part.stop]
        return Batch(
            self.split.inputs.index_select(0, mine).to(self.device),  # twice as fast as inputs[mine]
            self.split.targets.index_select(0, mine).to(self.device),
            self.division.weight(size),
        )
