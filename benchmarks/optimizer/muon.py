"""Muon for the matrices of hidden layers, AdamW for all else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.optimizer import Replicas, TakeStep, WatchingOptimizer, optimizers

_WITH_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@optimizers.register("muon")
def muon(
    parameters: Iterable[Parameter], *, lr: float, momentum: float, weight_decay: float, adjust_lr: str, adamw_lr: float
) -> Optimizer:
    """torch's Muon and AdamW together; see `MuonAndAdamW`."""
    matrices = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "adjust_lr_fn": adjust_lr}
    return MuonAndAdamW(parameters, matrices=matrices, others={"lr": adamw_lr, "weight_decay": weight_decay})


class MuonAndAdamW(WatchingOptimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): momentum whose matrix is made nearly orthogonal.

    As its authors say, it is for hidden layers: embeddings, the input and the output layer, and all that is no matrix
    take AdamW's steps. A convolution's weights are a matrix of one row for each output channel. `adjust_lr` is how a
    matrix's shape changes the rate: `original`, or as Liu et al. 2025, arXiv 2502.16982, section 2.2, have it, so that
    its steps are as long as AdamW's.

    Until `watch` has seen the model, it is known of no parameter where it belongs, and there can be no step.
    """

    def __init__(self, parameters: Iterable[Parameter], *, matrices: dict[str, Any], others: dict[str, Any]) -> None:
        super().__init__(parameters, {})
        self._matrix_options, self._other_options = matrices, others
        self._views: list[tuple[Parameter, Parameter]] = []
        """Each weight of a hidden layer, and the matrix in the same memory."""
        self._parts: list[Optimizer] = []

    def watch(self, model: nn.Module, step: TakeStep, _replicas: Replicas, /) -> TakeStep:
        """Divide the parameters. Raises ImpossibleRunError where the model has no hidden matrix."""
        hidden = hidden_weights(model)
        chosen = {id(weight) for weight in hidden}
        others = [each for group in self.param_groups for each in group["params"] if id(each) not in chosen]
        if not hidden:
            raise ImpossibleRunError("optimizer=muon: the model has no hidden layer between its first and its last one")
        self._views = [(weight, Parameter(as_matrix(weight.detach(), weight))) for weight in hidden]
        assert all(weight.data_ptr() == matrix.data_ptr() for weight, matrix in self._views), "in the same memory"
        self._parts = [
            torch.optim.Muon([matrix for _, matrix in self._views], **self._matrix_options),
            torch.optim.AdamW(others, **self._other_options),
        ]
        for part in self._parts:
            part.state = self.state  # so that there is one place for all
        # Theirs are of the matrices; these are of the parameters, for whoever scales gradients or changes rates.
        self.param_groups = [
            {"params": hidden, "lr": self._matrix_options["lr"]},
            {"params": others, "lr": self._other_options["lr"]},
        ]
        return step

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of both."""
        assert closure is None, "gradients are those that are there"
        for weight, matrix in self._views:
            matrix.grad = None if weight.grad is None else as_matrix(weight.grad, weight)
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        for _, matrix in self._views:
            matrix.grad = None


def hidden_weights(model: nn.Module) -> list[Parameter]:
    """The weights of linear layers and convolutions that are neither the model's first layer nor its last.

    Layers are in the order in which the model has them. Where an embedding comes before them, it is the first layer.
    """
    layers = [module for module in model.modules() if isinstance(module, (*_WITH_MATRICES, nn.Embedding))]
    embedded = {id(layer.weight) for layer in layers if isinstance(layer, nn.Embedding)}
    inner = [layer.weight for layer in layers[1:-1] if id(layer.weight) not in embedded]
    return [weight for weight in inner if isinstance(weight, Parameter) and weight.requires_grad]


def as_matrix(values: Tensor, weight: Tensor) -> Tensor:
    """Weights, or what has their shape, as (outputs, inputs): a view of memory that is as the weights' is.

    The columns' order, which depends on the memory format, changes nothing: Muon treats all columns alike.
    """
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return values.permute(0, 2, 3, 1).flatten(1)
    return values.flatten(1)
