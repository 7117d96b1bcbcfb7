"""A target of training: an accuracy to reach, or a loss, on the test data."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.config import RunConfig, TargetMetric
from benchmarks.record import Evaluation


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where training should get to."""

    metric: TargetMetric
    value: float

    def reached_by(self, evaluation: Evaluation) -> bool:
        """Whether the model is there. A loss that is not finite reaches nothing."""
        if self.metric == "accuracy":
            return evaluation.accuracy >= self.value
        return evaluation.loss is not None and evaluation.loss <= self.value


def target_to_stop_at(run: RunConfig) -> Target | None:
    """What ends the run's training; None where it trains all its epochs."""
    if not run.stop_at_target or run.target_value is None:
        return None
    return Target(metric=run.target_metric, value=run.target_value)
