"""What a clock measured: plain numbers, so that a supervisor can read them without torch."""

from __future__ import annotations

from msgspec import Struct


class StepTimes(Struct, frozen=True, kw_only=True):
    """Seconds for each step of a span, on one rank."""

    step_s: list[float]
    data_wait_s: list[float]
    sync_wait_s: list[float] | None
    """From the last gradient to the end of the backward pass; None where the strategy marks no last gradient."""
    wall_time_s: float
    """By the host's clock, from one device synchronisation to the next."""


class Communication(Struct, frozen=True, kw_only=True):
    """What one rank knows of its communication, besides its steps."""

    bytes_per_step: int | None
    unsynchronised_step_s: dict[int, float] | None
    """Median step time with gradient synchronisation off, by the size of the global batch; None where it cannot be."""
    allreduce_bytes: int | None
    allreduce_s: float | None
    """Median time of an all-reduce of that many bytes by itself."""
