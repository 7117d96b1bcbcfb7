"""Known answers: one window out of two ranks' results."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.core.record import Check, Evaluation
from benchmarks.measuring.step_times import Communication, StepTimes
from benchmarks.supervision.merge import (
    RankResult,
    ledger,
    merge_checks,
    merge_communication,
    merge_memory,
    merge_window,
    steps_of_all,
    summarise,
)


def result(rank: int, **changes: object) -> RankResult:
    fields: dict[str, object] = {
        "rank": rank,
        "host": "n1",
        "device": "cpu",
        "threads": 1,
        "phases": [("rendezvous", 2_000_000_000), ("window", 3_000_000_000), ("end", 5_000_000_000)],
    }
    return RankResult(**(fields | changes))  # type: ignore[arg-type]


def span(step_s: list[float], data_s: list[float], sync_s: list[float] | None, wall: float) -> StepTimes:
    return StepTimes(step_s=step_s, data_wait_s=data_s, sync_wait_s=sync_s, wall_time_s=wall)


FAST = result(
    0,
    spans=[span([0.5, 0.5], [0.125, 0.0], [0.25, 0.25], 1.0), span([0.5], [0.0], [0.25], 0.5)],
    samples=[16, 16, 8],
    losses=[2.0, 1.0, 0.5],
    checks=[Check(name="a", passed=True, detail="fine"), Check(name="b", passed=True, detail="fine")],
    peak_host_bytes=100,
    peak_device_bytes=7,
)
SLOW = result(
    1,
    spans=[span([0.75, 0.25], [0.0, 0.0], [0.0, 0.125], 1.125), span([0.5], [0.25], [0.0], 0.5)],
    samples=[16, 16, 24],
    losses=[4.0, 3.0, 1.5],
    checks=[Check(name="a", passed=True, detail="fine"), Check(name="b", passed=False, detail="broken")],
    peak_host_bytes=200,
    peak_device_bytes=5,
)


def test_the_slowest_rank_makes_the_step() -> None:
    window = merge_window([FAST, SLOW])
    assert window.step_time_s == [0.75, 0.5, 0.5]
    assert window.data_wait_s == [0.125, 0.0, 0.25]
    assert window.compute_time_s == [0.75, 0.25, 0.25]
    assert window.samples == [32, 32, 32]
    assert window.loss == [3.0, 2.0, pytest.approx((0.5 * 8 + 1.5 * 24) / 32)]
    assert [(s.steps, s.samples, s.wall_time_s) for s in window.spans] == [(2, 64, 1.125), (1, 32, 0.5)]
    assert window.exposed_comm_s is None


def test_a_loss_that_one_rank_does_not_know_is_unknown() -> None:
    unknown = result(1, spans=SLOW.spans, samples=SLOW.samples, losses=[4.0, None, 1.5])
    assert merge_window([FAST, unknown]).loss == [3.0, None, pytest.approx(1.25)]


def test_own_time_is_what_the_rank_did_not_wait_for_others() -> None:
    summary = summarise(FAST)
    assert (summary.step_time_s, summary.own_time_s, summary.sync_wait_s) == (0.5, 0.25, 0.25)
    alone = summarise(result(0, spans=[span([0.5, 0.75, 0.5], [0.0, 0.0, 0.0], None, 1.75)]))
    assert (alone.own_time_s, alone.sync_wait_s) == (0.5, None)


def test_a_check_fails_where_any_rank_fails_it() -> None:
    merged = {check.name: (check.passed, check.detail) for check in merge_checks([FAST, SLOW])}
    assert merged == {"a": (True, "fine"), "b": (False, "rank 1: broken")}


def test_memory_is_the_largest() -> None:
    memory = merge_memory([FAST, SLOW])
    assert (memory.peak_host_bytes, memory.peak_device_bytes) == (200, 7)
    assert merge_memory([result(0, peak_host_bytes=3)]).peak_device_bytes is None


def test_the_ledger_has_no_gap() -> None:
    assert ledger(FAST, 500_000_000, 6_000_000_000) == {
        "start": 1.5,
        "rendezvous": 1.0,
        "window": 2.0,
        "teardown": 1.0,
    }
    assert ledger(None, 500_000_000, 6_000_000_000) == {"start": 5.5}


def test_steps_that_one_rank_has_not_finished_are_cut_off() -> None:
    """In the second span one rank is a step ahead; the third, only one rank has begun."""
    one = span([1.0, 1.0], [0.5, 0.5], [0.25, 0.25], 2.125)
    ahead = result(0, spans=[one, span([1.0, 2.0], [0.0, 0.5], None, 3.0), one], samples=[8] * 6, losses=[None] * 6)
    behind = result(1, spans=[one, span([3.0], [1.0], None, 3.0)], samples=[8] * 3, losses=[None] * 3)
    window = merge_window(steps_of_all([ahead, behind]))
    assert window.step_time_s == [1.0, 1.0, 3.0]
    assert window.samples == [16] * 3
    assert window.loss == [None] * 3
    assert [(cut.steps, cut.samples, cut.wall_time_s) for cut in window.spans] == [(2, 32, 2.125), (1, 16, 3.0)]


def test_ranks_without_a_step_in_common_have_measured_nothing() -> None:
    assert steps_of_all([]) == []
    assert steps_of_all([FAST, result(1)]) == []
    assert steps_of_all([FAST, result(1, spans=[span([], [], [], 0.0)])]) == []


def test_an_evaluation_after_steps_that_were_cut_off_goes_with_them() -> None:
    evaluations = [Evaluation(after_steps=steps, time_s=1.0, samples=10, accuracy=0.5, loss=None) for steps in (2, 3)]
    behind = msgspec.structs.replace(SLOW, spans=SLOW.spans[:1])
    cut = steps_of_all([msgspec.structs.replace(FAST, evaluations=evaluations), behind])
    assert cut[0].evaluations == evaluations[:1]


def probed(of: RankResult, without_s: dict[int, float] | None, allreduce_s: float) -> RankResult:
    communication = Communication(
        bytes_per_step=600, unsynchronised_step_s=without_s, allreduce_bytes=1000, allreduce_s=allreduce_s
    )
    return msgspec.structs.replace(of, communication=communication)


def test_exposed_communication_is_what_the_slowest_rank_would_not_need() -> None:
    """Each step against its own batch's size; below zero where noise makes it so."""
    ranks = [probed(FAST, {32: 0.25}, 0.5), probed(SLOW, {32: 0.625}, 0.25)]
    assert merge_window(ranks).exposed_comm_s == [0.125, -0.125, -0.125]
    merged = merge_communication(ranks)
    assert merged is not None
    assert (merged.bytes_per_step, merged.unsynchronised_step_s) == (600, {32: 0.625})
    assert merged.allreduce_gb_per_s == pytest.approx(1000 / 0.5 / 1e9), "two workers: 2 (2-1)/2 x 1000 bytes"
    assert merged.allreduce_s == 0.5


def test_communication_that_one_rank_does_not_know_is_unknown() -> None:
    ranks = [probed(FAST, {32: 0.25}, 0.5), probed(SLOW, None, 0.5)]
    assert merge_window(ranks).exposed_comm_s is None
    assert merge_communication([ranks[0], SLOW]) is None
