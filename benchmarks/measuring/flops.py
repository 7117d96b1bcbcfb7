"""How large a model is and what a step of it costs, counted on tensors that have a shape and no memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.core.config import Variant
from benchmarks.core.record import ModelSize
from benchmarks.data import Dataset
from benchmarks.model import build_model

_SAMPLES = 2
"""Batch norm needs two in training."""


def model_size(workload: Variant, dataset: Dataset) -> ModelSize:
    """The parameters of the workload's whole, undivided model, and the operations of one sample's step.

    Each addition and each multiplication of matrix products, convolutions and attention counts; element by element
    operations, norms, the loss and the optimiser do not. Attention counts in full, also where a causal mask makes half
    of it void, and its scores once in the backward pass, though fused kernels compute them a second time there. All
    counted operations are of each sample by itself, so the numbers hold for any batch, strategy, device and precision.
    """
    with torch.device("meta"):
        model = build_model(workload, dataset, torch.contiguous_format)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = (_SAMPLES, *dataset.train.inputs.shape[1:])
    inputs = torch.empty(shape, dtype=dataset.train.inputs.dtype, device="meta")
    try:
        forward, step = _counted(model, inputs)
    except RuntimeError as error:  # torch's, of operations that it cannot do without values
        reason = str(error).splitlines()[0]
        return ModelSize(parameters=parameters, flops_unknown_because=reason)
    return ModelSize(
        parameters=parameters,
        forward_flops_per_sample=forward // _SAMPLES,
        step_flops_per_sample=step // _SAMPLES,
    )


def _counted(model: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
    """Operations of the forward pass, and of forward and backward pass together."""
    with FlopCounterMode(display=False) as counter:
        outputs = model(inputs)
        forward = counter.get_total_flops()
        outputs.sum().backward()
    return forward, counter.get_total_flops()
