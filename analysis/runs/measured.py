"""One run's numbers, from its record.

Raw series are not kept: a record shrinks to its time per step and the resampled means of its steps, so that memory
stays bounded and time grows linearly with the number of records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from analysis.runs import energy, metrics, oddities
from analysis.runs.course import Epoch
from analysis.runs.diagnosis import Waits, slowest_in_words, waits_of
from analysis.runs.energy import Spent
from analysis.runs.oddities import Oddity, Slowest
from analysis.runs.plausible import Physics, physics_of
from analysis.statistics.bootstrap import Floats, step_factors
from benchmarks.core.record import Memory, Record


@dataclass(kw_only=True, slots=True)
class Measured:
    """The numbers of one `ok` run."""

    step_time_s: float
    factors: Floats
    steps: int
    slow_steps_s: dict[int, float]
    """Percentiles of single steps' times, by the percentage; see `metrics.slow_steps_s`."""
    epoch_time_s: float | None
    accuracy: float | None
    straggler_ratio: float | None
    exposed_comm_s: float | None
    bytes_per_step: int | None
    peak_memory_bytes: int | None
    allreduce_gb_per_s: float | None = None
    loading_gb_per_s: float | None = None
    server_busy_fraction: float | None = None
    """Of the busiest parameter server's time in the window."""
    course: list[Epoch] = field(default_factory=list)
    ledger_s: dict[str, float] = field(default_factory=dict)
    """The whole run's seconds by phase, in order."""
    ceilings: dict[str, float] = field(default_factory=dict)
    """As in the record; empty where they were not asked for."""
    waits: Waits
    slowest: str | None
    """Which rank, and how much slower than the others; in words."""
    oddities: list[Oddity]
    slowest_rank: Slowest | None
    physics: Physics
    energy: Spent
    cost_per_million_samples: float | None
    """In the cluster's currency; None without a price."""
    wall_time_s: float
    """Of the window, as the samples."""
    samples: int


def defect_of(record: Record) -> str | None:
    """Why a record that calls itself ok gives no number; None where it does."""
    for check in record.sanity:
        if not check.passed:
            return f"check {check.name} failed: {check.detail}"
    window = record.window
    if window is None or not window.spans:
        return "no timed window"
    samples, wall = sum(span.samples for span in window.spans), sum(span.wall_time_s for span in window.spans)
    steps = sum(span.steps for span in window.spans)
    if samples <= 0 or not (math.isfinite(wall) and wall > 0):
        return f"the window has {samples} samples in {wall} s"
    total = sum(window.step_time_s)
    if len(window.step_time_s) != steps or not (math.isfinite(total) and total > 0):
        return f"the window has {len(window.step_time_s)} step times that sum to {total} s, for {steps} steps"
    if sum(window.samples) != samples:
        return f"the window's steps have {sum(window.samples)} samples, its spans {samples}"
    return None


def measure(record: Record, epochs: Sequence[Epoch]) -> Measured:
    """Its numbers; `epochs` is its course."""
    assert record.window is not None
    spans = record.window.spans
    wall, samples = sum(span.wall_time_s for span in spans), sum(span.samples for span in spans)
    count, factors = epochs_of(record), step_factors(record.window.step_time_s)
    step_time_s = metrics.step_time_s(wall, samples, record.config["global_batch"])
    return Measured(
        step_time_s=step_time_s,
        factors=factors,
        steps=len(record.window.step_time_s),
        slow_steps_s=metrics.slow_steps_s(record.window.step_time_s),
        epoch_time_s=metrics.epoch_time_s(wall, count) if count else None,
        accuracy=record.evaluation[-1].accuracy if record.evaluation else None,
        straggler_ratio=metrics.straggler_ratio([rank.own_time_s for rank in record.ranks]),
        exposed_comm_s=fmean(record.window.exposed_comm_s) if record.window.exposed_comm_s else None,
        bytes_per_step=record.communication.bytes_per_step if record.communication else None,
        peak_memory_bytes=_peak_bytes(record.memory) if record.memory else None,
        allreduce_gb_per_s=record.communication.allreduce_gb_per_s if record.communication else None,
        loading_gb_per_s=metrics.loading_gb_per_s(
            [rank.loaded_bytes_per_step for rank in record.ranks], record.window.data_wait_s
        ),
        server_busy_fraction=_busiest_server(record.strategy_facts),
        course=list(epochs),
        waits=waits_of(record),
        slowest=slowest_in_words(record.ranks),
        oddities=[*oddities.of_steps(record.window), *energy.of_clocks(record.energy)],
        slowest_rank=oddities.slowest_of(record.ranks),
        physics=physics_of(record, factors),
        ledger_s=record.ledger,
        ceilings={name: rate for name, rate in (record.ceilings or {}).items() if rate is not None},
        energy=energy.spent(record),
        cost_per_million_samples=_cost(record, step_time_s),
        wall_time_s=wall,
        samples=samples,
    )


def _cost(record: Record, step_time_s: float) -> float | None:
    price, batch = record.config["cluster"].get("price_per_worker_hour"), record.config["global_batch"]
    if not isinstance(price, (int, float)):
        return None
    return metrics.cost_per_million_samples(step_time_s, batch, record.workers, price)


def epochs_of(record: Record) -> int | None:
    """Those that were trained, which a target may have made fewer than were asked for."""
    epochs = record.stopped_after_epochs or record.config.get("epochs")
    return epochs if type(epochs) is int and epochs > 0 else None


def _busiest_server(facts: Mapping[str, Any]) -> float | None:
    return max((float(server["busy_fraction"]) for server in facts.get("servers") or ()), default=None)


def _peak_bytes(memory: Memory) -> int:
    return memory.peak_host_bytes if memory.peak_device_bytes is None else memory.peak_device_bytes
