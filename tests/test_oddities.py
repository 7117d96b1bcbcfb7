"""What is odd about step times and repeats: seen where it was put in, and hardly ever where it was not."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.runs import oddities
from analysis.runs.load import load_cells
from analysis.runs.oddities import Oddity, Slowest
from analysis.schema import Report
from analysis.series import build_report
from analysis.tables.formats import all_tables, cells_csv
from tests import synthetic

Floats = NDArray[np.float64]
FLAT: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, steps: 0.1 * (1 + 0.1 * rng.normal(size=steps)),
    "log-normal": lambda rng, steps: 0.1 * rng.lognormal(0, 0.5, steps),
    "exponential": lambda rng, steps: 0.1 + rng.exponential(0.1, steps),
    "uniform": lambda rng, steps: rng.uniform(0.05, 0.15, steps),
}


def odd(times: Floats, samples: list[int] | None = None) -> list[Oddity]:
    return oddities.of_steps(synthetic.window(list(times), samples or [64] * len(times), []))


def kinds(times: Floats) -> list[str]:
    return [oddity.kind for oddity in odd(times)]


def noise(steps: int, spread: float = 0.03, seed: int = 0) -> Floats:
    """Around 1, of some skewness, as step times are."""
    return np.random.default_rng(seed).lognormal(0, spread, steps)


def correlated(rng: np.random.Generator, steps: int) -> Floats:
    """Flat, and each step like the one before it: an autoregression of 0.5."""
    shocks = rng.normal(size=steps + 50)
    values = np.zeros(steps + 50)
    for step in range(1, steps + 50):
        values[step] = 0.5 * values[step - 1] + shocks[step]
    return 0.1 * np.exp(0.1 * values[50:])


@pytest.mark.parametrize("steps", [20, 60, 200])
@pytest.mark.parametrize("name", FLAT)
def test_flat_series_are_hardly_ever_called_odd(name: str, steps: int) -> None:
    """1,000 series: 1 in 1,000 for each kind is 1 expected, and more than 5 has a probability below 1 in 1,000."""
    rng = np.random.default_rng(steps)
    alarms = Counter(kind for _ in range(1000) for kind in kinds(FLAT[name](rng, steps)))
    assert all(number <= 5 for number in alarms.values()), alarms


@pytest.mark.parametrize(("steps", "most"), [(20, 15), (39, 20), (60, 10), (200, 5)])
def test_neighbours_that_are_alike_are_no_drift(steps: int, most: int) -> None:
    rng = np.random.default_rng(steps)
    alarms = Counter(kind for _ in range(1000) for kind in kinds(correlated(rng, steps)))
    assert alarms["drift"] <= most
    assert alarms["two modes"] <= 5


def test_the_trend_test_has_its_own_rate() -> None:
    """Neither more alarms nor fewer: at |z| > 1.96, 5 % of flat series; without it a test could be merely blind."""
    rng = np.random.default_rng(1)
    alarms = sum(abs(oddities.trend(rng.exponential(size=20))) > 1.96 for _ in range(4000))
    assert 0.03 < alarms / 4000 < 0.06


@pytest.mark.parametrize("steps", [20, 50, 200, 1999])
@pytest.mark.parametrize(("change", "words"), [(0.3, "slower"), (-0.25, "faster")])
def test_drift_is_seen_with_its_size(steps: int, change: float, words: str) -> None:
    (oddity,) = odd(0.1 * noise(steps) * (1 + change * np.linspace(-0.5, 0.5, steps)))
    assert oddity.kind == "drift"
    assert words in oddity.words
    size = float(oddity.words.partition("by ")[2].partition("%")[0])
    assert size == pytest.approx(100 * abs(change), rel=0.25)


def test_a_drift_too_small_to_matter_is_not_said() -> None:
    times = 0.1 * noise(200, spread=0.001)
    assert kinds(times * np.linspace(1, 1.01, 200)) == []
    assert kinds(times * np.linspace(1, 1.03, 200)) == ["drift"]


@pytest.mark.parametrize("steps", [20, 60, 400])
def test_a_slow_first_step_is_warm_up(steps: int) -> None:
    times = 0.1 * noise(steps)
    times[0] *= 4
    (oddity,) = odd(times)
    assert oddity.kind == "warm-up"
    assert oddity.words.startswith("the first step is slower than the rest, up to ")
    assert float(oddity.words.partition("up to ")[2].partition(" ")[0]) == pytest.approx(4, rel=0.15)


def test_warm_up_that_decays_is_no_drift_too() -> None:
    """And one slow step in the middle hides a slow first step, but not a slow first block."""
    for seed in range(20):
        times = 0.1 * noise(400, seed=seed)
        times[:100] *= 1 + np.exp(-np.arange(100) / 40)
        times[300] *= 3
        (oddity,) = odd(times)
        assert oddity.kind == "warm-up"
        assert 60 <= int(oddity.words.split()[2]) <= 100


def test_a_slow_step_elsewhere_is_no_warm_up() -> None:
    for at in (0, 30, 199):
        times = 0.1 * noise(200)
        times[at] *= 4
        assert kinds(times) == (["warm-up"] if at == 0 else [])


@pytest.mark.parametrize(("steps", "period"), [(60, 2), (200, 4), (1000, 7)])
def test_two_modes_are_named_with_their_shares_and_their_period(steps: int, period: int) -> None:
    """As of a strategy that communicates in every fourth step."""
    times = 0.010 * noise(steps)
    times[::period] *= 1.4
    (oddity,) = odd(times)
    assert oddity.kind == "two modes"
    share = -(-steps // period) / steps
    assert oddity.words.startswith(f"{1 - share:.0%} of the steps take about ")
    fast, slow = (float(text.partition("about ")[2].partition(" ")[0]) for text in oddity.words.split(",")[:2])
    assert [fast, slow] == pytest.approx([10, 14], rel=0.02)
    assert oddity.words.endswith(f", every {period} steps")


def test_modes_without_a_period_and_modes_that_change_once() -> None:
    times = 0.010 * noise(200)
    irregular = np.zeros(200, dtype=bool)
    irregular[np.cumsum(np.random.default_rng(3).choice([2, 3], size=66, p=[0.7, 0.3]))] = True
    (oddity,) = odd(np.where(irregular, 1.4, 1.0) * times)
    assert "every" not in oddity.words
    assert "which" not in oddity.words
    found = {o.kind: o.words for o in odd(np.where(np.arange(200) >= 120, 1.4, 1.0) * times)}
    assert found["two modes"].endswith(", which begin with step 121")
    found = {o.kind: o.words for o in odd(np.where(np.arange(200) < 80, 1.4, 1.0) * times)}
    assert found["two modes"].endswith(", which end with step 80")


def test_a_few_outliers_are_no_mode() -> None:
    times = 0.010 * noise(1000)
    times[17::14] *= 1.5
    assert kinds(times) == []
    times[8::14] *= 1.5
    assert kinds(times) == ["two modes"]


def test_modes_are_seen_beside_outliers() -> None:
    times = 0.010 * noise(200)
    times[::2] *= 1.4
    times[[50, 101, 150]] *= 30
    assert kinds(times) == ["two modes"]


def test_nothing_is_said_of_few_or_equal_steps() -> None:
    assert kinds(np.full(500, 0.1)) == []
    assert kinds(np.linspace(0.1, 0.5, 19)) == []
    assert kinds(np.linspace(0.1, 0.5, 20)) == ["drift"]


def test_steps_of_other_batches_do_not_count() -> None:
    """Each epoch's last batch is a quarter, and as much faster: that is no second mode."""
    times, samples = 0.010 * noise(100), [64] * 100
    for last in range(3, 100, 4):
        times[last] /= 4
        samples[last] = 16
    assert odd(times, samples) == []
    assert kinds(times) == ["two modes"]
    drifting = np.where(np.asarray(samples) == 64, np.linspace(0.8, 1.2, 100), 1.0) * times
    assert [oddity.kind for oddity in odd(drifting, samples)] == ["drift"]


