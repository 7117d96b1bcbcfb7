"""What every energy counter can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from benchmarks.core.energy import Source


class CounterError(Exception):
    """A counter that is not there or cannot be read; the message is the reason that the record gives."""


class Sample(NamedTuple):
    """A device at a moment; None is what it does not tell."""

    power_w: float | None
    sm_clock_mhz: float | None = None
    temperature_c: float | None = None


class Counter(ABC):
    """One energy counter. Calls may come from any thread, but one at a time."""

    source: ClassVar[Source]
    period_s: ClassVar[float]
    """How often it is to be sampled."""
    name: str
    idle_w: float | None = None

    @abstractmethod
    def joules(self) -> float:
        """What was used since some moment in the past. Raises CounterError where it cannot be read."""

    @abstractmethod
    def sample(self) -> Sample:
        """The device now. Raises CounterError where it cannot be read."""
