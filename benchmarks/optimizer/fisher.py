"""Moments of a model's layers for the Fisher matrix, taken within its forward pass.

The expectation is over what the model itself predicts, not over the data's classes, whose outer products are no
measure of curvature (Martens and Grosse 2015, arXiv 1503.05671, section 5; Kunstner et al. 2019, arXiv 1905.12558).
So a backward pass of its own goes from the logits to the layers' outputs, beside the one for the loss, whose graph it
uses; neither loss scales nor weights of batches reach it, and no parameter's gradient is computed in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from benchmarks.optimizer.kronecker import KroneckerLayer, input_moment, output_moment, places

Vectors = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""From logits (predictions, classes), and a uniform random number for each prediction, to gradients of the logits whose
outer products have the mean, or sum up to, the Fisher matrix of each prediction."""

_SEED = 1_000_003


def sampled(logits: Tensor, uniform: Tensor) -> Iterator[Tensor]:
    """The gradient of -log p(y) for one class y for each prediction, drawn from the model's own distribution."""
    chances = logits.softmax(-1)
    drawn = (chances.cumsum(-1) <= uniform.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    yield chances.scatter_add(-1, drawn, torch.full_like(drawn, -1, dtype=chances.dtype))


def exact(logits: Tensor, _uniform: Tensor) -> Iterator[Tensor]:
    """Those of all classes, each times the root of its probability: as many backward passes as there are classes."""
    chances = logits.softmax(-1)
    for number in range(logits.shape[-1]):
        own = chances.clone()
        own[..., number] -= 1.0
        yield own * chances[..., number : number + 1].sqrt()


FISHERS: dict[str, Vectors] = {"sampled": sampled, "exact": exact}


class Moments:
    """Sums over the samples of a global batch, as far as this worker has seen them."""

    def __init__(self, model: nn.Module, layers: dict[KroneckerLayer, nn.Parameter], vectors: Vectors) -> None:
        self.layers, self.vectors = layers, vectors
        self.found: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        """By weight: of the layer's inputs, and of its outputs' gradients; means over the global batch."""
        self._seen: list[tuple[KroneckerLayer, Tensor, GradientEdge, int]] = []
        self._on = False
        for layer in layers:
            layer.register_forward_hook(self._see)
        model.register_forward_hook(self._collect)

    def begin(self, number: int, first: int, whole: int) -> None:
        """From now on; the next sample is at place `first` of a global batch of `whole`, that of step `number`."""
        self._number, self._next, self._whole = number, first, whole
        self.found = {}
        self._on = True

    def end(self) -> None:
        """Nothing more to see."""
        self._on = False

    def _see(self, layer: KroneckerLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._on and output.requires_grad:
            # the edge, not the tensor: an activation in place makes that another one
            self._seen.append((layer, inputs[0].detach(), get_gradient_edge(output), places(layer, output)))

    def _collect(self, _model: nn.Module, _inputs: Any, logits: Tensor) -> None:
        if not self._on or not self._seen:
            return
        with torch.autocast(logits.device.type, enabled=False):  # the hook is within the forward pass's
            self._back(logits)
        self._seen = []

    def _back(self, logits: Tensor) -> None:
        """From the logits (batch, ..., classes) to all layers; each prediction of a sample counts for one."""
        samples, edges = len(logits), [edge for _, _, edge, _ in self._seen]
        predictions = logits.shape[1:-1].numel()
        for vector in self.vectors(logits.detach().float().flatten(0, -2), self._uniform(logits)):
            gradients = torch.autograd.grad(
                logits, edges, vector.view_as(logits).to(logits.dtype), retain_graph=True, allow_unused=True
            )
            for (layer, _, _, count), gradient in zip(self._seen, gradients, strict=True):
                if gradient is not None:
                    _, outputs = self._of(layer, logits.device)
                    outputs.add_(output_moment(layer, gradient), alpha=1 / (self._whole * predictions * count))
        for layer, inputs, _, _ in self._seen:
            self._of(layer, logits.device)[0].add_(input_moment(layer, inputs), alpha=1 / self._whole)
        self._next += samples

    def _of(self, layer: KroneckerLayer, device: torch.device) -> tuple[Tensor, Tensor]:
        weight = self.layers[layer]
        if weight not in self.found:
            size, outputs = layer.weight[0].numel() + (layer.bias is not None), layer.weight.shape[0]
            self.found[weight] = (torch.zeros(size, size, device=device), torch.zeros(outputs, outputs, device=device))
        return self.found[weight]

    def _uniform(self, logits: Tensor) -> Tensor:
        """A number for each prediction, by the step and the sample's place in the global batch.

        So it does not depend on how many workers share the batch.
        """
        generator = torch.Generator(logits.device).manual_seed(_SEED + self._number)
        each = logits.shape[1:-1].numel()
        numbers = torch.rand(self._whole * each, generator=generator, device=logits.device)
        return numbers[self._next * each : (self._next + len(logits)) * each]
