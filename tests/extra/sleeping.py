"""A model whose layers sleep: each takes a known time, whatever else the machine does."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from benchmarks.workload import ImageShape, workloads


@workloads.register("sleeping")
def sleeping(
    image: ImageShape, *, sleeping_layers: int, sample_ms: float, call_ms: float, first_factor: float
) -> nn.Module:
    """Layers of equal times, but for the first one's factor; then as many features as there are classes."""
    features = image.channels * image.size**2
    factors = [first_factor, *[1.0] * (sleeping_layers - 1)]
    layers = [_Sleeping(features, factor * sample_ms / 1e3, call_ms / 1e3) for factor in factors]
    return nn.Sequential(nn.Flatten(), *layers, _First(image.classes))


class _Sleeping(nn.Module):
    """A factor for each feature.

    A third of its time goes to the forward pass, one to the gradient of its inputs, one to that of its factors.
    """

    def __init__(self, features: int, sample_s: float, call_s: float) -> None:
        super().__init__()
        self.factors = Parameter(torch.ones(features))
        self.sample_s, self.call_s = sample_s, call_s

    def forward(self, inputs: Tensor) -> Tensor:
        third_s = (self.sample_s * len(inputs) + self.call_s) / 3
        time.sleep(third_s)
        factors_s = third_s
        if inputs.requires_grad:
            inputs = _slow_gradient(inputs, third_s)
        else:
            factors_s += third_s  # the first layer takes as long as the others
        return inputs * _slow_gradient(self.factors, factors_s)


class _First(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, : self.classes]


class _SlowGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sleep_s: float) -> Tensor:
        ctx.sleep_s = sleep_s
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        time.sleep(ctx.sleep_s)
        return gradients[0], None


def _slow_gradient(values: Tensor, sleep_s: float) -> Tensor:
    slow: Tensor = _SlowGradient.apply(values, sleep_s)
    return slow
