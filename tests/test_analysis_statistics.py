"""The bootstrap: does the interval must mean what the tables say it means."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.statistics.bootstrap import DRAWS, STEP_RESAMPLES, bootstrap_median, generator, interval, step_factors


def test_step_factors_are_means_relative_to_the_mean() -> None:
    times = np.random.default_rng(0).lognormal(-3, 0.3, 400)
    factors = step_factors(times)
    assert factors.shape == (STEP_RESAMPLES,)
    assert factors.mean() == pytest.approx(1, abs=0.005)
    standard_error = times.std() / times.mean() / np.sqrt(times.size)
    assert factors.std() == pytest.approx(standard_error, rel=0.2)
    assert np.allclose(step_factors(times * 1000), factors)


def test_constant_steps_have_no_noise() -> None:
    assert np.allclose(step_factors([0.1] * 7), 1)
    assert np.allclose(step_factors([0.1]), 1)
    assert np.allclose(step_factors([0.1] * 2501), 1)  # in blocks, the last of them smaller


def test_many_steps_in_blocks_have_the_same_noise() -> None:
    times = np.random.default_rng(1).lognormal(-3, 0.3, 10_050)
    expected = times.std() / times.mean() / np.sqrt(times.size)
    assert step_factors(times).std() == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("steps", [[], [0.0, 0.0], [float("inf")], [float("nan"), 1.0]])
def test_impossible_steps_are_refused(steps: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        step_factors(steps)


def test_one_repeat_holds_step_noise_only() -> None:
    times = np.random.default_rng(2).lognormal(0, 0.2, 100)
    low, high = interval(bootstrap_median([5.0], [step_factors(times)], seed="a"))
    assert low < 5.0 < high
    assert (high - low) / 5.0 == pytest.approx(2 * 1.96 * times.std() / times.mean() / 10, rel=0.25)


def test_repeats_that_differ_widen_the_interval() -> None:
    quiet = [step_factors([1.0] * 10)] * 3
    assert interval(bootstrap_median([1.0, 1.0, 1.0], quiet, seed="a")) == (1.0, 1.0)
    assert interval(bootstrap_median([0.8, 1.0, 1.3], quiet, seed="a")) == pytest.approx((0.8, 1.3))


def test_draws_depend_on_the_seed_alone() -> None:
    factors = [step_factors([1.0, 2.0, 3.0])] * 3
    first = bootstrap_median([1.0, 2.0, 3.0], factors, seed="a")
    bootstrap_median([1.0], factors[:1], seed="b")
    assert np.array_equal(first, bootstrap_median([1.0, 2.0, 3.0], factors, seed="a"))
    assert not np.array_equal(first, bootstrap_median([1.0, 2.0, 3.0], factors, seed="b"))
    assert first.shape == (DRAWS,)


def test_draws_of_two_cells_are_independent() -> None:
    """They share the resampled means; the draws must not."""
    times = np.random.default_rng(3).lognormal(0, 0.5, 50)
    one, other = (bootstrap_median([1.0], [step_factors(times)], seed=seed) for seed in "ab")
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.12


def covered(trials: int, repeats: int, step_noise: float) -> float:
    """How often the interval of a ratio holds the truth: cells with medians 1 and 2, 5 % noise between repeats."""
    rng = generator("coverage")
    shape = step_noise**-2
    hits = 0
    for trial in range(trials):
        draws = []
        for name, truth in (("base", 1.0), ("cell", 2.0)):
            levels = truth * rng.lognormal(0, 0.05, repeats)
            steps = levels[:, None] * rng.gamma(shape, 1 / shape, (repeats, 30))
            values = [float(one.mean()) for one in steps]
            draws.append(bootstrap_median(values, [step_factors(one) for one in steps], seed=f"{name} {trial}"))
        low, high = interval(draws[1] / draws[0])
        hits += low <= 2.0 <= high
    return hits / trials


def test_interval_of_a_ratio_covers_the_truth() -> None:
    assert 0.93 <= covered(500, repeats=10, step_noise=0.05) <= 0.985


def test_noisy_steps_make_the_interval_wider_never_too_narrow() -> None:
    assert covered(500, repeats=10, step_noise=0.2) >= 0.95


def test_three_repeats_cover_less_as_the_note_says() -> None:
    """The table's note states 75 % for three repeats: with quiet steps the interval spans the three."""
    rng = generator("three")
    quiet = [step_factors([1.0] * 5)] * 3
    covered = 0
    for trial in range(400):
        low, high = interval(bootstrap_median(list(rng.lognormal(0, 0.05, 3)), quiet, seed=str(trial)))
        covered += low <= 1.0 <= high
    assert covered / 400 == pytest.approx(0.75, abs=0.06)


def test_interval_interpolates_between_draws() -> None:
    assert interval(np.arange(101.0)[::-1]) == pytest.approx((2.5, 97.5))
