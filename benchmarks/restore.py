"""A trained model put back to where it began: what warm-up and other steps outside the window need."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer


class Snapshot:
    """A model's parameters and buffers, and its optimiser's state, as they are now.

    A shard is kept as a shard, on its device; a whole tensor on the host, where it takes no device memory.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self._values = {name: _kept(value) for name, value in model.state_dict().items()}
        self._state = {key: _kept(value) for key, value in _tensors(optimizer).items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put all values back.

        State that the optimiser has made since, at its first step, becomes zero: that is what it starts from. The
        tensors stay, so that the window does not pay for making them.
        """
        self.model.load_state_dict(self._values)
        for key, value in _tensors(self.optimizer).items():
            if key in self._state:
                value.copy_(self._state[key])
            else:
                value.zero_()


def _tensors(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    """The optimiser's state by parameter and name."""
    return {
        (id(parameter), name): value
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _kept(value: Tensor) -> Tensor:
    return value.detach().clone() if isinstance(value, DTensor) else value.detach().to("cpu", copy=True)
