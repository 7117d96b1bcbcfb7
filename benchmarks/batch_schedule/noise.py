"""The gradient's noise scale (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

The gradient of a batch of B samples is the true gradient G plus noise whose squared length is tr(S) / B on average, S
being the covariance of the gradients of single samples. So the expected squared length of a batch's gradient is
|G|^2 + tr(S) / B, and gradients of two batch sizes tell both terms. The simple noise scale, in samples, is
tr(S) / |G|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.data.batches import Batch


def noise_scale(small: float, large: float, batches: int, batch: int) -> float:
    """From squared lengths of gradients: the mean over `batches` of `batch` samples, and that of their mean gradient.

    Infinite where no true gradient is to be seen in the noise, 0 where there is no noise.
    """
    whole = batches * batch
    true_square = (whole * large - batch * small) / (whole - batch)
    noise = (small - large) / (1 / batch - 1 / whole)
    if noise <= 0:
        return 0.0
    return noise / true_square if true_square > 0 else math.inf


def measured_noise_scale(
    model: nn.Module, loss_of: Callable[[Batch], Tensor], batches: Sequence[Batch], workers: int
) -> float:
    """From this rank's batches, all of the same size; with several workers, from all of theirs.

    The ranks' models must be the same. They are left as they were: no gradient is accumulated, no hook is called,
    buffers are put back, and the random numbers that follow are the same.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    device = parameters[0].device
    square = torch.zeros((), dtype=torch.float64, device=device)
    total = torch.zeros(sum(map(torch.numel, parameters)), dtype=torch.float64, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for batch in batches:
            gradients = torch.autograd.grad(loss_of(batch), parameters, materialize_grads=True)
            flat = torch.cat([gradient.flatten().double() for gradient in gradients])
            square += flat.square().sum()
            total += flat
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    if workers > 1:
        dist.all_reduce(square)
        dist.all_reduce(total)
    count = len(batches) * workers
    return noise_scale(float(square) / count, float((total / count).square().sum()), count, len(batches[0]))
