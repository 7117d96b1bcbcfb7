"""Mixings: how the samples of a batch are blended with each other before they are trained on.

One module for a kind, one YAML file in `conf/mixing/` for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.core.config import Variant
from benchmarks.data import Dataset
from benchmarks.data.batches import Batch
from benchmarks.loss import Loss
from benchmarks.precision import Precision
from benchmarks.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a mixing is at work."""

    seed: int
    replica: int
    """Of the model; the workers that hold one together see the same batches, and must mix them alike."""
    device: torch.device
    dataset: Dataset
    label_smoothing: float


class Mixing:
    """Samples stay as they are: what the others change.

    A worker's calls come in the order of the methods below; `before_forward` once for each forward pass that trains.
    """

    def __init__(self, setting: Setting, /) -> None:
        self.setting = setting

    def layers(self) -> Sequence[nn.Module]:
        """What stands between the model's first layer, which makes numbers of stored samples, and all others.

        They have neither parameters nor buffers.
        """
        return ()

    def loss(self) -> Loss:
        """The training loss."""
        return Loss(label_smoothing=self.setting.label_smoothing)

    def built(self, _model: nn.Module, _precision: Precision, /) -> None:
        """The whole model is on its device, its values are those that training begins with."""

    def before_forward(self, _batch: Batch, /) -> None:
        """What is to become of this batch in the forward pass that follows. Does not wait for the device."""

    def forget(self) -> None:
        """Begin anew: warm-up is undone."""

    def facts(self) -> dict[str, Any]:
        """What was learned and held out, for the record: plain values; rank 0's are kept."""
        return {}


mixings: Registry[Mixing] = Registry("mixing")
mixings.register("none")(Mixing)


def held_out_share(mixing: Variant) -> float:
    """The share of the training samples that it keeps from training, which it gets as `Dataset.held_out`."""
    share = mixing.options.get("held_out", 0.0)
    assert isinstance(share, (int, float))
    return share


def make_mixing(mixing: Variant, setting: Setting) -> Mixing:
    """Make the mixing; its data set is already divided."""
    options = {key: value for key, value in mixing.options.items() if key != "held_out"}
    return mixings[mixing.name](setting, **options)


def inserted(model: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
    """The model with these behind its first child, which makes floating point numbers of stored samples."""
    if not layers:
        return model
    assert isinstance(model, nn.Sequential)
    first, *others = model
    return nn.Sequential(first, *layers, *others)
