"""Synchronous data parallelism with gradient all-reduce."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.strategy import Place, Strategy, strategies


@strategies.register("ddp")
class Ddp(Strategy):
    """torch's DistributedDataParallel (Li et al. 2020, arXiv 2006.15704).

    Every rank holds the whole model and computes the gradient of its share of the batch; gradients are averaged in
    buckets, overlapping with the rest of the backward pass. Sent per step and rank by a ring all-reduce: 2 (N-1)/N x
    the gradients' bytes.
    """

    communicates = True
    replicated = True

    def __init__(self, place: Place, *, bucket_mb: float, gradient_as_bucket_view: bool) -> None:
        super().__init__(place)
        self.bucket_mb = bucket_mb
        self.gradient_as_bucket_view = gradient_as_bucket_view

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model in DistributedDataParallel; parameters and buffers are those of rank 0."""
        on_gpu = self.place.device.type == "cuda"
        return DistributedDataParallel(
            model,
            device_ids=[self.place.device.index] if on_gpu else None,
            bucket_cap_mb=self.bucket_mb,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
        )

    def on_last_gradient(self, model: nn.Module, call: Callable[[], None], /) -> bool:
        """A feed-forward model's first layer has its gradient last; what follows is waiting for all-reduces."""
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        first.register_post_accumulate_grad_hook(lambda _parameter: call())
        return True
