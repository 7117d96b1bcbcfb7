"""The whole model, on the host: from a data set's samples as they are stored to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.core.config import Variant
from benchmarks.data import Dataset
from benchmarks.workload import ImageShape, Shape, TextShape, TokenShape, build


def build_model(workload: Variant, dataset: Dataset, layout: torch.memory_format) -> nn.Module:
    """The workload's model for this data set.

    Its first child, `model[0]`, makes floating point numbers of stored samples: of images a layer that comes before the
    workload's own, of text the workload's stem.
    """
    shape = shape_of(dataset)
    model = build(workload, shape)
    return nn.Sequential(ToFloat(layout), model) if isinstance(shape, ImageShape) else model


def shape_of(dataset: Dataset) -> Shape:
    """What a model must know of a data set."""
    _, *sizes = dataset.train.inputs.shape
    if dataset.train.kind == "images":
        return ImageShape(channels=sizes[0], size=sizes[1], classes=dataset.classes)
    vocabulary = dataset.vocabulary or dataset.train.values
    if dataset.train.kind == "text":
        return TextShape(length=sizes[0], vocabulary=vocabulary, classes=dataset.classes)
    return TokenShape(length=sizes[0], vocabulary=vocabulary)


class ToFloat(nn.Module):
    """Bytes 0 to 255 to numbers from -1 to 1, in the model's memory format: the first layer of every image model."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, size, size), uint8 to float32."""
        return images.to(torch.float32, memory_format=self.layout).div(127.5).sub(1.0)
