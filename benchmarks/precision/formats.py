"""fp32, tf32, bf16 and fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from benchmarks.precision import Precision, precisions

precisions.register("fp32")(Precision)


@precisions.register("tf32")
class Tf32(Precision):
    """fp32 in memory, 10-bit mantissas in matrix products and convolutions on NVIDIA's tensor cores."""

    tf32 = True


@precisions.register("bf16")
class Bf16(Precision):
    """Mixed precision with bfloat16: torch.autocast chooses, operation by operation."""

    dtype = torch.bfloat16

    def autocast(self) -> AbstractContextManager[None]:
        """Operations that are safe in the short format run in it."""
        return torch.autocast(self.device.type, dtype=self.dtype)


@precisions.register("fp16")
class Fp16(Bf16):
    """Mixed precision with half precision: the loss is scaled up so that small gradients do not vanish.

    Micikevicius et al. 2018, arXiv 1710.03740. A step whose gradients overflow is skipped and the scale halved.
    """

    dtype = torch.float16

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.scaler = torch.amp.GradScaler(device.type)

    def share_overflows(self) -> None:
        """The scaler of sharded gradients; its scale begins anew."""
        self.scaler = _SharedScaler(self.device.type)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the current scale."""
        return self.scaler.scale(loss)

    def step(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale, skip the step if they overflowed, adapt the scale."""
        self.scaler.step(optimizer)
        self.scaler.update()


class _SharedScaler(torch.amp.GradScaler):
    """Where each rank holds a shard of the gradients: an overflow on one makes all ranks skip the step.

    torch's own ShardedGradScaler does the same for flat shards, but cannot take DTensors.
    """

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, _allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        gradients = [
            parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, inv_scale)
        dist.all_reduce(found_inf, op=dist.ReduceOp.MAX)
        return {found_inf.device: found_inf}
