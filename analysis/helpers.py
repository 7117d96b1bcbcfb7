"""Processes that help this one, for sweeps so large that it pays to start them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from multiprocessing import active_children, get_context

_MOST = 8
"""More would wait for the file system; login nodes are shared."""
_PR_SET_PDEATHSIG = 1


def count_helpers() -> int:
    """One less than there are cores: this process works, too."""
    return min(_MOST, len(os.sched_getaffinity(0)) - 1)


@cache
def helpers() -> ProcessPoolExecutor:
    """All of them, started when first needed; they know nothing of this one's state, and end when it ends.

    They never see Ctrl-C, which a terminal sends to all: this process is told, and calls `end_helpers`.
    """
    count = max(1, count_helpers())
    started = ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),)
    )
    try:
        with _interrupted_later():
            for _ in range(count):
                started.submit(int)  # starts a process, since none is idle yet
    except KeyboardInterrupt:
        _end(started)
        raise
    return started


def end_helpers() -> None:
    """End them whatever they are at; nothing where none was started."""
    if helpers.cache_info().currsize:
        _end(helpers())
        helpers.cache_clear()


def _end(started: ProcessPoolExecutor) -> None:
    for helper in active_children():
        helper.kill()
    started.shutdown(cancel_futures=True)  # at the interpreter's end the pool would stumble over their death


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """What is started within inherits, from its first moment on, that it is not interrupted at all."""
    seen: list[bool] = []
    # Blocked for what inherits it; caught, since the system may hand the signal to one of numpy's threads instead.
    handler = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        if seen:
            signal.raise_signal(signal.SIGINT)


def _end_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent has died already, before it could be asked for
