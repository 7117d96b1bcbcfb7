"""Processes that help this one, for sweeps so large that it pays to start them."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

_MOST = 8
"""More would wait for the file system; login nodes are shared."""


def count_helpers() -> int:
    """One less than there are cores: this process works, too."""
    return min(_MOST, len(os.sched_getaffinity(0)) - 1)


@cache
def helpers() -> ProcessPoolExecutor:
    """All of them, started when first needed; they know nothing of this one's state.

    Ctrl-C ends them at once and without a word: this process says what there is to say.
    """
    return ProcessPoolExecutor(
        max(1, count_helpers()),
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
