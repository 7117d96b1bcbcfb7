"""Small networks for small images: a first result on a laptop, and steps so short that overheads show."""

from __future__ import annotations

import itertools

from torch import nn

from benchmarks.workload import ImageShape, workloads


@workloads.register("lenet")
def lenet(image: ImageShape) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling in place of its sigmoids and trained subsampling."""
    side = (image.size // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(image.channels, 6, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * side * side, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, image.classes),
    )


@workloads.register("mlp")
def mlp(image: ImageShape, *, hidden_size: int, hidden_layers: int) -> nn.Module:
    """A multilayer perceptron over the image's pixels: no batch norm, so replicas can be compared exactly."""
    sizes = [image.channels * image.size**2, *[hidden_size] * hidden_layers]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], image.classes))
