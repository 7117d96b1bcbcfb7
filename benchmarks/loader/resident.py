"""The whole training set on the device."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.core.config import Variant
from benchmarks.data import Split
from benchmarks.data.batches import Batch, Epoch, Feed, one_part
from benchmarks.loader import loaders


@loaders.register("resident")
class Resident(Feed):
    """Batches are gathered and augmented on the device; no sample crosses from the host after the set has.

    An epoch's order is made on the host, as for the other loaders, and sent before the clock starts; with a number of
    steps, those of all epochs are. So a step's own part is to launch some kernels. Evaluation's samples stay on the
    host.

    Raises:
        torch.OutOfMemoryError: the training set does not fit onto the device.
    """

    def __init__(self, split: Split, device: torch.device, augmentation: Variant) -> None:
        super().__init__(split, device, augmentation)
        self.there = Split(inputs=split.inputs.to(device), targets=split.targets.to(device))

    def batches(self, epoch: Epoch) -> Iterator[Batch]:
        order = epoch.order.to(self.device)
        augment = self.augmentation.of_epoch(epoch.key, epoch.samples, self.device)
        return self._in_parts(self.there, order, augment, epoch.parts)

    def rehearse(self, random: Split, seed: int, weight: float) -> Batch:
        return next(Resident(random, self.device, self.augmented_by).batches(one_part(len(random), seed, weight)))
