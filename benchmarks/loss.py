"""The training loss, for classes of samples and for classes of tokens."""

from __future__ import annotations

from torch import Tensor, nn


class Loss(nn.CrossEntropyLoss):
    """Mean cross-entropy.

    Of logits (batch, classes) and targets (batch), or (batch, tokens, classes) and (batch, tokens).
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar, the mean over samples, or over the tokens of all of them."""
        return super().forward(logits.flatten(0, -2), targets.flatten())
