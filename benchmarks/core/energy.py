"""What is known of a run's energy: the counters that were read, and when they may be added up.

Two kinds of counters are known, and a run's energy is that of one kind only. NVML counts what a GPU has used; of a run
on GPUs this is its energy, without the host. RAPL counts what a CPU package has used, whatever runs on it; this is the
energy of a run on CPUs, and stands beside that of a run on GPUs. Not measurable is unknown, never 0: where a worker's
counter is missing there is no sum, and `unknown` says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Source = Literal["nvml", "rapl"]

SCOPES: dict[Source, str] = {
    "nvml": "of the workers' GPUs, without their hosts",
    "rapl": "of whole CPU packages, with whatever else ran on them, without memory and the rest of the host",
}
RESOLUTION_S: dict[Source, float] = {"nvml": 0.1, "rapl": 0.001}
"""How often a counter moves, at the slowest: NVML's every 20 to 100 ms, by GPU; RAPL's about every millisecond."""
_PRECISE = 10
"""How many times its resolution a span must last for the difference of two readings to be precise."""


class PowerSeries(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Sampled while spans ran; equally long lists, thinned out evenly to some hundred points. Null was not readable."""

    time_s: list[float]
    """Since the first span's beginning, without what lies between spans."""
    power_w: list[float | None]
    sm_clock_mhz: list[float | None]
    temperature_c: list[float | None]


class CounterReading(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What one counter counted."""

    source: Source
    name: str
    """`0000:17:00.0`, a GPU's PCI address, or `package-0`."""
    host: str
    rank: int
    """Whose worker read it."""
    span_j: list[float | None]
    """Joules of each span of that worker's window; null where the counter failed, or the span was cut short."""
    idle_w: float | None
    """Power of the device before it was used; null where it was not measured, as of CPUs, which are never idle then."""
    series: PowerSeries | None


class RankEnergy(msgspec.Struct, kw_only=True):
    """What one worker leaves: its GPU's counter, and its host's if it is the first worker there."""

    rank: int
    host: str
    counters: list[CounterReading] = []
    unknown: dict[Source, str] = {}
    """Why there is no reading, by source."""


class Energy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of a run's window: its spans alone, without warm-up and evaluation."""

    source: Source
    """Whose counters are the run's energy; those of the other kind stand beside it."""
    scope: str
    """What these counters count, in words."""
    counters: list[CounterReading]
    unknown: dict[Source, str]
    """By source, why its counters have no sum."""

    def joules_by_span(self, source: Source | None = None) -> list[float | None] | None:
        """The sum of all counters of a source, of the run's own by default; None where it is unknown."""
        source = source or self.source
        spans = [counter.span_j for counter in self.counters if counter.source == source]
        if source in self.unknown or not spans:
            return None
        return [_sum(together) for together in zip(*spans, strict=True)]


def _sum(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def merge_energy(parts: Sequence[RankEnergy | None], source: Source) -> Energy | None:
    """One run's energy from what its workers left, by rank; None where one of them left nothing.

    Each GPU is its worker's own. A package is its host's: it counts once, however many workers have read it.
    """
    ranks = [part for part in parts if part is not None]
    if not ranks or len(ranks) < len(parts):
        return None
    counters: dict[tuple[str, str], CounterReading] = {}
    for rank in ranks:
        for counter in rank.counters:
            counters.setdefault((counter.host, counter.name), counter)
    unknown: dict[Source, str] = {}
    if source == "nvml" and (why := _unknown_gpus(ranks)):
        unknown["nvml"] = why
    if why := _unknown_packages(ranks):
        unknown["rapl"] = why
    return Energy(source=source, scope=SCOPES[source], counters=list(counters.values()), unknown=unknown)


def _unknown_gpus(ranks: Sequence[RankEnergy]) -> str | None:
    why = {rank.rank: rank.unknown["nvml"] for rank in ranks if "nvml" in rank.unknown}
    if not why:
        return None
    first, words = next(iter(why.items()))
    return words if len(why) == len(ranks) else f"rank {first}: {words}"


def _unknown_packages(ranks: Sequence[RankEnergy]) -> str | None:
    """Of the first host whose packages no worker could read."""
    read = {rank.host for rank in ranks if any(counter.source == "rapl" for counter in rank.counters)}
    why = {rank.host: rank.unknown["rapl"] for rank in ranks if "rapl" in rank.unknown}
    hosts = dict.fromkeys(rank.host for rank in ranks)
    missing = {host: why.get(host, "nobody read it") for host in hosts if host in why or host not in read}
    if not missing:
        return None
    host, words = next(iter(missing.items()))
    return words if len(hosts) == 1 or len(missing) == len(hosts) else f"{host}: {words}"


def of_whole_spans(energy: RankEnergy | None, is_whole: Sequence[bool]) -> RankEnergy | None:
    """The reading of a run that was cut short: of a span that is cut the energy is unknown."""
    if energy is None:
        return None

    def kept(counter: CounterReading) -> CounterReading:
        known = [*counter.span_j, *[None] * len(is_whole)]
        span_j = [joules if whole else None for joules, whole in zip(known, is_whole, strict=False)]
        return msgspec.structs.replace(counter, span_j=span_j)

    return msgspec.structs.replace(energy, counters=list(map(kept, energy.counters)))


def precision_notes(energy: Energy | None, span_wall_times_s: Sequence[float]) -> list[str]:
    """What a reader of the energy must know, where its spans are short against the counter's steps."""
    if energy is None or energy.joules_by_span() is None or not span_wall_times_s:
        return []
    resolution_s = RESOLUTION_S[energy.source]
    if min(span_wall_times_s) >= _PRECISE * resolution_s:
        return []
    return [
        f"energy is imprecise: spans of less than {_PRECISE * resolution_s:g} s, and the counter moves in steps of up "
        f"to {resolution_s * 1e3:g} ms"
    ]
