"""Chrome traces of torch's profiler: from events to where a step's time goes. Pure functions, without torch.

A trace is what `torch.profiler.profile.export_chrome_trace` writes: JSON with `traceEvents`, each with a category
`cat`, a thread `tid`, and `ts` and `dur` in microseconds with three decimals ("Trace Event Format", Google, 2016).
Here times are whole nanoseconds, so that parts add up exactly.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.core.profile import OperatorTime, TimeSplit

Intervals = list[tuple[int, int]]
"""Beginnings and ends in nanoseconds, in order, none touching the next."""

STEP = "ProfilerStep#"
SYNCHRONISING = "waiting for other ranks"
"""What a profiled worker calls the time from its last gradient to the end of the backward pass."""

_COMMUNICATING = ("c10d::", "_c10d_functional::", "gloo:", "nccl:", "mpi:", SYNCHRONISING)
_COPYING = ("aten::copy_", "aten::_foreach_copy_")
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


class Event(NamedTuple):
    """Something that took time."""

    name: str
    category: str
    thread: object
    start_ns: int
    end_ns: int
    launched_by: object
    """The same number for an operator and for the kernels that it launched; None where there is none."""

    @property
    def length_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.start_ns


class Window(NamedTuple):
    """The profiled steps, one after another."""

    start_ns: int
    end_ns: int
    steps: int
    thread: object
    """The one that took them."""


def events_of(trace: Mapping[str, Any]) -> list[Event]:
    """The events of a trace that have a length."""
    return [
        Event(
            name=each["name"],
            category=each.get("cat", ""),
            thread=each.get("tid"),
            start_ns=(start := round(each["ts"] * 1000)),
            end_ns=start + round(each["dur"] * 1000),
            launched_by=each.get("args", {}).get("External id"),
        )
        for each in trace["traceEvents"]
        if each.get("ph") == "X"
    ]


def window_of(events: Iterable[Event]) -> Window:
    """From the first profiled step to the end of the last. Raises ValueError where there is none."""
    steps = [event for event in events if event.name.startswith(STEP) and event.category == "user_annotation"]
    if not steps:
        raise ValueError("the trace holds no profiled step")
    return Window(min(step.start_ns for step in steps), max(step.end_ns for step in steps), len(steps), steps[0].thread)


def split_on_host(events: Sequence[Event], window: Window) -> TimeSplit:
    """Where the steps' time went on a CPU: by the operators of the thread that took them, and all communication.

    An operator that calls no other computes, or copies. One that does call others may wait between two of them, as
    the autograd engine's do for a collective that they have started; so its own time is communication where some is
    under way, and else computing.
    """
    mine = [event for event in events if event.thread == window.thread and event.category == "cpu_op"]
    # What a collective calls is part of it: its copies into a send buffer are no work of the model's.
    collectives = merged(event for event in mine if _communicates(event))
    innermost = [event for event in _innermost(mine) if not _communicates(event)]
    return _split(
        window,
        compute=less(merged(event for event in innermost if event.name not in _COPYING), collectives),
        copy=less(merged(event for event in innermost if event.name in _COPYING), collectives),
        communication=merged(event for event in events if _communicates(event)),
        overhead=merged(mine),
    )


def split_on_device(events: Sequence[Event], window: Window) -> TimeSplit:
    """Where the steps' time went on a GPU: by its kernels on all streams, those of NCCL apart, and its copies."""
    device = [event for event in events if event.category in _DEVICE]
    return _split(
        window,
        compute=merged(event for event in device if event.category == "kernel" and not _is_nccl(event)),
        copy=merged(event for event in device if event.category != "kernel"),
        communication=merged(event for event in device if _is_nccl(event)),
        overhead=[],
    )


def _split(
    window: Window, *, compute: Intervals, copy: Intervals, communication: Intervals, overhead: Intervals
) -> TimeSplit:
    """Each moment of the window once, by the first that claims it; what of `overhead` is left counts as computing."""
    whole = [(window.start_ns, window.end_ns)]
    compute, copy, communication, overhead = (common(each, whole) for each in (compute, copy, communication, overhead))
    copy_alone = less(copy, compute)
    working = merged_intervals([*compute, *copy])
    exposed = less(communication, working)
    overhead = less(less(overhead, working), exposed)
    computing_ns = length_ns(compute) + length_ns(overhead)
    claimed_ns = computing_ns + length_ns(copy_alone) + length_ns(exposed)

    def per_step(time_ns: int) -> float:
        return time_ns / window.steps / 1e9

    return TimeSplit(
        compute_s=per_step(computing_ns),
        copy_s=per_step(length_ns(copy_alone)),
        exposed_communication_s=per_step(length_ns(exposed)),
        idle_s=per_step(window.end_ns - window.start_ns - claimed_ns),
        hidden_communication_s=per_step(length_ns(common(communication, working))),
        step_s=per_step(window.end_ns - window.start_ns),
    )


