"""What limits a cell: the one cause that takes most of a step, with the share of the step that each cause takes.

A step's time T, as a mean over the window's steps, is divided so that no moment counts twice. Each share is the most
that removing its cause alone would save:

- `data`: in each step the longest wait for a batch, but no more than T less the longest computing of a rank. A wait
  behind which another rank was still computing costs nothing.
- `communication`: what is left of the step when the rank that computes most neither computes nor waits for data. Ranks
  that are ready earlier wait longer, for that rank; this waiting is thereby taken out. What communication adds to the
  computing itself, by taking its cores or memory, is added where steps without synchronisation were measured: the
  slowest rank's median time with it, less that without. Strategies that mark no last gradient have only T less the time
  without synchronisation, which holds the waiting for ranks that are late by turns; or else a profiled repeat's share.
- `stragglers`: the longest computing in each step, less that of the median rank (the lower one of two): a rank that is
  always slow, and ranks that are late by turns.
- `launch`: of a profiled repeat the idle time, when no operator or kernel runs, less what the profiler itself adds to a
  step, less the wait for data, which is idle time, too. Of the (lower) median rank, since a straggler may idle.
- `memory`: of a profiled repeat the time in which data are copied and nothing is computed.
- `compute`: the rest.

The largest is the bottleneck if it takes `THRESHOLD` of the step or more; else it is `compute`, unless something that
could be the cause is unknown: then the bottleneck is unknown, too. Without a profiled repeat launch overhead and copies
are part of `compute`, and the sentence says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, median_low
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from benchmarks.core.profile import RankProfile
from benchmarks.core.record import RankSummary, Record, Window

Cause = Literal["data", "communication", "stragglers", "launch", "memory", "compute"]

THRESHOLD = 0.1
"""Of the step's time: what takes less is not called a bottleneck."""
EXPLAINED = (
    "bottleneck (limit): what takes most of a step besides computing, with its share, which is the most that removing "
    f"it would save; `compute` where nothing else takes {THRESHOLD:.0%}; `unknown` where it could not be measured. "
    "Communication's share is what ranks waited within the window; `exposed` compares with steps without "
    "synchronisation after it, so that the two need not agree. All shares, in words: `bottleneck` in scaling.json."
)
_WORDS: dict[Cause, str] = {
    "data": "waiting for data",
    "communication": "communication that is not hidden behind computing",
    "stragglers": "waiting for ranks that are slower than the median rank",
    "launch": "launch overhead, when neither an operator nor a kernel runs,",
    "memory": "copying data while nothing is computed",
    "compute": "computing",
}


class Bottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """What limits a cell, and the evidence; the module's text says how each share is found."""

    name: Annotated[
        Cause | Literal["unknown"], Meta(description="`unknown` where what could be the cause was not measured.")
    ]
    share: Annotated[
        float | None, Meta(description="Of the step's time: the most that removing it would save; null if unknown.")
    ]
    shares: Annotated[
        dict[Cause, float | None],
        Meta(description="Of all causes; null is unknown. No moment counts twice, so the known ones are at most 1."),
    ]
    sentence: Annotated[str, Meta(description="The same for people, with what is not known.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Waits:
    """Shares of a run's step time, from its window; None where the strategy cannot tell."""

    data: float
    communication: float | None
    stragglers: float | None


def waits_of(record: Record) -> Waits:
    """What a run waits for, from the counters of its window, which must have steps that took time."""
    window = record.window
    assert window is not None
    step, compute, data = map(np.asarray, (window.step_time_s, window.compute_time_s, window.data_wait_s))
    step_s, compute_s = float(step.mean()), float(compute.mean())
    data_s = float(np.clip(np.minimum(data, step - compute), 0.0, None).mean())
    communication_s: float | None = 0.0
    stragglers_s: float | None = 0.0
    if record.workers > 1:
        if record.ranks and all(rank.sync_wait_s is not None for rank in record.ranks):
            stragglers_s = min(max(0.0, _compute_beyond_the_median_s(record, compute, step_s)), compute_s)
            waited_s = max(0.0, step_s - compute_s - data_s)
            communication_s = waited_s + min(_slowed_computing_s(window, record.ranks), compute_s - stragglers_s)
        else:
            stragglers_s = None
            exposed = window.exposed_comm_s
            communication_s = min(max(0.0, fmean(exposed)), step_s - data_s) if exposed else None
    return Waits(
        data=data_s / step_s,
        communication=None if communication_s is None else communication_s / step_s,
        stragglers=None if stragglers_s is None else stragglers_s / step_s,
    )


def _compute_beyond_the_median_s(record: Record, longest: NDArray[np.float64], step_s: float) -> float:
    """How much longer the slowest rank computes than the median rank.

    By means where the spans hold each rank's waits: a moment in which the whole machine stalls is in all ranks' means,
    and makes nobody a straggler. Else by medians.
    """
    assert record.window is not None
    steps = len(record.window.step_time_s)
    waits = [span.sync_wait_s_by_rank for span in record.window.spans]
    known = [of_span for of_span in waits if of_span and len(of_span) == len(record.ranks)]
    if len(known) < len(waits):
        return float(np.median(longest)) - median_low(rank.own_time_s - rank.data_wait_s for rank in record.ranks)
    own_s: list[float] = [step_s - sum(of_rank) / steps for of_rank in zip(*known, strict=True)]
    computes_s = [own - rank.data_wait_s for own, rank in zip(own_s, record.ranks, strict=True)]
    return float(longest.mean()) - median_low(computes_s)


def _slowed_computing_s(window: Window, ranks: Sequence[RankSummary]) -> float:
    """How much longer the slowest rank takes for its own part of a step when the others communicate; medians."""
    if not window.exposed_comm_s:
        return 0.0
    alone_s = median(step - exposed for step, exposed in zip(window.step_time_s, window.exposed_comm_s, strict=True))
    return max(0.0, max(rank.own_time_s for rank in ranks) - alone_s)


def diagnose(
    waits: Sequence[Waits], slowest: str | None, profile: Sequence[RankProfile], step_time_s: float
) -> Bottleneck:
    """The bottleneck of a cell.

    Args:
        waits: One for each repeat, at least one; each share is their median.
        slowest: Which rank is slowest, in words; None where nobody can tell.
        profile: Of its profiled repeat, by rank; may be empty.
        step_time_s: The cell's.
    """
    data = median(one.data for one in waits)
    communication = _known_median([one.communication for one in waits])
    by_profile = communication is None and bool(profile)
    if by_profile:
        communication = median_low(one.split.exposed_communication_s / one.split.step_s for one in profile)
    stragglers = _known_median([one.stragglers for one in waits])
    launch, memory = _launch_and_memory(profile, data) if profile else (None, None)
    shares: dict[Cause, float | None] = {}
    left = 1.0
    # The window's counters go first: a profile is of another run, and may not fit what they leave.
    found: tuple[tuple[Cause, float | None], ...] = (
        ("data", data),
        ("communication", communication),
        ("stragglers", stragglers),
        ("launch", launch),
        ("memory", memory),
    )
    for cause, share in found:
        shares[cause] = None if share is None else min(share, left)
        left -= shares[cause] or 0.0
    unknown = [cause for cause in ("communication", "stragglers") if shares[cause] is None]
    known = [(share, cause) for cause, share in shares.items() if share is not None]
    shares["compute"] = None if unknown else left
    share, name = max(known, key=lambda one: one[0])
    if share < THRESHOLD:
        share, name = left, "compute"
    is_known = name != "compute" or not unknown
    return Bottleneck(
        name=name if is_known else "unknown",
        share=share if is_known else None,
        shares=shares,
        sentence=" ".join(_sentences(name if is_known else None, share, shares, step_time_s, slowest, by_profile)),
    )


def _launch_and_memory(profile: Sequence[RankProfile], data: float) -> tuple[float, float]:
    """Shares of a step without the profiler; the wait for data is first taken out of the idle time, then of copies."""

    def share(part_s: Callable[[RankProfile], float]) -> float:
        return median_low(max(0.0, part_s(one)) / min(one.plain_step_s, one.split.step_s) for one in profile)

    idle = share(lambda one: one.split.idle_s - max(0.0, one.split.step_s - one.plain_step_s))
    copy = share(lambda one: one.split.copy_s)
    return max(0.0, idle - data), max(0.0, copy - max(0.0, data - idle))


def slowest_in_words(ranks: Sequence[RankSummary]) -> str | None:
    """Which rank takes longest for its own part of a step, and how much longer than the median rank."""
    if len(ranks) < 2 or any(rank.sync_wait_s is None for rank in ranks):
        return None
    worst, middle_s = max(ranks, key=lambda rank: rank.own_time_s), median_low(rank.own_time_s for rank in ranks)
    if not middle_s > 0:
        return None
    return f"rank {worst.rank} on {worst.host} takes {worst.own_time_s / middle_s:.2f} times the median rank's time"


def _sentences(
    name: Cause | None,
    share: float,
    shares: dict[Cause, float | None],
    step_time_s: float,
    slowest: str | None,
    by_profile: bool,
) -> list[str]:
    others = [
        f"{_WORDS[cause].rstrip(',')} {value:.1%}"
        for cause, value in shares.items()
        if value is not None and cause not in {name, "compute"}
    ]
    if name is None:
        said = ["The bottleneck is unknown."]
    elif name == "compute":
        whole = "computing" if shares["launch"] is not None else "computing, with launch overhead and copies within it"
        said = [f"Limited by {whole}: {share:.1%} of a step."]
    else:
        said = [
            f"{_WORDS[name][0].upper()}{_WORDS[name][1:]} takes {share:.1%} of a step: without it, a step of "
            f"{step_time_s * 1e3:.3g} ms could take {step_time_s * (1 - share) * 1e3:.3g} ms, but no less."
        ]
    if name == "stragglers" and slowest:
        said.append(f"{slowest[0].upper()}{slowest[1:]}.")
    said.append(f"Besides: {', '.join(others)}.")
    if shares["communication"] is None:
        said.append("Communication is unknown: this strategy takes no step without it; profile=true would tell.")
    if by_profile:
        said.append("Communication is the profiled repeat's, waiting for slower ranks included.")
    if shares["stragglers"] is None:
        said.append("Stragglers are unknown: of this strategy nobody sees when a rank begins to wait.")
    if shares["launch"] is None and name != "compute":
        said.append("Launch overhead and copies are unknown: no profiled repeat.")
    return said


def _known_median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
