"""What is odd about a run's step times and about a cell's repeats, in words.

Each test is made to cry wolf, where there is nothing, at most once in 1,000 series of independent steps
(`FALSE_ALARMS`), and once in 100 cells for what is compared over repeats (`FALSE_ALARMS_OF_CELLS`). Besides, what is
odd must be large enough to matter. Simulations (in the tests) agree for normal, log-normal, exponential and
uniform step times. Warm-up is seen in 1 or 2 of 100 flat series of 20 steps whose times have no variance (Pareto,
1.5), and drift in 1 of 100 series of 20 to 39 steps, or 1 of 400 of 60, whose neighbours are alike (correlation 0.5).

- drift: the test of Mann (1945, Econometrica 13, 245) and Kendall for a trend, over medians of 20 to 39 blocks of
  neighbouring steps, so that single slow steps do not decide. Steps that are alike to their neighbours make trends by
  chance; the variance is widened by their correlation, as that of a mean is: (1 + r) / (1 - r), with r between blocks
  less the trend (Yue and Wang 2004, Water Resources Management 18, 201).
- warm-up: the first step, or the first block of steps, is slower than the median of the last three quarters of the
  window by five times as much as the slowest of these: rare also where the distribution is wide.
- two modes: the values are split in two where their variance within both parts is least (Otsu 1979, IEEE Trans. SMC 9,
  62). If the distribution had a single mode, values half-way between the medians of the parts would be as frequent as
  around one of these medians, or more so; Hoeffding's inequality bounds the probability that they are as rare as seen.
- repeat: the largest studentised deviation of a repeat from the others, on log times (Thompson's distribution of it:
  Student's t with n - 2 degrees of freedom, times n).
- rank, host: one is the slowest so often that chance would do so in fewer than 1 of 100 cells (binomial).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median_low
from typing import Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.core.record import RankSummary, Window

Floats = NDArray[np.float64]
Who = TypeVar("Who", int, str)
OddityKind = Literal["drift", "warm-up", "two modes", "repeat", "rank", "host", "clock"]

FALSE_ALARMS = 0.001
"""Of the series in which nothing is odd, for each test."""
FALSE_ALARMS_OF_CELLS = 0.01
"""Of the cells in which nothing is odd, for each test over repeats."""
FEWEST_STEPS = 20
"""With fewer, nothing is said about a series."""
_BLOCKS = 20
_Z = 3.2905
"""Of the normal distribution, for `FALSE_ALARMS` on both sides."""
_BEYOND = 5.0
"""How much further than the slowest settled step a first one must lie to be warm-up."""
_LEAST_DRIFT = 0.02
_LEAST_DIFFERENCE = 0.05
"""Of the median step time, or of the repeats': what is smaller matters to nobody."""
_LEAST_SHARE = 0.1
"""Of the steps, for a mode; fewer are outliers."""


class Oddity(msgspec.Struct, frozen=True, kw_only=True):
    """Something to look at before the number is believed."""

    kind: OddityKind
    words: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Slowest:
    """The rank with the longest own time in a run of several."""

    rank: int
    host: str
    excess: float
    """Of its own time over the (lower) median rank's, less 1."""
    ranks: int
    on_host: Mapping[str, int]
    """Ranks on each host."""


def slowest_of(ranks: Sequence[RankSummary]) -> Slowest | None:
    """Which rank is slowest; None where the strategy cannot tell, or there is one rank."""
    if len(ranks) < 2 or any(rank.sync_wait_s is None for rank in ranks):
        return None
    worst, middle_s = max(ranks, key=lambda rank: rank.own_time_s), median_low([rank.own_time_s for rank in ranks])
    return Slowest(
        rank=worst.rank,
        host=worst.host,
        excess=worst.own_time_s / middle_s - 1 if middle_s > 0 else 0.0,
        ranks=len(ranks),
        on_host=Counter(rank.host for rank in ranks),
    )


def of_steps(window: Window) -> list[Oddity]:
    """What is odd about the step times of a window; of steps of the most frequent size alone, where they differ."""
    times = np.asarray(window.step_time_s)
    if min(window.samples) != max(window.samples):
        times = times[np.asarray(window.samples) == Counter(window.samples).most_common(1)[0][0]]
    if times.size < FEWEST_STEPS:
        return []
    blocks = _blocks(times)
    return [oddity for oddity in (_warm_up(times, blocks), _drift(blocks), _two_modes(times)) if oddity]


