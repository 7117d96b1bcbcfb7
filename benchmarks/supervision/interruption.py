"""Signals to stop, as exceptions: so that workers are ended and records written on the way out."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from benchmarks.core.record import Status

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked this process to stop. The run in flight has left its record."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.status: Status = "cancelled"
        """What the record says; `preempted` or `timeout` where the signal came from Slurm."""


@contextmanager
def signals_raise() -> Iterator[None]:
    """Within: a signal to stop raises Interrupted."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise Interrupted(number)

    with _handlers(stop):
        yield


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Within: a record is being written; a second Ctrl-C must not cut it off."""
    with _handlers(signal.SIG_IGN):
        yield


@contextmanager
def _handlers(handler: signal._HANDLER) -> Iterator[None]:
    earlier = {number: signal.signal(number, handler) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)
