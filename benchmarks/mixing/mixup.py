"""Mixup: training on random convex combinations of two samples and of their targets."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from benchmarks.data.batches import Batch
from benchmarks.mixing import Mixing, Setting, mixings
from benchmarks.mixing.blend import Blend, Draws, MixedLoss


class Pairwise(Mixing):
    """The parts of every mixing that blends a batch with a permutation of itself (Zhang et al. 2018, figure 1)."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.draws = Draws(setting.seed, setting.replica, setting.device)
        self.blend = Blend()

    def layers(self) -> Sequence[nn.Module]:
        return (self.blend,)

    def loss(self) -> MixedLoss:
        return MixedLoss(self.blend, label_smoothing=self.setting.label_smoothing)

    def forget(self) -> None:
        self.draws.restart()


@mixings.register("mixup")
class Mixup(Pairwise):
    """Mixup (Zhang et al. 2018, arXiv 1710.09412, section 2): lambda is drawn from Beta(alpha, alpha).

    Of images, pixels are mixed; of texts, what their first layer makes of the tokens, since tokens themselves cannot be
    (Guo et al. 2019, arXiv 1905.08941, section 3.2: word embeddings).

    Several workers mix their own shares of a batch, so a sample's partner is in the same share. With `per` batch,
    lambda is that of the whole global batch; but micro-batches that are accumulated are mixed one by one.
    """

    def __init__(self, setting: Setting, /, *, alpha: float, per: str) -> None:
        super().__init__(setting)
        self.alpha = alpha
        self.lambdas = {"batch": self.draws.one_lambda, "sample": self.draws.lambdas}[per]

    def before_forward(self, batch: Batch, /) -> None:
        samples = len(batch)
        self.blend.pairs = self.draws.partners(samples), self.lambdas(self.alpha, samples)
