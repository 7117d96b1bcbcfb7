"""Batch schedules: the global batch of each epoch, whatever the strategy.

One module for the schedules, one YAML file in `conf/batch_schedule/` for each.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from benchmarks.registry import Registry


class BatchSchedule(ABC):
    """Global batches, from the run's own `first` one on. Subclasses take their YAML file's options as keywords."""

    def __init__(self, first: int) -> None:
        self.first = first

    @abstractmethod
    def possible(self, epochs: int) -> list[int]:
        """All global batches that may come in so many epochs, each once: what to warm up."""

    @abstractmethod
    def after(self, epoch: int, noise_scale: Callable[[int], float]) -> int:
        """The global batch that follows an epoch, counted from 0.

        `noise_scale(batches)` measures the gradient's noise scale in samples, on that many first batches; all workers
        take part in it.
        """

    def facts(self) -> dict[str, Any]:
        """What the schedule observed, for the record: plain values."""
        return {}


batch_schedules: Registry[BatchSchedule] = Registry("batch_schedule")
