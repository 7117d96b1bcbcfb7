"""Samples blended in pairs, and the loss that goes with them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.loss import Loss

_LAMBDAS, _PARTNERS, _HELD_OUT = range(3)
"""Streams of random numbers, so that what is drawn from one does not change the others."""


class Blend(nn.Module):
    """The layer that mixes samples, each with its partner; where there is none to do, samples pass as they are.

    A partner's values are (1 - lambda) parts of the mixed sample. `pairs` is set before a forward pass that trains, and
    taken away by its loss: so an evaluation, or any other forward pass, sees no mixed samples.
    """

    pairs: tuple[Tensor, Tensor] | None = None
    """Each sample's partner, as its number in the batch (batch, int64), and its own lambda (batch), on the device."""

    def forward(self, values: Tensor) -> Tensor:
        """Floating-point samples (batch, ...), to as many in the same memory format."""
        if self.pairs is None:
            return values
        partners, weights = self.pairs
        by_sample = weights.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values, _chosen(values, partners), 1 - by_sample)


def _chosen(samples: Tensor, numbers: Tensor) -> Tensor:
    """These samples, in their memory format.

    `index_select` by itself makes contiguous ones, and `samples[numbers]`, which does not, takes twice as long or more.
    """
    if samples.ndim == 4 and samples.is_contiguous(memory_format=torch.channels_last):
        return samples.permute(0, 2, 3, 1).index_select(0, numbers).permute(0, 3, 1, 2)
    return samples.index_select(0, numbers)


class MixedLoss(Loss):
    """The mean over samples of lambda x the loss to a sample's own target + (1 - lambda) x that to its partner's.

    Cross-entropy is linear in the target's distribution, so it is the loss to the mixed one (Zhang et al. 2018, arXiv
    1710.09412, equation 2). Its pairs are those of `blend`, whose forward pass must have been the last one.
    """

    def __init__(self, blend: Blend, *, label_smoothing: float) -> None:
        super().__init__(label_smoothing=label_smoothing)
        self.blend = blend

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar, of logits (batch, classes) and the samples' own targets (batch)."""
        assert self.blend.pairs is not None, "before_forward comes first"
        partners, weights = self.blend.pairs
        self.blend.pairs = None
        own, other = (
            functional.cross_entropy(logits, wanted, reduction="none", label_smoothing=self.label_smoothing)
            for wanted in (targets, targets.index_select(0, partners))
        )
        return torch.lerp(other, own, weights.to(own.dtype)).mean()


class Draws:
    """Random numbers for mixing, drawn on the host, so that they are the same for any device.

    They follow from the seed, and for what is each replica's own, from its number.
    """

    def __init__(self, seed: int, replica: int, device: torch.device) -> None:
        self.seed, self.replica, self.device = seed, replica, device
        self.restart()

    def restart(self) -> None:
        """From the beginning."""
        self._common = np.random.default_rng([self.seed, _LAMBDAS])
        self._lambdas = np.random.default_rng([self.seed, _LAMBDAS, 1 + self.replica])
        self._partners = np.random.default_rng([self.seed, _PARTNERS, self.replica])
        self._held_out = np.random.default_rng([self.seed, _HELD_OUT, self.replica])

    def partners(self, samples: int) -> Tensor:
        """A random permutation of the batch: the number of each sample's partner, who may be itself."""
        return self._sent(self._partners.permutation(samples))

    def one_lambda(self, alpha: float, samples: int) -> Tensor:
        """One number from Beta(alpha, alpha), the same on all replicas, for each sample."""
        return self._sent(np.full(samples, self._common.beta(alpha, alpha), dtype=np.float32))

    def lambdas(self, alpha: float, samples: int) -> Tensor:
        """A number from Beta(alpha, alpha) for each sample."""
        return self._sent(self._lambdas.beta(alpha, alpha, samples).astype(np.float32))

    def held_out(self, samples: int, of: int) -> Tensor:
        """So many different ones of all that are held out."""
        return self._sent(self._held_out.choice(of, samples, replace=False))

    def _sent(self, numbers: NDArray[np.float32] | NDArray[np.int64]) -> Tensor:
        values = torch.from_numpy(numbers)
        if self.device.type == "cpu":
            return values
        return values.pin_memory().to(self.device, non_blocking=True)  # unpinned, the copy would wait for the device
