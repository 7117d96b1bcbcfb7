"""The measures, as pure functions: every one takes floats or equally long arrays and returns the same.

N is a number of workers, N0 that of the base (the smallest that was measured at the same everything else), T a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", float, NDArray[np.float64])


def step_time_s(wall_time_s: float, samples: float, global_batch: int) -> float:
    """Seconds for one full global batch: `wall_time_s * global_batch / samples`.

    For full batches this is the wall time over the number of steps. Where an epoch ends on a smaller batch it is not:
    the number of steps then says less about the work than the number of samples does.
    """
    return wall_time_s * global_batch / samples


SLOW_STEPS = {95: 20, 99: 100}
"""Percentiles that are given, and from how many steps on: fewer have no step beyond the percentile."""


def slow_steps_s(step_time_s: Sequence[float]) -> dict[int, float]:
    """How long the slow steps take: percentiles of single steps' times in seconds, by the percentage.

    Of as many as `SLOW_STEPS` asks for; interpolated between steps.
    """
    ordered, last = np.sort(step_time_s), len(step_time_s) - 1
    return {  # as np.percentile, in a tenth of its time
        percent: float(np.interp(percent / 100 * last, np.arange(last + 1), ordered))
        for percent, least in SLOW_STEPS.items()
        if len(step_time_s) >= least
    }


def throughput_samples_per_s(step_time: Number, global_batch: int) -> Number:
    """Samples of all workers per second: `global_batch / step_time`, which is samples over the window's wall time.

    Taken from the median time, so that several repeats are summarised as rates must be: by their times (Hoefler and
    Belli, SC15, rule 3).
    """
    return global_batch / step_time


def epoch_time_s(wall_time_s: float, epochs: int) -> float:
    """Seconds for one pass over the training data, without evaluation."""
    return wall_time_s / epochs


def energy_j_per_million_samples(energy_j: float, samples: float) -> float:
    """Joules for a million samples, from the window's joules and samples."""
    return energy_j / samples * 1e6


def mean_power_w(energy_j: float, wall_time_s: float) -> float:
    """Watts of all counters together, over the window."""
    return energy_j / wall_time_s


def cost_per_million_samples(
    step_time: Number, global_batch: int, workers: int, price_per_worker_hour: float
) -> Number:
    """Money for a million samples: worker-hours times what one costs."""
    return step_time * (1e6 / global_batch * workers / 3600 * price_per_worker_hour)


def loading_gb_per_s(bytes_per_step: Sequence[float | None], data_wait_s: Sequence[float]) -> float | None:
    """What the most loaded worker's loader handed over, in 1e9 bytes per second of waiting for it.

    From each worker's bytes per step and each step's wait; None where these are not known, or nobody waited.
    """
    known = [of_rank for of_rank in bytes_per_step if of_rank is not None]
    waited_s = sum(data_wait_s)
    return max(known) * len(data_wait_s) / waited_s / 1e9 if known and waited_s > 0 else None


def speedup(base_time: Number, time: Number) -> Number:
    """Strong scaling, the same global batch: `T(N0) / T(N)`; ideal is N / N0.

    Also the epoch convention: with a fixed data set, a fixed batch per worker and T per epoch, more workers make fewer
    steps of the same length, so that this ratio of epoch times equals the scaled speed-up.
    """
    return base_time / time


def efficiency(base_time: Number, time: Number, base_workers: int, workers: int) -> Number:
    """Strong scaling: `speedup * N0 / N`; ideal is 1."""
    return base_time / time * base_workers / workers


def weak_efficiency(base_time: Number, time: Number) -> Number:
    """Weak scaling, the same batch per worker: `T(N0) / T(N)` with T per step; ideal is 1.

    It is a ratio of times below which more work is done; it is no speed-up.
    """
    return base_time / time


def scaled_speedup(base_time: Number, time: Number, base_workers: int, workers: int) -> Number:
    """Weak scaling: `weak_efficiency * N / N0` with T per step; ideal is N / N0 (Gustafson's reading)."""
    return base_time / time * workers / base_workers


def ideal_speedup(workers: Number, base_workers: int) -> Number:
    """The line through the base: `N / N0`."""
    return workers / base_workers


def straggler_ratio(own_time_s: Sequence[float]) -> float | None:
    """The slowest rank's own time over the median rank's; 1 is balanced, None where nothing was measured.

    Own time excludes waiting for other ranks: where all ranks move in step, only it tells them apart.
    """
    middle = median(own_time_s) if own_time_s else 0.0
    return max(own_time_s) / middle if middle > 0 else None
