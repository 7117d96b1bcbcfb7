"""Bytes that collective operations send: for each worker, as a mean over the workers of the group.

By the bandwidth-optimal algorithms, ring or halving and doubling, for N workers (Patarasuk and Yuan 2009, "Bandwidth
optimal all-reduce algorithms for clusters of workstations", J. Parallel Distrib. Comput. 69): 2 (N-1)/N x the bytes
reduced for an all-reduce, (N-1)/N for a reduce-scatter, an all-gather and, as a mean over workers, a broadcast.
Protocol headers are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class Traffic:
    """What a worker sends in a group of `workers`."""

    def __init__(self, workers: int, backend: str) -> None:
        self.fraction = (workers - 1) / workers
        self.reduce_scatter_rounds = 2 if backend == "gloo" else 1  # gloo's is an all-reduce whose rest is dropped

    def all_reduce(self, size: float) -> float:
        """`size` bytes on every worker, reduced to as many on every worker."""
        return 2 * self.fraction * size

    def reduce_scatter(self, size: float) -> float:
        """`size` bytes on every worker, reduced to 1/N of them on each."""
        return self.reduce_scatter_rounds * self.fraction * size

    def all_gather(self, size: float) -> float:
        """`size` bytes on every worker in the end, 1/N of them from each."""
        return self.fraction * size

    def broadcast(self, size: float) -> float:
        """`size` bytes from one worker to all others."""
        return self.fraction * size


def traffic_of(group: dist.ProcessGroup | None = None) -> Traffic:
    """The traffic of a process group; None is all workers."""
    return Traffic(dist.get_world_size(group), dist.get_backend(group))


def size_bytes(tensors: Iterable[Tensor], dtype: torch.dtype | None = None) -> int:
    """Bytes of the tensors, or of as many numbers in another format."""
    return sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in tensors)
