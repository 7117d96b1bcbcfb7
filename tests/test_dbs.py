"""Dynamic batch size: shares that follow speed, a total that stays, and the time that it saves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.core.record import Record
from benchmarks.strategy.dbs import SpeedDivision, apportion, smoothed
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun
from tests.test_supervisor import faulty

speeds = st.lists(st.floats(0.01, 100.0), min_size=1, max_size=9)


@given(st.integers(1, 2000), speeds, st.integers(0, 50), st.integers(0, 2000))
def test_parts_keep_the_total_and_the_bounds(total: int, weights: list[float], least: int, most: int) -> None:
    parts = apportion(total, weights, least, most)
    assert sum(parts) == total
    equal = total // len(weights)
    assert min(parts) >= min(least, equal)
    assert max(parts) <= max(most, -(-total // len(weights)))


@given(st.integers(1, 2000), speeds)
def test_parts_without_bounds_are_within_one_of_the_proportion(total: int, weights: list[float]) -> None:
    parts = apportion(total, weights, 0, total)
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1.0


@pytest.mark.parametrize(
    ("total", "weights", "least", "most", "parts"),
    [
        (90, [2.0, 1.0], 2, 90, [60, 30]),
        (10, [1.0, 1.0, 1.0], 2, 10, [4, 3, 3]),
        (100, [98.0, 1.0, 1.0], 10, 100, [80, 10, 10]),
        (100, [98.0, 1.0, 1.0], 2, 60, [60, 20, 20]),
        (100, [60.0, 39.0, 1.0], 10, 50, [50, 40, 10]),
        (17, [1.0, 1.0, 1.0, 100.0], 2, 68, [2, 2, 2, 11]),
        (5, [1.0, 1.0, 1.0], 2, 5, [2, 2, 1]),
    ],
)
def test_parts_by_hand(total: int, weights: list[float], least: int, most: int, parts: list[int]) -> None:
    assert apportion(total, weights, least, most) == parts


def test_speeds_are_smoothed() -> None:
    assert smoothed([[4.0, 8.0]], 0.5) == [4.0, 8.0]
    assert smoothed([[4.0, 8.0], [8.0, 8.0], [2.0, 8.0]], 0.5) == [4.0, 8.0]
    assert smoothed([[4.0, 8.0], [1.0, 2.0]], 1.0) == [1.0, 2.0]


@given(st.integers(2, 500), st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6))
def test_ranks_parts_join_and_their_weights_make_the_mean(size: int, measured: list[float]) -> None:
    divisions = [SpeedDivision(rank, len(measured), 0.1, 4.0) for rank in range(len(measured))]
    for division in divisions:
        division.part(size)  # must not be remembered beyond the next measurement
        division.follow(measured)
    parts = [division.part(size) for division in divisions]
    assert (parts[0].start, parts[-1].stop) == (0, size)
    assert all(one.stop == other.start for one, other in pairwise(parts))
    for division, part in zip(divisions, parts, strict=True):
        assert division.weight(size) == pytest.approx((part.stop - part.start) / size * len(measured))


def seconds_of(record: Record | None) -> list[float]:
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.window is not None
    return [span.wall_time_s for span in record.window.spans]


@pytest.mark.alone
def test_a_worker_at_half_speed_gets_half_the_share_within_three_epochs(make_run: MakeRun, tmp_path: Path) -> None:
    """0.4 ms for each sample on rank 0 and 0.8 ms on rank 1: of 100, 67 and 33 take equally long.

    Two equal halves take the slow worker 40 ms; in theory two thirds of that are left.
    """
    settings: dict[str, Any] = {
        "workload__rank": -1,
        "workload__sleep_s": 0.0004,
        "global_batch": 100,
        "steps": None,
        "epochs": 4,
    }
    settings |= {"evaluate": False, "slowdown": {1: 2.0}, "data": "synthetic", "data__train_samples": 1000}
    dynamic = supervise(faulty(make_run, "work", strategy="dbs", **settings), tmp_path / "dbs")
    equal = supervise(faulty(make_run, "work", **settings), tmp_path / "ddp")
    ratio = min(seconds_of(dynamic)[2:]) / min(seconds_of(equal)[2:])
    assert 0.6 < ratio <= 0.75, "in theory 0.67"
    assert dynamic is not None
    assert dynamic.window is not None
    shares = [span.samples_by_rank for span in dynamic.window.spans]
    assert shares[0] == [500, 500]
    assert [sum(share) for share in shares] == [1000] * 4
    for share in shares[2:]:
        assert share[0] / share[1] == pytest.approx(2.0, rel=0.12)
    waits = [span.sync_wait_s_by_rank for span in dynamic.window.spans]
    assert waits[0] is not None
    assert waits[3] is not None
    assert waits[3][0] < 0.4 * waits[0][0], "the fast worker waited for the slow one, and does no longer"
    speeds = dynamic.strategy_facts["own_samples_per_s_by_epoch"]
    assert len(speeds) == 4
    assert speeds[3][0] / speeds[3][1] == pytest.approx(2.0, rel=0.15)
