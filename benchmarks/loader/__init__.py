"""Loaders: how a rank's batches come from where the data set is to the device.

One module for a kind, one YAML file in `conf/loader/` for each. All bring the same batches, bit by bit.
"""

from __future__ import annotations

import torch

from benchmarks.core.config import Variant
from benchmarks.data import Split
from benchmarks.data.batches import Feed
from benchmarks.registry import Registry

loaders: Registry[Feed] = Registry("loader")


@loaders.register("host")
def host(split: Split, device: torch.device, augmentation: Variant, *, pin_memory: bool, non_blocking: bool) -> Feed:
    """Batches are put together in the training process itself, when they are due."""
    return Feed(split, device, augmentation, pin_memory=pin_memory, non_blocking=non_blocking)
