"""A target of training: an accuracy to reach, or a loss, on the test data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.core.errors import ConfigError
from benchmarks.core.record import Evaluation

if TYPE_CHECKING:
    from benchmarks.core.config import RunConfig

TargetMetric = Literal["accuracy", "loss"]


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


def check_target(run: RunConfig) -> None:
    """Raise ConfigError where the target can never be found: it is looked for in the evaluations after the epochs."""
    metric, value = run.target_metric, run.target_value
    if value is None:
        if run.stop_at_target:
            raise ConfigError("stop_at_target=true, target_value=null: give the value to stop at")
        if metric != "accuracy":
            raise ConfigError(f"target_metric={metric}, target_value=null: give the value to reach")
        return
    given = f"target_value={value}"
    if not math.isfinite(value) or value <= 0 or (metric == "accuracy" and value > 1):
        most = ", at most 1" if metric == "accuracy" else ""
        raise ConfigError(f"{given}: must be a number above 0{most}, as a target of {metric}")
    if run.epochs is None:
        raise ConfigError(f"{given}, epochs=null: a target is looked for after each epoch; give epochs, not steps")
    if not run.evaluate:
        raise ConfigError(f"{given}, evaluate=false: only an evaluation can find a target; set evaluate=true")
