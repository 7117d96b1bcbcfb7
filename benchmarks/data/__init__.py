"""Data sets: one module for a source, one YAML file in `conf/data/` for each set.

A maker returns the whole set as unsigned bytes in host memory, the form in which image sets are stored. Scaling to the
model's input size happens once, here; conversion to floating point and normalisation happen on the device, in the
model's first layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.config import Variant
from benchmarks.errors import UserError
from benchmarks.registry import Registry


class DataError(UserError):
    """A data set that is not where it should be, or is damaged. One line that says what to put where."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images (n, channels, size, size) as uint8 and their classes (n) as int64."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A training and a test split over the same classes."""

    train: Split
    test: Split
    classes: int
    held_out: Split | None = None
    """Samples of the training split that are kept from training; see `benchmarks/data/held_out.py`."""


datasets: Registry[Dataset] = Registry("data")


def load(data: Variant, input_size: int | None) -> Dataset:
    """Make the data set, its images scaled (bilinear) to `input_size` pixels unless that is null.

    Raises:
        DataError: files are missing or damaged, or hold another number of samples than the set's YAML file says.
    """
    known = dict(data.options)
    expected = known["train_samples"]
    if data.name != "synthetic":
        del known["train_samples"]
    dataset = datasets[data.name](**known)
    if len(dataset.train) != expected:
        raise DataError(f"data={data.name}: holds {len(dataset.train)} training samples, conf/data/ says {expected}")
    if input_size is None:
        return dataset
    return Dataset(
        train=_scaled(dataset.train, input_size), test=_scaled(dataset.test, input_size), classes=dataset.classes
    )


def _scaled(split: Split, size: int) -> Split:
    if split.inputs.shape[-1] == size:
        return split
    parts = [
        functional.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        for part in torch.split(split.inputs, 1024)
    ]
    return Split(inputs=torch.cat(parts), targets=split.targets)
