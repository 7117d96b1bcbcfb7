"""Loaders: how a rank's batches come from where the data set is to the device.

One module for a kind, one YAML file in `conf/loader/` for each.
"""

from __future__ import annotations

import torch

from benchmarks.data import Split
from benchmarks.data.batches import Division, Loader
from benchmarks.registry import Registry

loaders: Registry[Loader] = Registry("loader")


@loaders.register("host")
def host(split: Split, device: torch.device, division: Division, global_batch: int, seed: int) -> Loader:
    """Batches are put together in the training process itself, when they are due."""
    return Loader(split, device=device, division=division, global_batch=global_batch, seed=seed)
