"""Training samples that are kept from training, for what is learned besides the parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.data import Dataset, Split

_STREAM = 3
"""Of random numbers, apart from those that `benchmarks/mixing/blend.py` draws from the same seed."""


def hold_out(dataset: Dataset, share: float, seed: int) -> Dataset:
    """The data set with this share of its training split, in samples rounded down, moved to `held_out`.

    It is a systematic sample of the samples by class, those of a class in random order: so each class gives its share,
    give or take a sample. The test split is as it was. A share of 0 holds nothing out.
    """
    train = dataset.train
    samples = len(train)
    chosen = int(samples * share)
    if not chosen:
        return dataset
    shuffled = torch.from_numpy(np.random.default_rng([seed, _STREAM]).permutation(samples))
    by_class = shuffled[torch.argsort(train.targets[shuffled], stable=True)]
    places = (torch.arange(chosen, dtype=torch.float64) + 0.5).mul(samples / chosen).long()
    is_held_out = torch.zeros(samples, dtype=torch.bool)
    is_held_out[by_class[places]] = True
    return replace(dataset, train=_part(train, ~is_held_out), held_out=_part(train, is_held_out))


def _part(split: Split, chosen: torch.Tensor) -> Split:
    return Split(inputs=split.inputs[chosen], targets=split.targets[chosen])
