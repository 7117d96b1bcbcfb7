"""Augmentations: what is done at random to the images of a batch before it is trained on.

One module for a kind, one YAML file in `conf/augmentation/` for each. What happens to a sample follows from the seed,
the epoch and the sample's place in the epoch's order alone. So it is the same for any number of workers, wherever the
batch is put together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.registry import Registry

Augment = Callable[[Tensor, int, int], Tensor]
"""Images (batch, channels, size, size) as uint8, and which places in the epoch's order they have, from the first to
before the end; returns as many."""


class Augmentation(ABC):
    """One way to change images at random. Subclasses take their YAML file's options as keywords.

    Loaders make one in each of their processes, from its name and options.
    """

    @abstractmethod
    def of_epoch(self, key: int, samples: int, device: torch.device) -> Augment:
        """What an epoch's images go through, all chance drawn; `key` stands for seed and epoch.

        The images will be on `device`, where nothing waits for it.
        """


augmentations: Registry[Augmentation] = Registry("augmentation")


@augmentations.register("none")
class Unchanged(Augmentation):
    """Images stay as they are."""

    def of_epoch(self, _key: int, _samples: int, _device: torch.device) -> Augment:
        return lambda images, _first, _end: images
