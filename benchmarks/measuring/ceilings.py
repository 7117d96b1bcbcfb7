"""What the device can do at best, measured in the same job: an upper bound to hold a training's numbers against.

All workers measure at the same moment, as they train: cores, memory and links that they share are shared here, too. Of
several rounds the fastest counts, since a ceiling is what can be reached, not what usually is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist

from benchmarks.strategy import Place

_EVERYWHERE = {"fp32": (torch.float32, False), "bf16": (torch.bfloat16, False), "fp16": (torch.float16, False)}
PRODUCTS = {"cuda": _EVERYWHERE | {"tf32": (torch.float32, True)}, "cpu": _EVERYWHERE}
"""By device and precision: the matrices' format, and whether products may round their factors to TF32."""
_LARGEST_MATRIX = {"cuda": 8192, "cpu": 1024}
"""Rows and columns: large enough to keep all of the device busy, small enough for any memory."""
_SMALLEST_MATRIX = 64
_PRODUCT_S = 0.25
"""A product that would take longer is of smaller matrices: hardware that imitates a format is that slow at it."""
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**26}
"""Several times any cache."""
_REDUCED_BYTES = (2**16, 2**20, 2**24, 2**26)
_ROUNDS = 10


def measure_ceilings(place: Place, *, in_group: bool) -> dict[str, float]:
    """The ceilings of this worker's device; all workers of a run call it together.

    Args:
        place: This worker's.
        in_group: Whether the workers have a process group.

    Returns:
        `matmul_<precision>_flops_per_s`: of the product of two square matrices, 2 n^3 operations; in each precision of
            `PRODUCTS`, also those that the hardware has to imitate, of smaller matrices there.
        `copy_gb_per_s`: 1e9 bytes per second, read and written, of a copy within the device's memory.
        `allreduce_<bytes>_gb_per_s`: bus bandwidth by the size of an fp32 vector; only of several workers in a group.
    """
    found = {
        f"matmul_{precision}_flops_per_s": _product_flops_per_s(place, dtype, tf32, in_group)
        for precision, (dtype, tf32) in PRODUCTS[place.device.type].items()
    }
    source = torch.ones(_COPIED_BYTES[place.device.type] // 4, device=place.device)
    target = torch.empty_like(source)
    copied_bytes = 2 * source.numel() * source.element_size()
    found["copy_gb_per_s"] = copied_bytes / 1e9 / _fastest_s(place, lambda: target.copy_(source), in_group)
    if in_group and place.workers > 1:
        for reduced_bytes in _REDUCED_BYTES:
            vector = torch.zeros(reduced_bytes // 4, device=place.device)
            sent_bytes = 2 * (place.workers - 1) / place.workers * reduced_bytes
            seconds = _fastest_s(place, partial(dist.all_reduce, vector), in_group)
            found[f"allreduce_{reduced_bytes}_gb_per_s"] = sent_bytes / 1e9 / seconds
    return found


def _product_flops_per_s(place: Place, dtype: torch.dtype, tf32: bool, in_group: bool) -> float:
    with _tf32(tf32):
        size = _matrix_size(place.device, dtype)
        return 2 * size**3 / _fastest_s(place, _product(place.device, dtype, size), in_group)


def _product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], object]:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return partial(torch.mm, left, right, out=torch.empty_like(left))


def _matrix_size(device: torch.device, dtype: torch.dtype) -> int:
    """As large as the product stays quick: each doubling takes eight times as long."""
    size = _SMALLEST_MATRIX
    while size < _LARGEST_MATRIX[device.type]:
        multiply = _product(device, dtype, size)
        multiply()
        _settle(device)
        started = time.perf_counter()
        multiply()
        _settle(device)
        if 8 * (time.perf_counter() - started) > _PRODUCT_S:
            break
        size *= 2
    return size


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Within: whether fp32 products may be TF32; afterwards as before."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _fastest_s(place: Place, operation: Callable[[], object], in_group: bool) -> float:
    """Seconds of the fastest round; one more goes before, for what it settles. All ranks begin each round together."""
    times = []
    for _ in range(1 + _ROUNDS):
        if in_group:
            dist.barrier()
        _settle(place.device)
        started = time.perf_counter()
        operation()
        _settle(place.device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def _settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize()
