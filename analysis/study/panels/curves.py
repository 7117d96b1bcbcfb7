"""Panels of what happens in the course of training, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from statistics import median
from typing import TypeVar

from analysis.cells.measures import over_repeats
from analysis.runs.course import Epoch
from analysis.study.panels import Subject, panel_kind
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from benchmarks.core.errors import unknown

Found = TypeVar("Found")

_X: dict[str, tuple[str, Callable[[Epoch], float]]] = {
    "epoch": ("epochs", lambda epoch: epoch.epochs),
    "samples": ("trained on [samples]", lambda epoch: float(epoch.samples)),
    "train_time_s": ("training time, without evaluation [s]", lambda epoch: epoch.wall_time_s),
}
"""Label, and what an epoch adds."""

_Y: dict[str, tuple[str, Callable[[Epoch], float | None]]] = {
    "accuracy": ("test accuracy [fraction]", lambda epoch: epoch.evaluation.accuracy if epoch.evaluation else None),
    "loss": ("test loss [nats]", lambda epoch: epoch.evaluation.loss if epoch.evaluation else None),
    "train_loss": ("training loss [nats]", lambda epoch: epoch.train_loss),
    "epoch_time_s": ("time of the epoch [s]", lambda epoch: epoch.wall_time_s),
    "data_wait_s": ("waiting for data [s]", lambda epoch: epoch.data_wait_s),
    "batch": ("global batch [samples]", lambda epoch: float(epoch.global_batch)),
}


@panel_kind("curves", lambda options: [options["y"]])
def curves(subject: Subject, *, y: str, x: str = "epoch") -> Panel:
    """A line for each cell: the median over repeats after each epoch, with its interval over repeats."""
    x_label, adds = _known("x", x, _X)
    y_label, of = _known("y", y, _Y)
    series = []
    for name, cells in subject.lines().items():
        courses = [run.course for run in cells[0].measured()]
        xs = [list(accumulate(adds(epoch) for epoch in course)) for course in courses]
        ys = [[of(epoch) for epoch in course] for course in courses]
        if points := _points(xs, ys, f"{cells[0].cell_id} {y}"):
            series.append(PanelSeries(label=name, points=points))
    return _line(subject, "curves", x_label, y_label, series)


@panel_kind("losses", lambda _options: ["train_loss"])
def losses(subject: Subject) -> Panel:
    """A line for each cell: the training loss in the course of epochs, as means over blocks of their steps."""
    series = []
    for name, cells in subject.lines().items():
        courses = [run.course for run in cells[0].measured()]
        xs = [_block_ends(course) for course in courses]
        ys = [[loss if math.isfinite(loss) else None for e in course for loss in e.block_losses] for course in courses]
        if points := _points(xs, ys, f"{cells[0].cell_id} losses"):
            series.append(PanelSeries(label=name, points=points))
    return _line(subject, "losses", _X["samples"][0], _Y["train_loss"][0], series)


def _block_ends(course: Sequence[Epoch]) -> list[float]:
    """Samples trained on from the run's start to the end of each block of steps."""
    starts = accumulate((epoch.samples for epoch in course), initial=0)
    return [start + samples for start, epoch in zip(starts, course, strict=False) for samples in epoch.block_samples]


@panel_kind("ranks", lambda options: {"sync_wait_s": ["sync_wait_s"]}.get(options["y"], []))
def ranks(subject: Subject, *, y: str) -> Panel:
    """A line for each cell and rank over epochs: `batch` (samples per step) or `sync_wait_s` (waiting for others)."""
    labels = {"batch": "batch of the worker [samples]", "sync_wait_s": "waiting for other workers [s per epoch]"}
    y_label = _known("y", y, labels)
    series = []
    for name, cells in subject.lines().items():
        courses = [run.course for run in cells[0].measured()]
        for rank in range(cells[0].workers):
            ys = [[_of_rank(epoch, rank, y) for epoch in course] for course in courses]
            xs = [list(accumulate(epoch.epochs for epoch in course)) for course in courses]
            if points := _points(xs, ys, f"{cells[0].cell_id} {y} {rank}"):
                series.append(PanelSeries(label=f"{name}, rank {rank}", points=points))
    return _line(subject, "ranks", "epochs", y_label, series)


def _of_rank(epoch: Epoch, rank: int, y: str) -> float | None:
    if y == "batch":
        own = epoch.samples_by_rank
        return epoch.global_batch * own[rank] / epoch.samples if rank < len(own) else None
    waits = epoch.sync_wait_s_by_rank
    return waits[rank] if waits and rank < len(waits) else None


def _points(xs: Sequence[Sequence[float]], ys: Sequence[Sequence[float | None]], seed: str) -> list[PanelPoint]:
    """One point for each epoch that any repeat has: medians over the repeats that have it."""
    points = []
    for epoch in range(max(map(len, xs), default=0)):
        known = [
            (x[epoch], value) for x, y in zip(xs, ys, strict=True) if epoch < len(y) and (value := y[epoch]) is not None
        ]
        if known:
            values = [value for _, value in known]
            middle = median(x for x, _ in known)
            points.append(PanelPoint(x=middle, y=over_repeats(values, f"{seed} {epoch}"), n=len(known)))
    return points


def _line(subject: Subject, kind: str, x_label: str, y_label: str, series: list[PanelSeries]) -> Panel:
    return Panel(
        kind=kind,
        mark="line",
        title=subject.title,
        x_label=x_label,
        y_label=y_label,
        series=series,
        missing=subject.missing(),
    )


def _known(what: str, name: str, known: Mapping[str, Found]) -> Found:
    if name not in known:
        raise unknown(what, name, known)
    return known[name]
