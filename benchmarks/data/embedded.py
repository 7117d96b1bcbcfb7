"""Data that needs no files: scikit-learn's digits, and random images."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import DataError, Dataset, Split, datasets


@datasets.register("digits")
def digits() -> Dataset:
    """1797 handwritten digits of 8x8 pixels in 17 grey levels.

    They are the test part of UCI's "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998). Every fifth
    image is kept for testing. The file's order mixes writers and classes, so both splits hold all of them.
    """
    table = torch.from_numpy(np.loadtxt(_digits_file(), delimiter=","))
    inputs = table[:, :64].mul(255 / 16).round().to(torch.uint8).reshape(-1, 1, 8, 8)
    targets = table[:, 64].long()
    for_test = torch.arange(len(targets)) % 5 == 0
    return Dataset(
        train=Split(inputs=inputs[~for_test], targets=targets[~for_test]),
        test=Split(inputs=inputs[for_test], targets=targets[for_test]),
        classes=10,
    )


def _digits_file() -> Path:
    """The file inside scikit-learn, found without importing scikit-learn: that takes longer than a short run."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("data=digits: scikit-learn is not installed; make a fresh .venv, or take data=synthetic")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"


@datasets.register("synthetic")
def synthetic(*, train_samples: int, test_samples: int, channels: int, size: int, classes: int) -> Dataset:
    """Uniformly random bytes and classes, the same at every call."""
    generator = torch.Generator().manual_seed(0)

    def split(samples: int) -> Split:
        return Split(
            inputs=torch.randint(256, (samples, channels, size, size), dtype=torch.uint8, generator=generator),
            targets=torch.randint(classes, (samples,), generator=generator),
        )

    return Dataset(train=split(train_samples), test=split(test_samples), classes=classes)
