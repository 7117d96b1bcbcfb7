"""Data parallelism with a sharded optimiser state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.data.batches import Batch
from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Step, Strategy, SyncSwitch, strategies
from benchmarks.strategy.buckets import parts
from benchmarks.strategy.traffic import traffic_of


@strategies.register("zero1")
class Zero1(Strategy):
    """ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1): 1/N of the optimiser state on each rank.

    Parameters lie in flat buckets, in the reverse order of their use. As soon as a bucket has its gradients they are
    reduce-scattered, overlapping with the rest of the backward pass; a rank updates its 1/N of each bucket, and the
    new parameters are all-gathered. torch's own ZeroRedundancyOptimizer, which torch calls experimental, gives a rank
    whole parameters, so that one large matrix is not shared at all, and sends half as much again: all gradients are
    all-reduced before the parameters are sent.

    A shard is a flat vector that ends anywhere within a matrix: right for optimisers that treat every number by
    itself, and for them only.
    """

    communicates = True
    shards_gradients = True

    def __init__(self, place: Place, *, bucket_mb: float) -> None:
        super().__init__(place)
        self.bucket_bytes = bucket_mb * 2**20
        self.buckets: list[Bucket] = []
        self.sync = SyncSwitch()
        self._next = 0

    def wrap(self, model: nn.Module, _precision: Precision, /) -> nn.Module:
        """The same model, its parameters moved into buckets; they and the buffers are those of rank 0."""
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.buckets = [Bucket(part, self.place) for part in parts(trained[::-1], self.bucket_bytes)]
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._collector(bucket))
        return model

    def make_optimizer(self, make: Callable[[Iterable[Parameter]], Optimizer], _model: nn.Module, /) -> Optimizer:
        """The optimiser of this rank's shards."""
        return make([bucket.shard for bucket in self.buckets])

    def make_step(self, step: Step, /) -> Step:
        """Gradients come by the shard, and parameters are sent after the update."""
        return step.made(ShardedStep, finish_backward=self._finish_backward, share=self._share)

    def without_sync(self) -> AbstractContextManager[None]:
        """Each rank updates its own shard from its own gradients."""
        return self.sync.off()

    def bytes_per_step(self) -> int:
        """(N-1)/N x the gradients' bytes scattered and (N-1)/N x the parameters' gathered: as much as an all-reduce.

        Twice the former with gloo.
        """
        traffic = traffic_of()
        size = sum(bucket.size_bytes for bucket in self.buckets)
        return round(traffic.reduce_scatter(size) + traffic.all_gather(size))

    def copies(self, model: nn.Module, /) -> Copies:
        """All parameters, on all workers."""
        return Copies(tensors=list(model.parameters()))

    def on_last_gradient(self, model: nn.Module, call: Callable[[], None], /) -> bool:
        """A feed-forward model's first layer has its gradient last.

        The call is made before the last bucket is sent.
        """
        first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
        bucket = self.buckets[-1]
        bucket.before_last = call
        assert bucket.parameters[-1] is first
        return True

    def _collector(self, bucket: Bucket) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            bucket.collect(parameter)
            while self._next < len(self.buckets) and not self.buckets[self._next].missing:
                self._reduce_next()  # in the same order on every rank

        return collect

    def _reduce_next(self) -> None:
        self.buckets[self._next].reduce(self.sync.on)
        self._next += 1

    def _finish_backward(self) -> None:
        while self._next < len(self.buckets):
            self.buckets[self._next].fill()
            self._reduce_next()
        self._next = 0
        for bucket in self.buckets:
            bucket.take_gradient()

    def _share(self) -> None:
        if not self.sync.on:
            return
        for work in [bucket.gather() for bucket in self.buckets]:
            work.wait()


class Bucket:
    """Some parameters in one flat vector, padded to a multiple of the number of workers."""

    def __init__(self, parameters: list[Parameter], place: Place) -> None:
        self.parameters = parameters
        self.workers = place.workers
        count = sum(parameter.numel() for parameter in parameters)
        shard = -(-count // place.workers)
        self.flat = parameters[0].detach().new_zeros(shard * place.workers)
        self.gradients = torch.zeros_like(self.flat)
        self.views = self._move_in()
        mine = slice(place.rank * shard, (place.rank + 1) * shard)
        self.shard = Parameter(self.flat[mine])  # shares the memory
        self.own_gradients = self.gradients[mine]
        self.shard_gradient = torch.zeros_like(self.own_gradients)
        self.missing = {id(parameter) for parameter in parameters}
        self.before_last: Callable[[], None] = lambda: None
        self._work: dist.Work | None = None

    def _move_in(self) -> dict[int, Tensor]:
        """Move the parameters here, in their memory format; returns the gradients' places, by parameter."""
        views, first = {}, 0
        for parameter in self.parameters:
            place = (parameter.size(), parameter.stride(), first)
            view = self.flat.as_strided(*place)
            view.copy_(parameter.detach())
            parameter.data = view
            views[id(parameter)] = self.gradients.as_strided(*place)
            first += parameter.numel()
        return views

    @property
    def size_bytes(self) -> int:
        """Padding included."""
        return self.flat.numel() * self.flat.element_size()

    def collect(self, parameter: Tensor) -> None:
        """Take over a parameter's gradient."""
        assert parameter.grad is not None
        self.views[id(parameter)].copy_(parameter.grad)
        parameter.grad = None
        self.missing.discard(id(parameter))
        if not self.missing:
            self.before_last()

    def fill(self) -> None:
        """A parameter that the step did not use has no gradient."""
        for missing in self.missing:
            self.views[missing].zero_()

    def reduce(self, syncs: bool) -> None:
        """Begin to sum the gradients over workers, each of which gets its shard."""
        self.missing = set(self.views)
        if syncs:
            self._work = dist.reduce_scatter_tensor(self.shard_gradient, self.gradients, async_op=True)
        else:
            self.shard_gradient.copy_(self.own_gradients)

    def take_gradient(self) -> None:
        """Wait for the sum; the shard's gradient is the mean over workers."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        self.shard.grad = self.shard_gradient.div_(self.workers)

    def gather(self) -> dist.Work:
        """Begin to send this rank's shard to all, and to receive theirs."""
        work = dist.all_gather_into_tensor(self.flat, self.shard.detach(), async_op=True)
        assert work is not None  # it is on this side of the group
        return work


@dataclass(frozen=True, kw_only=True)
class ShardedStep(Step):
    """A step whose optimiser sees this rank's shard of gradients and parameters.

    Its backward pass counts as done when the new parameters are there, so that all waiting for other ranks lies between
    the last gradient and then; so does the update of the shard, which is 1/N of one.
    """

    finish_backward: Callable[[], None]
    share: Callable[[], None]

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss."""
        loss = self.backward(batch)
        self.finish_backward()
        self.update()
        self.share()
        self.after_backward()
        return loss
