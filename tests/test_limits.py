"""Runs that are cut short, by their limits or by their allocation's end: what was measured stays. And progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.core.config import RunConfig
from benchmarks.core.progress import PROGRESS_NAME, Progress, read_progress
from benchmarks.core.record import Record
from benchmarks.process.heartbeat import PHASES, Pulse
from benchmarks.supervision import merge, reporter
from benchmarks.supervision.merge import RankResult
from benchmarks.supervision.reporter import Meter
from benchmarks.supervision.supervisor import supervise
from benchmarks.supervision.team import WORD_LIMIT_S
from benchmarks.supervision.watch import DEADLINE_MARGIN_S, Ending, Limits
from tests.conftest import MakeRun, base_mapping
from tests.test_supervisor import faulty

pytestmark = pytest.mark.alone

SLEEP_S = 0.1


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The fork server has imported torch: that takes longer than some limits here."""
    run = RunConfig.from_mapping(base_mapping(workload="mlp", batch_per_worker=16, steps=1, run_limit_s=120))
    supervise(run, tmp_path_factory.mktemp("warm"))


def ended(run: Any, folder: Path, **more: Any) -> Record:
    record = supervise(run, folder, **more)
    assert record is not None
    assert record.status == "timeout", record.reason
    assert record.reason is not None
    return record


def kind_and_message(record: Record) -> tuple[str, str]:
    assert record.reason is not None
    return record.reason.kind, record.reason.message


