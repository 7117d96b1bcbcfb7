"""One worker, no communication: the base of every comparison."""

from __future__ import annotations

from torch import nn

from benchmarks.strategy import Strategy, strategies


@strategies.register("single")
class Single(Strategy):
    """The model as it is."""

    communicates = False
    replicated = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Nothing to spread."""
        return model
