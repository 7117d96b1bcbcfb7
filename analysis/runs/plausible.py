"""Numbers that cannot be true, or hardly: said beside the number, which stays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.runs.datasheets import datasheet
from analysis.statistics.bootstrap import Floats
from benchmarks.core.record import Record

ABOVE_IDEAL = "above the ideal by more than the interval: find the cause (caches, clocks, a slow base) first"
ABOVE_PEAK = (
    "more operations than the device's datasheet peak: the counted FLOPs, the time or the device's name is wrong"
)
ABOVE_CEILING = "more operations than a large matrix product did in the same job: the FLOPs or the ceiling are wrong"
ABOVE_LINK = "all-reduce bandwidth above what the device's links can send: it did not move what it is counted to"
NEGATIVE = "steps with communication are faster than without, beyond noise: `exposed` is not to be believed"

_SIGMAS = 3.0
_LEAST_SHARE = 0.02
"""Of the step's time: a smaller negative time is of no importance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Physics:
    """Of one run, what the laws of its device are held against; None is unknown."""

    mfu: float | None
    """Model FLOPs utilisation: the counted operations over what the datasheet's peak could do in the same time
    (Chowdhery et al. 2022, arXiv 2204.02311, appendix B)."""
    mfu_of_ceiling: float | None
    """The same over the rate of a large matrix product in the same job."""
    allreduce_of_peak: float | None
    """Of the bandwidth that the device's links allow."""
    exposed_comm_share: float | None
    """Of the step's time; noise can make it negative."""
    exposed_comm_noise: float
    """The standard error of that share."""


def physics_of(record: Record, factors: Floats) -> Physics:
    """What is to be checked of a run that has a window.

    Args:
        record: The run's.
        factors: `step_factors` of its steps.
    """
    window, devices = record.window, {rank.device for rank in record.ranks}
    assert window is not None
    sheet = datasheet(next(iter(devices))) if len(devices) == 1 else None
    measured = record.communication.allreduce_gb_per_s if record.communication else None
    most = sheet.allreduce_gb_per_s if sheet else None
    exposed = window.exposed_comm_s
    precision = record.config["precision"]["name"]
    ceiling = (record.ceilings or {}).get(f"matmul_{precision}_flops_per_s")
    return Physics(
        mfu_of_ceiling=_mfu(record, ceiling / 1e12 if ceiling else None),
        mfu=_mfu(record, sheet.tflops.get(precision) if sheet else None),
        allreduce_of_peak=None if measured is None or most is None else measured / most,
        exposed_comm_share=sum(exposed) / sum(window.step_time_s) if exposed else None,
        exposed_comm_noise=_noise(window.step_time_s, factors, record.config.get("warmup_steps")),
    )


def _mfu(record: Record, tflops: float | None) -> float | None:
    flops = record.model.step_flops_per_sample if record.model else None
    if flops is None or tflops is None or record.window is None:
        return None
    samples = sum(span.samples for span in record.window.spans)
    wall_s = sum(span.wall_time_s for span in record.window.spans)
    return flops * samples / wall_s / (record.workers * tflops * 1e12)


def _noise(step_time_s: Sequence[float], factors: Floats, steps_without: object) -> float:
    """The standard error of the mean step less the median of some steps without synchronisation, over the mean step.

    That of a median is sqrt(pi / 2) times that of a mean, for normal noise; these steps are as noisy as the window's.
    """
    steps = steps_without if isinstance(steps_without, int) and steps_without > 0 else 1
    spread = _deviation(np.asarray(step_time_s)) * len(step_time_s) / sum(step_time_s)
    return math.hypot(_deviation(factors), spread * math.sqrt(math.pi / 2 / steps))


def _deviation(values: Floats) -> float:
    """As `np.std`, in a fifth of its time for a few hundred values."""
    apart = values - values.mean()
    return math.sqrt(float(apart @ apart) / values.size)


def doubts(runs: Sequence[Physics]) -> list[str]:
    """What cannot be true of a cell, by most of its repeats; one line each."""
    found = {
        ABOVE_PEAK: [run.mfu is not None and run.mfu > 1 for run in runs],
        ABOVE_CEILING: [run.mfu_of_ceiling is not None and run.mfu_of_ceiling > 1 for run in runs],
        ABOVE_LINK: [run.allreduce_of_peak is not None and run.allreduce_of_peak > 1 for run in runs],
        NEGATIVE: [
            run.exposed_comm_share is not None
            and run.exposed_comm_share < -max(_LEAST_SHARE, _SIGMAS * run.exposed_comm_noise)
            for run in runs
        ],
    }
    return [words for words, seen in found.items() if 2 * sum(seen) > len(seen)]
