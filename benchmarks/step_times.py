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
