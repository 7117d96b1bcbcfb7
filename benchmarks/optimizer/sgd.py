"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.optimizer import optimizers


@optimizers.register("sgd")
def sgd(
    parameters: Iterable[Parameter], *, lr: float, momentum: float, weight_decay: float, nesterov: bool
) -> Optimizer:
    """torch's SGD; with `nesterov`, the look-ahead form of momentum (Sutskever et al. 2013)."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)
