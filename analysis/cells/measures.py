"""What a figure may show of a cell: one number for each repeat, its label with the unit, and which way is better.

A sweep's file names measures; `MEASURES` is the list of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np

from analysis.cells.profiles import PROFILED
from analysis.cells.target import SPENT, currency
from analysis.runs.course import Epoch
from analysis.runs.load import Cell
from analysis.runs.measured import Measured
from analysis.runs.metrics import energy_j_per_million_samples, mean_power_w
from analysis.statistics.bootstrap import STEP_RESAMPLES, Floats, bootstrap_median, estimate
from analysis.statistics.estimate import Estimate
from benchmarks.core.errors import unknown

Better = Literal["low", "high"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a run."""

    label: str
    of: Callable[[Measured], float | None]
    better: Better | None = None
    of_cell: Callable[[Cell], Estimate | None] | None = None
    """Where a cell's number is no median over repeats."""
    timed: bool = False
    """Proportional to the time of the steps, so that their noise belongs into the interval."""


def _epoch_mean(value: Callable[[Epoch], float | None]) -> Callable[[Measured], float | None]:
    def of(run: Measured) -> float | None:
        values = [value(epoch) for epoch in run.course]
        known = [one for one in values if one is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    return of


def _last_evaluation(field: Literal["accuracy", "loss"]) -> Callable[[Measured], float | None]:
    def of(run: Measured) -> float | None:
        evaluation = run.course[-1].evaluation
        return getattr(evaluation, field) if evaluation else None

    return of


def _waiting_s(epoch: Epoch) -> float | None:
    """The mean over ranks: what the workers together lose, divided by their number."""
    waits = epoch.sync_wait_s_by_rank
    return sum(waits) / len(waits) if waits else None


def _energy(run: Measured) -> float | None:
    joules = run.energy.joules
    return None if joules is None else energy_j_per_million_samples(joules, run.samples)


def _power(run: Measured) -> float | None:
    joules = run.energy.joules
    return None if joules is None else mean_power_w(joules, run.wall_time_s)


_NEAR = 0.01
"""Of accuracy, a fraction: what counts as the best that a run reaches."""


def _epochs_to_converge(run: Measured) -> float | None:
    """Epochs until the test accuracy is within `_NEAR` of the run's best; None where not every epoch was evaluated."""
    reached = [epoch.evaluation.accuracy for epoch in run.course if epoch.evaluation]
    if len(reached) < 2 or len(reached) < len(run.course):
        return None
    first = next(number for number, accuracy in enumerate(reached) if accuracy >= max(reached) - _NEAR)
    return sum(epoch.epochs for epoch in run.course[: first + 1])


MEASURES: dict[str, Measure] = {
    "step_time_s": Measure(label="time per step [s]", of=lambda run: run.step_time_s, better="low", timed=True),
    "epoch_time_s": Measure(label="time per epoch [s]", of=lambda run: run.epoch_time_s, better="low", timed=True),
    "train_time_s": Measure(
        label="training time [s]",
        of=lambda run: sum(epoch.wall_time_s for epoch in run.course),
        better="low",
        timed=True,
    ),
    "throughput_samples_per_s": Measure(
        label="throughput [samples/s]",
        of=lambda run: sum(e.samples for e in run.course) / sum(e.wall_time_s for e in run.course),
        better="high",
    ),
    "data_wait_s": Measure(
        label="waiting for data, per epoch [s]", of=_epoch_mean(lambda epoch: epoch.data_wait_s), better="low"
    ),
    "loading_gb_per_s": Measure(
        label="loaded per second of waiting [GB/s]",
        of=lambda run: run.loading_gb_per_s,
        better="high",
    ),
    "other_training_s": Measure(
        label="training without that wait, per epoch [s]",
        of=_epoch_mean(lambda epoch: max(0.0, epoch.wall_time_s - epoch.data_wait_s)),
        better="low",
    ),
    "evaluation_s": Measure(
        label="evaluation, per epoch [s]",
        of=_epoch_mean(lambda epoch: epoch.evaluation.time_s if epoch.evaluation else None),
        better="low",
    ),
    "evaluation_samples_per_s": Measure(
        label="evaluation throughput [samples/s]",
        of=_epoch_mean(lambda epoch: epoch.evaluation.samples / epoch.evaluation.time_s if epoch.evaluation else None),
        better="high",
    ),
    "sync_wait_s": Measure(label="waiting for other workers, per epoch [s]", of=_epoch_mean(_waiting_s), better="low"),
    "exposed_comm_s": Measure(
        label="exposed communication, per step [s]", of=lambda run: run.exposed_comm_s, better="low"
    ),
    "compute_s": Measure(
        label="step without exposed communication [s]",
        of=lambda run: None if run.exposed_comm_s is None else run.step_time_s - run.exposed_comm_s,
        better="low",
    ),
    "allreduce_gb_per_s": Measure(
        label="all-reduce bus bandwidth [GB/s]", of=lambda run: run.allreduce_gb_per_s, better="high"
    ),
    "sent_mb": Measure(
        label="sent by a worker, per step [MB]",
        of=lambda run: None if run.bytes_per_step is None else run.bytes_per_step * 1e-6,
        better="low",
    ),
    "peak_memory_mb": Measure(
        label="peak memory of a worker [MB]",
        of=lambda run: None if run.peak_memory_bytes is None else run.peak_memory_bytes * 1e-6,
        better="low",
    ),
    "energy_j_per_million_samples": Measure(
        label="energy of a million samples [J]", of=_energy, better="low", timed=True
    ),
    "mean_power_w": Measure(label="mean power [W]", of=_power, better="low"),
    "idle_power_w": Measure(label="power before use [W]", of=lambda run: run.energy.idle_w, better="low"),
    "cost_per_million_samples": Measure(
        label="cost of a million samples", of=lambda run: run.cost_per_million_samples, better="low", timed=True
    ),
    "accuracy": Measure(label="test accuracy [fraction]", of=_last_evaluation("accuracy"), better="high"),
    "loss": Measure(label="test loss [nats]", of=_last_evaluation("loss"), better="low"),
    "train_loss": Measure(
        label="training loss, last epoch [nats]", of=lambda run: run.course[-1].train_loss, better="low"
    ),
    "epochs_to_converge": Measure(
        label=f"to within {_NEAR} of the run's best accuracy [epochs]", of=_epochs_to_converge, better="low"
    ),
    "server_busy": Measure(
        label="server busy [fraction of the time]", of=lambda run: run.server_busy_fraction, better="low"
    ),
}


MEASURES |= {
    name: Measure(label=words, of=lambda _run: None, better="low", of_cell=of_cell)
    for name, (words, of_cell) in (*SPENT.items(), *PROFILED.items())
}


_OF_MONEY = {"cost_to_target", "cost_per_million_samples"}
_OF_ENERGY = {"energy_j_per_million_samples", "mean_power_w", "energy_to_target_j"}


def label_of(name: str, cells: Sequence[Cell]) -> str:
    """A measure's label with its unit, which for money is the currency of these cells. Raises as `measure`."""
    label = measure(name).label
    return f"{label} [{currency(cells)}]" if name in _OF_MONEY else label


def unknown_because(cell: Cell, name: str) -> str | None:
    """Why a cell that is measured has no energy; None where it has, or another measure is asked for."""
    if name not in _OF_ENERGY or any(one.energy.joules is not None for one in cell.measured()):
        return None
    return next((one.energy.unknown_because for one in cell.measured()), None)


def measure(name: object) -> Measure:
    """A measure by name. Raises ConfigError where there is none."""
    if not isinstance(name, str) or name not in MEASURES:
        raise unknown("measure", str(name), MEASURES)
    return MEASURES[name]


def draws_of(cell: Cell, name: str) -> tuple[float, Floats] | None:
    """A cell's median over repeats and the draws for its interval, shape (DRAWS,); None where nothing is known."""
    one = measure(name)
    pairs = [
        (value, run.measured.factors if one.timed else np.ones_like(run.measured.factors))
        for run in cell.runs
        if run.measured and (value := one.of(run.measured)) is not None
    ]
    if not pairs:
        return None
    values = [value for value, _ in pairs]
    return median(values), bootstrap_median(values, [factors for _, factors in pairs], f"{cell.cell_id} {name}")


def estimate_of(cell: Cell, name: str) -> Estimate | None:
    """A cell's median over repeats with its 95 % interval."""
    if (of_cell := measure(name).of_cell) is not None:
        return of_cell(cell)
    found = draws_of(cell, name)
    return found and estimate(*found)


def over_repeats(values: Sequence[float], seed: str) -> Estimate:
    """A median with its interval from one number for each repeat; `seed` names what they are of."""
    return estimate(median(values), bootstrap_median(values, [np.ones(STEP_RESAMPLES)] * len(values), seed))
