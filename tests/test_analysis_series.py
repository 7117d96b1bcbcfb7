"""Who is compared with whom, and with which result."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.cells.point import setting_keys
from analysis.runs.load import Cell, load_cells
from analysis.schema import Report, ScalingPoint, Series
from analysis.series import InvariantError, build_report, check_invariant
from benchmarks.core.record import Communication, Record
from benchmarks.core.sweep import Dropped
from benchmarks.core.variants import Option
from tests import synthetic


def report_of(folder: Path, records: list[Record], planned: list[dict[str, Any]] | None = None) -> Report:
    synthetic.write(folder, records)
    synthetic.write_manifest(folder, [record.config for record in records] if planned is None else planned)
    return build_report(load_cells(folder))


def value(estimate: Any) -> float:
    assert estimate is not None
    return float(estimate.value)


def only(series: list[Series]) -> Series:
    (one,) = series
    return one


def epoch_runs(times_s: dict[int, float], batch_per_worker: int) -> list[Record]:
    """Epochs of a fixed data set of 16,384 samples at a fixed batch per worker."""
    records = []
    for workers, time in times_s.items():
        of = synthetic.config(workers, global_batch=batch_per_worker * workers, epochs=2, steps=None)
        records.append(synthetic.epochs_record(of, [time, time], 16384 // (batch_per_worker * workers)))
    return records


@pytest.mark.parametrize(
    ("times", "batch", "speedup", "efficiency"),
    [({1: 18.07, 2: 10.20}, 512, "1.77", "0.886"), ({1: 18.34, 4: 5.02}, 4096, "3.65", "0.913")],
)
def test_worked_example_through_records(
    tmp_path: Path, times: dict[int, float], batch: int, speedup: str, efficiency: str
) -> None:
    report = report_of(tmp_path, epoch_runs(times, batch))
    series = only(report.weak)
    assert report.strong == []
    base, last = series.points
    assert value(base.epoch_time_s) == pytest.approx(times[1])
    assert f"{value(last.speedup):.2f}" == speedup
    assert f"{value(last.efficiency):.3f}" == efficiency
    # The epoch convention: the ratio of epoch times is the scaled speed-up, not the efficiency.
    assert value(base.epoch_time_s) / value(last.epoch_time_s) == pytest.approx(value(last.speedup))


def test_worked_example_as_strong_scaling_with_uneven_batches(tmp_path: Path) -> None:
    """The same global batch, epochs that end on a smaller batch: ratios of epoch times are the speed-up."""
    records = [
        synthetic.epochs_record(
            synthetic.config(workers, global_batch=512, epochs=1, steps=None), [time], 98, last_batch=336
        )
        for workers, time in ((1, 18.07), (2, 10.20))
    ]
    series = only(report_of(tmp_path, records).strong)
    assert f"{value(series.points[1].speedup):.2f}" == "1.77"
    assert f"{value(series.points[1].efficiency):.3f}" == "0.886"


def test_strong_numbers(tmp_path: Path) -> None:
    times = {1: 0.4, 2: 0.25, 4: 0.2}
    series = only(
        report_of(tmp_path, [synthetic.record(synthetic.config(n), [t] * 4) for n, t in times.items()]).strong
    )
    assert [value(point.speedup) for point in series.points] == pytest.approx([1, 1.6, 2.0])
    assert [value(point.efficiency) for point in series.points] == pytest.approx([1, 0.8, 0.5])
    assert [value(point.throughput_samples_per_s) for point in series.points] == pytest.approx([160, 256, 320])
    assert series.fixed_batch == 64
    assert series.base
    assert series.base.workers == 1
    assert series.base.step_time_s == pytest.approx(0.4)


def test_weak_numbers_and_a_cell_in_both_kinds(tmp_path: Path) -> None:
    cells = {(1, 64): 0.4, (2, 64): 0.25, (2, 128): 0.5, (4, 256): 0.8}
    report = report_of(
        tmp_path, [synthetic.record(synthetic.config(n, global_batch=b), [t] * 4) for (n, b), t in cells.items()]
    )
    weak = only(report.weak)
    assert [point.workers for point in weak.points] == [1, 2, 4]
    assert [value(point.efficiency) for point in weak.points] == pytest.approx([1, 0.8, 0.5])
    assert [value(point.speedup) for point in weak.points] == pytest.approx([1, 1.6, 2.0])
    assert weak.points[0].cell_id == only(report.strong).points[0].cell_id
    assert len(report.cells) == 4
    assert report.outside_series == []


def test_medians_not_means(tmp_path: Path) -> None:
    records = [
        synthetic.record(synthetic.config(n, repeat=r), [t] * 4)
        for n, times in ((1, (0.4, 0.4, 9.0)), (2, (0.2, 0.25, 7.0)))
        for r, t in enumerate(times)
    ]
    point = only(report_of(tmp_path, records).strong).points[1]
    assert value(point.step_time_s) == pytest.approx(0.25)
    assert value(point.speedup) == pytest.approx(1.6)
    assert point.speedup
    assert point.speedup.low == pytest.approx(0.4 / 7.0)
    assert point.speedup.high == pytest.approx(9.0 / 0.2)  # the base's noise is in the ratio


def test_base_is_the_smallest_number_with_a_result(tmp_path: Path) -> None:
    records = [synthetic.failed(synthetic.config(1), "oom")]
    records += [synthetic.record(synthetic.config(n), [t] * 4) for n, t in ((2, 0.4), (4, 0.25))]
    series = only(report_of(tmp_path, records).strong)
    assert series.base
    assert series.base.workers == 2
    assert series.points[0].status == "oom"
    assert series.points[0].speedup is series.points[0].step_time_s is None
    assert value(series.points[2].speedup) == pytest.approx(1.6)
    assert value(series.points[2].efficiency) == pytest.approx(0.8)


def test_some_repeats_failed(tmp_path: Path) -> None:
    configs = [synthetic.config(1, repeat=repeat) for repeat in range(4)]
    records = [synthetic.record(configs[0]), synthetic.record(configs[1]), synthetic.failed(configs[2], "timeout")]
    (point,) = report_of(tmp_path, records, configs).cells
    assert (point.status, point.repeats_ok, point.failed, point.repeats_missing) == ("ok", 2, {"timeout": 1}, 1)
    assert point.reason == "1 of 4 failed: timeout (hang: rank 1 is silent); 1 of 4 not run yet"


def test_nothing_measured_yet(tmp_path: Path) -> None:
    report = report_of(tmp_path, [], [synthetic.config(workers) for workers in (1, 2)])
    series = only(report.strong)
    assert series.base is None
    assert [point.status for point in series.points] == ["planned", "planned"]
    assert (report.runs.planned, report.runs.missing, report.runs.ok) == (2, 2, 0)


def test_all_in_one_repeat_count(tmp_path: Path) -> None:
    synthetic.demo_sweep(tmp_path)
    runs = build_report(load_cells(tmp_path)).runs
    assert (runs.planned, runs.ok, runs.failed, runs.missing) == (96, 87, {"oom": 3, "timeout": 1}, 5)
    assert runs.planned == runs.ok + sum(runs.failed.values()) + runs.missing


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": {"name": "zero"}},
        {"precision": {"name": "bf16"}},
        {"threads_per_worker": 2},
        {"data": {"name": "digits", "train_samples": 99}},
        {"optimizer": {"name": "sgd", "lr": 0.1}},
    ],
)
def test_cells_that_differ_in_anything_else_are_not_compared(tmp_path: Path, changes: dict[str, Any]) -> None:
    report = report_of(
        tmp_path, [synthetic.record(synthetic.config(1)), synthetic.record(synthetic.config(2, **changes))]
    )
    assert report.strong == report.weak == []
    assert len(report.outside_series) == 2


@pytest.mark.parametrize("changes", [{"run_limit_s": 1.0}, {"seed": 99}, {"cluster": {"name": "other"}}])
def test_where_and_with_which_seed_does_not_matter(tmp_path: Path, changes: dict[str, Any]) -> None:
    report = report_of(
        tmp_path, [synthetic.record(synthetic.config(1)), synthetic.record(synthetic.config(2, **changes))]
    )
    assert len(report.strong) == 1


def cell(workers: int, global_batch: int, **changes: Any) -> Cell:
    batch = global_batch // workers
    return Cell(
        cell_id=f"{workers}-{global_batch}",
        config={"workers": workers, "global_batch": global_batch, "batch_per_worker": batch, **changes},
        workers=workers,
        global_batch=global_batch,
        batch_per_worker=batch,
    )


def test_each_kind_refuses_the_other_kinds_rows() -> None:
    check_invariant("strong", [cell(1, 64), cell(2, 64)])
    check_invariant("weak", [cell(1, 64), cell(2, 128)])
    with pytest.raises(InvariantError, match="same global_batch in all cells, not 64 and 128"):
        check_invariant("strong", [cell(1, 64), cell(2, 128)])
    with pytest.raises(InvariantError, match="same batch_per_worker in all cells, not 64 and 32"):
        check_invariant("weak", [cell(1, 64), cell(2, 64)])
    with pytest.raises(InvariantError, match="same strategy"):
        check_invariant("strong", [cell(1, 64, strategy="a"), cell(2, 64, strategy="b")])
    with pytest.raises(InvariantError, match="the same point"):
        check_invariant("strong", [cell(1, 64), cell(1, 64)])
    wrong = cell(2, 64)
    wrong.batch_per_worker = 64
    with pytest.raises(InvariantError, match="not batch_per_worker x workers = 64 x 2"):
        check_invariant("strong", [wrong])


def test_two_cells_for_one_point_are_refused_and_said(tmp_path: Path) -> None:
    records = [synthetic.record(synthetic.config(n)) for n in (1, 2)]
    records.append(synthetic.record(synthetic.config(2), run_id="other", cell_id="other"))
    report = report_of(tmp_path, records)
    assert report.strong == []
    assert any("the same point" in problem for problem in report.problems)
    assert len(report.cells) == 3


def test_superlinear_is_flagged_only_beyond_its_interval(tmp_path: Path) -> None:
    noisy = [0.05, 0.35] * 8
    cells = {(1, 64): [0.4] * 4, (2, 64): [0.1] * 4, (4, 64): [0.1] * 4, (8, 64): [t / 4.2 for t in noisy]}
    series = only(
        report_of(
            tmp_path, [synthetic.record(synthetic.config(n, global_batch=b), t) for (n, b), t in cells.items()]
        ).strong
    )
    assert [point.above_ideal for point in series.points] == [False, True, False, False]
    assert value(series.points[3].efficiency) > 1  # above, but within its interval


def test_settings_that_follow_from_a_name_are_no_columns() -> None:
    ddp: dict[str, Option] = {"workers": 1, "strategy": "ddp", "strategy.bucket_mb": 25, "optimizer.lr": 0.1, "seed": 1}
    single: dict[str, Option] = {"workers": 2, "strategy": "single", "optimizer.lr": 0.1, "seed": 2}
    assert setting_keys([ddp, single]) == ["strategy"]
    assert setting_keys([ddp, {**ddp, "strategy.bucket_mb": 1}, single]) == ["strategy", "strategy.bucket_mb"]
    assert setting_keys([ddp, {**ddp, "optimizer.lr": 0.2}]) == ["optimizer.lr"]
    assert setting_keys([ddp, ddp | {"workers": 9, "run_limit_s": 1, "cluster": "x", "data.root": "/a"}]) == []


def test_dropped_cells_are_kept(tmp_path: Path) -> None:
    synthetic.write_manifest(tmp_path, [], [Dropped(settings={"workers": 3}, reason="cannot be shared")])
    (dropped,) = build_report(load_cells(tmp_path)).dropped
    assert (dropped.settings, dropped.reason) == ({"workers": 3}, "cannot be shared")


@settings(max_examples=10, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_order_of_cells_and_runs_does_not_matter(
    order: random.Random, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    synthetic.write(
        folder, [synthetic.record(synthetic.config(n, repeat=r), [0.1, 0.2 + r]) for n in (1, 2, 4) for r in range(3)]
    )
    loaded = load_cells(folder)
    expected = build_report(loaded)
    order.shuffle(loaded.cells)
    assert build_report(loaded) == expected


def test_series_are_sorted_and_numbered(tmp_path: Path) -> None:
    records = []
    for n, b, lr in itertools.product((2, 1), (128, 64), (10.0, 9.0)):
        of = synthetic.config(n, global_batch=b, optimizer={"name": "sgd", "lr": lr})
        records.append(synthetic.record(of, cell_id=f"{n}-{b}-{lr}", run_id=f"{n}-{b}-{lr}"))
    report = report_of(tmp_path, records, [])
    assert [(one.number, one.settings["optimizer.lr"], one.fixed_batch) for one in report.strong] == [
        (1, 9.0, 64),
        (2, 9.0, 128),
        (3, 10.0, 64),
        (4, 10.0, 128),
    ]
    assert all(isinstance(point, ScalingPoint) for one in report.strong for point in one.points)
    assert report.strong[0].label == "lenet ddp optimizer.lr=9.0, global batch 64"


def test_communication_of_the_median_repeat(tmp_path: Path) -> None:
    """Two repeats with means of 2 and 4 ms, one of which only in some steps; a strategy that cannot say has none."""
    records = []
    for repeat, exposed in enumerate(([0.0, 0.0, 0.0, 0.008], [0.004, 0.005, 0.003, 0.004])):
        record = synthetic.record(synthetic.config(2, repeat=repeat))
        assert record.window is not None
        record.window.exposed_comm_s = exposed
        record.communication = Communication(
            bytes_per_step=331_304,
            unsynchronised_step_s={64: 0.1},
            allreduce_bytes=331_304,
            allreduce_s=0.001,
            allreduce_gb_per_s=0.331304,
        )
        records.append(record)
    records.append(synthetic.record(synthetic.config(1)))
    unknown, known = sorted(report_of(tmp_path, records).cells, key=lambda point: point.workers)
    assert known.exposed_comm_s == pytest.approx(0.003)
    assert known.bytes_per_step == 331_304
    assert (unknown.exposed_comm_s, unknown.bytes_per_step) == (None, None)
