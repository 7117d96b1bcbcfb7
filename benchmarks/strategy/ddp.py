"""Synchronous data parallelism with gradient all-reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.data.batches import Batch
from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Step, Strategy, strategies
from benchmarks.strategy.hooks import HOOKS
from benchmarks.strategy.traffic import size_bytes, traffic_of


@strategies.register("ddp")
class Ddp(Strategy):
    """torch's DistributedDataParallel (Li et al. 2020, arXiv 2006.15704).

    Every rank holds the whole model and computes the gradient of its share of the batch; gradients are averaged in
    buckets, overlapping with the rest of the backward pass.

    With `accumulate`, a rank takes its share in that many micro-batches and sends the sum of their gradients once. The
    step is the same, but for batch norm, which sees the samples of a micro-batch only.
    """

    communicates = True

    def __init__(
        self,
        place: Place,
        *,
        bucket_mb: float,
        gradient_as_bucket_view: bool,
        static_graph: bool,
        accumulate: int,
        hook: str,
        powersgd_rank: int,
    ) -> None:
        super().__init__(place)
        self.bucket_mb = bucket_mb
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.static_graph = static_graph
        self.accumulate = accumulate
        self.hook = HOOKS[hook](powersgd_rank)

    def wrap(self, model: nn.Module, _precision: Precision, /) -> nn.Module:
        """The model in DistributedDataParallel; parameters and buffers are those of rank 0."""
        on_gpu = self.place.device.type == "cuda"
        self.model = DistributedDataParallel(
            model,
            device_ids=[self.place.device.index] if on_gpu else None,
            bucket_cap_mb=self.bucket_mb,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            static_graph=self.static_graph,
        )
        self.hook.register(self.model)
        return self.model

    def make_step(self, step: Step, /) -> Step:
        """With `accumulate`, several backward passes before each update."""
        if self.accumulate == 1:
            return step
        return step.made(AccumulatingStep, micro_batches=self.accumulate, without_sync=self.without_sync)

    def sum_over_replicas(self, tensors: Sequence[Tensor], /) -> None:
        """All at once, since they are few and large; nothing where gradients are not sent either."""
        if not self.model.require_backward_grad_sync:
            return
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()

    def without_sync(self) -> AbstractContextManager[None]:
        """DistributedDataParallel's own switch; batch norm's buffers are not sent either, but in the first step."""
        return self.model.no_sync()

    def bytes_per_step(self) -> int:
        """2 (N-1)/N x the gradients' bytes, as the hook makes them, and (N-1)/N x the buffers' bytes from rank 0.

        And 2 (N-1)/N x what the optimiser sums over replicas.
        """
        gradients = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        traffic = traffic_of()
        buffers = size_bytes(self.model.module.buffers())
        reduced = self.hook.reduced_bytes(gradients) + self.summed_bytes_per_step
        return round(traffic.all_reduce(reduced) + traffic.broadcast(buffers))

    def forget(self) -> None:
        """What the hook has remembered."""
        self.hook.forget()

    def copies(self, _model: nn.Module, /) -> Copies:
        """All parameters, on all workers."""
        return Copies(tensors=list(self.model.parameters()))

    def on_last_gradient(self, model: nn.Module, call: Callable[[], None], /) -> bool:
        """A feed-forward model's first layer has its gradient last; what follows is waiting for all-reduces."""
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        first.register_post_accumulate_grad_hook(lambda _parameter: call())
        return True


@dataclass(frozen=True, kw_only=True)
class AccumulatingStep(Step):
    """An optimiser step whose batch passes through the model in parts; gradients are sent with the last part."""

    micro_batches: int
    without_sync: Callable[[], AbstractContextManager[None]]

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of the batch, by parts that differ by one sample at most; returns the batch's mean loss."""
        *first, last = _parts(batch, self.micro_batches)
        losses = []
        with self.without_sync():
            for part in first:
                losses.append(super().backward(part) * (len(part) / len(batch)))
        losses.append(super().backward(last) * (len(last) / len(batch)))
        return sum(losses[1:], start=losses[0])


def _parts(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` parts of two samples at least, as batch norm needs them: fewer where it is short.

    A part's weight makes the sum of the parts' weighted losses the batch's weighted mean loss.
    """
    count = max(1, min(count, len(batch) // 2))
    return [
        Batch(inputs, targets, batch.weight * len(targets) / len(batch))
        for inputs, targets in zip(batch.inputs.tensor_split(count), batch.targets.tensor_split(count), strict=True)
    ]