def test_series_take_bounded_time() -> None:
    """Of the processor: 10,000 records in less than 10 s, with a margin for slow machines; it is about 0.5 s."""
    windows = [synthetic.window(list(0.1 * noise(200, seed=seed)), [64] * 200, []) for seed in range(200)]
    started = time.process_time()
    for window in windows:
        oddities.of_steps(window)
    assert (time.process_time() - started) / len(windows) < 1e-3


def test_a_repeat_unlike_the_others() -> None:
    oddity = oddities.of_repeats([0.100, 0.101, 0.099, 0.1005, 0.130])
    assert oddity
    assert oddity.words == "one repeat of 5 takes 30% longer per step than the others do"
    faster = oddities.of_repeats([0.100, 0.101, 0.099, 0.1005, 0.080])
    assert faster
    assert "20% shorter" in faster.words
    assert oddities.of_repeats([0.1, 0.1, 0.13])
    assert oddities.of_repeats([0.100, 0.1001, 0.0999, 0.1, 0.104]) is None, "too small to matter"
    assert oddities.of_repeats([0.09, 0.10, 0.11, 0.12, 0.13]) is None
    assert oddities.of_repeats([0.1, 0.2]) is None


@pytest.mark.parametrize("repeats", [3, 5, 10])
def test_repeats_that_are_alike_are_hardly_ever_called_odd(repeats: int) -> None:
    rng = np.random.default_rng(repeats)
    alarms = sum(oddities.of_repeats(list(rng.lognormal(0, 0.1, repeats))) is not None for _ in range(2000))
    assert 4 <= alarms <= 40, "1 % of 2,000 is 20; a test that is never wrong sees nothing"


