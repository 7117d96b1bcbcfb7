"""The most memory that a worker has had."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import Self

import torch


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """Up to one moment, in bytes."""

    host_bytes: int
    device_bytes: int | None

    @classmethod
    def now(cls, device: torch.device, helpers_bytes: int = 0) -> Self:
        """Since the process began, with what its helper processes hold; on the device, since warm-up."""
        on_gpu = device.type == "cuda"
        return cls(
            host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + helpers_bytes,
            device_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
        )
