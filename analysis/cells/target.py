"""Time, epochs, samples, energy and money until a target was reached, where some runs never get there.

A run that ends before it reaches the target is censored: all that is known is that it takes longer. Leaving it out, or
taking the mean of those that arrived, would call a strategy fast for the few seeds that work. So a cell's number is the
median of the Kaplan-Meier estimator over its seeds (Kaplan and Meier 1958, "Nonparametric estimation from incomplete
observations", J. Am. Stat. Assoc. 53), which takes each censored run for what it shows. Its interval is the percentile
bootstrap over runs of Efron 1981, "Censored data and the bootstrap", J. Am. Stat. Assoc. 76. Both may be infinite: the
median where fewer than half of the runs arrive, the interval's end where half might not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from analysis.runs.course import Epoch
from analysis.runs.load import Cell, Run
from analysis.statistics.bootstrap import DRAWS, LEVEL, Floats, generator
from analysis.statistics.estimate import Estimate
from benchmarks.core.target import Target, TargetMetric

Spent = Literal["train_time_s", "time_s", "epochs", "samples", "energy_j"]

_ROUNDING = 1e-9
_WITH_COURSE = ("ok", "timeout", "diverged")
"""States of runs that have trained for as long as they could; any other says nothing of the target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One run on its way to the target: what it spent to get there, or in vain."""

    reached: bool
    never: bool
    """It can not get there any more, as it has diverged; any other that ended early might have."""
    train_time_s: float
    time_s: float
    """With the evaluations that look for the target, the last one included."""
    epochs: float
    samples: float
    energy_j: float | None
    """Without the evaluations. Of a run that never arrived, at least that of the spans whose energy is known."""


def attempt(trained: Sequence[Epoch], target: Target, epochs_in_span: int = 1, *, never: bool = False) -> Attempt:
    """How far a run came, by its spans and the evaluation after each.

    Args:
        trained: The run's spans, in order.
        target: What is looked for.
        epochs_in_span: Passes over the training data in each of them.
        never: Whether the run broke down, so that it stays under way for ever if it has not arrived by then.
    """
    train_time_s = time_s = 0.0
    epochs = samples = 0
    reached = False
    joules: list[float | None] = []
    for span in trained:
        train_time_s += span.wall_time_s
        time_s += span.wall_time_s + (span.evaluation.time_s if span.evaluation else 0.0)
        samples += span.samples
        epochs += epochs_in_span
        joules.append(span.energy_j)
        reached = span.evaluation is not None and target.reached_by(span.evaluation)
        if reached:
            break
    return Attempt(
        reached=reached,
        never=never and not reached,
        train_time_s=train_time_s,
        time_s=time_s,
        epochs=float(epochs),
        samples=float(samples),
        energy_j=_energy_j(joules, all_of_it=reached),
    )


def _energy_j(spans: Sequence[float | None], *, all_of_it: bool) -> float | None:
    known = [joules for joules in spans if joules is not None]
    return sum(known) if known and (len(known) == len(spans) or not all_of_it) else None


def attempts(cell: Cell) -> list[Attempt]:
    """Of all the cell's runs that say something of its target; empty where it has none."""
    target = target_of(cell)
    if target is None:
        return []
    per_span = max((_epochs_in_span(run) for run in cell.runs), default=1)
    return [
        attempt(run.trained, target, per_span, never=run.status == "diverged")
        for run in cell.runs
        if run.status in _WITH_COURSE and run.trained
    ]


def _epochs_in_span(run: Run) -> int:
    """Workers that take whole epochs each make several of them together; 1 where the run does not say."""
    return run.epochs // len(run.trained) if run.epochs and run.trained else 1


def target_of(cell: Cell) -> Target | None:
    """What the cell's runs were to reach."""
    metric, value = cell.config.get("target_metric"), cell.config.get("target_value")
    if not isinstance(value, (int, float)) or metric not in ("accuracy", "loss"):
        return None
    known: TargetMetric = "loss" if metric == "loss" else "accuracy"
    return Target(metric=known, value=float(value))


def survival(spent: Sequence[float], reached: Sequence[bool]) -> list[tuple[float, float]]:
    """The Kaplan-Meier estimate: what was spent when some arrived, and the share that is still under way after that.

    Those that are censored at the same moment as others arrive still count as under way then, as is the convention.
    """
    under_way, share = len(spent), 1.0
    steps = []
    for moment, together in groupby(sorted(zip(spent, reached, strict=True)), key=lambda pair: pair[0]):
        arrived = [arrives for _, arrives in together]
        if any(arrived):
            share *= 1 - sum(arrived) / under_way
            steps.append((moment, share))
        under_way -= len(arrived)
    return steps


