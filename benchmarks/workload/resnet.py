"""Residual networks (He et al. 2016, arXiv 1512.03385) from torchvision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.workload import ImageShape, workloads


@workloads.register("resnet18")
def resnet18(image: ImageShape, *, cifar_stem: bool, batch_norm: bool) -> nn.Module:
    """18 layers of basic blocks, 11.2 million parameters for 10 classes."""
    from torchvision.models import resnet18 as make  # slow to import: only runs that need it pay

    return _fitted(make, image, cifar_stem=cifar_stem, batch_norm=batch_norm)


@workloads.register("resnet50")
def resnet50(image: ImageShape, *, cifar_stem: bool, batch_norm: bool) -> nn.Module:
    """50 layers of bottleneck blocks, 23.5 million parameters for 10 classes."""
    from torchvision.models import resnet50 as make

    return _fitted(make, image, cifar_stem=cifar_stem, batch_norm=batch_norm)


def _fitted(make: Callable[..., Any], image: ImageShape, *, cifar_stem: bool, batch_norm: bool) -> nn.Module:
    """A residual network for the image's channels and classes.

    Without batch norm, identities stand in its place. With the CIFAR stem, a 3x3 convolution without stride replaces
    the 7x7 one with its max-pooling, which would leave 8x8 pixels of a 32x32 image.
    """
    model: nn.Module = make(
        weights=None, num_classes=image.classes, norm_layer=nn.BatchNorm2d if batch_norm else _no_norm
    )
    if cifar_stem:
        model.conv1 = nn.Conv2d(image.channels, 64, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    elif image.channels != 3:
        model.conv1 = nn.Conv2d(image.channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return model


def _no_norm(_channels: int) -> nn.Module:
    return nn.Identity()
