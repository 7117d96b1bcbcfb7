"""What a profiled run says of a training step: plain values, for the record.

A profiled run is one more repeat of its cell. It takes a few steps under torch's profiler and times nothing: the
profiler slows what it watches.
"""

from __future__ import annotations

import msgspec

from benchmarks.core.errors import ConfigError
from benchmarks.core.variants import Scalar

FEW_RANKS = 8
"""Ranks that leave a trace. What differs between workers shows in a few; a large job would fill a disk."""


class TimeSplit(msgspec.Struct, frozen=True, kw_only=True):
    """Where a step's time goes, in seconds, as a mean over the profiled steps. The first four add up to `step_s`.

    Each moment counts once: as computing where an operator computes, else as copying where one copies, else as
    communication where one is under way, else as idle.
    """

    compute_s: float
    copy_s: float
    """Moving data within memory or between host and device, while nothing is computed."""
    exposed_communication_s: float
    """Sending, receiving, or waiting for other workers, while nothing is computed or copied."""
    idle_s: float
    """Nothing of these: Python between two operators, a GPU without a kernel."""
    hidden_communication_s: float
    """Communication behind computing or copying. It costs no time of its own, so it is no part of the sum."""
    step_s: float
    """A step's length with the profiler at work."""


class OperatorTime(msgspec.Struct, frozen=True, kw_only=True):
    """One operator in all its calls, by its own time: without that of the operators that it calls."""

    name: str
    calls_per_step: float
    self_time_s: float
    """In a step: of the device where that is a GPU, else of the main thread."""
    share: float
    """Of the self time of all operators, those that are not in the table included."""


class TensorCount(msgspec.Struct, frozen=True, kw_only=True):
    """Tensors that a rank holds, by their number, elements and bytes. A sharded one counts with the rank's part."""

    tensors: int
    elements: int
    bytes: int


class RankProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's profile."""

    rank: int
    steps: int
    """Profiled steps, which all means are over."""
    plain_step_s: float
    """Mean of a few steps before, without the profiler: how much it slows them. Too few for a result."""
    split: TimeSplit
    operators: list[OperatorTime]
    """The heaviest, by self time."""
    parameters: TensorCount
    gradients: TensorCount
    """Those that were there after a backward pass."""
    trace: str | None
    """The Chrome trace in the run's folder; https://ui.perfetto.dev opens it. Null for ranks beyond the first few."""
    trace_events_left_out: int
    """Events after those that the file holds: its size is bounded. All numbers are made from all events."""


def repeats_of(repeats: int, profile: object) -> list[tuple[int, dict[str, Scalar]]]:
    """A cell's repeats by number, with what they set; with `profile`, one more that is profiled, from the first's seed.

    What the others are does not depend on whether there is one.

    Raises:
        ConfigError: `profile` is neither true nor false.
    """
    if type(profile) is not bool:
        raise ConfigError(f"profile={profile}: must be true or false")
    own: dict[str, Scalar] = {"profile": False} if profile else {}
    timed = [(repeat, own) for repeat in range(repeats)]
    return [*timed, (0, {"profile": True})] if profile else timed


def trace_name(rank: int) -> str | None:
    """The file in which a rank leaves its trace; None for a rank that leaves none."""
    if rank >= FEW_RANKS:
        return None
    return f"trace.rank{rank}.json.gz" if rank else "trace.json.gz"
