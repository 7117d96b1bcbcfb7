"""Gradients in flat vectors: few long messages in place of many short ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from benchmarks.strategy.tensor_plan import local
from benchmarks.strategy.traffic import size_bytes

Kind = TypeVar("Kind", bound=Tensor)


class GradientMean:
    """Gradients averaged over a group in buckets, each sent as soon as the backward pass has filled it.

    Parameters come in the order in which a forward pass uses them; buckets begin with the last. Of a DTensor, it is
    this rank's part that is averaged.
    """

    def __init__(self, parameters: Sequence[Parameter], group: dist.ProcessGroup, bucket_bytes: float) -> None:
        self.buckets = [_Bucket(part, group) for part in parts(parameters[::-1], bucket_bytes)]
        self._next = 0
        for bucket in self.buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._collector(bucket))

    @property
    def size_bytes(self) -> int:
        """Of all buckets."""
        return size_bytes(bucket.flat for bucket in self.buckets)

    def finish(self) -> dict[Parameter, Tensor]:
        """Wait for all buckets; returns the means by parameter, valid until the next backward pass."""
        while self._next < len(self.buckets):
            self.buckets[self._next].fill()
            self._send_next()
        self._next = 0
        means: dict[Parameter, Tensor] = {}
        for bucket in self.buckets:
            means |= bucket.take()
        return means

    def _collector(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def collect(parameter: Tensor) -> None:
            bucket.collect(parameter)
            while self._next < len(self.buckets) and not self.buckets[self._next].missing:
                self._send_next()  # in the same order on every rank

        return collect

    def _send_next(self) -> None:
        self.buckets[self._next].send()
        self._next += 1


class _Bucket:
    """The gradients of some parameters in one vector."""

    def __init__(self, parameters: list[Parameter], group: dist.ProcessGroup) -> None:
        self.parameters = parameters
        self.group = group
        held = [local(parameter) for parameter in parameters]
        self.flat = torch.zeros(sum(value.numel() for value in held), dtype=held[0].dtype, device=held[0].device)
        places = self.flat.split([value.numel() for value in held])
        self.views: Mapping[Parameter, Tensor] = {
            parameter: place.view(value.shape) for parameter, place, value in zip(parameters, places, held, strict=True)
        }
        self.missing = set(parameters)
        self._work: dist.Work | None = None

    def collect(self, parameter: Tensor) -> None:
        """Take over a parameter's gradient."""
        assert isinstance(parameter, Parameter)
        assert parameter.grad is not None
        self.views[parameter].copy_(local(parameter.grad))
        parameter.grad = None
        self.missing.discard(parameter)

    def fill(self) -> None:
        """A parameter that the step did not use has no gradient."""
        for parameter in self.missing:
            self.views[parameter].zero_()

    def send(self) -> None:
        """Begin to sum over the group."""
        self.missing = set(self.parameters)
        self._work = dist.all_reduce(self.flat, group=self.group, async_op=True)

    def take(self) -> Mapping[Parameter, Tensor]:
        """Wait for the sum; returns the means."""
        assert self._work is not None
        self._work.wait()
        self.flat.div_(dist.get_world_size(self.group))
        return self.views


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


def sum_over(group: dist.ProcessGroup, gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their sums over the group, in one message."""
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat, group=group)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view(gradient.shape))


def parts(tensors: Iterable[Kind], bucket_bytes: float) -> Iterator[list[Kind]]:
    """Consecutive tensors that fill a bucket; one that is larger has a bucket of its own."""
    part: list[Kind] = []
    size = 0
    for tensor in tensors:
        own = size_bytes([local(tensor)])
        if part and size + own > bucket_bytes:
            yield part
            part, size = [], 0
        part.append(tensor)
        size += own
    if part:
        yield part
