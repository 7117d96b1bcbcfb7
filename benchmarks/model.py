"""The whole model, on the host: from a data set's samples as they are stored to logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.config import Variant
from benchmarks.data import Dataset
from benchmarks.workload import ImageShape, build


def build_model(workload: Variant, dataset: Dataset, layout: torch.memory_format) -> nn.Module:
    """The workload's model for this data set, after the layer that makes numbers of stored samples."""
    images = dataset.train.inputs.shape
    shape = ImageShape(channels=images[1], size=images[2], classes=dataset.classes)
    return nn.Sequential(ToFloat(layout), build(workload, shape))


class ToFloat(nn.Module):
    """Bytes 0 to 255 to numbers from -1 to 1, in the model's memory format: the first layer of every image model."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, size, size), uint8 to float32."""
        return images.to(torch.float32, memory_format=self.layout).div(127.5).sub(1.0)
