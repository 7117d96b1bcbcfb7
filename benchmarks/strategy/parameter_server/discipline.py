"""When a server applies gradients, and when it answers: all together, one by one, or one by one within a bound.

A worker's clock is the number of steps that it has pushed. Its lead is how far its clock is ahead of the slowest
worker's; its gradients' staleness is the number of updates that the parameters they were computed with lack.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable

from torch import Tensor

from benchmarks.strategy.parameter_server.load import Load
from benchmarks.strategy.parameter_server.store import Store
from benchmarks.strategy.parameter_server.wire import Kind


class BrokenBoundError(Exception):
    """A worker has begun a step that it ought to have been held back from, or one out of order."""


class EndedError(Exception):
    """The run cannot go on; `kind` says whether a worker is gone or the server failed."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Discipline(ABC):
    """The order of updates and answers. All methods may be called from any thread, one for each worker."""

    def __init__(self, store: Store, workers: int, bound: float, load: Load) -> None:
        self.store, self.workers, self.bound, self.load = store, workers, bound, load
        self._changed = threading.Condition()
        self._ended: EndedError | None = None
        self._clear()

    def _clear(self) -> None:
        self.clocks = [0] * self.workers
        self.updates = 0
        self.staleness: Counter[int] = Counter()
        """How many gradients were applied with which staleness."""
        self.largest_lead = 0
        """Of a worker that was let go, to begin its next step."""
        self._known = [0] * self.workers  # updates in the parameters that each worker has
        self._overflowed = [False] * self.workers

    def reset(self) -> None:
        """As at the beginning; no worker may be in a step."""
        with self._changed:
            self.store.restore()
            self._clear()

    def lead(self, rank: int) -> int:
        """Steps by which a worker is ahead of the slowest."""
        return self.clocks[rank] - min(self.clocks)

    def push(self, rank: int, number: int, overflowed: bool = False) -> Tensor:
        """A worker's step, whose gradients are in the inbox; returns the parameters to answer with.

        Waits as long as the worker is to be held back.

        Raises:
            BrokenBoundError: the worker is not held back as it should be.
            EndedError: while this worker was held back, the run has ended.
        """
        with self._changed:
            self._raise_if_ended()
            self._check_number(rank, number)
            self._check_lead(rank)
            self.clocks[rank] = number
            self._overflowed[rank] = overflowed
            with self.load.busy(), self.load.updating():
                self._apply(rank)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or self.lead(rank) <= self.bound)
            self._raise_if_ended()
            self._check_lead(rank)
            self.largest_lead = max(self.largest_lead, self.lead(rank))
            return self._values(rank)

    def pull(self, rank: int) -> Tensor:
        """The newest parameters."""
        with self._changed:
            return self._values(rank)

    def set_rate(self, rank: int, factor: float) -> None:
        """What the learning rate is multiplied with for a worker's gradients from now on."""
        with self._changed:
            self.store.rate_factors[rank] = factor

    def end(self, kind: Kind, text: str) -> None:
        """The run cannot go on: nobody is held back any more, and each worker's next call raises EndedError."""
        with self._changed:
            self._ended = self._ended or EndedError(kind, text)
            self._changed.notify_all()

    def _check_number(self, rank: int, number: int) -> None:
        """No step is lost, or taken twice."""
        if number != self.clocks[rank] + 1:
            raise BrokenBoundError(f"worker {rank} pushed step {number} after its step {self.clocks[rank]}")

    def _check_lead(self, rank: int) -> None:
        """The bound is kept, when a worker is let go as when it comes back: the slowest has only moved on since."""
        if self.lead(rank) > self.bound:
            raise BrokenBoundError(
                f"worker {rank} leads the slowest by {self.lead(rank)} steps, and the bound is {self.bound}"
            )

    def _values(self, rank: int) -> Tensor:
        self._raise_if_ended()
        self._known[rank] = self.updates
        return self._answer(rank)

    def _raise_if_ended(self) -> None:
        if self._ended:
            raise self._ended

    @abstractmethod
    def _apply(self, rank: int) -> None:
        """This worker's gradients are in."""

    @abstractmethod
    def _answer(self, rank: int) -> Tensor:
        """The parameters as they are now, in memory that stays as it is until this worker's next call."""


class Together(Discipline):
    """One update for each step, with the mean of all workers' gradients: as data parallelism does. Its bound is 0."""

    def _apply(self, rank: int) -> None:
        if min(self.clocks) < self.clocks[rank]:
            return  # the last one does it for all
        if any(self._overflowed):
            if not all(self._overflowed):
                raise BrokenBoundError(f"step {self.clocks[rank]} overflowed on some workers only")
            return
        self.store.update_from_all()
        self.staleness.update(self.updates - known for known in self._known)
        self.updates += 1

    def _answer(self, _rank: int) -> Tensor:
        return self.store.flat  # nothing changes before all workers have it and have pushed again


class OneByOne(Discipline):
    """Each worker's gradients are an update of their own, as they arrive (Dean et al. 2012, NIPS, Downpour SGD).

    With a bound, this is stale synchronous parallel (Ho et al. 2013, NIPS, section 3): at clock c, a worker has all
    updates of all workers up to clock c - bound, at least.
    """

    def _apply(self, rank: int) -> None:
        if not self._overflowed[rank]:
            self.store.update_from(rank)
            self.staleness[self.updates - self._known[rank]] += 1
            self.updates += 1

    def _answer(self, rank: int) -> Tensor:
        with self.load.busy():
            return self.store.copy_for(rank)


DISCIPLINES: dict[str, Callable[[Store, int, int, Load], Discipline]] = {
    "sync": lambda store, workers, _staleness, load: Together(store, workers, 0, load),
    "async": lambda store, workers, _staleness, load: OneByOne(store, workers, math.inf, load),
    "bounded": OneByOne,
}
"""By mode: of the store, the number of workers, the option `staleness` and where to count."""