def median_spent(spent: Sequence[float], reached: Sequence[bool]) -> float:
    """What half of all runs need at most; infinite where the estimate never falls to a half.

    Where it is exactly a half for a while, the middle of that stretch, so that without censoring it is the plain
    median, and with two of four arriving it is not yet known.
    """
    steps = survival(spent, reached)
    for number, (moment, share) in enumerate(steps):
        if share < 0.5 - _ROUNDING:
            return moment
        if share <= 0.5 + _ROUNDING:
            return (moment + steps[number + 1][0]) / 2 if number + 1 < len(steps) else math.inf
    return math.inf


def median_draws(spent: Sequence[float], reached: Sequence[bool], seed: str) -> Floats:
    """The median of resampled runs, shape (DRAWS,); some may be infinite. `seed` names the cell."""
    picked = generator(seed).integers(len(spent), size=(DRAWS, len(spent)))
    return np.array([median_spent([spent[i] for i in row], [reached[i] for i in row]) for row in picked.tolist()])


def to_target(cell: Cell, spent: Spent, price: float = 1.0) -> Estimate | None:
    """What it takes to reach the target, by all runs of the cell; times `price`. None where no run says anything.

    Where the median is not known, the estimate is the most that any run spent, and says that it is a lower bound. Nor
    is there a number where what a run spent is unknown: it might be the one that says most.
    """
    found = attempts(cell)
    if not found or any(getattr(one, spent) is None for one in found):
        return None
    reached = [one.reached for one in found]
    values = [math.inf if one.never else float(getattr(one, spent)) for one in found]
    longest = max(float(getattr(one, spent)) for one in found)
    median = median_spent(values, reached)
    arrived = f"{sum(reached)} of {len(reached)} reached it"
    if math.isinf(median):
        bound = longest * price
        return Estimate(value=bound, low=bound, high=bound, is_bound=True, words=arrived)
    draws = np.sort(median_draws(values, reached, f"{cell.cell_id} {spent}"))
    low, high = (float(draws[_rank(level)]) for level in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    open_above = math.isinf(high)
    return Estimate(
        value=median * price,
        low=min(low, longest) * price,
        high=(longest if open_above else high) * price,
        open_above=open_above,
        words="" if all(reached) else arrived,
    )


def _rank(level: float) -> int:
    """Of the draw at a level; between two draws there is no number, as one may be infinite."""
    return min(DRAWS - 1, max(0, math.ceil(level * DRAWS) - 1))


def price_per_worker_s(cell: Cell) -> float | None:
    """What a worker costs for a second on the kind of node that the cell runs on; None where that has no price."""
    price = cell.config.get("cluster.price_per_worker_hour")
    return float(price) / 3600 if isinstance(price, (int, float)) else None


def cost_to_target(cell: Cell) -> Estimate | None:
    """Worker-hours until the target was reached, evaluations included, times the price; nominally 1 without one.

    What comes before training, as the queue and the start, is not in it: it depends on the site more than on the cell.
    """
    price = price_per_worker_s(cell)
    return to_target(cell, "time_s", cell.workers * (1 / 3600 if price is None else price))


def currency(cells: Sequence[Cell]) -> str:
    """The unit of costs: the cluster's currency, or worker-hours where no cell has a price.

    Where some have one and others do not, the words say so: then their costs cannot be compared.
    """
    priced = [price_per_worker_s(cell) is not None for cell in cells]
    if not any(priced):
        return "worker-hours, at price 1"
    names = {str(cell.config.get("cluster.currency")) for cell, has in zip(cells, priced, strict=True) if has}
    return "/".join(sorted(names)) + ("" if all(priced) else ", nominally 1 per worker-hour where there is no price")


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at most as large in both coordinates and smaller in one (the Pareto front)."""
    return [
        not any(x <= own_x and y <= own_y and (x, y) != (own_x, own_y) for x, y in points) for own_x, own_y in points
    ]


SPENT: dict[str, tuple[str, Callable[[Cell], Estimate | None]]] = {
    "train_time_to_target_s": ("training time to target [s]", lambda cell: to_target(cell, "train_time_s")),
    "time_to_target_s": ("time to target, with evaluation [s]", lambda cell: to_target(cell, "time_s")),
    "epochs_to_target": ("epochs to target", lambda cell: to_target(cell, "epochs")),
    "samples_to_target": ("samples to target", lambda cell: to_target(cell, "samples")),
    "energy_to_target_j": ("energy to target, without evaluation [J]", lambda cell: to_target(cell, "energy_j")),
    "cost_to_target": ("cost to target", cost_to_target),
}
"""Measures of a cell: label, and how it is found."""
