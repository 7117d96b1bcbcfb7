"""Time to target: the Kaplan-Meier estimate against published numbers, censored runs, money, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import pytest

from analysis.cells.measures import estimate_of, label_of
from analysis.cells.target import (
    attempt,
    attempts,
    median_draws,
    median_spent,
    on_front,
    survival,
    to_target,
)
from analysis.runs.load import Cell, load_cells
from analysis.series import build_report
from analysis.study.panels import Subject, make_panel
from analysis.tables.columns import estimated
from benchmarks.core.record import Evaluation, Reason, Record, Status
from benchmarks.core.target import Target
from tests import synthetic

ACCURACY = Target(metric="accuracy", value=0.9)

# Freireich et al. 1963, Blood 21: weeks of remission under 6-mercaptopurine, 21 patients; False is censored. The data
# set of textbooks: Kleinbaum and Klein, "Survival Analysis", table 2.1, with the estimates below and a median of 23.
REMISSION: list[tuple[float, bool]] = [
    *((6, True), (6, True), (6, True), (6, False), (7, True), (9, False), (10, True), (10, False), (11, False)),
    *((13, True), (16, True), (17, False), (19, False), (20, False), (22, True), (23, True), (25, False)),
    *((32, False), (32, False), (34, False), (35, False)),
]
REMISSION_SURVIVAL = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}


def record(
    accuracies: Sequence[float], repeat: int = 0, status: Status = "ok", settings: dict[str, Any] | None = None
) -> Record:
    """Epochs of two seconds and 128 samples; each evaluation takes half a second."""
    of = synthetic.config(
        2,
        repeat=repeat,
        **{"steps": None, "epochs": 4, "target_metric": "accuracy", "target_value": 0.9, **(settings or {})},
    )
    made = synthetic.epochs_record(of, [2.0] * len(accuracies), steps_per_epoch=2)
    made.evaluation = [
        Evaluation(after_steps=2 * (epoch + 1), time_s=0.5, samples=10, accuracy=accuracy, loss=1 - accuracy)
        for epoch, accuracy in enumerate(accuracies)
    ]
    made.stopped_after_epochs = len(accuracies) if len(accuracies) < of["epochs"] and status == "ok" else None
    made.status = status
    made.reason = None if status == "ok" else Reason(phase="window", kind="hang", message="rank 1 is silent")
    return made


def cell_of(folder: Path, records: Sequence[Record]) -> Cell:
    synthetic.write(folder, records)
    (cell,) = load_cells(folder).cells
    return cell


def test_survival_of_the_textbook_data() -> None:
    spent, reached = zip(*REMISSION, strict=True)
    steps = dict(survival(spent, reached))
    assert {moment: round(share, 3) for moment, share in steps.items()} == REMISSION_SURVIVAL
    assert median_spent(spent, reached) == 23


@pytest.mark.parametrize("values", [[3.0], [1.0, 4.0], [5.0, 1.0, 2.0], [4.0, 1.0, 2.0, 9.0], [2.0, 2.0, 7.0, 7.0]])
def test_without_censoring_it_is_the_plain_median(values: list[float]) -> None:
    assert median_spent(values, [True] * len(values)) == median(values)


@pytest.mark.parametrize(
    ("reached", "expected"),
    [
        ((1, 1, 1, 0, 0), 3.0),  # 3 of 5 arrive
        ((1, 1, 0, 0, 0), math.inf),
        ((1, 0, 1, 0, 1), 5.0),  # the censored ones left early, and count less: 4/5 * 2/3 = 0.53, then 0
        ((1, 1, 0, 0), math.inf),  # 2 of 4: half are there, whether the next one will be is not known
        ((0, 0, 0), math.inf),
    ],
)
def test_median_with_censored_runs(reached: tuple[int, ...], expected: float) -> None:
    assert median_spent([float(n + 1) for n in range(len(reached))], [bool(one) for one in reached]) == expected


def test_the_order_of_runs_does_not_matter() -> None:
    spent, reached = zip(*reversed(REMISSION), strict=True)
    assert median_spent(spent, reached) == 23


def test_an_arrival_counts_before_a_departure_at_the_same_moment() -> None:
    assert survival([1.0, 1.0], [False, True]) == [(1.0, 0.5)]


def test_draws_cover_the_true_median_and_know_the_infinite() -> None:
    """Eleven exponential runs, cut at three times their mean: the interval must hold the true median most of the time.

    The percentile bootstrap's coverage at this size is about 93 % (in 2,000 simulations), so 86 of 100 is a safe floor.
    """
    rng = np.random.default_rng(1)
    held = 0
    for number in range(100):
        true = rng.exponential(1.0, size=11)
        draws = np.sort(median_draws(np.minimum(true, 3.0).tolist(), (true < 3.0).tolist(), f"cell {number}"))
        held += bool(draws[25] <= math.log(2) <= draws[974])
    assert 86 <= held <= 100
    few = median_draws([1.0, 2.0, 3.0, 3.0, 3.0], [True, True, True, False, False], "few")
    assert 0.2 < np.mean(np.isinf(few)) < 0.45  # binomial: at most 2 arrivals in 5 draws of 3/5 are 0.317


def test_what_a_run_spent_until_the_evaluation_that_reached_it(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, [record([0.5, 0.8, 0.9, 0.95])])
    (one,) = attempts(cell)
    assert one.reached
    assert (one.train_time_s, one.time_s, one.epochs, one.samples) == (6.0, 7.5, 3.0, 384.0)


def test_a_run_that_stopped_at_the_target_is_whole(tmp_path: Path) -> None:
    """Fewer epochs than were asked for: a number all the same, and its time per epoch is of those it made."""
    cell = cell_of(tmp_path, [record([0.5, 0.92])])
    measured = cell.runs[0].measured
    assert measured is not None
    assert measured.epoch_time_s == 2.0
    assert [one.epochs for one in attempts(cell)] == [2.0]


def test_epochs_that_workers_make_at_once_all_count(tmp_path: Path) -> None:
    """Two spans of four asked epochs: each span holds two."""
    made = record([0.5, 0.92])
    made.stopped_after_epochs = 4
    cell = cell_of(tmp_path, [made])
    assert [one.epochs for one in attempts(cell)] == [4.0]


def test_a_loss_goes_down_to_its_target() -> None:
    spans = load_course([0.5, 0.8])
    assert attempt(spans, Target(metric="loss", value=0.25)).train_time_s == 4.0
    assert not attempt(spans, Target(metric="loss", value=0.15)).reached
    assert attempt(spans, Target(metric="loss", value=0.5)).train_time_s == 2.0


def load_course(accuracies: list[float]) -> Any:
    from analysis.runs.course import course

    return course(record(accuracies))


def test_never_a_mean_of_the_survivors(tmp_path: Path) -> None:
    """Two fast seeds of five: their mean would be 2 s, the truth is more than 8."""
    records = [record([0.9], 0), record([0.91], 1), *(record([0.5] * 4, repeat) for repeat in (2, 3, 4))]
    found = to_target(cell_of(tmp_path, records), "train_time_s")
    assert found is not None
    assert (found.value, found.is_bound) == (8.0, True)
    assert estimated(found) == ("> 8.00", "2 of 5 reached it")


def test_an_interval_without_an_upper_end(tmp_path: Path) -> None:
    """Three of five arrive: the median is the third's, but half of other seeds might not."""
    records = [record([0.1] * n + [0.9], n) for n in range(3)] + [record([0.5] * 4, n) for n in (3, 4)]
    found = to_target(cell_of(tmp_path, records), "train_time_s")
    assert found is not None
    assert (found.value, found.is_bound, found.open_above) == (6.0, False, True)
    assert estimated(found) == ("6.00", "[2.00, inf], 3 of 5 reached it")