def _communicates(event: Event) -> bool:
    return event.name.startswith(_COMMUNICATING)


def _is_nccl(event: Event) -> bool:
    return event.category == "kernel" and event.name.lower().startswith(("nccl", "rccl"))


def _innermost(events: Iterable[Event]) -> list[Event]:
    """Those of one thread's events within which no other begins."""
    ordered = sorted(events, key=lambda event: (event.start_ns, -event.end_ns))
    last = ordered[-1:]
    return [event for event, following in pairwise(ordered) if following.start_ns >= event.end_ns] + last


def operators_on_host(events: Iterable[Event], window: Window, most: int) -> list[OperatorTime]:
    """The heaviest operators of the thread that took the steps, by their time without the operators they called."""
    mine = [
        event
        for event in events
        if event.thread == window.thread and event.category == "cpu_op" and _within(event, window)
    ]
    ordered = sorted(mine, key=lambda event: (event.start_ns, -event.end_ns))
    own_ns = [event.length_ns for event in ordered]
    open_calls: list[int] = []
    for number, event in enumerate(ordered):
        while open_calls and ordered[open_calls[-1]].end_ns <= event.start_ns:
            open_calls.pop()
        if open_calls:
            own_ns[open_calls[-1]] -= event.length_ns
        open_calls.append(number)
    return _heaviest([(event.name, 1, own) for event, own in zip(ordered, own_ns, strict=True)], window, most)


def operators_on_device(events: Sequence[Event], window: Window, most: int) -> list[OperatorTime]:
    """The heaviest operators by the time of the kernels and copies that they launched themselves.

    A kernel of no operator, as of a CUDA graph, stands for itself.
    """
    names = {event.launched_by: event.name for event in events if event.category == "cpu_op"}
    names.pop(None, None)
    times: list[tuple[str, int, int]] = []
    seen: set[object] = set()
    for event in events:
        if event.category in _DEVICE and _within(event, window):
            name = names.get(event.launched_by)
            is_new_call = name is None or event.launched_by not in seen  # one call may launch several kernels
            times.append((name or event.name, int(is_new_call), event.length_ns))
            seen.add(event.launched_by)
    return _heaviest(times, window, most)


def _heaviest(times: Iterable[tuple[str, int, int]], window: Window, most: int) -> list[OperatorTime]:
    """The `most` heaviest of (name, calls, own nanoseconds), each name once."""
    calls: dict[str, int] = defaultdict(int)
    own_ns: dict[str, int] = defaultdict(int)
    for name, count, time_ns in times:
        calls[name] += count
        own_ns[name] += time_ns
    total_ns = sum(own_ns.values())
    return [
        OperatorTime(
            name=name,
            calls_per_step=calls[name] / window.steps,
            self_time_s=own_ns[name] / window.steps / 1e9,
            share=own_ns[name] / total_ns if total_ns else 0.0,
        )
        for name in sorted(own_ns, key=lambda name: (-own_ns[name], name))[:most]
    ]


def _within(event: Event, window: Window) -> bool:
    return window.start_ns <= event.start_ns < window.end_ns


def bounded(trace: Mapping[str, Any], most_events: int) -> tuple[dict[str, Any], int]:
    """The trace with its first `most_events` events, and how many were left out; names of threads all stay."""
    names = [event for event in trace["traceEvents"] if event.get("ph") == "M"]
    others = sorted((event for event in trace["traceEvents"] if event.get("ph") != "M"), key=lambda event: event["ts"])
    return {**trace, "traceEvents": [*names, *others[:most_events]]}, max(0, len(others) - most_events)


def merged(events: Iterable[Event]) -> Intervals:
    """When at least one of the events was under way."""
    return merged_intervals((event.start_ns, event.end_ns) for event in events)


def merged_intervals(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """The union of intervals in any order."""
    union: Intervals = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = union[-1][0], max(end, union[-1][1])
        elif end > start:
            union.append((start, end))
    return union


def common(one: Intervals, other: Intervals) -> Intervals:
    """When both are."""
    found: Intervals = []
    first = second = 0
    while first < len(one) and second < len(other):
        start, end = max(one[first][0], other[second][0]), min(one[first][1], other[second][1])
        if end > start:
            found.append((start, end))
        if one[first][1] < other[second][1]:
            first += 1
        else:
            second += 1
    return found


def less(one: Intervals, other: Intervals) -> Intervals:
    """When the first is and the second is not."""
    if not one:
        return []
    ends = [one[0][0], *(moment for interval in other for moment in interval), one[-1][1]]
    gaps = [(start, end) for start, end in zip(ends[::2], ends[1::2], strict=True) if end > start]
    return common(one, gaps)


def length_ns(intervals: Intervals) -> int:
    """All of them together."""
    return sum(end - start for start, end in intervals)
