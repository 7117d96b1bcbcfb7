"""What a worker leaves when its run is cut short: clocks read in the middle of a span, and who may overwrite whom."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.core.record import Evaluation
from benchmarks.measuring.step_times import StepTimes
from benchmarks.measuring.timing import CudaClock, MonotonicClock
from benchmarks.process.partial import ResultFile, SoFar
from benchmarks.supervision.merge import Failure, RankResult

FAILURE = Failure(status="timeout", phase="window", kind="asked", message="")


def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is one second after the last."""
    readings = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(readings) * 1_000_000_000)


def step(clock: MonotonicClock | CudaClock, parts: int = 4) -> None:
    for mark in (clock.batch_ready, clock.last_gradient, clock.backward_done, clock.step_done)[:parts]:
        mark()


def test_a_clock_tells_the_steps_that_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking(monkeypatch)
    clock = MonotonicClock(5)
    clock.marks_last_gradient = True
    assert clock.times_so_far().step_s == []
    clock.start()
    step(clock)
    step(clock)
    step(clock, parts=3)
    assert clock.times_so_far() == StepTimes(
        step_s=[4.0, 4.0], data_wait_s=[1.0, 1.0], sync_wait_s=[1.0, 1.0], wall_time_s=8.0
    )


class Device:
    """A stand-in for a GPU: events are recorded at once, and completed when the device gets there."""

    def __init__(self) -> None:
        self.recorded = 0
        self.completed = 0
        self.broken = False


class Event:
    device: Device

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.place: int | None = None

    def record(self) -> None:
        self.device.recorded += 1
        self.place = self.device.recorded

    def query(self) -> bool:
        if self.device.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self.place is None or self.place <= self.device.completed  # as CUDA says of one never recorded

    def elapsed_time(self, end: Event) -> float:
        assert self.place is not None
        assert end.place is not None
        assert self.query()
        assert end.query(), "CUDA raises an error"
        return 1000.0 * (end.place - self.place)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    Event.device = Device()
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    return Event.device


def test_of_the_steps_issued_to_a_gpu_only_the_completed_ones_count(device: Device) -> None:
    clock = CudaClock(6)
    clock.marks_last_gradient = True
    clock.start()
    for _ in range(4):
        step(clock)
    step(clock, parts=2)
    assert clock.times_so_far().step_s == []
    device.completed = 1 + 2 * 4 + 3  # the start, two steps, most of the third
    assert clock.times_so_far() == StepTimes(
        step_s=[4.0, 4.0], data_wait_s=[1.0, 1.0], sync_wait_s=[1.0, 1.0], wall_time_s=8.0
    )
    device.completed = device.recorded
    assert len(clock.times_so_far().step_s) == 4
    device.broken = True
    assert clock.times_so_far().step_s == []


def evaluation(after_steps: int) -> Evaluation:
    return Evaluation(after_steps=after_steps, time_s=1.0, samples=10, accuracy=0.5, loss=1.0)


def measured(monkeypatch: pytest.MonkeyPatch) -> SoFar:
    """A whole span of two steps, the second one short, and one step of the next."""
    ticking(monkeypatch)
    so_far = SoFar()
    for steps in (2, 1):
        clock = MonotonicClock(2)
        so_far.begin(clock, [16, 5])
        clock.start()
        for _ in range(steps):
            step(clock)
        if steps == 2:
            clock.stop()
            so_far.end(clock.times())
            so_far.evaluated(evaluation(2))
    return so_far


def result() -> RankResult:
    return RankResult(rank=0, host="n1", device="cpu", threads=1, phases=[("window", 1)])


def test_spans_that_are_over_and_the_one_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    told = measured(monkeypatch).added_to(result())
    assert [span.step_s for span in told.spans] == [[4.0, 4.0], [4.0]]
    assert told.samples == [16, 5, 16]
    assert told.losses == [None] * 3
    assert told.evaluations == [evaluation(2)]


def test_nothing_measured_yet_is_an_empty_result() -> None:
    assert SoFar().added_to(result()).spans == []


def test_a_whole_result_goes_before_a_partial_one_and_the_first_failure_before_later_ones(tmp_path: Path) -> None:
    path, left = tmp_path / "rank0.json", []
    file = ResultFile(path, result(), SoFar(), lambda: left.append(True))

    def content() -> RankResult:
        return msgspec.json.decode(path.read_bytes(), type=RankResult)

    file.leave(FAILURE)
    file.leave(Failure(status="comm_error", phase="window", kind="RuntimeError", message="Connection reset by peer"))
    assert content().failure == FAILURE
    assert [name for name, _ in content().phases] == ["window", "end"]
    file.leave(None)
    assert content().failure is None
    file.leave(FAILURE)
    assert content().failure is None
    assert len(left) == 2
