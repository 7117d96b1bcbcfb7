"""What limits a cell: known shares to the third digit, and real causes read back by name."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.runs.diagnosis import Bottleneck
from analysis.runs.load import load_cells
from analysis.schema import Report
from analysis.series import build_report
from analysis.tables.formats import all_tables, cells_csv, markdown
from benchmarks.core.profile import RankProfile, TensorCount, TimeSplit
from benchmarks.core.record import Record, Span, Window
from benchmarks.supervision.supervisor import supervise
from tests import synthetic
from tests.conftest import MakeRun

STEPS = 4


def of_ranks(
    compute_s: list[list[float]],
    data_s: list[list[float]] | None = None,
    communication_s: float = 0.0,
    **changes: Any,
) -> Record:
    """A record of ranks that move in step, from each rank's times step by step, as a run of them would leave it.

    All ranks get their gradients together, `communication_s` after the last one is ready.
    """
    ranks, steps = len(compute_s), len(compute_s[0])
    data_s = data_s or [[0.0] * steps for _ in range(ranks)]
    ready = [[data_s[rank][step] + compute_s[rank][step] for step in range(steps)] for rank in range(ranks)]
    step_s = [max(of_rank[step] for of_rank in ready) + communication_s for step in range(steps)]
    of = synthetic.config(ranks)
    window = Window(
        clock="monotonic",
        step_time_s=step_s,
        compute_time_s=[max(of_rank[step] for of_rank in compute_s) for step in range(steps)],
        data_wait_s=[max(of_rank[step] for of_rank in data_s) for step in range(steps)],
        exposed_comm_s=changes.pop("exposed_comm_s", None),
        samples=[64] * steps,
        loss=[1.0] * steps,
        spans=[
            Span(
                steps=steps,
                samples=64 * steps,
                wall_time_s=sum(step_s),
                sync_wait_s_by_rank=[sum(step_s) - sum(of_rank) for of_rank in ready],
            )
        ],
    )
    summaries = [
        msgspec.structs.replace(
            synthetic.rank_summary(rank, sorted(ready[rank])[steps // 2]),
            data_wait_s=sorted(data_s[rank])[steps // 2],
            sync_wait_s=sorted(step_s)[steps // 2] - sorted(ready[rank])[steps // 2],
        )
        for rank in range(ranks)
    ]
    return synthetic.record(of, window=window, ranks=summaries, **changes)


def unmarked(record: Record, exposed_comm_s: list[float] | None = None) -> Record:
    """The same of a strategy that marks no last gradient: waits for others count as computing."""
    assert record.window is not None
    window = record.window
    seen = [step - data for step, data in zip(window.step_time_s, window.data_wait_s, strict=True)]
    spans = [msgspec.structs.replace(span, sync_wait_s_by_rank=None) for span in window.spans]
    window = msgspec.structs.replace(window, compute_time_s=seen, exposed_comm_s=exposed_comm_s, spans=spans)
    ranks = [msgspec.structs.replace(rank, own_time_s=rank.step_time_s, sync_wait_s=None) for rank in record.ranks]
    return msgspec.structs.replace(record, window=window, ranks=ranks)


def profiled(workers: int, repeat: int = 9, **split: float) -> Record:
    """A profiled repeat; `step_s` is the profiled step's length, `plain_step_s` that of one without the profiler."""
    plain_step_s = split.pop("plain_step_s", split["step_s"])
    parts = {"compute_s": 0.0, "copy_s": 0.0, "exposed_communication_s": 0.0, "idle_s": 0.0} | split
    counts = TensorCount(tensors=1, elements=1, bytes=4)
    ranks = [
        RankProfile(
            rank=rank,
            steps=3,
            plain_step_s=plain_step_s,
            split=TimeSplit(hidden_communication_s=0.0, **parts),
            operators=[],
            parameters=counts,
            gradients=counts,
            trace=None,
            trace_events_left_out=0,
        )
        for rank in range(workers)
    ]
    of = synthetic.config(workers, repeat=repeat, profile=True)
    return synthetic.record(of, status="profiled", window=None, ranks=[], evaluation=[], profile=ranks)


