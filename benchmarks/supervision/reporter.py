"""Writes a run's progress while it runs, in a thread of its own: a hanging file system must not hold up the watch."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core.config import RunConfig
from benchmarks.core.folder import now
from benchmarks.core.progress import PROGRESS_NAME, Progress, write_progress
from benchmarks.process.heartbeat import PHASES, Pulse
from benchmarks.supervision import allocation

PROGRESS_EVERY_S = 5.0
_STOP_LIMIT_S = 1.0


class Meter:
    """Samples per second of all workers in the current span, by the moments of the slowest one's steps."""

    def __init__(self, global_batch: int) -> None:
        self.global_batch = global_batch
        self.samples_per_s: float | None = None
        self._first: Pulse | None = None
        self._last: Pulse | None = None

    def see(self, pulse: Pulse) -> None:
        """Take note of a sign of life. A span's first step counts from its end: before it, workers wait for others."""
        if pulse.phase != "window" or pulse.step == 0:
            self._first = self._last = self.samples_per_s = None
            return
        if self._first is None or self._last is None or pulse.step < self._last.step:
            self._first, self.samples_per_s = pulse, None
        self._last = pulse
        steps, time_ns = pulse.step - self._first.step, pulse.at_ns - self._first.at_ns
        if steps > 0 and time_ns > 0:
            self.samples_per_s = steps * self.global_batch / (time_ns / 1e9)


class Reporter(threading.Thread):
    """The thread. It is fed by the watch, and its file is gone when it is stopped."""

    def __init__(self, run: RunConfig, folder: Path, attempt: int, started_at: str) -> None:
        super().__init__(daemon=True, name="reporter")
        self.run_config, self.folder, self.attempt, self.started_at = run, folder, attempt, started_at
        self._meter = Meter(run.global_batch)
        self._slowest: Pulse | None = None
        self._over = threading.Event()

    def show(self, pulses: Sequence[Pulse]) -> None:
        """The workers' latest signs of life; returns at once."""
        self._slowest = min(pulses, key=lambda pulse: (PHASES.index(pulse.phase), pulse.step, -pulse.at_ns))
        self._meter.see(self._slowest)

    @property
    def phase(self) -> str:
        """The one that the slowest of this node's workers was in when last seen."""
        return self._slowest.phase if self._slowest else "start"

    def run(self) -> None:
        """Write until stopped. Progress is a convenience: where it cannot be written, the run goes on without it."""
        while not self._over.is_set():
            with contextlib.suppress(OSError):
                write_progress(self.folder, self._progress())
            self._over.wait(PROGRESS_EVERY_S)
        self._remove()  # here too, for a write that `stop` has not waited for

    def stop(self) -> None:
        """No more progress, and none left over; waits no longer than _STOP_LIMIT_S for a write under way."""
        self._over.set()
        if self.is_alive():
            self.join(_STOP_LIMIT_S)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            (self.folder / PROGRESS_NAME).unlink(missing_ok=True)

    def _progress(self) -> Progress:
        slowest = self._slowest
        return Progress(
            run_id=self.run_config.run_id,
            attempt=self.attempt,
            job=allocation.job(),
            host=socket.gethostname(),
            phase=self.phase,
            step=slowest.step if slowest else 0,
            steps=slowest.steps if slowest else 0,
            samples_per_s=self._meter.samples_per_s,
            started_at=self.started_at,
            at=now(),
        )
