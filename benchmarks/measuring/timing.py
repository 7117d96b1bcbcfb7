"""Clocks: when a step began, had its batch, had its gradients, had waited for the others, and ended.

A clock only notes moments inside the window; they are turned into seconds afterwards. On a GPU the moments are events
in the device's own stream, so reading the host's clock never makes the host wait for the device. On a CPU they are
readings of the monotonic clock.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Literal

import torch

from benchmarks.measuring.step_times import StepTimes


class Clock(ABC):
    """Marks the moments of one span of `steps` steps. Marks must be cheap: they are made inside the window."""

    name: Literal["cuda_event", "monotonic"]

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._step = 0
        self._host_start_ns = self._host_end_ns = 0
        self.marks_last_gradient = False

    def start(self) -> None:
        """The span begins: the device has nothing left to do."""
        self._synchronise()
        self._step = 0
        self._host_start_ns = time.perf_counter_ns()
        self._mark_start()

    def stop(self) -> None:
        """The span is over once the device has finished its last step."""
        self._synchronise()
        self._host_end_ns = time.perf_counter_ns()

    @property
    def wall_time_s(self) -> float:
        """By the host's clock, from `start` to `stop`."""
        return (self._host_end_ns - self._host_start_ns) / 1e9

    @abstractmethod
    def batch_ready(self) -> None:
        """The loop has its next batch."""

    @abstractmethod
    def last_gradient(self) -> None:
        """This rank's part of the backward pass is computed."""

    @abstractmethod
    def backward_done(self) -> None:
        """All gradients are there, those of the other ranks too."""

    @abstractmethod
    def step_done(self) -> None:
        """The step is over; the next one begins."""

    @abstractmethod
    def _synchronise(self) -> None: ...

    @abstractmethod
    def _mark_start(self) -> None: ...

    @abstractmethod
    def times(self) -> StepTimes:
        """All steps of the span, in seconds; to be called after `stop`."""

    @abstractmethod
    def times_so_far(self) -> StepTimes:
        """The steps that are over by now; at any moment, from any thread, without waiting for the device."""

    def _times(
        self, step_s: list[float], data_wait_s: list[float], sync_wait_s: list[float], wall_time_s: float
    ) -> StepTimes:
        return StepTimes(
            step_s=step_s,
            data_wait_s=data_wait_s,
            sync_wait_s=sync_wait_s if self.marks_last_gradient else None,
            wall_time_s=wall_time_s,
        )


class MonotonicClock(Clock):
    """The host's monotonic clock, in nanoseconds."""

    name = "monotonic"

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self._done = [0] * (steps + 1)
        self._batch, self._gradient, self._backward = ([0] * steps for _ in range(3))

    def _synchronise(self) -> None:
        """A CPU's operations are over when they return."""

    def _mark_start(self) -> None:
        self._done[0] = time.perf_counter_ns()

    def batch_ready(self) -> None:
        self._batch[self._step] = time.perf_counter_ns()

    def last_gradient(self) -> None:
        self._gradient[self._step] = time.perf_counter_ns()

    def backward_done(self) -> None:
        self._backward[self._step] = time.perf_counter_ns()

    def step_done(self) -> None:
        step = self._step + 1
        self._done[step] = time.perf_counter_ns()
        self._step = step  # last: whoever reads it from another thread finds all marks of the steps before

    def times(self) -> StepTimes:
        return self._first(self.steps, self.wall_time_s)

    def times_so_far(self) -> StepTimes:
        steps = self._step
        return self._first(steps, (self._done[steps] - self._done[0]) / 1e9)

    def _first(self, steps: int, wall_time_s: float) -> StepTimes:
        def seconds(starts: list[int], ends: list[int]) -> list[float]:
            return [(end - start) / 1e9 for start, end in zip(starts[:steps], ends[:steps], strict=True)]

        return self._times(
            seconds(self._done, self._done[1:]),
            seconds(self._done, self._batch),
            seconds(self._gradient, self._backward),
            wall_time_s,
        )


class CudaClock(Clock):
    """Events in the device's current stream; made beforehand, since making one takes longer than recording it."""

    name = "cuda_event"

    def __init__(self, steps: int) -> None:
        super().__init__(steps)

        def events(count: int) -> list[torch.cuda.Event]:
            return [torch.cuda.Event(enable_timing=True) for _ in range(count)]

        self._done = events(steps + 1)
        self._batch, self._gradient, self._backward = events(steps), events(steps), events(steps)

    def _synchronise(self) -> None:
        torch.cuda.synchronize()

    def _mark_start(self) -> None:
        self._done[0].record()

    def batch_ready(self) -> None:
        self._batch[self._step].record()

    def last_gradient(self) -> None:
        self._gradient[self._step].record()

    def backward_done(self) -> None:
        self._backward[self._step].record()

    def step_done(self) -> None:
        step = self._step + 1
        self._done[step].record()
        self._step = step  # last: an event that was not recorded yet would count as complete

    def times(self) -> StepTimes:
        return self._first(self.steps, self.wall_time_s)

    def times_so_far(self) -> StepTimes:
        """Steps whose events are complete; none where the device has failed.

        The host runs ahead of the device: of the steps that it has issued, the last may still wait there, perhaps for
        ever, so the events are only asked.
        """
        steps = self._step
        try:
            while steps and not self._done[steps].query():
                steps -= 1
            return self._first(steps, self._done[0].elapsed_time(self._done[steps]) / 1e3 if steps else 0.0)
        except RuntimeError:  # as CUDA's errors are
            return self._first(0, 0.0)

    def _first(self, steps: int, wall_time_s: float) -> StepTimes:
        def seconds(starts: list[torch.cuda.Event], ends: list[torch.cuda.Event]) -> list[float]:
            return [start.elapsed_time(end) / 1e3 for start, end in zip(starts[:steps], ends[:steps], strict=True)]

        return self._times(
            seconds(self._done, self._done[1:]),
            seconds(self._done, self._batch),
            seconds(self._gradient, self._backward) if self.marks_last_gradient else [],
            wall_time_s,
        )


def clock_for(device: torch.device, steps: int) -> Clock:
    """The clock of a device's kind."""
    return CudaClock(steps) if device.type == "cuda" else MonotonicClock(steps)