def report_of(folder: Path, *records: Record) -> Report:
    synthetic.write(folder, records)
    report = build_report(load_cells(folder))
    msgspec.json.encode(report)  # plain numbers, as every report must hold
    return report


def found(folder: Path, *records: Record) -> Bottleneck:
    bottleneck = report_of(folder, *records).cells[0].bottleneck
    assert bottleneck
    return bottleneck


def shares(bottleneck: Bottleneck) -> dict[str, float]:
    """The known ones, to the third digit."""
    return {cause: round(share, 3) for cause, share in bottleneck.shares.items() if share is not None}


def known(**of: float) -> dict[str, float]:
    return {"data": 0.0, "communication": 0.0, "stragglers": 0.0} | of


def test_one_worker_waits_for_data(tmp_path: Path) -> None:
    bottleneck = found(tmp_path, of_ranks([[0.057] * STEPS], [[0.043] * STEPS]))
    assert (bottleneck.name, round(bottleneck.share or 0, 3)) == ("data", 0.43)
    assert shares(bottleneck) == known(data=0.43, compute=0.57)
    assert bottleneck.sentence.startswith(
        "Waiting for data takes 43.0% of a step: without it, a step of 100 ms could take 57 ms, but no less."
    )


def test_data_that_come_while_another_rank_computes_cost_nothing(tmp_path: Path) -> None:
    """Rank 0 waits 40 ms for data and rank 1 computes 100 ms: of the wait only what sticks out costs time."""
    bottleneck = found(tmp_path, of_ranks([[0.07] * STEPS, [0.1] * STEPS], [[0.04] * STEPS, [0.0] * STEPS]))
    # A step takes 110 ms; without the wait it would take 100 ms; with both as fast as the faster one, 70 ms.
    assert shares(bottleneck) == known(data=round(10 / 110, 3), stragglers=round(30 / 110, 3), compute=0.636)
    assert bottleneck.name == "stragglers"


def test_a_rare_wait_counts_by_its_mean(tmp_path: Path) -> None:
    """A median would not see it."""
    bottleneck = found(tmp_path, of_ranks([[0.1] * STEPS], [[0.0, 0.0, 0.0, 0.4]]))
    assert (bottleneck.name, shares(bottleneck)["data"]) == ("data", 0.5)


def test_stragglers_are_taken_out_of_communication(tmp_path: Path) -> None:
    """Three ranks compute 50 ms, one 110 ms, and the all-reduce takes 40 ms: the fast ones wait 100 ms."""
    record = of_ranks([[0.05] * STEPS] * 2 + [[0.11] * STEPS] + [[0.05] * STEPS], communication_s=0.04)
    bottleneck = found(tmp_path, record)
    assert shares(bottleneck) == known(communication=0.267, stragglers=0.4, compute=0.333)
    assert bottleneck.name == "stragglers"
    assert "Rank 2 on node0 takes 2.20 times the median rank's time." in bottleneck.sentence


def test_ranks_that_are_late_by_turns_are_stragglers(tmp_path: Path) -> None:
    """Each rank is as fast as the other one, by median and by mean: only step by step one waits."""
    turns = [[0.2, 0.1, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1], [0.1, 0.1, 0.2, 0.1, 0.1, 0.1, 0.2, 0.1]]
    bottleneck = found(tmp_path, of_ranks(turns))
    # 150 ms a step, of which either rank computes 125 ms.
    assert shares(bottleneck) == known(stragglers=round(25 / 150, 3), compute=round(125 / 150, 3))
    assert bottleneck.name == "stragglers"


def test_stragglers_by_medians_where_waits_are_not_in_the_spans(tmp_path: Path) -> None:
    record = of_ranks([[0.05] * STEPS, [0.2, 0.2, 0.2, 2.0]])
    assert record.window is not None
    record.window.spans[0].sync_wait_s_by_rank = None
    # A step takes 650 ms in the mean; by medians, one rank takes 150 ms longer than the other.
    assert shares(found(tmp_path, record)) == known(stragglers=round(150 / 650, 3), compute=round(500 / 650, 3))


