"""Signs of life from workers to their supervisor, through shared memory: no system call, so a window can hold it."""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

PHASES: Final = (
    *(
        "start",
        "rendezvous",
        "data",
        "build",
        "warmup",
        "window",
        "evaluation",
        "batch_schedule",
        "profile",
        "checks",
        "communication",
        "ceilings",
    ),
    "teardown",
)

_FORMAT = struct.Struct("=qqqqqq")  # pid, phase, step, steps, time in monotonic nanoseconds, has left its result
_ENTER = struct.Struct("=qqqqq")  # all but the last
_BEAT = struct.Struct("=qqq")  # step, steps, time
_LEFT = struct.Struct("=q")
_BEAT_OFFSET, _LEFT_OFFSET = 16, 40


class Pulse:
    """One worker's latest sign of life."""

    def __init__(self, pid: int, phase: int, step: int, steps: int, at_ns: int, left: int) -> None:
        self.pid = pid
        self.phase = PHASES[phase]
        self.step = step
        self.steps = steps
        self.at_ns = at_ns
        """By the monotonic clock; 0 before the first."""
        self.left = bool(left)
        """Whether the worker's result is there."""
        self.age_s = (time.monotonic_ns() - at_ns) / 1e9 if at_ns else None


class Heartbeat:
    """A file of one slot for each worker of the node.

    The supervisor makes it; every worker maps it into its memory and writes its own slot.
    """

    def __init__(self, path: Path, workers: int) -> None:
        if not path.exists():
            path.write_bytes(bytes(_FORMAT.size * workers))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.workers = workers

    def enter(self, local_rank: int, phase: str, steps: int = 0) -> None:
        """The worker begins a phase."""
        _ENTER.pack_into(
            self._map,
            local_rank * _FORMAT.size,
            os.getpid(),
            PHASES.index(phase),
            0,
            steps,
            time.monotonic_ns(),
        )

    def beat(self, local_rank: int, step: int, steps: int) -> None:
        """The worker has come to a step."""
        _BEAT.pack_into(self._map, local_rank * _FORMAT.size + _BEAT_OFFSET, step, steps, time.monotonic_ns())

    def leave(self, local_rank: int) -> None:
        """The worker has left its result."""
        _LEFT.pack_into(self._map, local_rank * _FORMAT.size + _LEFT_OFFSET, 1)

    def read(self) -> list[Pulse]:
        """All workers' latest signs of life, in the order of their local ranks."""
        return [Pulse(*_FORMAT.unpack_from(self._map, rank * _FORMAT.size)) for rank in range(self.workers)]