def test_all_arrive(tmp_path: Path) -> None:
    found = to_target(cell_of(tmp_path, [record([0.1] * n + [0.9], n) for n in range(3)]), "epochs")
    assert found is not None
    assert (found.value, found.low, found.high, found.words) == (2.0, 1.0, 3.0, "")


def test_the_interval_is_the_bootstraps_of_95_percent(tmp_path: Path) -> None:
    """Of seven, the resampled median is below the second with a probability of 1 %, and of 11 % up to it."""
    records = [record([0.1] * n + [0.9], n, settings={"epochs": 8}) for n in range(7)]
    found = to_target(cell_of(tmp_path, records), "epochs")
    assert found is not None
    assert (found.low, found.value, found.high) == (2.0, 4.0, 6.0)


def test_a_run_that_was_cut_short_is_censored_where_it_was_cut(tmp_path: Path) -> None:
    records = [record([0.1, 0.9], 0), record([0.1], 1, "timeout"), record([0.1, 0.1, 0.9], 2)]
    found = attempts(cell_of(tmp_path, records))
    assert [(one.reached, one.train_time_s) for one in found] == [(True, 4.0), (False, 2.0), (True, 6.0)]
    assert median_spent([one.train_time_s for one in found], [one.reached for one in found]) == 5.0


def test_a_run_that_diverged_never_arrives(tmp_path: Path) -> None:
    """It was cut at 2 s like the one above, but it will not arrive: two of four do, so the median is not known."""
    records = [record([0.1, 0.9], 0), record([0.1, 0.9], 1)] + [record([0.1], n, "diverged") for n in (2, 3)]
    found = to_target(cell_of(tmp_path, records), "train_time_s")
    assert found is not None
    assert found.is_bound
    censored = [record([0.1, 0.9], 0), record([0.1, 0.9], 1)] + [record([0.1], n, "timeout") for n in (2, 3)]
    other = to_target(cell_of(tmp_path / "other", censored), "train_time_s")
    assert other is not None
    assert not other.is_bound
    late = attempts(cell_of(tmp_path / "late", [record([0.9, 0.1], 0, "diverged")]))
    assert [(one.reached, one.never) for one in late] == [(True, False)], "it had arrived by then"


