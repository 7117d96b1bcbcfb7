"""One worker, no communication: the base of every comparison."""

from __future__ import annotations

from torch import nn

from benchmarks.precision import Precision
from benchmarks.strategy import Strategy, strategies


@strategies.register("single")
class Single(Strategy):
    """The model as it is."""

    communicates = False

    def wrap(self, model: nn.Module, _precision: Precision, /) -> nn.Module:
        """Nothing to spread."""
        return model

    def bytes_per_step(self) -> int:
        """Nobody to send to."""
        return 0