def test_a_machine_that_stalls_makes_no_straggler(tmp_path: Path) -> None:
    together = [[0.1, 0.5, 0.1, 0.1], [0.1, 0.5, 0.1, 0.1]]
    assert shares(found(tmp_path, of_ranks(together))) == known(compute=1.0)


def test_communication_that_slows_computing_counts(tmp_path: Path) -> None:
    """30 ms after the last gradient; and 70 ms of computing which take 55 ms where nobody communicates."""
    record = of_ranks([[0.07] * STEPS] * 2, communication_s=0.03, exposed_comm_s=[0.045] * STEPS)
    bottleneck = found(tmp_path, record)
    assert shares(bottleneck) == known(communication=0.45, compute=0.55)
    assert bottleneck.name == "communication"


def test_without_marks_communication_is_what_steps_without_it_save(tmp_path: Path) -> None:
    record = unmarked(of_ranks([[0.1] * STEPS] * 2, communication_s=0.1), exposed_comm_s=[0.08, 0.08, 0.08, 0.06])
    bottleneck = found(tmp_path, record)
    assert (bottleneck.name, shares(bottleneck)) == ("communication", {"data": 0.0, "communication": 0.375})
    assert "Stragglers are unknown" in bottleneck.sentence


def test_what_could_be_the_cause_and_is_not_known_is_said(tmp_path: Path) -> None:
    bottleneck = found(tmp_path, unmarked(of_ranks([[0.1] * STEPS] * 2, [[0.005] * STEPS] * 2, communication_s=0.1)))
    assert (bottleneck.name, bottleneck.share) == ("unknown", None)
    assert bottleneck.shares["communication"] is bottleneck.shares["stragglers"] is bottleneck.shares["compute"] is None
    assert "Communication is unknown" in bottleneck.sentence


def test_a_profiled_repeat_tells_the_communication_that_the_window_cannot(tmp_path: Path) -> None:
    record = unmarked(of_ranks([[0.1] * STEPS] * 2, communication_s=0.1))
    profile = profiled(2, step_s=0.2, compute_s=0.11, exposed_communication_s=0.09)
    bottleneck = found(tmp_path, record, profile)
    assert (bottleneck.name, shares(bottleneck)["communication"]) == ("communication", 0.45)
    assert "the profiled repeat's" in bottleneck.sentence


def test_launch_overhead_is_idle_time_without_the_profilers_own_and_without_data(tmp_path: Path) -> None:
    """60 ms idle of a profiled step, 20 ms more than one without the profiler; 10 ms of the rest wait for data."""
    profile = profiled(1, step_s=0.12, plain_step_s=0.1, compute_s=0.05, copy_s=0.01, idle_s=0.06)
    bottleneck = found(tmp_path, of_ranks([[0.09] * STEPS], [[0.01] * STEPS]), profile)
    assert bottleneck.name == "launch"
    assert shares(bottleneck) == known(data=0.1, launch=0.3, memory=0.1, compute=0.5)


def test_copies_name_memory(tmp_path: Path) -> None:
    """Data wait beyond all idle time is waiting for their copies."""
    profile = profiled(1, step_s=0.1, compute_s=0.5 * 0.1, copy_s=0.046, idle_s=0.004)
    bottleneck = found(tmp_path, of_ranks([[0.09] * STEPS], [[0.01] * STEPS]), profile)
    assert bottleneck.name == "memory"
    assert shares(bottleneck) == known(data=0.1, launch=0.0, memory=0.4, compute=0.5)


@pytest.mark.parametrize(("wait_s", "name"), [(0.0099, "compute"), (0.0101, "data")])
def test_the_threshold(tmp_path: Path, wait_s: float, name: str) -> None:
    record = of_ranks([[0.1 - wait_s] * STEPS], [[wait_s] * STEPS])
    assert found(tmp_path, record).name == name


