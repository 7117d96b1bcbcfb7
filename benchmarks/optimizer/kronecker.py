"""Kronecker factors of a layer's block of the Fisher matrix: what they are made of, and their damped inverses.

For a layer with weights W, inputs a (and a 1 for the bias) and outputs s = W a, the gradient of a sample is g a^T with
g that of the outputs. K-FAC takes its second moments for a product (Martens and Grosse 2015, arXiv 1503.05671, section
3): F = E[a a^T] x E[g g^T]. A convolution has such a pair for each place of its output; gradients at different places
are taken for uncorrelated and all places for alike (Grosse and Martens 2016, arXiv 1602.01407, section 3.1), and so are
a linear layer's tokens: F = E[sum over places of a a^T] x E[mean over places of g g^T].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

_CHUNK_NUMBERS = 2**25
"""Of a convolution's patches at a time: all of them take as much memory as its kernel has places, times its input."""

KroneckerLayer = nn.Linear | nn.Conv2d


def is_kronecker(module: nn.Module) -> TypeGuard[KroneckerLayer]:
    """Whether these factors describe the layer: no subclass, which may compute something else, and no groups."""
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def sizes(layer: KroneckerLayer) -> tuple[int, int]:
    """Of the inputs' factor, with the bias, and of the outputs'."""
    return layer.weight[0].numel() + (layer.bias is not None), layer.weight.shape[0]


def input_moment(layer: KroneckerLayer, inputs: Tensor) -> Tensor:
    """The sum of a a^T over samples and places, (inputs, inputs); in float32.

    Inputs are (batch, ..., features), or (batch, channels, height, width).
    """
    size, _ = sizes(layer)
    moment = inputs.new_zeros(size, size, dtype=torch.float32)
    for rows in _rows(layer, inputs):
        wide = functional.pad(rows.float(), (0, 1), value=1.0) if layer.bias is not None else rows.float()
        moment.addmm_(wide.T, wide)
    return moment


def output_moment(layer: KroneckerLayer, gradients: Tensor) -> Tensor:
    """The sum of g g^T over samples and places, (outputs, outputs); in float32. Shapes are as those of outputs."""
    by_output = gradients.movedim(1 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1).float()
    return by_output @ by_output.T


def places(layer: KroneckerLayer, outputs: Tensor) -> int:
    """How many of them a sample has."""
    return (outputs.shape[2:] if isinstance(layer, nn.Conv2d) else outputs.shape[1:-1]).numel()


def _rows(layer: KroneckerLayer, inputs: Tensor) -> Iterator[Tensor]:
    """The inputs of all places, in parts (places, features), in the order in which the weights have the features."""
    if isinstance(layer, nn.Linear):
        yield inputs.flatten(0, -2)
        return
    numbers = inputs[0].numel() * layer.kernel_size[0] * layer.kernel_size[1]
    for part in inputs.split(max(1, _CHUNK_NUMBERS // numbers)):
        patches = functional.unfold(part, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        yield patches.transpose(1, 2).flatten(0, 1)


def damped_inverses(inputs: Tensor, outputs: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Of both factors, where `damping` is what is added to the Fisher matrix's diagonal.

    It is divided between them by their mean eigenvalues (Martens and Grosse 2015, section 6.3). The ratio is kept
    within a thousand, also where a layer has no gradients at all.
    """
    least = 1e-12
    ratio = (mean_eigenvalue(inputs).clamp(min=least) / mean_eigenvalue(outputs).clamp(min=least)).sqrt()
    ratio = ratio.clamp(1e-3, 1e3)
    return _inverse(inputs, damping**0.5 * ratio), _inverse(outputs, damping**0.5 / ratio)


def mean_eigenvalue(factor: Tensor) -> Tensor:
    """Of a symmetric matrix."""
    return factor.diagonal().mean()


def _inverse(factor: Tensor, damping: Tensor) -> Tensor:
    """By Cholesky's decomposition, with no look at whether there is one: `cholesky_inverse` looks, and waits for it.

    Where too little damping leaves none, all numbers are NaN, and so is the loss from then on: the run fails.
    """
    damped = factor.clone()
    damped.diagonal().add_(damping)
    triangle, failed = torch.linalg.cholesky_ex(damped)
    half = torch.linalg.solve_triangular(triangle, torch.eye(len(factor), device=factor.device), upper=False)
    return torch.where(failed > 0, torch.nan, half.T @ half)
