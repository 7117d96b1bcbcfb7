"""The part of the schema that answers a sweep's own question: the panels of its figure, its table, and a search."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from analysis.statistics.estimate import Estimate
from benchmarks.core.variants import Option


class PanelPoint(msgspec.Struct, kw_only=True):
    """One point, bar or part of a bar."""

    x: Annotated[float | str, Meta(description="A number, or a category's name.")]
    y: Estimate
    n: Annotated[int, Meta(description="Repeats that give this number.")]
    y_over: Annotated[Estimate | None, Meta(description="The ratio to the base, where the panel has one.")] = None
    x_interval: Annotated[Estimate | None, Meta(description="Where x is measured, too: its interval.")] = None
    on_front: Annotated[
        bool, Meta(description="No other point is better in both directions; in a history: the best until then.")
    ] = False


class PanelSeries(msgspec.Struct, kw_only=True):
    """Points that belong together: one colour."""

    label: str
    points: list[PanelPoint]


class Panel(msgspec.Struct, kw_only=True):
    """One coordinate system of the study's figure, with its data."""

    kind: Annotated[str, Meta(description="As in the sweep's file.")]
    mark: Annotated[
        Literal["bars", "line", "stack", "scatter", "history"],
        Meta(description="How it is drawn: bars and their parts lie, with categories from top to bottom."),
    ]
    title: str
    x_label: str
    y_label: str
    series: list[PanelSeries]
    log_x: bool = False
    log_y: bool = False
    missing: Annotated[list[str], Meta(description="Cells without a number, with their state.")] = []
    x_of_missing: Annotated[list[float], Meta(description="Where they are crossed out on the x axis.")] = []
    notes: Annotated[list[str], Meta(description="What the panel says, in words.")] = []
    entry: Annotated[int, Meta(description="Which entry of the sweep's `figure` it is of, from 0.")] = 0


class StudyRow(msgspec.Struct, kw_only=True):
    """One cell in the study's table."""

    cell_id: str
    label: list[str]
    n: Annotated[int, Meta(description="Repeats with a number.")]
    status: Annotated[str, Meta(description="How the repeats ended: `ok`, `oom`, `planned`, `ok, but 1 oom`, ...")]
    reason: Annotated[str | None, Meta(description="Why repeats failed, for people; the most frequent one.")]
    values: Annotated[dict[str, Estimate | None], Meta(description="By the name of the measure.")]


class TrialRow(msgspec.Struct, kw_only=True):
    """One trial of a search."""

    number: Annotated[int, Meta(description="From 1, in the order in which trials were asked for.")]
    state: Annotated[
        str, Meta(description="`complete`, `pruned`, `unfit` (its setting's fault), `failed` or `running`.")
    ]
    value: Annotated[float | None, Meta(description="The metric after the trial's longest run.")]
    length: Annotated[int | None, Meta(description="Of that run.")]
    settings: dict[str, Option]
    reason: str | None
    distance: Annotated[
        float | None,
        Meta(description="From the best trial, in the unit cube of the space: 0 the same, 1 the opposite corner."),
    ] = None


class Search(msgspec.Struct, kw_only=True):
    """What a tuning sweep has found."""

    metric: str
    unit: Annotated[str, Meta(description="Of lengths: epochs or steps.")]
    full_length: int
    keys: list[str]
    states: Annotated[dict[str, int], Meta(description="Trials by state.")]
    saved: Annotated[str | None, Meta(description="What pruning saved; null without pruning.")]
    trials: list[TrialRow]
    best: list[int]
    """Numbers of the best complete trials, the best one first."""
    nearest: list[int]
    """Numbers of the trials with a value that are nearest to the best one, the nearest first."""
    earlier_studies: Annotated[int, Meta(description="Searches of other definitions in the same folder, not shown.")]


class Study(msgspec.Struct, kw_only=True):
    """The figure and the table that answer the sweep's question."""

    label_keys: Annotated[list[str], Meta(description="What `label` of a row is, value by value.")]
    measures: Annotated[dict[str, str], Meta(description="Name of each measure to its label, with the unit.")]
    rows: list[StudyRow]
    panels: list[Panel]
    with_scaling: Annotated[bool, Meta(description="The scaling figures belong to the answer, too.")] = False
