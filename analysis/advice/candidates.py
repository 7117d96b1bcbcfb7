"""What a recommendation chooses among: measured cells, and forecasts for worker counts that nobody has measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from analysis.cells.labels import label, telling
from analysis.cells.measures import draws_of, unknown_because
from analysis.runs.load import Cell
from analysis.schema import Series
from analysis.statistics.bootstrap import Floats, estimate
from analysis.statistics.estimate import Estimate
from analysis.wording import duration
from benchmarks.core.variants import Option

_NOTHING: Floats = np.empty(0)
_ENERGY = "energy_j_per_million_samples"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be trained, and under which conditions."""

    samples: float
    deadline_s: float | None = None
    max_workers: int | None = None
    min_accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class EnergyNeeded:
    """What all samples take, in joules."""

    joules: float
    estimate: Estimate
    draws: Floats
    scope: str
    """What the counters count."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One configuration with the time that it takes for all samples."""

    label: str
    task: str
    """What is trained, the model and its data: only configurations of the same task can stand for each other."""
    cell_id: str | None
    workers: int
    repeats: int
    time_s: float
    time_estimate: Estimate
    time_draws: Floats
    accuracy: float | None
    price_per_worker_hour: float | None
    currency: str
    energy: EnergyNeeded | None = None
    energy_unknown_because: str | None = None

    @property
    def price(self) -> float:
        """What all samples cost; in worker-hours where nobody says what one costs."""
        return self.time_s * self.workers / 3600 * (self.price_per_worker_hour or 1.0)


def candidates(cells: Sequence[Cell], wanted: Wanted) -> tuple[list[Candidate], list[str]]:
    """The measured cells that keep all conditions; and for the others, why they do not."""
    keys = telling([cell.config for cell in cells])
    found, excluded = [], []
    for cell in cells:
        name = label(cell.config, keys)
        drawn = draws_of(cell, "step_time_s")
        if drawn is None:
            excluded.append(f"{name}: no number ({cell.runs[0].status if cell.runs else 'not run yet'})")
            continue
        steps = wanted.samples / cell.global_batch
        draws = drawn[1] * steps
        one = Candidate(
            label=name,
            task=task_of(cell.config),
            cell_id=cell.cell_id,
            workers=cell.workers,
            repeats=sum(run.measured is not None for run in cell.runs),
            time_s=drawn[0] * steps,
            time_estimate=estimate(drawn[0] * steps, draws),
            time_draws=draws,
            accuracy=_accuracy(cell),
            price_per_worker_hour=_price(cell),
            currency=str(cell.config.get("cluster.currency") or ""),
            energy=_energy(cell, wanted),
            energy_unknown_because=unknown_because(cell, _ENERGY),
        )
        reason = _against(one, wanted)
        if reason:
            excluded.append(f"{name}: {reason}")
        else:
            found.append(one)
    return found, excluded


def task_of(config: Mapping[str, Option]) -> str:
    """The workload and the data with all their options, as one text."""
    return repr([(key, config[key]) for key in sorted(config) if key.partition(".")[0] in ("workload", "data")])


def _energy(cell: Cell, wanted: Wanted) -> EnergyNeeded | None:
    drawn = draws_of(cell, _ENERGY)
    scope = next((one.energy.scope for one in cell.measured() if one.energy.scope), None)
    if drawn is None or scope is None:
        return None
    joules, draws = drawn[0] * wanted.samples / 1e6, drawn[1] * (wanted.samples / 1e6)
    return EnergyNeeded(joules=joules, estimate=estimate(joules, draws), draws=draws, scope=scope)


def _accuracy(cell: Cell) -> float | None:
    known = [run.measured.accuracy for run in cell.runs if run.measured and run.measured.accuracy is not None]
    return median(known) if known else None


def _price(cell: Cell) -> float | None:
    price = cell.config.get("cluster.price_per_worker_hour")
    return float(price) if isinstance(price, (int, float)) and price > 0 else None


def _against(one: Candidate, wanted: Wanted) -> str | None:
    """Why a configuration cannot be taken; None where it can."""
    if wanted.max_workers is not None and one.workers > wanted.max_workers:
        return f"{one.workers} workers, more than {wanted.max_workers}"
    if wanted.deadline_s is not None and one.time_estimate.high > wanted.deadline_s:
        return f"may take {duration(one.time_estimate.high)}, longer than {duration(wanted.deadline_s)}"
    if wanted.min_accuracy is not None and (one.accuracy is None or one.accuracy < wanted.min_accuracy):
        reached = "unknown" if one.accuracy is None else f"{one.accuracy:.3f}"
        return f"accuracy {reached}, not {wanted.min_accuracy:g}"
    return None


def forecasts(series: Sequence[Series], wanted: Wanted, cells: Sequence[Cell]) -> list[Candidate]:
    """What the laws of all series expect of worker counts that were not measured, where the conditions allow them."""
    prices = {cell.cell_id: (_price(cell), str(cell.config.get("cluster.currency") or "")) for cell in cells}
    found = []
    for one in series:
        for point in one.fit.curve if one.fit else ():
            if point.measured:
                continue
            batch = one.fixed_batch * (point.workers if one.kind == "weak" else 1)
            steps = wanted.samples / batch
            time = point.step_time_s
            price, currency = prices[one.points[0].cell_id]
            scaled = Estimate(value=time.value * steps, low=time.low * steps, high=time.high * steps)
            candidate = Candidate(
                label=f"{one.label}, {point.workers} workers",
                task="",
                cell_id=None,
                workers=point.workers,
                repeats=0,
                time_s=scaled.value,
                time_estimate=scaled,
                time_draws=_NOTHING,
                accuracy=None,
                price_per_worker_hour=price,
                currency=currency,
            )
            without_accuracy = Wanted(
                samples=wanted.samples, deadline_s=wanted.deadline_s, max_workers=wanted.max_workers
            )
            if _against(candidate, without_accuracy) is None:
                found.append(candidate)
    return found


def on_front(found: Sequence[Candidate]) -> set[str]:
    """The cells of which no other is both faster and cheaper (or equal in one and better in the other)."""
    return {
        one.cell_id
        for one in found
        if one.cell_id is not None
        and not any(
            other.time_s <= one.time_s
            and other.price <= one.price
            and (other.time_s < one.time_s or other.price < one.price)
            for other in found
        )
    }
