"""Precisions: in which number formats a step computes, and how its gradients are scaled."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.registry import Registry


class Precision:
    """Single precision throughout: the default that the others change."""

    tf32 = False
    dtype = torch.float32
    """The format of most operations' inputs and outputs."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.tf32
            torch.backends.cudnn.allow_tf32 = self.tf32

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the forward pass."""
        return nullcontext()  # a disabled autocast would cost a small model 2 % of its step

    def share_overflows(self) -> None:
        """From now on all ranks decide together whether gradients overflowed, each of which sees a part of them."""

    def scale(self, loss: Tensor) -> Tensor:
        """What the backward pass starts from."""
        return loss

    def step(self, optimizer: Optimizer) -> None:
        """Update the parameters from their gradients."""
        optimizer.step()


precisions: Registry[Precision] = Registry("precision")
