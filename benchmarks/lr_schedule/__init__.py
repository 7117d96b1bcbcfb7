"""Schedules of the learning rate, as a factor of the optimiser's own.

One module for the schedules, one YAML file in `conf/lr_schedule/` for each.
"""

from __future__ import annotations

from benchmarks.registry import Registry


class LrSchedule:
    """The optimiser's own rate throughout: what the others change."""

    changes = False
    """Whether the factor is ever another than 1. Where it is not, no step asks for it."""

    def factor(self, _progress: float, /) -> float:
        """What the rate is multiplied with, once this part of the run's samples is trained on, from 0 to 1."""
        return 1.0


lr_schedules: Registry[LrSchedule] = Registry("lr_schedule")
lr_schedules.register("constant")(LrSchedule)
