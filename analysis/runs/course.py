"""The course of a run: what each of its epochs took and reached, small enough to keep for thousands of runs."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean

from benchmarks.core.record import Evaluation, Record, Window

LOSS_BLOCKS = 10
"""Of an epoch's steps; their mean losses are kept."""


@dataclass(kw_only=True, slots=True)
class Epoch:
    """One span of the window; where a run counts steps, its only one."""

    epochs: float
    """Passes over the data: more than one where each worker takes whole ones. 1 where the run counts steps."""
    samples: int
    wall_time_s: float
    global_batch: int
    """Of its full batches, in samples; the last one may be smaller."""
    data_wait_s: float
    """Of the step's slowest rank each, all steps together."""
    train_loss: float | None
    """Mean over the steps."""
    block_samples: array[float]
    """Samples trained on from the epoch's start to the end of each block of steps."""
    block_losses: array[float]
    """Mean loss over the steps of each block; not a number where none is known."""
    samples_by_rank: list[int]
    sync_wait_s_by_rank: list[float] | None
    evaluation: Evaluation | None
    """After it."""
    energy_j: float | None


def course(record: Record) -> list[Epoch]:
    """The epochs of a run that has a window, in order."""
    window = record.window
    assert window is not None
    ends = list(accumulate((span.steps for span in window.spans), initial=0))
    evaluations = {evaluation.after_steps: evaluation for evaluation in record.evaluation}
    epochs = record.config.get("epochs")
    epochs_in_span = epochs / len(window.spans) if type(epochs) is int and epochs > 0 else 1.0
    known_j = record.energy.joules_by_span() if record.energy else None
    span_j = known_j if known_j is not None else [None] * len(window.spans)
    course = []
    for span, energy_j, (first, end) in zip(window.spans, span_j, pairwise(ends), strict=True):
        block_samples, block_losses = _blocks(window, first, end)
        course.append(
            Epoch(
                epochs=epochs_in_span,
                samples=span.samples,
                wall_time_s=span.wall_time_s,
                global_batch=max(window.samples[first:end], default=0),
                data_wait_s=sum(window.data_wait_s[first:end]),
                train_loss=_mean_loss(window, first, end),
                block_samples=block_samples,
                block_losses=block_losses,
                samples_by_rank=span.samples_by_rank,
                sync_wait_s_by_rank=span.sync_wait_s_by_rank,
                evaluation=evaluations.get(end),
                energy_j=energy_j,
            )
        )
    return course


def _mean_loss(window: Window, first: int, end: int) -> float | None:
    losses = [loss for loss in window.loss[first:end] if loss is not None]
    return fmean(losses) if losses else None


def _blocks(window: Window, first: int, end: int) -> tuple[array[float], array[float]]:
    """Where blocks of neighbouring steps end, in samples since `first`, and their mean losses."""
    steps = end - first
    blocks = min(LOSS_BLOCKS, steps)
    bounds = [first + steps * number // blocks for number in range(blocks + 1)] if blocks else []
    samples, losses = array("d"), array("d")
    seen = 0
    for start, stop in pairwise(bounds):
        seen += sum(window.samples[start:stop])
        mean = _mean_loss(window, start, stop)
        samples.append(seen)
        losses.append(float("nan") if mean is None else mean)
    return samples, losses