def slowest(rank: int, ranks: int = 4, excess: float = 0.2, **on_host: int) -> Slowest:
    """A run in which this rank is the slowest; hosts hold its ranks in order."""
    of_rank = [host for host, number in (on_host or {"node0": ranks}).items() for _ in range(number)]
    return Slowest(rank=rank, host=of_rank[rank], excess=excess, ranks=ranks, on_host=on_host or {"node0": ranks})


def test_a_rank_that_is_slowest_in_every_repeat() -> None:
    """Of 4 ranks one is the slowest in 4 repeats by chance in 1 of 64 cells, in 5 in 1 of 256."""
    assert oddities.of_ranks([slowest(2)] * 4) is None
    oddity = oddities.of_ranks([slowest(2)] * 5)
    assert oddity == Oddity(kind="rank", words="rank 2 on node0 is the slowest one in 5 of 5 repeats")
    assert oddities.of_ranks([slowest(2, excess=0.04)] * 9) is None, "too small to matter"
    assert oddities.of_ranks([slowest(number % 4) for number in range(12)]) is None


def test_a_host_that_has_the_slowest_rank() -> None:
    """Pooled over runs: on one of two hosts the slowest rank is by chance in half of them."""
    slow = [slowest(1, ranks=2, a=1, b=1)] * 9
    oddity = oddities.of_hosts(slow)
    assert oddity == Oddity(kind="host", words="b has the slowest rank in 9 of the 9 runs that it was in")
    assert oddities.of_hosts([slowest(number % 2, ranks=2, a=1, b=1) for number in range(10)]) is None
    assert oddities.of_hosts([slowest(1, ranks=2, a=2)] * 9) is None, "there is no other host"
    # A host with 7 of 8 ranks has the slowest one in most runs.
    assert oddities.of_hosts([slowest(3, ranks=8, a=7, b=1)] * 20) is None
    assert oddities.of_hosts([slowest(7, ranks=8, a=7, b=1)] * 20)


def test_runs_without_it_do_not_dilute_a_host() -> None:
    others = [slowest(number % 2, ranks=2, a=1, c=1) for number in range(40)]
    oddity = oddities.of_hosts([slowest(1, ranks=2, a=1, b=1)] * 25 + others)
    assert oddity
    assert oddity.words == "b has the slowest rank in 25 of the 25 runs that it was in"


def swept(folder: Path) -> Report:
    """Cells of six repeats: that of one worker drifts in two; in all others rank 1, on another node, is slow."""
    for workers in (1, 2):
        for repeat in range(6):
            times = 0.1 * noise(60, seed=repeat)
            if workers == 1 and repeat in (1, 4):
                times *= np.linspace(0.8, 1.2, 60)
            ranks = [
                msgspec.structs.replace(synthetic.rank_summary(rank, 0.05 + 0.02 * rank), host=f"node{rank}")
                for rank in range(workers)
            ]
            of = synthetic.config(workers, repeat=repeat)
            synthetic.write(folder, [synthetic.record(of, list(times), ranks=ranks)])
            if workers == 2:
                wide = synthetic.config(2, global_batch=128, repeat=repeat)
                synthetic.write(folder, [synthetic.record(wide, list(times), ranks=ranks)])
    return build_report(load_cells(folder))


def test_oddities_of_cells_and_of_the_sweep_are_in_the_tables(tmp_path: Path) -> None:
    report = swept(tmp_path)
    (table,) = [table for table in all_tables(report) if table.name == "oddities"]
    rows = [tuple(entry.text for entry in row) for row in table.rows]
    assert rows[0] == ("all runs", "host", "node1 has the slowest rank in 12 of the 12 runs that it was in")
    (cell,) = [row for row in rows[1:] if row[1] == "drift"]
    assert cell[0] == "1 worker, global batch 64"
    assert "(so or alike in 2 of 6 repeats)" in cell[2]
    (line,) = [row for row in csv.DictReader(io.StringIO(cells_csv(report))) if row["workers"] == "1"]
    assert line["oddities"].startswith("drift: steps get slower over the window, by ")
