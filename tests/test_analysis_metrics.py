"""The measures: exact numbers, and what must hold of any numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.runs import metrics

times = st.floats(1e-6, 1e4)
counts = st.integers(1, 4096)


def test_worked_example_batch_512() -> None:
    one, two = 18.07, 10.20
    assert round(metrics.speedup(one, two), 2) == 1.77
    assert round(metrics.efficiency(one, two, 1, 2), 3) == 0.886
    # Twice the data on two workers takes two of their epochs: the weak reading of the same measurement.
    twice_the_data = 2 * two
    assert round(twice_the_data, 2) == 20.40
    assert round(metrics.weak_efficiency(one, twice_the_data), 3) == 0.886
    assert round(metrics.scaled_speedup(one, twice_the_data, 1, 2), 2) == 1.77


def test_worked_example_batch_8192() -> None:
    assert round(metrics.speedup(18.34, 5.02), 2) == 3.65
    assert round(metrics.efficiency(18.34, 5.02, 1, 4), 3) == 0.913


def test_base_need_not_be_one_worker() -> None:
    assert metrics.efficiency(10.0, 5.0, 2, 4) == 1.0
    assert metrics.scaled_speedup(1.0, 1.25, 2, 8) == pytest.approx(3.2)
    assert metrics.ideal_speedup(8.0, 2) == 4.0


def test_twice_the_steps_have_the_same_throughput() -> None:
    once = metrics.throughput_samples_per_s(metrics.step_time_s(2.0, 1000, 100), 100)
    twice = metrics.throughput_samples_per_s(metrics.step_time_s(4.0, 2000, 100), 100)
    assert once == twice == 500.0


def test_uneven_last_batch_does_not_count_as_a_whole_step() -> None:
    # 150 samples in batches of 100 and 50: two steps, but the work of one and a half.
    assert metrics.step_time_s(3.0, 150, 100) == 2.0


def test_epoch_time() -> None:
    assert metrics.epoch_time_s(36.14, 2) == pytest.approx(18.07)


@pytest.mark.parametrize(
    ("own", "ratio"),
    [([1.0, 1.0, 1.0], 1.0), ([1.0, 1.0, 3.0], 3.0), ([1.0, 3.0], 1.5), ([], None), ([0.0, 0.0], None)],
)
def test_straggler_ratio(own: list[float], ratio: float | None) -> None:
    assert metrics.straggler_ratio(own) == ratio


@given(times, times, counts, counts)
def test_speedup_and_efficiency_agree(base: float, time: float, base_workers: int, workers: int) -> None:
    efficiency = metrics.efficiency(base, time, base_workers, workers)
    assert efficiency * workers / base_workers == pytest.approx(metrics.speedup(base, time))
    scaled = metrics.scaled_speedup(base, time, base_workers, workers)
    assert scaled * base_workers / workers == pytest.approx(metrics.weak_efficiency(base, time))


@given(times, times, counts, st.integers(1, 10**6))
def test_epoch_convention_is_the_scaled_speedup(base: float, time: float, workers: int, samples: int) -> None:
    """A fixed data set and batch per worker: N workers make 1/N of the steps."""
    steps = samples / 32
    epoch = metrics.speedup(base * steps, time * steps / workers)
    assert epoch == pytest.approx(metrics.scaled_speedup(base, time, 1, workers))


def test_loading_speed_is_of_the_time_that_was_waited() -> None:
    """Two workers that load 3 and 5 MB a step, four steps that wait 1 ms each: 5 MB in 1 ms."""
    assert metrics.loading_gb_per_s([3e6, 5e6], [0.001] * 4) == pytest.approx(5.0)
    assert metrics.loading_gb_per_s([3e6, 5e6], [0.001] * 8) == pytest.approx(5.0)
    assert metrics.loading_gb_per_s([None, None], [0.001]) is None
    assert metrics.loading_gb_per_s([3e6], [0.0]) is None


def test_percentiles_of_slow_steps_by_hand() -> None:
    """Of 1 to 101 ms, 95 steps are below 96 ms and 99 below 100; fewer steps have no step beyond a percentile."""
    steps = [number / 1000 for number in range(1, 102)]
    assert metrics.slow_steps_s(steps) == {95: pytest.approx(0.096), 99: pytest.approx(0.100)}
    assert metrics.slow_steps_s(steps[::-1][:99]).keys() == {95}
    assert metrics.slow_steps_s([0.1] * 20) == {95: pytest.approx(0.1)}
    assert metrics.slow_steps_s([0.1] * 19) == {}
