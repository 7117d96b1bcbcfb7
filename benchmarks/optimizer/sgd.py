"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.optimizer import optimizers
from benchmarks.optimizer.implementations import flags


@optimizers.register("sgd")
def sgd(
    parameters: Iterable[Parameter], *, lr: float, momentum: float, weight_decay: float, implementation: str
) -> Optimizer:
    """torch's SGD: one number of state for each parameter, none without momentum."""
    return torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, **flags(implementation))


@optimizers.register("sgd_nesterov")
def sgd_nesterov(
    parameters: Iterable[Parameter], *, lr: float, momentum: float, weight_decay: float, implementation: str
) -> Optimizer:
    """torch's SGD with the look-ahead form of momentum (Sutskever et al. 2013, ICML, section 2)."""
    return torch.optim.SGD(
        parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True, **flags(implementation)
    )