def assert_sleeping_steps(record: Record, at_least: int) -> None:
    """The window has the steps that were made, each as long as the sleep in it."""
    window = record.window
    assert window is not None
    steps = len(window.step_time_s)
    assert steps >= at_least
    assert sorted(window.step_time_s)[steps // 2] == pytest.approx(SLEEP_S, rel=0.1)
    assert window.samples == [32] * steps
    assert window.loss == [None] * steps
    assert [(span.steps, span.samples) for span in window.spans] == [(steps, 32 * steps)]
    assert window.spans[0].wall_time_s == pytest.approx(sum(window.step_time_s), rel=0.1)
    # All steps up to the one at which it was ended, or one more that was finished before the worker was asked.
    assert f"step {steps} of 1000" in kind_and_message(record)[1] or (
        f"step {steps - 1} of 1000" in kind_and_message(record)[1]
    )
    assert [rank.rank for rank in record.ranks] == [0, 1]
    assert record.ranks[1].own_time_s == pytest.approx(SLEEP_S, rel=0.1)
    assert record.memory is not None
    assert record.memory.peak_host_bytes > 1e6


def test_a_run_over_its_limit_keeps_the_steps_it_has_made(make_run: MakeRun, tmp_path: Path) -> None:
    run = faulty(make_run, "sleep", workload__sleep_s=SLEEP_S, steps=1000, run_limit_s=5)
    record = ended(run, tmp_path)
    assert kind_and_message(record)[0] == "run_limit"
    assert kind_and_message(record)[1].startswith("longer than run_limit_s=5; rank ")
    assert_sleeping_steps(record, at_least=5)
    assert 5 <= record.wall_time_s < 9
    assert sum(record.ledger.values()) == pytest.approx(record.wall_time_s, rel=1e-6)
    assert not list((tmp_path / "attempt1").glob("*.json"))


def test_a_run_ends_before_its_allocation_does(make_run: MakeRun, tmp_path: Path) -> None:
    run = faulty(make_run, "sleep", workload__sleep_s=SLEEP_S, steps=1000, run_limit_s=60)
    ends_at_s = time.time() + 8
    record = ended(run, tmp_path, ends_at_s=ends_at_s)
    assert time.time() < ends_at_s
    assert record.wall_time_s >= 6, "a quarter of eight seconds before the end"
    kind, message = kind_and_message(record)
    assert kind == "deadline"
    assert message.startswith(f"the allocation ends at {time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(ends_at_s))}")
    assert_sleeping_steps(record, at_least=5)


def test_the_deadline_leaves_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    for given_s, expected_s in ((3600, DEADLINE_MARGIN_S), (60, 15.0), (0, 0.0), (-5, 0.0)):
        limits = Limits.from_now(1000.0 + given_s)
        assert limits.margin_s == expected_s
        assert limits.deadline_ns == limits.started_ns + int((max(given_s, 0) - expected_s) * 1e9)
    assert Limits.from_now(None).deadline_ns is None
    hour, minute = Limits.from_now(4600.0), Limits.from_now(1060.0)
    late = Ending(kind="deadline", message="")
    assert (hour.word_limit_s(late), minute.word_limit_s(late)) == (10.0, 7.5), "less than the margin"
    assert hour.word_limit_s(Ending(kind="run_limit", message="")) == hour.word_limit_s(None) == WORD_LIMIT_S


def test_steps_before_a_hang_are_kept(make_run: MakeRun, tmp_path: Path) -> None:
    """The other rank is inside a collective then, and its main thread never runs Python again."""
    record = ended(faulty(make_run, "hang", workload__call=5, hang_limit_s=2), tmp_path)
    assert kind_and_message(record)[0] == "hang"
    assert record.window is not None
    assert len(record.window.step_time_s) == 3
    assert record.window.spans[0].wall_time_s == pytest.approx(sum(record.window.step_time_s), abs=2e-3)
    assert max(record.window.step_time_s) < 1.0, "not the step that it hangs in"


def test_the_window_has_the_steps_of_the_rank_that_made_fewest(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    steps_of_all = merge.steps_of_all

    def spy(results: list[RankResult]) -> list[RankResult]:
        left.extend(len(result.series("step_s")) for result in results)
        return steps_of_all(results)

    monkeypatch.setattr(merge, "steps_of_all", spy)
    record = ended(faulty(make_run, "stall", workload__call=5, hang_limit_s=2), tmp_path)
    assert left == [4, 3]
    assert record.window is not None
    assert len(record.window.step_time_s) == 3


def test_a_rank_that_gives_no_answer_leaves_no_window(make_run: MakeRun, tmp_path: Path) -> None:
    record = ended(faulty(make_run, "freeze", workload__call=5, hang_limit_s=2), tmp_path)
    assert record.window is None
    assert [rank.rank for rank in record.ranks] == [0]


def test_a_run_that_has_not_come_to_its_window_has_none(make_run: MakeRun, tmp_path: Path) -> None:
    record = ended(faulty(make_run, "hang", hang_limit_s=6), tmp_path)
    assert (record.window, record.ranks, record.memory) == (None, [], None)
    assert record.reason is not None
    assert record.reason.phase == "warmup"
    assert record.environment["cpu_capability"]


@contextmanager
def looking(folder: Path) -> Iterator[list[Progress]]:
    """What another process would see meanwhile."""
    seen: list[Progress] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            progress = read_progress(folder)
            if progress and (not seen or progress != seen[-1]):
                seen.append(progress)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_progress_is_shown_while_a_run_goes_on(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporter, "PROGRESS_EVERY_S", 0.2)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    run = faulty(make_run, "sleep", workload__sleep_s=SLEEP_S, steps=30)
    with looking(tmp_path) as seen:
        record = supervise(run, tmp_path, attempt=2)
    assert record is not None
    assert record.status == "ok"
    assert not (tmp_path / PROGRESS_NAME).exists()
    assert {(one.run_id, one.attempt, one.job, one.started_at) for one in seen} == {
        (run.run_id, 2, "11_4", record.started_at)
    }
    window = [one for one in seen if one.phase == "window" and one.step]
    assert len(window) >= 5
    steps = [one.step for one in window]
    assert steps == sorted(steps)
    assert steps[-1] > 20
    assert {one.steps for one in window} == {30}
    # A busy machine sleeps longer than asked, never shorter; the rate of one rank would be half of this.
    assert 0.6 * 32 / SLEEP_S < (window[-1].samples_per_s or 0) <= 1.02 * 32 / SLEEP_S
    assert [one.at for one in seen] == sorted(one.at for one in seen)
    assert seen[0].phase == "start"


def test_a_file_system_that_hangs_does_not_hold_up_the_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(reporter, "write_progress", lambda *_: hangs.wait(30))
    record = supervise(make_run(evaluate=False), tmp_path)
    hangs.set()
    assert record is not None
    assert record.status == "ok"
    assert record.wall_time_s < 15


def test_progress_that_cannot_be_written_is_no_failure(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / PROGRESS_NAME).mkdir()
    record = supervise(make_run(evaluate=False), tmp_path)
    assert record is not None
    assert record.status == "ok"


def test_what_is_not_progress_is_none(tmp_path: Path) -> None:
    assert read_progress(tmp_path) is None
    (tmp_path / PROGRESS_NAME).write_text('{"run_id": "a"')
    assert read_progress(tmp_path) is None


def test_the_rate_is_that_of_the_current_span() -> None:
    def pulse(phase: str, step: int, at_s: float) -> Pulse:
        return Pulse(1, PHASES.index(phase), step, 10, int(at_s * 1e9), 0)

    meter = Meter(global_batch=100)
    rates = []
    for seen in (
        pulse("window", 0, 1),  # waits for another rank until 9
        pulse("window", 1, 10),
        pulse("window", 3, 14),
        pulse("window", 3, 14),
        pulse("evaluation", 2, 20),
        pulse("window", 2, 30),
        pulse("window", 4, 31),
        pulse("window", 1, 40),  # the next span, with no evaluation between them
        pulse("window", 2, 44),
    ):
        meter.see(seen)
        rates.append(meter.samples_per_s)
    assert rates == [None, None, 50.0, 50.0, None, None, 200.0, None, 25.0]