def test_shares_are_medians_over_repeats_and_never_more_than_all(tmp_path: Path) -> None:
    records = [
        msgspec.structs.replace(of_ranks([[1 - wait] * STEPS], [[wait] * STEPS]), run_id=f"r{wait}", repeat=number)
        for number, wait in enumerate((0.3, 0.8, 0.2))
    ]
    profile = profiled(1, step_s=1.0, idle_s=1.0, copy_s=0.4)  # of another run than the window, so it may not fit
    bottleneck = found(tmp_path, *records, profile)
    assert shares(bottleneck) == known(data=0.3, launch=0.7, memory=0.0, compute=0.0)


def test_in_every_table(tmp_path: Path) -> None:
    report = report_of(tmp_path, of_ranks([[0.057] * STEPS], [[0.043] * STEPS]), of_ranks([[0.05] * STEPS] * 2))
    (row, other) = csv.DictReader(io.StringIO(cells_csv(report)))
    assert row["bottleneck"] == "data"
    assert float(row["data_share"]) == pytest.approx(0.43)
    assert (row["launch_share"], other["bottleneck"]) == ("", "compute")
    (table,) = [table for table in all_tables(report) if table.name == "strong"]
    column = table.header.index("bottleneck")
    assert [row[column].text for row in table.rows] == ["data", "compute"]
    assert "data 43%" in markdown(report, [])
    assert "the most that removing it would save" in " ".join(table.notes)


# Real runs: each cause is put in, and must be named.


def diagnosed(folder: Path, *runs: Any) -> Bottleneck:
    for run in runs:
        record = supervise(run, folder / run.run_id)
        assert record is not None
        assert record.status in {"ok", "profiled"}, record.reason
    (cell,) = build_report(load_cells(folder)).cells
    assert cell.bottleneck
    return cell.bottleneck


SLEEP = {"workload": "faulty", "workload__fault": "sleep", "workload__rank": -1, "workload__sleep_s": 0.02}
"""A model whose work is to sleep, so that the machine's noise does not decide."""


@pytest.mark.alone
def test_a_slowed_rank_is_read_back(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(strategy="ddp", slowdown={1: 2.0}, workers=2, steps=15, evaluate=False, **SLEEP)
    bottleneck = diagnosed(tmp_path, run)
    assert bottleneck.name == "stragglers", bottleneck.sentence
    assert bottleneck.share == pytest.approx(0.5, abs=0.1)
    assert "Rank 1 on " in bottleneck.sentence


@pytest.mark.alone
def test_a_slow_loader_is_read_back(make_run: MakeRun, tmp_path: Path) -> None:
    slow = {"augmentation": "slow", "augmentation__sleep_s": 0.002}
    run = make_run(strategy="single", steps=10, evaluate=False, loader="host", batch_per_worker=16, **slow, **SLEEP)
    bottleneck = diagnosed(tmp_path, run)
    assert bottleneck.name == "data", bottleneck.sentence
    assert bottleneck.share == pytest.approx(32 / 52, abs=0.12)


@pytest.mark.alone
def test_large_gradients_of_a_small_computation_are_read_back(make_run: MakeRun, tmp_path: Path) -> None:
    """16 MB of gradients over the loopback, from one sample for each worker."""
    model = {"workload": "mlp", "workload__hidden_size": 2048, "workload__hidden_layers": 2}
    run = make_run(strategy="ddp", workers=2, batch_per_worker=1, steps=10, evaluate=False, **model)
    bottleneck = diagnosed(tmp_path, run)
    assert bottleneck.name == "communication", bottleneck.sentence


@pytest.mark.alone
def test_a_resnet_computes(make_run: MakeRun, tmp_path: Path) -> None:
    settings = {"workload": "resnet18", "strategy": "single", "batch_per_worker": 32, "steps": 3, "evaluate": False}
    bottleneck = diagnosed(tmp_path, make_run(**settings))
    assert bottleneck.name == "compute", bottleneck.sentence
    assert "with launch overhead and copies within it" in bottleneck.sentence


@pytest.mark.alone
def test_python_between_operators_is_read_back_from_a_profile(make_run: MakeRun, tmp_path: Path) -> None:
    settings = {"strategy": "single", "steps": 5, "evaluate": False, **SLEEP}
    bottleneck = diagnosed(tmp_path, make_run(**settings), make_run(profile=True, **settings))
    assert bottleneck.name == "launch", bottleneck.sentence
