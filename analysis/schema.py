"""What `python -m analysis.scaling --json` writes: the schema of the result. Tables and figures are made from it alone.

Times in seconds, rates in samples per second, ratios without a unit. Unknown is null. Names end in their unit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from analysis.runs.diagnosis import Bottleneck
from analysis.runs.oddities import Oddity
from analysis.runs.origins import Origin
from analysis.statistics.estimate import Estimate
from analysis.study_schema import Search, Study
from benchmarks.core.profile import RankProfile
from benchmarks.core.variants import Option

SCHEMA_VERSION = 1

Kind = Literal["strong", "weak"]


class Point(msgspec.Struct, kw_only=True):
    """One cell of the grid: all its repeats together. Only repeats that ended `ok` give numbers."""

    cell_id: Annotated[str, Meta(description="The cell, by a digest of its settings.")]
    settings: Annotated[
        dict[str, Option],
        Meta(description="The settings in which the sweep's cells differ, apart from workers and batch."),
    ]
    workers: Annotated[int, Meta(description="Processes that train together.")]
    global_batch: Annotated[int, Meta(description="Samples of one step, of all workers together.")]
    batch_per_worker: Annotated[int, Meta(description="Samples of one step that one worker takes.")]
    status: Annotated[
        str,
        Meta(
            description="`ok` where at least one repeat is; else the state of most of the failed repeats; "
            "`planned` where no repeat has a record."
        ),
    ]
    reason: Annotated[str | None, Meta(description="Why repeats are missing or failed, for people.")]
    repeats_planned: Annotated[int, Meta(description="Runs of the cell, as planned or found.")]
    repeats_ok: Annotated[int, Meta(description="Those that give numbers.")]
    failed: Annotated[dict[str, int], Meta(description="Repeats without a number, by state.")]
    repeats_missing: Annotated[int, Meta(description="Planned, and no record yet.")]
    steps: Annotated[
        int, Meta(description="Timed steps of one repeat (the fewest over repeats); 0 where there is no number.")
    ]
    step_time_s: Annotated[
        Estimate | None,
        Meta(description="Median over repeats, for a full global batch: window wall time x global batch / samples."),
    ]
    repeat_step_times_s: Annotated[list[float], Meta(description="The same of each repeat that gives numbers.")]
    step_time_p95_s: Annotated[
        float | None,
        Meta(
            description="Median over repeats of the 95th percentile of single steps' times, the slowest rank's each; "
            "null below 20 steps."
        ),
    ]
    step_time_p99_s: Annotated[float | None, Meta(description="The same of the 99th; null below 100 steps.")]
    throughput_samples_per_s: Annotated[
        Estimate | None, Meta(description="Global batch over the median time of a step.")
    ]
    epoch_time_s: Annotated[
        Estimate | None,
        Meta(description="Median over repeats, for one pass over the data; null where the run counts steps."),
    ]
    accuracy: Annotated[float | None, Meta(description="Median over repeats of the last evaluation.")]
    straggler_ratio: Annotated[
        float | None, Meta(description="Median over repeats of the slowest rank's own time over the median rank's.")
    ]
    exposed_comm_s: Annotated[
        float | None,
        Meta(
            description="Median over repeats of the time that a step takes longer than without synchronisation: of all "
            "steps together, over their number, since some strategies communicate in few steps only; null where the "
            "strategy cannot do without. Noise can make it negative."
        ),
    ]
    bytes_per_step: Annotated[
        float | None,
        Meta(description="What a worker sends in a step, by the strategy's formula, as a mean over workers."),
    ]
    peak_memory_bytes: Annotated[
        float | None,
        Meta(
            description="Median over repeats of the most that a worker held at a time: of its device where "
            "that is a GPU, else of the process."
        ),
    ]
    notes: Annotated[list[str], Meta(description="What a reader of the number must know, as the records say it.")]
    bottleneck: Annotated[Bottleneck | None, Meta(description="Null where there is no number.")] = None
    oddities: Annotated[list[Oddity], Meta(description="Of its repeats' step times, each in words.")] = []
    mfu: Annotated[
        Estimate | None,
        Meta(
            description="Model FLOPs utilisation: counted operations over those of the datasheet's dense peak in the "
            "run's precision; null for devices whose peak is not known, such as CPUs."
        ),
    ] = None
    mfu_of_ceiling: Annotated[
        Estimate | None, Meta(description="The same over the rate of a large matrix product measured in the same job.")
    ] = None
    doubts: Annotated[list[str], Meta(description="Why the numbers cannot be true; they are shown all the same.")] = []
    ceilings: Annotated[
        dict[str, float],
        Meta(
            description="What the hardware did at best in the same jobs, by the names of "
            "`benchmarks/measuring/ceilings.py`: medians over repeats of means over workers. Empty where "
            "`ceilings=true` was not given."
        ),
    ] = {}
    allreduce_gb_per_s: Annotated[
        float | None,
        Meta(description="Bus bandwidth of an all-reduce of the gradients' size by itself; median over repeats."),
    ] = None
    ledger_s: Annotated[
        dict[str, float],
        Meta(
            description="Where a run's wall time goes, from its start to its end, in seconds by phase: medians over "
            "the repeats that have the phase, so that their sum need not be a run's."
        ),
    ] = {}
    energy_j_per_million_samples: Annotated[
        Estimate | None,
        Meta(
            description="Median over repeats of the joules that the window took, for a million samples; null where a "
            "counter could not be read. `energy_scope` says what it is of."
        ),
    ] = None
    energy_scope: Annotated[
        str | None, Meta(description="What the energy counters count; null where the energy is unknown.")
    ] = None
    energy_unknown_because: Annotated[
        str | None, Meta(description="Why no repeat has an energy; null where one has, or nothing is measured.")
    ] = None
    mean_power_w: Annotated[
        Estimate | None, Meta(description="Median over repeats of the window's joules over its wall time, in all.")
    ] = None
    idle_power_w: Annotated[
        float | None,
        Meta(
            description="Median over repeats of what the workers' devices drew together before they were used; null "
            "for CPUs, which are not idle then."
        ),
    ] = None
    cost_per_million_samples: Annotated[
        Estimate | None,
        Meta(
            description="In the report's currency: worker-hours of a million samples times the price of one; null "
            "where the cluster's file has no price."
        ),
    ] = None


class ScalingPoint(Point, kw_only=True):
    """A cell as a member of a series."""

    speedup: Annotated[
        Estimate | None,
        Meta(
            description="Strong: T(N0) / T(N). Weak: the scaled speed-up, efficiency x N / N0. "
            "Exactly 1 for the base itself."
        ),
    ] = None
    efficiency: Annotated[
        Estimate | None, Meta(description="Strong: speed-up x N0 / N. Weak: T(N0) / T(N), T per step.")
    ] = None
    above_ideal: Annotated[
        bool,
        Meta(
            description="The whole interval lies above the ideal: super-linear, to be explained before it is believed."
        ),
    ] = False


class Base(msgspec.Struct, kw_only=True):
    """What the ratios of a series refer to: its smallest number of workers with a number."""

    cell_id: str
    workers: int
    step_time_s: float
    throughput_samples_per_s: float


class Prediction(msgspec.Struct, kw_only=True):
    """A point of the fitted law."""

    workers: int
    step_time_s: Annotated[Estimate, Meta(description="With the 95 % interval of the curve, by the noise measured.")]
    measured: Annotated[bool, Meta(description="Whether the sweep has this number of workers; else it is a forecast.")]


class HeldOut(msgspec.Struct, kw_only=True):
    """The law of all counts but the largest, held against it."""

    workers: int
    model: str
    predicted_s: Estimate
    measured_s: float
    miss: Annotated[float, Meta(description="predicted / measured - 1.")]


class Fit(msgspec.Struct, kw_only=True):
    """The scaling law that describes a series best, or why there is none."""

    refused: Annotated[str | None, Meta(description="Why no law is given; null where one is.")] = None
    model: str | None = None
    parameters: dict[str, float] = {}
    explained: Annotated[float | None, Meta(description="Share of the variance of log time.")] = None
    aicc: Annotated[float | None, Meta(description="Corrected Akaike criterion; the smallest of the laws.")] = None
    curve: list[Prediction] = []
    held_out: HeldOut | None = None


class Series(msgspec.Struct, kw_only=True):
    """Cells that differ in the number of workers only; the kind says which batch size is the same in all of them."""

    kind: Kind
    number: Annotated[int, Meta(description="Within its kind, from 1, in the order of the table.")]
    label: str
    settings: dict[str, Option]
    group: Annotated[str, Meta(description="The workload; figures have a panel for each.")]
    fixed_batch: Annotated[
        int, Meta(description="The global batch of a strong series, the batch per worker of a weak one.")
    ]
    base: Annotated[Base | None, Meta(description="Null where nothing is measured yet.")]
    points: Annotated[list[ScalingPoint], Meta(description="By number of workers.")]
    fit: Annotated[Fit | None, Meta(description="The scaling law; null where a sweep has too many series to fit.")] = (
        None
    )


class DroppedCell(msgspec.Struct, kw_only=True):
    """A point of the grid that the sweep does not run."""

    settings: dict[str, Option]
    reason: str


class Counts(msgspec.Struct, kw_only=True):
    """Runs of the sweep."""

    planned: int
    ok: int
    profiled: Annotated[int, Meta(description="They give no times, and are in no cell's repeats.")] = 0
    failed: dict[str, int]
    missing: int
    unreadable: int


class ProfileRow(msgspec.Struct, kw_only=True):
    """A profiled cell."""

    cell_id: str
    label: str
    run_id: str
    ranks: Annotated[list[RankProfile], Meta(description="By rank; as in the record.")]


class Report(msgspec.Struct, kw_only=True):
    """The whole result."""

    schema_version: int = SCHEMA_VERSION
    sweep: str
    cluster: str
    question: str
    folder: str
    runs: Counts
    setting_keys: Annotated[
        list[str], Meta(description="The keys of every point's `settings`, in the order of columns.")
    ]
    strong: list[Series]
    weak: list[Series]
    cells: Annotated[list[Point], Meta(description="All cells, those of the series among them.")]
    outside_series: Annotated[
        list[str], Meta(description="`cell_id`s of cells without another worker count to compare with.")
    ]
    study: Annotated[Study | None, Meta(description="Null where the sweep's file describes no figure.")] = None
    profiles: Annotated[list[ProfileRow], Meta(description="Cells with a profiled repeat.")] = []
    search: Annotated[Search | None, Meta(description="Null where the sweep searches nothing.")] = None
    oddities: Annotated[list[Oddity], Meta(description="Of all runs together; those of a cell are with it.")] = []
    dropped: list[DroppedCell]
    currency: Annotated[str | None, Meta(description="Of all costs; null where no cell has a price.")] = None
    mixed: Annotated[
        list[str],
        Meta(description="Images, commits, driver and torch versions in which the numbers differ, and where."),
    ]
    origins: Annotated[
        list[Origin], Meta(description="What all runs with a number were made with, the most frequent value first.")
    ] = []
    problems: Annotated[
        list[str], Meta(description="Files that were skipped and cells that were refused, one line each.")
    ]


def json_schema() -> dict[str, Any]:
    """The JSON schema of `Report`, with these descriptions."""
    return msgspec.json.schema(Report)
