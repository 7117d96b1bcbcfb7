"""Augmentations: what is done at random to a batch of images before it is trained on.

One module for a kind, one YAML file in `conf/augmentation/` for each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.registry import Registry

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Images (batch, channels, size, size) as uint8, and where chance comes from, to as many."""

augmentations: Registry[Augmentation] = Registry("augmentation")


@augmentations.register("none")
def none() -> Augmentation:
    """Images stay as they are."""
    return lambda images, _generator: images
