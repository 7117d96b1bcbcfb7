"""Gradients averaged over the replicas of a part of a model."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn import Parameter


class GradientAverage:
    """Gradients averaged over replicas, in one all-reduce.

    A pipeline's workers end their backward passes one after another, the first one last; so all but its all-reduce
    overlap with computation anyway.
    """

    def __init__(self, parameters: list[Parameter], group: dist.ProcessGroup) -> None:
        self.parameters, self.group = parameters, group
        self.replicas = dist.get_world_size(group)
        self.flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        ends = torch.tensor([parameter.numel() for parameter in parameters]).cumsum(0).tolist()
        self.views = [
            self.flat.as_strided(parameter.size(), parameter.stride(), end - parameter.numel())
            for parameter, end in zip(parameters, ends, strict=True)
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """Replace each parameter's gradient by the mean over replicas; the memory is kept from step to step."""
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:  # no micro-batch has used it
                view.zero_()
            else:
                view.copy_(parameter.grad)
        dist.all_reduce(self.flat, group=self.group)
        self.flat.div_(self.replicas)
        for parameter, view in zip(self.parameters, self.views, strict=True):
            parameter.grad = view
