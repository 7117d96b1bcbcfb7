"""A part of the training data, and training labels that mean nothing: the same for all runs, whatever their seeds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.data import Dataset, Split

_SUBSET_SEED = 5_417
_SHUFFLE_SEED = 9_283


def subset(dataset: Dataset, samples: int) -> Dataset:
    """So many of the training samples, in their old order; the test split stays whole.

    Classes keep their proportions as nearly as whole numbers allow: each gets its share rounded down, and what is left
    goes to those that lost most by that, lower classes first (Hamilton's method). Where a sample has many targets, as
    a text's tokens, it is of no class, and any sample is as likely as any other. A smaller part lies within a larger
    one, but for rounding.
    """
    if samples == len(dataset.train):
        return dataset
    by_class = dataset.train.targets.ndim == 1
    strata = (
        [_of_class(dataset.train.targets, one) for one in range(dataset.classes)]
        if by_class
        else [torch.arange(len(dataset.train))]
    )
    generator = torch.Generator().manual_seed(_SUBSET_SEED)
    counts = _in_proportion(samples, [len(stratum) for stratum in strata])
    kept = [
        stratum[torch.randperm(len(stratum), generator=generator)[:count]]
        for stratum, count in zip(strata, counts, strict=True)
    ]
    chosen = torch.cat(kept).sort().values
    train = Split(inputs=dataset.train.inputs[chosen], targets=dataset.train.targets[chosen])
    return replace(dataset, train=train)


def with_shuffled_labels(dataset: Dataset) -> Dataset:
    """The training targets dealt out anew at random: what a model learns of them does not help with the test split.

    The control of Zhang et al. 2017 (arXiv 1611.03530): classes stay as frequent as they were.
    """
    generator = torch.Generator().manual_seed(_SHUFFLE_SEED)
    order = torch.randperm(len(dataset.train), generator=generator)
    return replace(dataset, train=replace(dataset.train, targets=dataset.train.targets[order]))


def _of_class(targets: Tensor, one: int) -> Tensor:
    return (targets == one).nonzero().flatten()


def _in_proportion(total: int, sizes: list[int]) -> list[int]:
    """Whole numbers that sum to `total`, in proportion to sizes."""
    whole = [total * size // sum(sizes) for size in sizes]
    lost = [total * size % sum(sizes) for size in sizes]
    by_loss = sorted(range(len(sizes)), key=lambda index: -lost[index])
    for index in by_loss[: total - sum(whole)]:
        whole[index] += 1
    return whole
