"""Models: what is trained. One module for a family, one YAML file in `conf/workload/` for each model.

A maker gets the shape of its images and its options, and returns a plain single-device module. `input_size` is not
among its options: it belongs to the data's preparation, which scales images to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from benchmarks.config import Variant
from benchmarks.registry import Registry

workloads: Registry[nn.Module] = Registry("workload")


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """Images of `channels` x `size` x `size`, to be told apart into `classes`."""

    channels: int
    size: int
    classes: int


def build(workload: Variant, image: ImageShape) -> nn.Module:
    """Make the model: images (batch, channels, size, size) to logits (batch, classes)."""
    options = {key: value for key, value in workload.options.items() if key != "input_size"}
    return workloads[workload.name](image, **options)
