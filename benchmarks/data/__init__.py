"""Data sets: one module for a source, one YAML file in `conf/data/` for each set.

A maker returns the whole set as whole numbers in host memory: images as unsigned bytes, the form in which they are
stored, and text as the numbers of its tokens. Scaling images to the model's input size happens once, here; what makes
floating point numbers of samples is the model's first layer, on the device.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError, UserError
from benchmarks.core.record import DataFacts, SampleKind
from benchmarks.registry import Registry


class DataError(UserError):
    """A data set that is not where it should be, or is damaged. One line that says what to put where."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Samples and what is to be predicted of them, one of three kinds.

    Images (n, channels, size, size) as uint8 with their classes (n); texts (n, length) as int32 with their classes (n);
    sequences of tokens (n, length) as int32 with the tokens that follow each of them (n, length). Targets are int64.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def kind(self) -> SampleKind:
        """What its samples are, in the words of the trait `kind` in `conf/data/`."""
        if self.inputs.ndim == 4:
            return "images"
        return "text" if self.targets.ndim == 1 else "tokens"

    @property
    def targets_per_sample(self) -> int:
        """One class, or as many tokens as a sequence has."""
        return self.targets[:1].numel()

    @cached_property
    def values(self) -> int:
        """All inputs are below it: 256 for bytes, for text the largest token's number and one."""
        return 256 if self.inputs.dtype == torch.uint8 else int(self.inputs.max()) + 1


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A training and a test split over the same classes."""

    train: Split
    test: Split
    classes: int
    """What a target can be; for sequences of tokens the size of the vocabulary."""
    vocabulary: int | None = None
    """What a token can be; None for images."""
    lowest_loss: float | None = None
    """The least mean loss over the test split that can be expected of any model, in nats; None where it is unknown."""
    highest_accuracy: float | None = None
    """The largest accuracy on the test split that can be expected of any model; None where it is unknown."""
    held_out: Split | None = None
    """Samples of the training split that are kept from training; see `benchmarks/data/held_out.py`."""

    def facts(self) -> DataFacts:
        """For the record."""
        return DataFacts(
            kind=self.train.kind,
            train_samples=len(self.train),
            test_samples=len(self.test),
            tokens_per_sample=None if self.train.kind == "images" else self.train.inputs.shape[1],
            lowest_loss=self.lowest_loss,
            highest_accuracy=self.highest_accuracy,
        )


datasets: Registry[Dataset] = Registry("data")


def load(data: Variant, input_size: int | None) -> Dataset:
    """Make the data set, its images scaled (bilinear) to `input_size` pixels unless that is null.

    Raises:
        DataError: files are missing or damaged, or hold another number of samples than the set's YAML file says.
        ImpossibleRunError: `input_size` is given, and the samples are no images.
    """
    maker = datasets[data.name]
    known = dict(data.options)
    expected = known["train_samples"]
    if not _takes(maker, "train_samples"):
        del known["train_samples"]
    dataset = maker(**known)
    if len(dataset.train) != expected:
        raise DataError(f"data={data.name}: holds {len(dataset.train)} training samples, conf/data/ says {expected}")
    if input_size is None:
        return dataset
    if dataset.train.kind != "images":
        raise ImpossibleRunError(f"workload.input_size={input_size}: data={data.name} holds no images to be scaled")
    return replace(dataset, train=_scaled(dataset.train, input_size), test=_scaled(dataset.test, input_size))


def _takes(maker: Callable[..., Dataset], option: str) -> bool:
    """Whether a maker makes as many samples as it is asked for, or reads as many as there are."""
    return option in inspect.signature(maker).parameters


def _scaled(split: Split, size: int) -> Split:
    if split.inputs.shape[-1] == size:
        return split
    parts = [
        functional.interpolate(part, size=(size, size), mode="bilinear", antialias=True)
        for part in torch.split(split.inputs, 1024)
    ]
    return Split(inputs=torch.cat(parts), targets=split.targets)
