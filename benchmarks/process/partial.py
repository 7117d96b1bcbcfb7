"""A worker's result when its run is cut short: the steps that were over by then, left for the supervisor in time.

The supervisor asks with a signal. A thread waits for it, since the main thread may never run Python again: it may be
inside a collective whose other side is gone. All that the thread needs is the interpreter's lock, which such calls do
not hold.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.core.energy import RankEnergy
from benchmarks.core.record import Evaluation, replace
from benchmarks.measuring.step_times import StepTimes
from benchmarks.measuring.timing import Clock
from benchmarks.supervision.merge import Failure, RankResult

ASKED_TO_LEAVE = signal.SIGUSR2


def block_request() -> None:
    """Let the request wait for its thread; to be called before any other thread starts, since they inherit this."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {ASKED_TO_LEAVE})


class SoFar:
    """What a worker has measured so far. Told by its main thread, between spans; read by any thread at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[StepTimes] = []
        self._samples: list[int] = []
        self._evaluations: list[Evaluation] = []
        self._energy: RankEnergy | None = None
        self._clock: Clock | None = None
        self._clock_name = "monotonic"

    def begin(self, clock: Clock, samples: Sequence[int]) -> None:
        """A span begins; `samples` are those that this rank will process in each of its steps."""
        with self._lock:
            self._clock, self._clock_name = clock, clock.name
            self._samples += samples

    def end(self, times: StepTimes, energy: RankEnergy | None = None) -> None:
        """The span is over; `energy` is that of all spans until now."""
        with self._lock:
            self._spans.append(times)
            self._energy = energy
            self._clock = None

    def evaluated(self, evaluation: Evaluation) -> None:
        """The model was evaluated."""
        with self._lock:
            self._evaluations.append(evaluation)

    def added_to(self, result: RankResult) -> RankResult:
        """The result with the steps that are over by now, in place of its own.

        Losses are unknown: they are on the device, and reading them would wait for it.
        """
        with self._lock:
            spans = [*self._spans, *([self._clock.times_so_far()] if self._clock else [])]
            steps = sum(len(span.step_s) for span in spans)
            return msgspec.structs.replace(
                result,
                clock=self._clock_name,
                spans=spans,
                samples=self._samples[:steps],
                losses=[None] * steps,
                evaluations=list(self._evaluations),
                checks=[],
                energy=self._energy,
            )


class ResultFile:
    """Where a worker leaves its result, at its own end or when it is asked to, whichever is first."""

    def __init__(self, path: Path, result: RankResult, so_far: SoFar, left: Callable[[], None]) -> None:
        self.path, self.result, self.so_far = path, result, so_far
        self._say_left = left
        self._lock = threading.Lock()
        self._left = False

    def leave(self, failure: Failure | None) -> None:
        """Write the result; after a failure, with the steps so far.

        A whole result replaces one that was left earlier. A failed one does not: what makes this worker fail after
        it was asked to leave is the end of the others.

        Raises:
            OSError: the file cannot be written.
        """
        with self._lock:
            if failure and self._left:
                return
            result = msgspec.structs.replace(
                self.result,
                failure=failure,
                phases=[*self.result.phases, ("end", time.monotonic_ns())],
                peak_host_bytes=self.result.peak_host_bytes
                or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            )
            replace(self.path, msgspec.json.encode(self.so_far.added_to(result) if failure else result))
            self._left = True
            self._say_left()

    def leave_when_asked(self) -> None:
        """From now on, the request is answered with the steps so far; the main thread goes on meanwhile."""
        threading.Thread(target=self._answer, daemon=True, name="leave-when-asked").start()

    def _answer(self) -> None:
        signal.sigwait({ASKED_TO_LEAVE})
        phase = self.result.phases[-1][0] if self.result.phases else "start"
        failure = Failure(status="timeout", phase=phase, kind="asked", message="asked to leave what it has measured")
        with contextlib.suppress(OSError):  # the supervisor waits only so long, and then says what it knows itself
            self.leave(failure)
