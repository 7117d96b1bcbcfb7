"""How busy a server is: it is charged to nobody, so the record must say whether it was the bottleneck."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """What a server has done since its last reset; seconds and bytes since its start."""

    clock_s: float
    """The server's monotonic clock."""
    busy_s: float
    """Receiving, updating or sending for one worker at least; not waiting for a message, nor holding one back."""
    update_s: float
    """Of the optimiser, and of averaging before it."""
    cpu_s: float
    """CPU time of all its threads."""
    received_bytes: int
    """Of gradients, without headers."""
    sent_bytes: int
    """Of parameters, without headers."""
    peak_host_bytes: int
    updates: int
    staleness: dict[int, int]
    """How many gradients were applied that lacked so many updates."""
    largest_lead: int
    """Steps that a worker was ahead of the slowest when it was let go to begin the next, at most."""


class Load:
    """Seconds and bytes, counted from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._active = 0
        self._since_s = 0.0
        self.busy_s = self.update_s = 0.0
        self.received_bytes = self.sent_bytes = 0

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Within: this thread works. Time in which several do counts once."""
        with self._lock:
            if not self._active:
                self._since_s = time.monotonic()
            self._active += 1
        try:
            yield
        finally:
            with self._lock:
                self._active -= 1
                if not self._active:
                    self.busy_s += time.monotonic() - self._since_s

    @contextmanager
    def updating(self) -> Iterator[None]:
        """Within: parameters are updated, by one thread at a time."""
        begin = time.monotonic()
        yield
        self.update_s += time.monotonic() - begin

    def received(self, size_bytes: int) -> None:
        """Gradients have come."""
        with self._lock:
            self.received_bytes += size_bytes

    def sent(self, size_bytes: int) -> None:
        """Parameters have gone."""
        with self._lock:
            self.sent_bytes += size_bytes

    def counts(self, *, updates: int, staleness: dict[int, int], largest_lead: int) -> Counts:
        """All that is counted, now."""
        return Counts(
            clock_s=time.monotonic(),
            busy_s=self.busy_s,
            update_s=self.update_s,
            cpu_s=time.process_time(),
            received_bytes=self.received_bytes,
            sent_bytes=self.sent_bytes,
            peak_host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            updates=updates,
            staleness=staleness,
            largest_lead=largest_lead,
        )