def test_a_run_that_failed_otherwise_says_nothing(tmp_path: Path) -> None:
    """Not even where it has a window, as one whose replicas were not equal in the end."""
    lost = msgspec.structs.replace(record([0.9], 1, "comm_error"), window=None)
    found = attempts(cell_of(tmp_path, [record([0.1, 0.9], 0), lost, record([0.9], 2, "invalid")]))
    assert [one.train_time_s for one in found] == [4.0]


def test_without_a_target_there_is_no_number(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, [record([0.9], settings={"target_value": None})])
    assert estimate_of(cell, "time_to_target_s") is None


def test_cost_is_worker_hours_times_the_price_of_the_kind_of_node(tmp_path: Path) -> None:
    """2 workers for 5 s, with evaluation, at 3.60 an hour for each."""
    dear = {"name": "c", "price_per_worker_hour": 3.6, "currency": "CHF"}
    cell = cell_of(tmp_path, [record([0.1, 0.9], settings={"cluster": dear})])
    found = estimate_of(cell, "cost_to_target")
    assert found is not None
    assert found.value == pytest.approx(2 * 5 * 0.001)
    assert label_of("cost_to_target", [cell]) == "cost to target [CHF]"
    free = cell_of(tmp_path / "free", [record([0.1, 0.9])])
    nominal = estimate_of(free, "cost_to_target")
    assert nominal is not None
    assert nominal.value == pytest.approx(2 * 5 / 3600)
    assert "worker-hours, at price 1" in label_of("cost_to_target", [free])
    assert "nominally 1" in label_of("cost_to_target", [cell, free])
    gift = {"name": "c", "price_per_worker_hour": 0.0, "currency": "CHF"}
    given = estimate_of(cell_of(tmp_path / "gift", [record([0.9], settings={"cluster": gift})]), "cost_to_target")
    assert given is not None
    assert given.value == 0.0


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(1.0, 9.0), (2.0, 4.0), (3.0, 5.0), (4.0, 1.0), (4.0, 2.0), (2.0, 4.0)]
    assert on_front(points) == [True, True, False, True, False, True]


def test_panels_show_those_that_do_not_arrive(tmp_path: Path) -> None:
    """Fast and dear, slow and cheap, beaten, and never there: the last is no part of the front, and is drawn."""
    records: list[Record] = []
    for strategy, accuracies in {
        "ddp": [[0.9]] * 3,
        "zero1": [[0.1, 0.9]] * 3,
        "fsdp": [[0.1], [0.1], [0.1]],
    }.items():
        settings = {"strategy": {"name": strategy}}
        status: Status = "timeout" if strategy == "fsdp" else "ok"  # cut so early that it would look best
        records += [record(each, repeat, status, settings) for repeat, each in enumerate(accuracies)]
    synthetic.write(tmp_path, records)
    cells = load_cells(tmp_path).cells
    subject = Subject(cells=cells, title="t")
    front = make_panel(subject, {"kind": "cost_front"})
    shown = {series.label: series.points[0] for series in front.series}
    assert {name: point.on_front for name, point in shown.items()} == {"ddp": True, "zero1": False, "fsdp": False}
    assert shown["fsdp"].y.is_bound
    assert shown["fsdp"].x == 2.5
    bars = make_panel(subject, {"kind": "to_target", "y": "epochs_to_target"})
    assert {point.x: (point.y.value, point.y.is_bound) for point in bars.series[0].points} == {
        "ddp": (1.0, False),
        "zero1": (2.0, False),
        "fsdp": (1.0, True),
    }
    assert "target: accuracy 0.9" in bars.notes


def test_the_report_of_a_sweep_with_a_target(tmp_path: Path) -> None:
    """In CSV a bound has no value and no upper end; the figure is drawn."""
    from analysis.figures.report import begun, figure_names
    from analysis.tables.formats import study_csv

    records = [record([0.9], 0), record([0.5] * 4, 1), record([0.4] * 4, 2)]
    figure = [{"kind": "cost_front"}, {"kind": "to_target", "y": "train_time_to_target_s"}]
    synthetic.write(tmp_path, records)
    folder_manifest(tmp_path, records, figure)
    report = build_report(load_cells(tmp_path))
    assert report.study is not None
    assert not report.problems
    header, line = (row.split(",") for row in study_csv(report).splitlines())
    values = dict(zip(header, line, strict=True))
    assert [values[f"train_time_to_target_s{end}"] for end in ("", "_low", "_high")] == ["", "8.0", ""]
    assert figure_names(report) == ["study.png"]
    assert set(begun(report)()) == {"study.png", "study.svg"}


def folder_manifest(folder: Path, records: Sequence[Record], figure: list[dict[str, Any]]) -> None:
    from benchmarks.core.folder import MANIFEST_NAME

    synthetic.write_manifest(folder, [each.config for each in records])
    path = folder / MANIFEST_NAME
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"figure": figure}))
