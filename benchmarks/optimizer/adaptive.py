"""Optimisers with a step length of its own for each parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.optimizer import optimizers
from benchmarks.optimizer.implementations import flags


@optimizers.register("adam")
def adam(
    parameters: Iterable[Parameter],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    implementation: str,
) -> Optimizer:
    """torch's Adam (Kingma and Ba 2015, arXiv 1412.6980); two numbers of state for each parameter."""
    return torch.optim.Adam(
        parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, **flags(implementation)
    )


@optimizers.register("adamw")
def adamw(
    parameters: Iterable[Parameter],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    implementation: str,
) -> Optimizer:
    """torch's AdamW: Adam whose weight decay is no part of the gradient (Loshchilov and Hutter 2019, arXiv 1711.05101).

    Two numbers of state for each parameter.
    """
    return torch.optim.AdamW(
        parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, **flags(implementation)
    )


@optimizers.register("adagrad")
def adagrad(
    parameters: Iterable[Parameter],
    *,
    lr: float,
    eps: float,
    initial_accumulator: float,
    weight_decay: float,
    implementation: str,
) -> Optimizer:
    """torch's Adagrad (Duchi et al. 2011, JMLR 12); one number of state for each parameter, made with the optimiser."""
    return torch.optim.Adagrad(
        parameters,
        lr=lr,
        eps=eps,
        initial_accumulator_value=initial_accumulator,
        weight_decay=weight_decay,
        **flags(implementation),
    )


@optimizers.register("adadelta")
def adadelta(
    parameters: Iterable[Parameter], *, lr: float, rho: float, eps: float, weight_decay: float, implementation: str
) -> Optimizer:
    """torch's Adadelta (Zeiler 2012, arXiv 1212.5701); two numbers of state for each parameter.

    The paper has no learning rate: its step is that of `lr` 1.
    """
    return torch.optim.Adadelta(parameters, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, **flags(implementation))
