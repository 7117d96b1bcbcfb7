"""Which samples make up which batch, on which rank; and a batch that is put together in the training process.

The order depends on seed and epoch only. A global batch is the next stretch of the epoch's order, and the model's
replicas take consecutive shares of it; so any number of workers sees the same global batches, and can be compared with
one worker. Workers that hold a replica together take the same share.

A `Loader` says which samples come when. Its `Feed` brings them: `benchmarks/loader/` has the other ways to do so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count, repeat
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.augmentation import Augment, Augmentation, augmentations
from benchmarks.core.config import Variant
from benchmarks.data import Split

UNCHANGED = Variant(name="none", options={})
"""No augmentation."""


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


class Part(NamedTuple):
    """A replica's share of one global batch: places in the epoch's order, and `Batch.weight`."""

    first: int
    end: int
    weight: float


class Epoch:
    """What a replica takes of an epoch, in order. What costs time is done when it is first asked for."""

    def __init__(self, samples: int, seed: int, number: int, parts: Iterable[Part]) -> None:
        self.samples, self.parts = samples, parts
        self.key = seed * 1_000_003 + number
        """For all that is random in this epoch."""

    @cached_property
    def order(self) -> Tensor:
        """All samples' indices (samples), int64, on the host."""
        # torch's generator on the CPU looks at the lower 32 bits of its seed only, so both numbers must reach them.
        return torch.randperm(self.samples, generator=torch.Generator().manual_seed(self.key % 2**32))


def one_part(samples: int, seed: int, weight: float) -> Epoch:
    """An epoch of one batch of all samples."""
    return Epoch(samples, seed, 0, [Part(0, samples, weight)])


class Feed:
    """Brings a loader's batches: here, put together in the training process when they are due, and copied.

    With `pin_memory`, they are copied from page-locked memory; with `non_blocking` too, while the host goes on.
    """

    helpers_bytes = 0
    """Host memory of processes that load for this worker, without what they share with it."""

    def __init__(
        self,
        split: Split,
        device: torch.device,
        augmentation: Variant = UNCHANGED,
        *,
        pin_memory: bool = False,
        non_blocking: bool = False,
    ) -> None:
        self.split, self.device = split, device
        self.augmented_by = augmentation
        self.augmentation: Augmentation = augmentations.make(augmentation)
        self.pin_memory, self.non_blocking = pin_memory, non_blocking

    def batches(self, epoch: Epoch) -> Iterator[Batch]:
        """This epoch's batches.

        Called before the clock starts where that can be; what the iterator does, the window pays for.
        """
        return self._gathered(self.split, epoch)

    def rehearse(self, random: Split, seed: int, weight: float) -> Batch:
        """A batch of random samples that are no training data, brought as all others are: pays first-time costs."""
        return next(self._gathered(random, one_part(len(random), seed, weight)))

    def close(self) -> None:
        """End what was started to load; no batch is asked for any more."""

    def _gathered(self, split: Split, epoch: Epoch) -> Iterator[Batch]:
        augment = self.augmentation.of_epoch(epoch.key, epoch.samples, split.inputs.device)
        yield from self._in_parts(split, epoch.order, augment, epoch.parts)

    def _in_parts(self, split: Split, order: Tensor, augment: Augment, parts: Iterable[Part]) -> Iterator[Batch]:
        """Inside the window every microsecond counts. Split, order and what augments are on one device."""
        inputs, targets = split.inputs, split.targets
        for first, end, weight in parts:
            mine = order[first:end]
            images = augment(inputs.index_select(0, mine), first, end)  # twice as fast as inputs[mine]
            yield self._sent(images, targets.index_select(0, mine), weight)

    def _sent(self, inputs: Tensor, targets: Tensor, weight: float) -> Batch:
        if self.pin_memory:
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return Batch(
            inputs.to(self.device, non_blocking=self.non_blocking),
            targets.to(self.device, non_blocking=self.non_blocking),
            weight,
        )


class Loader:
    """A rank's batches, in order.

    `global_batch` may be set anew between epochs.
    """

    epochs_in_span = 1
    """Passes over the training data that the ranks make together in one call of `epoch`."""

    def __init__(
        self,
        split: Split,
        *,
        device: torch.device,
        division: Division,
        global_batch: int,
        seed: int,
        feed: Feed | None = None,
    ) -> None:
        self.split = split
        self.device = device
        self.division = division
        self.global_batch = global_batch
        self.seed = seed
        self.feed = feed or Feed(split, device)

    @property
    def sample_bytes(self) -> int:
        """Of a sample and its target, as they are stored and as they come to the device."""
        return sum(tensor[0].numel() * tensor.element_size() for tensor in (self.split.inputs, self.split.targets))

    def epoch_sizes(self) -> list[int]:
        """The sizes of the global batches of one epoch."""
        return global_batch_sizes(len(self.split), self.global_batch, self.division.replicas)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of an epoch, a short last one included."""
        return self.feed.batches(self._epoch(epoch, self._parts(self.epoch_sizes())))

    def endless(self, steps: int | None = None) -> Iterator[Batch]:
        """Full batches only, epoch after epoch; at least so many, of which a feed may then prepare all at once."""
        if steps is None:
            return chain.from_iterable(map(self.full, count()))
        return chain.from_iterable([self.full(epoch) for epoch in range(-(-steps // self._full_batches()))])

    def full(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch that are full."""
        return self.feed.batches(self._epoch(epoch, self._parts([self.global_batch] * self._full_batches())))

    def same(self, size: int) -> Iterator[Batch]:
        """The first batch of this size of the first epoch, again and again, loaded anew each time."""
        [part] = self._parts([size])
        return self.feed.batches(self._epoch(0, repeat(part)))

    def for_warmup(self, size: int) -> Batch:
        """Random bytes or tokens and classes, of the share's size: warm-up must not see the training data."""
        samples = self.division.samples(size)
        generator = torch.Generator().manual_seed(self.seed)
        shape = (samples, *self.split.inputs.shape[1:])
        inputs = torch.randint(self.split.values, shape, dtype=self.split.inputs.dtype, generator=generator)
        targets = self.split.targets[torch.randint(len(self.split), (samples,), generator=generator)]
        return self.feed.rehearse(Split(inputs=inputs, targets=targets), self.seed, self.division.weight(size))

    def beside(self, division: Division, global_batch: int) -> Loader:
        """The same samples, divided otherwise and put together in this process: for use outside the window."""
        feed = Feed(self.split, self.device, self.feed.augmented_by)
        return Loader(
            self.split, device=self.device, division=division, global_batch=global_batch, seed=self.seed, feed=feed
        )

    def _full_batches(self) -> int:
        return len(self.split) // self.global_batch

    def _epoch(self, number: int, parts: Iterable[Part]) -> Epoch:
        return Epoch(len(self.split), self.seed, number, parts)

    def _parts(self, sizes: Iterable[int]) -> Iterator[Part]:
        """This replica's, of global batches of these sizes, one after the other."""
        first = 0
        for size in sizes:
            part = self.division.part(size)
            yield Part(first + part.start, first + part.stop, self.division.weight(size))
            first += size