def _blocks(times: Floats) -> Floats:
    """Medians of 20 to 39 blocks of neighbouring steps, as long as each other; the last steps may be in none."""
    size = times.size // _BLOCKS
    whole = times[: times.size // size * size].reshape(-1, size)
    medians: Floats = np.sort(whole, axis=1)[:, (size - 1) // 2]
    return medians


def trend(values: Floats) -> float:
    """Kendall's S over its standard deviation where there is no trend: normal, 0 without one, above 0 where it rises.

    Neighbours that are alike are allowed for. Ties make it too small rather than too large.
    """
    count = values.size
    first, second = _pairs(count)
    score = float(np.sign(values[second] - values[first]).sum())
    variance = count * (count - 1) * (2 * count + 5) / 18
    z = math.copysign(max(0.0, abs(score) - 1), score) / math.sqrt(variance)
    if abs(z) < _Z:
        return z
    rest = values - _slope(values) * np.arange(count)
    rest -= rest.mean()
    power = float(rest @ rest)
    alike = min(max(0.0, float(rest[1:] @ rest[:-1]) / power), 0.99) if power > 0 else 0.0
    return z / math.sqrt((1 + alike) / (1 - alike))


@lru_cache(maxsize=64)
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The places of all pairs of values, the earlier ones and the later ones."""
    return np.triu_indices(count, 1)


def _slope(values: Floats) -> float:
    """From one value to the next: the median over all pairs (Theil 1950, Sen 1968)."""
    first, second = _pairs(values.size)
    return float(np.median((values[second] - values[first]) / (second - first)))


def _drift(blocks: Floats) -> Oddity | None:
    if abs(trend(blocks)) < _Z:
        return None
    change = _slope(blocks) * (blocks.size - 1) / float(np.median(blocks))
    if abs(change) < _LEAST_DRIFT:
        return None
    way = "slower" if change > 0 else "faster"
    return Oddity(kind="drift", words=f"steps get {way} over the window, by {abs(change):.0%} of the median step")


def _warm_up(times: Floats, blocks: Floats) -> Oddity | None:
    """By steps, and by blocks: a slow step later on may hide a slow first one, but hardly a slow first block."""
    for units in (times, blocks):
        late = np.sort(units[units.size // 4 :])
        usual, slowest = float(late[late.size // 2]), float(late[-1])
        excess = float(units[0]) - usual
        if excess > _BEYOND * (slowest - usual) and excess > _LEAST_DIFFERENCE * usual:
            leading = int(np.argmax(units <= slowest)) * (times.size // units.size)
            words = (
                f"the first {leading} steps are" if leading > 1 else "the first step is"
            ) + f" slower than the rest, up to {float(units[0]) / usual:.2f} times: warm-up is left in the window"
            return Oddity(kind="warm-up", words=words)
    return None


def _two_modes(times: Floats) -> Oddity | None:
    ordered = np.sort(times)
    count = ordered.size
    body = ordered[: count - count // 20]  # the slowest 5 % may be outliers, which would be a part of their own
    part = np.arange(1, body.size)
    sums = np.cumsum(body)
    below = sums[:-1] / part
    above = (sums[-1] - sums[:-1]) / (body.size - part)
    cut = int(np.argmax(part * (body.size - part) * (above - below) ** 2)) + 1
    fast, slow = float(body[(cut - 1) // 2]), float(body[cut + (body.size - cut) // 2])
    if min(cut, count - cut) < _LEAST_SHARE * count or slow - fast < _LEAST_DIFFERENCE * fast:
        return None
    width = (slow - fast) / 3
    edges = [middle + side * width / 2 for middle in (fast, (fast + slow) / 2, slow) for side in (-1, 1)]
    at = np.searchsorted(ordered, edges)
    at_fast, between, at_slow = int(at[1] - at[0]), int(at[3] - at[2]), int(at[5] - at[4])
    both = between + min(at_fast, at_slow)
    lack = both / 2 - between
    if lack <= 0 or math.exp(-2 * lack**2 / both) > FALSE_ALARMS:
        return None
    is_slow = times > (fast + slow) / 2
    share = float(is_slow.mean())
    return Oddity(
        kind="two modes",
        words=f"{1 - share:.0%} of the steps take about {fast * 1e3:.3g} ms, {share:.0%} about {slow * 1e3:.3g} ms"
        + _when(is_slow),
    )


def _when(is_slow: NDArray[np.bool_]) -> str:
    """Where the slow steps lie, if that is simple."""
    changes = np.flatnonzero(np.diff(is_slow))
    if changes.size == 1:
        return (
            f", {'which begin' if is_slow[-1] else 'which end'} with step {int(changes[0]) + (2 if is_slow[-1] else 1)}"
        )
    distances = np.diff(np.flatnonzero(is_slow))
    period, times = Counter(distances.tolist()).most_common(1)[0]
    return f", every {period} steps" if period > 1 and times >= 0.9 * distances.size else ""


def of_cell(
    of_runs: Sequence[Sequence[Oddity]], step_times_s: Sequence[float], slowest: Sequence[Slowest]
) -> list[Oddity]:
    """All that is odd about a cell.

    Args:
        of_runs: What is odd about each repeat's steps.
        step_times_s: Of each repeat.
        slowest: Of those repeats where it is known.
    """
    found: dict[OddityKind, list[str]] = {}
    for oddity in (oddity for run in of_runs for oddity in run):
        found.setdefault(oddity.kind, []).append(oddity.words)
    repeats = len(of_runs)
    odd = [
        Oddity(
            kind=kind, words=words[0] + (f" (so or alike in {len(words)} of {repeats} repeats)" if repeats > 1 else "")
        )
        for kind, words in found.items()
    ]
    return [*odd, *filter(None, (of_repeats(step_times_s), of_ranks(slowest)))]


def of_repeats(step_times_s: Sequence[float]) -> Oddity | None:
    """The repeat that is unlike the others, if there is one among three or more; times in seconds."""
    count = len(step_times_s)
    if count < 3:
        return None
    logs = np.log(step_times_s)
    worst = int(np.argmax(abs(logs - np.median(logs))))
    others = np.delete(logs, worst)
    apart = float(logs[worst] - others.mean())
    if abs(math.expm1(apart)) < _LEAST_DIFFERENCE:
        return None
    spread = float(others.std(ddof=1)) * math.sqrt(count / (count - 1))
    if spread > 0:
        from scipy.special import stdtr

        if 2 * count * stdtr(count - 2, -abs(apart) / spread) > FALSE_ALARMS_OF_CELLS:
            return None
    way = "longer" if apart > 0 else "shorter"
    return Oddity(
        kind="repeat",
        words=f"one repeat of {count} takes {abs(math.expm1(apart)):.0%} {way} per step than the others do",
    )


def of_ranks(runs: Sequence[Slowest]) -> Oddity | None:
    """The rank that is the slowest, by 5 % or more, in more of a cell's repeats than chance makes any."""
    if not runs:
        return None
    found = _too_often([run.rank if run.excess >= _LEAST_DIFFERENCE else None for run in runs], runs[0].ranks)
    if found is None:
        return None
    rank, times = found
    hosts = sorted({run.host for run in runs if run.rank == rank})
    where = f"on {hosts[0]}" if len(hosts) == 1 else f"on {len(hosts)} hosts"
    return Oddity(kind="rank", words=f"rank {rank} {where} is the slowest one in {times} of {len(runs)} repeats")


def of_hosts(runs: Sequence[Slowest]) -> Oddity | None:
    """The host with the slowest rank, by 5 % or more, in more of a sweep's runs than chance makes any of them."""
    across = [run for run in runs if len(run.on_host) > 1]
    if not across:
        return None
    seen = [run.host if run.excess >= _LEAST_DIFFERENCE else None for run in across]
    host = Counter(filter(None, seen)).most_common(1)
    # Of the runs in which it took part, each with the chance that its share of the ranks gives it.
    took_part = [number for number, run in enumerate(across) if host and host[0][0] in run.on_host]
    if not took_part:
        return None
    chance = max(across[number].on_host[host[0][0]] / across[number].ranks for number in took_part)
    hosts = len({name for run in across for name in run.on_host})
    found = _too_often([seen[number] for number in took_part], hosts, chance)
    if found is None:
        return None
    return Oddity(
        kind="host", words=f"{found[0]} has the slowest rank in {found[1]} of the {len(took_part)} runs that it was in"
    )


def _too_often(slowest: Sequence[Who | None], candidates: int, chance: float | None = None) -> tuple[Who, int] | None:
    """Who is the slowest more often than chance makes any of the candidates, and how often."""
    counts = Counter(one for one in slowest if one is not None).most_common(1)
    if not counts:
        return None
    who, times = counts[0]
    from scipy.special import bdtrc

    by_chance = candidates * float(bdtrc(times - 1, len(slowest), 1 / candidates if chance is None else chance))
    return (who, times) if by_chance <= FALSE_ALARMS_OF_CELLS else None
