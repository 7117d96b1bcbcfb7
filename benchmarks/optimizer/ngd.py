"""Natural gradient descent with Kronecker-factored curvature (K-FAC)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.data.batches import Batch, Division
from benchmarks.optimizer import Replicas, TakeStep, WatchingOptimizer, optimizers
from benchmarks.optimizer.fisher import FISHERS, Moments, Vectors
from benchmarks.optimizer.kronecker import KroneckerLayer, damped_inverses, is_kronecker, sizes

_LARGEST_FACTOR = 8192
"""A layer with a larger one, such as the logits of a vocabulary, has plain gradients: inverses take its cube."""


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """How the Fisher matrix is estimated and trusted."""

    damping: float
    decay: float
    interval: int
    kl_clip: float
    vectors: Vectors

    def renewals(self, steps: int) -> int:
        """How many there are in so many first steps: one in each of the first `interval`, then one in so many.

        At first all changes fast (Martens and Grosse 2015, section 8, have three of these steps).
        """
        return min(steps, self.interval) + max(0, -(-steps // self.interval) - 1)


@optimizers.register("ngd")
def ngd(
    parameters: Iterable[Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    damping: float,
    decay: float,
    interval: int,
    kl_clip: float,
    fisher: str,
) -> Optimizer:
    """K-FAC for linear layers and convolutions, SGD for the rest; see `NaturalGradient`."""
    curvature = Curvature(damping=damping, decay=decay, interval=interval, kl_clip=kl_clip, vectors=FISHERS[fisher])
    return NaturalGradient(parameters, curvature, lr=lr, momentum=momentum, weight_decay=weight_decay)


class NaturalGradient(WatchingOptimizer):
    """SGD with momentum along the natural gradient F^-1 grad, with the Fisher matrix F of K-FAC.

    Martens and Grosse 2015, arXiv 1503.05671; convolutions as Grosse and Martens 2016, arXiv 1602.01407. F has a block
    for each linear layer and convolution, a Kronecker product of two small matrices, which are running means over steps
    (2015, section 5), renewed and inverted now and then, each with its part of `damping` (section 6.3).
    All else, such as the weights of norms, takes the plain gradient.

    The step is not rescaled by the exact quadratic model (section 6.4), which takes more passes over the batch. Instead
    it is shortened where lr^2 x the natural gradient's squared length in F's metric, twice the change of the model's
    predictions in KL divergence, exceeds `kl_clip` (Ba, Grosse and Martens 2017, ICLR, section 5). Weight decay and
    momentum are those of SGD, added to the natural gradient and not to what it is made of.

    Replicas add up their factors and each inverts them all. A layer of n inputs and m outputs has 2 (n^2 + m^2)
    numbers of state for them, and each parameter its momentum.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        curvature: Curvature,
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.curvature = curvature
        self.layers: dict[KroneckerLayer, Parameter] = {}
        self._first: Parameter = self.param_groups[0]["params"][0]
        self.state[self._first]["step"] = torch.zeros(())  # on the host, as torch's own optimisers have it

    def watch(self, model: nn.Module, step: TakeStep, replicas: Replicas, /) -> TakeStep:
        """Hooks on the model's layers; the step tells them first where in the global batch its samples are."""
        own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        for module in model.modules():
            if is_kronecker(module) and id(module.weight) in own and max(sizes(module)) <= _LARGEST_FACTOR:
                weight = module.weight
                assert isinstance(weight, Parameter)
                self.layers[module] = weight
        self.moments = Moments(model, self.layers, self.curvature.vectors)
        self.replicas = replicas
        numbers = sum(size**2 for layer in self.layers for size in sizes(layer))
        replicas.summed_bytes_per_step = 4 * numbers / self.curvature.interval
        return WatchedStep(step, self, replicas.division)

    @property
    def steps(self) -> int:
        """Taken so far."""
        return int(self.state[self._first]["step"])

    def begin(self, first: int, whole: int) -> None:
        """The step to come is on samples from place `first` on of a global batch of `whole`."""
        if self.curvature.renewals(self.steps) < self.curvature.renewals(self.steps + 1):
            self.moments.begin(self.steps, first, whole)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the natural gradient, whose curvature is renewed first if it is time."""
        assert closure is None, "the curvature is of one forward pass"
        self.moments.end()
        if self.moments.found:
            self._renew()
        for group in self.param_groups:
            self._step_along(self._directions(group), group)
        self.state[self._first]["step"] += 1

    def _renew(self) -> None:
        """Running means and their inverses, of this step's moments; a new mean begins with the first."""
        found, self.moments.found = self.moments.found, {}
        self.replicas.sum_over_replicas([moment for pair in found.values() for moment in pair])
        kept = min(1 - 1 / self.curvature.renewals(self.steps + 1), self.curvature.decay)
        for weight, pair in found.items():
            state = self.state[weight]
            for name, moment in zip(("inputs", "outputs"), pair, strict=True):
                if name not in state:
                    state[name] = torch.zeros_like(moment)
                state[name].lerp_(moment, 1 - kept)
            inverses = damped_inverses(state["inputs"], state["outputs"], self.curvature.damping)
            for name, inverse in zip(("inputs_inverse", "outputs_inverse"), inverses, strict=True):
                state[name] = inverse

    def _directions(self, group: dict[str, Any]) -> dict[Parameter, Tensor]:
        """Natural gradients of layers, shortened together if need be, and the plain ones of all other parameters."""
        parameters: list[Parameter] = group["params"]
        plain = {parameter: parameter.grad for parameter in parameters if parameter.grad is not None}
        natural: dict[Parameter, Tensor] = {}
        for layer, weight in self.layers.items():
            if weight in plain and "inputs_inverse" in self.state[weight]:
                natural |= self._natural(layer, weight)
        if natural and self.curvature.kl_clip:
            products = [(direction * plain[parameter]).sum() for parameter, direction in natural.items()]
            square = torch.stack(products).sum() * group["lr"] ** 2
            torch._foreach_mul_(list(natural.values()), (self.curvature.kl_clip / square).sqrt().clamp(max=1.0))
        return plain | natural

    def _natural(self, layer: KroneckerLayer, weight: Parameter) -> dict[Parameter, Tensor]:
        """G^-1 (gradient of weights and bias) A^-1, of one layer."""
        state, bias = self.state[weight], layer.bias
        assert weight.grad is not None
        gradient = weight.grad.flatten(1)
        if not isinstance(bias, Parameter):
            return {weight: self._between(state, gradient).view(weight.shape)}
        assert bias.grad is not None
        direction = self._between(state, torch.cat([gradient, bias.grad.unsqueeze(1)], 1))
        return {weight: direction[:, :-1].reshape(weight.shape), bias: direction[:, -1].contiguous()}

    @staticmethod
    def _between(state: dict[str, Tensor], gradient: Tensor) -> Tensor:
        return state["outputs_inverse"] @ gradient @ state["inputs_inverse"]

    def _step_along(self, directions: dict[Parameter, Tensor], group: dict[str, Any]) -> None:
        """SGD's step: v <- momentum v + direction + weight decay x parameter, and the parameter moves by -lr v."""
        parameters: list[Tensor] = list(directions)
        if not parameters:
            return
        moves = list(directions.values())
        if group["weight_decay"]:
            moves = list(torch._foreach_add(moves, parameters, alpha=group["weight_decay"]))
        if group["momentum"]:
            velocities = [self._velocity(self.state[parameter], parameter) for parameter in directions]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, moves)
            moves = velocities
        torch._foreach_add_(parameters, moves, alpha=-group["lr"])

    @staticmethod
    def _velocity(state: dict[str, Tensor], parameter: Parameter) -> Tensor:
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


@dataclass(frozen=True)
class WatchedStep:
    """A step before which the optimiser is told which samples of the global batch are this replica's."""

    step: TakeStep
    optimizer: NaturalGradient
    division: Division

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss on the device."""
        whole = self.division.whole(batch)
        self.optimizer.begin(self.division.part(whole).start, whole)
        return self.step(batch)
