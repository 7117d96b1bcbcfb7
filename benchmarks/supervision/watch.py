"""The watch over a node's workers: it ends them when they are silent, or take longer than they may."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.core.config import RunConfig
from benchmarks.process.heartbeat import Heartbeat, Pulse
from benchmarks.supervision.team import WORD_LIMIT_S

DEADLINE_MARGIN_S = 20.0
"""How long before its allocation ends a run is ended: for the workers to leave what they have, and for the record."""
DEADLINE_MARGIN_FRACTION = 0.25
"""The margin's share of the time given, at most: a test of one minute must not lose a third of it."""

_POLL_S = 0.1
_LEAVE_S = 3.0
_STACK_DUMP_S = 0.5
_START_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """Why the watch ended the workers."""

    kind: Literal["hang", "run_limit", "deadline"]
    message: str


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Since when this attempt has run, and until when it may; moments in monotonic nanoseconds."""

    started_ns: int
    deadline_ns: int | None = None
    margin_s: float = 0.0
    """From the deadline to the end of the allocation."""
    allocation_ends: str = ""
    """UTC, ISO 8601."""

    def word_limit_s(self, ending: Ending | None) -> float:
        """How long the leader may wait for the other nodes' words, once its own workers have ended."""
        return min(WORD_LIMIT_S, self.margin_s / 2) if ending and ending.kind == "deadline" else WORD_LIMIT_S

    @classmethod
    def from_now(cls, ends_at_s: float | None) -> Limits:
        """An attempt that starts now, in an allocation that ends at this UNIX time; None where there is no end."""
        started_ns = time.monotonic_ns()
        if ends_at_s is None:
            return cls(started_ns=started_ns)
        given_s = max(0.0, ends_at_s - time.time())
        margin_s = min(DEADLINE_MARGIN_S, DEADLINE_MARGIN_FRACTION * given_s)
        return cls(
            started_ns=started_ns,
            deadline_ns=started_ns + int((given_s - margin_s) * 1e9),
            margin_s=margin_s,
            allocation_ends=datetime.datetime.fromtimestamp(ends_at_s, datetime.UTC).isoformat(timespec="seconds"),
        )


class Watch(threading.Thread):
    """Reads the workers' heartbeats, shows them, and ends the workers when one of the limits is reached."""

    def __init__(
        self, run: RunConfig, heartbeat: Heartbeat, limits: Limits, show: Callable[[Sequence[Pulse]], None]
    ) -> None:
        super().__init__(daemon=True, name="watch")
        self.run_config, self.heartbeat, self.limits, self.show = run, heartbeat, limits, show
        self.ending: Ending | None = None
        self.pulses: tuple[Pulse, ...] = ()
        """The last ones, or those that made it end the workers."""
        self._over = threading.Event()

    def run(self) -> None:
        """Poll until stopped."""
        while not self.ending and not self._over.wait(_POLL_S):
            self.pulses = tuple(self.heartbeat.read())
            self.show(self.pulses)
            self.ending = self._due()
        if self.ending:
            self._have_results_left()
            self._end_workers(self.ending)

    def stop(self) -> None:
        """No more watching."""
        self._over.set()
        if self.is_alive():
            self.join()
        if not self.ending:
            self.pulses = tuple(self.heartbeat.read())

    def _due(self) -> Ending | None:
        run, now_ns = self.run_config, time.monotonic_ns()
        age_s = (now_ns - self.limits.started_ns) / 1e9
        silence_s = max(age_s if pulse.age_s is None else pulse.age_s for pulse in self.pulses)
        if self.limits.deadline_ns is not None and now_ns > self.limits.deadline_ns:
            ends = f"the allocation ends at {self.limits.allocation_ends}"
            return Ending(kind="deadline", message=f"{ends}, and the run {self.limits.margin_s:.0f} s before it")
        if age_s > run.run_limit_s:
            return Ending(kind="run_limit", message=f"longer than run_limit_s={run.run_limit_s:g}")
        if silence_s > run.hang_limit_s:
            return Ending(kind="hang", message=f"no progress for hang_limit_s={run.hang_limit_s:g}")
        return None

    def _have_results_left(self) -> None:
        """Ask all workers for the steps they have, and give them some time; one that is beyond Python gives none."""
        for pulse in self.heartbeat.read():
            send(pulse.pid, signal.SIGUSR2)
        patience = time.monotonic() + _LEAVE_S
        while not self._over.wait(_POLL_S) and time.monotonic() < patience:
            if all(pulse.left or not pulse.pid for pulse in self.heartbeat.read()):
                return

    def _end_workers(self, ending: Ending) -> None:
        patience_s = self.limits.margin_s / 4 if ending.kind == "deadline" else _START_PATIENCE_S
        patience = time.monotonic() + patience_s
        while not self._over.is_set():  # again and again: a worker that had not come to life yet may do so now
            for number in (signal.SIGUSR1, signal.SIGKILL):  # first let them print where they are
                for pulse in self.heartbeat.read():
                    send(pulse.pid, number)
                self._over.wait(_STACK_DUMP_S)
            if not self._over.is_set() and time.monotonic() > patience:
                os.kill(os.getpid(), signal.SIGTERM)  # the agent itself is stuck, before any worker lives
                return


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a worker, unless it has not begun (pid 0) or has ended."""
    if pid > 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
