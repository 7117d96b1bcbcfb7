"""The course of a run: what each of its epochs took and reached, small enough to keep for thousands of runs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean

from benchmarks.record import Evaluation, Record, Window


@dataclass(kw_only=True, slots=True)
class Epoch:
    """One span of the window; where a run counts steps, its only one."""

    samples: int
    wall_time_s: float
    data_wait_s: float
    """Of the step's slowest rank each, all steps together."""
    train_loss: float | None
    """Mean over the steps."""
    samples_by_rank: list[int]
    sync_wait_s_by_rank: list[float] | None
    evaluation: Evaluation | None
    """After it."""


def course(record: Record) -> list[Epoch]:
    """The epochs of a run that has a window, in order."""
    window = record.window
    assert window is not None
    ends = list(accumulate((span.steps for span in window.spans), initial=0))
    evaluations = {evaluation.after_steps: evaluation for evaluation in record.evaluation}
    return [
        Epoch(
            samples=span.samples,
            wall_time_s=span.wall_time_s,
            data_wait_s=sum(window.data_wait_s[first:end]),
            train_loss=_mean_loss(window, first, end),
            samples_by_rank=span.samples_by_rank,
            sync_wait_s_by_rank=span.sync_wait_s_by_rank,
            evaluation=evaluations.get(end),
        )
        for span, (first, end) in zip(window.spans, pairwise(ends), strict=True)
    ]


def _mean_loss(window: Window, first: int, end: int) -> float | None:
    losses = [loss for loss in window.loss[first:end] if loss is not None]
    return fmean(losses) if losses else None
