"""An optimiser's learning rates, set anew after each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from benchmarks.core.config import RunConfig
from benchmarks.data.batches import Batch, Division
from benchmarks.lr_schedule import LrSchedule

TakeStep = Callable[[Batch], Tensor]


def samples_of(run: RunConfig, train_samples: int) -> int:
    """How many samples a run trains on; with epochs, a little more: an epoch leaves out a rest that is too small."""
    return run.steps * run.global_batch if run.steps else (run.epochs or 0) * train_samples


class Rates:
    """The rates of an optimiser's groups: each group's own, times the schedule's factor.

    They are plain numbers on the host, so that neither reading nor setting them waits for the device.
    """

    def __init__(self, optimizer: Optimizer, schedule: LrSchedule, run_samples: int, division: Division) -> None:
        self.schedule, self.run_samples, self.division = schedule, run_samples, division
        self._groups = [(group, float(group["lr"])) for group in optimizer.param_groups] if schedule.changes else []
        self._samples = 0
        self._used: list[float] = []
        self._set()

    def scheduled(self, step: TakeStep) -> TakeStep:
        """The step after which rates are set anew; with a schedule that changes nothing, the step itself."""
        return ScheduledStep(step, self) if self.schedule.changes else step

    def after(self, batch: Batch) -> None:
        """This replica has trained on its share of a global batch, all others on theirs."""
        self._used.append(self._factor)
        self._samples += self.division.whole(batch)
        self._set()

    def _set(self) -> None:
        self._factor = self.schedule.factor(min(self._samples / self.run_samples, 1.0))
        for group, own in self._groups:
            group["lr"] = own * self._factor

    def facts(self) -> dict[str, Any]:
        """For the record: what the optimiser's own rates were multiplied with in the steps of the window."""
        if not self._used:
            return {}
        used = self._used
        return {"lr_factor": {"first": used[0], "highest": max(used), "lowest": min(used), "last": used[-1]}}


@dataclass(frozen=True)
class ScheduledStep:
    """A step, and then the rates for the next one."""

    step: TakeStep
    rates: Rates

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss on the device."""
        loss = self.step(batch)
        self.rates.after(batch)
        return loss
