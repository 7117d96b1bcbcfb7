"""When a cell has enough repeats: the rule, and whether the intervals that it leaves still hold what they promise."""

from __future__ import annotations

import math
from statistics import median

import numpy as np
import pytest

from analysis.statistics.bootstrap import Floats, bootstrap_median, estimate, generator, step_factors
from benchmarks.core.errors import ConfigError
from benchmarks.core.repeat_target import (
    JUDGED_FROM,
    RepeatTarget,
    Width,
    percent,
    read_repeat_target,
    rounds_of,
    shortfall,
    steps_of,
)

TARGET = RepeatTarget(half_width=0.02, max_repeats=20)


def width(half_width: float, repeats_ok: int = 8) -> Width:
    return Width(repeats=repeats_ok, repeats_ok=repeats_ok, half_width=half_width)


@pytest.mark.parametrize(
    ("first", "last", "steps"),
    [
        (1, 20, [1, 8, 12, 18, 20]),
        (3, 30, [3, 8, 12, 18, 27, 30]),
        (8, 20, [8, 12, 18, 20]),
        (9, 20, [9, 14, 20]),
        (20, 20, [20]),
        (2, 8, [2, 8]),
    ],
)
def test_a_cell_is_looked_at_after_these_repeats(first: int, last: int, steps: list[int]) -> None:
    assert steps_of(first, last) == steps
    assert [repeat for added in rounds_of(first, last) for repeat in added] == list(range(first, last))


def test_reached_by_the_half_width_and_by_enough_repeats() -> None:
    assert TARGET.reached(width(0.02))
    assert not TARGET.reached(width(0.0201))
    assert not TARGET.reached(width(0.0, repeats_ok=JUDGED_FROM - 1))


@pytest.mark.parametrize(("given", "part"), [("2%", 0.02), ("2 %", 0.02), ("0.5%", 0.005), (0.02, 0.02), (".1", 0.1)])
def test_a_target_is_read(given: object, part: float) -> None:
    target = read_repeat_target(given, 12)
    assert target is not None
    assert target.half_width == pytest.approx(part)
    assert target.max_repeats == 12
    assert read_repeat_target(None, "never looked at") is None


@pytest.mark.parametrize("given", [2, 0, "0%", "100%", -0.1, "-2%", "two", "2%%", "1.2.3%", True, float("nan"), [0.1]])
def test_a_target_that_cannot_be(given: object) -> None:
    with pytest.raises(ConfigError) as caught:
        read_repeat_target(given, 20)
    assert str(caught.value) == f"target_ci={given}: must be above 0 and below 100 %, as 2% or 0.02; or null"


@pytest.mark.parametrize("given", [7, 0, True, 7.5, "many", None])
def test_a_cap_that_cannot_be(given: object) -> None:
    with pytest.raises(ConfigError, match=rf"^max_repeats={given}: must be a whole number from 8, the fewest"):
        read_repeat_target("2%", given)


def test_words() -> None:
    assert [percent(part) for part in (0.02, 0.031, 0.0005, 0.155, 1.5)] == ["2 %", "3.1 %", "0.05 %", "16 %", "150 %"]
    words = "interval still +-3.1 % after 20 repeats (target 2 %)"
    assert shortfall(width(0.0312, 20), TARGET) == words
    assert shortfall(width(0.01, 7), TARGET) == "only 7 repeats give numbers, too few to judge target_ci"


def stopped(noise: float, step_noise: float, seed: str) -> tuple[int, bool]:
    """A cell of median 1 whose repeats and steps vary: its repeats by the rule, and whether the interval covers 1."""
    rng = generator(seed)
    last = 90
    target = RepeatTarget(half_width=0.02, max_repeats=last)
    steps = rng.lognormal(0, noise, (last, 1)) * rng.lognormal(-(step_noise**2) / 2, step_noise, (last, 20))
    times = [float(one.mean()) for one in steps]
    factors: list[Floats] = []
    for repeats in steps_of(2, last)[1:]:
        factors += [step_factors(one) for one in steps[len(factors) : repeats]]
        found = estimate(median(times[:repeats]), bootstrap_median(times[:repeats], factors, seed))
        if target.reached(width((found.high - found.low) / 2 / found.value, repeats)):
            break
    return repeats, found.low <= 1 <= found.high


def test_intervals_cover_the_truth_although_they_decide_when_to_stop() -> None:
    """With noise of 1 to 3.5 % between repeats, 2 % between steps, and no cap that would help."""
    cells = [stopped(noise, 0.02, f"cell {noise}") for noise in np.linspace(0.01, 0.035, 300)]
    assert sum(covered for _, covered in cells) / len(cells) >= 0.9
    assert np.mean([repeats for repeats, _ in cells[:40]]) < 9, "little noise takes the fewest"


def test_cells_stop_near_the_repeats_that_theory_asks_for() -> None:
    """The variance of a median of n values is pi / 2 times that of their mean, for large n and normal values."""
    noise, step_noise = 0.035, 0.05
    needed = (1.96 / TARGET.half_width) ** 2 * math.pi / 2 * (noise**2 + step_noise**2 / 20)
    repeats = [stopped(noise, step_noise, f"one of {cell}")[0] for cell in range(60)]
    assert needed == pytest.approx(20.4, abs=0.1)
    assert 0.9 * needed <= np.mean(repeats) <= 1.5 * needed
    assert np.mean([0.5 * needed <= each <= 2 * needed for each in repeats]) > 0.6
