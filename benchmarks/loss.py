"""The training loss, for classes of samples and for classes of tokens."""

from __future__ import annotations

from torch import Tensor, nn


class Loss(nn.CrossEntropyLoss):
    """Mean cross-entropy.

    Of logits (batch, classes) and targets (batch), or (batch, tokens, classes) and (batch, tokens). With
    `label_smoothing` of s, the target distribution over K classes is (1 - s) x one-hot + s / K (Szegedy et al. 2016,
    arXiv 1512.00567, section 7).
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar, the mean over samples, or over the tokens of all of them."""
        return super().forward(logits.flatten(0, -2), targets.flatten())
