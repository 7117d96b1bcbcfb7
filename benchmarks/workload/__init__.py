"""Models: what is trained. One module for a family, one YAML file in `conf/workload/` for each model.

A maker gets the shape of its samples and its options, and returns a plain single-device module. Its first parameter's
annotation says which samples it takes. `input_size` is not among its options: it belongs to the data's preparation,
which scales images to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_type_hints

from torch import nn

from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.registry import Registry

workloads: Registry[nn.Module] = Registry("workload")


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """Images of `channels` x `size` x `size`, to be told apart into `classes`."""

    channels: int
    size: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """Texts of `length` tokens, each less than `vocabulary`, padding 0, to be told apart into `classes`."""

    length: int
    vocabulary: int
    classes: int


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """Sequences of `length` tokens, each less than `vocabulary`, of which the next one is to be predicted."""

    length: int
    vocabulary: int


Shape = ImageShape | TextShape | TokenShape
_HELD = {ImageShape: "images", TextShape: "texts with their classes", TokenShape: "sequences of tokens"}


def build(workload: Variant, shape: Shape) -> nn.Module:
    """Make the model.

    Images (batch, channels, size, size) as float to logits (batch, classes); texts (batch, length) as whole numbers to
    logits (batch, classes); sequences (batch, length) to logits (batch, length, vocabulary). A model for text is an
    nn.Sequential whose first child makes floating point numbers of tokens, as is added before a model for images.

    Raises ImpossibleRunError where the data set holds other samples than the model takes.
    """
    maker = workloads[workload.name]
    wanted = next(iter(get_type_hints(maker).values()), object)
    if wanted in _HELD and not isinstance(shape, wanted):
        raise ImpossibleRunError(
            f"workload={workload.name}: is a model for {_HELD[wanted]}, and the data set holds {_HELD[type(shape)]}"
        )
    options = {key: value for key, value in workload.options.items() if key != "input_size"}
    return maker(shape, **options)
