"""Scaling laws: known parameters come back, intervals hold the truth as often as they say, bad data are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from analysis.cells.fits import MODELS, Model, candidates, fit, fit_model
from analysis.exports.other_tools import extra_p
from analysis.runs.load import load_cells
from analysis.schema import Kind
from analysis.series import build_report
from analysis.tables.cells import law_line
from tests import synthetic

COUNTS = (1, 2, 4, 8, 16)
LAWS: list[tuple[Kind, str, tuple[float, ...]]] = [
    ("strong", "Amdahl", (1.0, 0.05)),
    ("strong", "universal scalability law", (1.0, 0.05, 0.002)),
    ("strong", "latency and bandwidth", (1.0, 0.002, 0.05)),
    ("weak", "Gustafson", (1.0, 0.1)),
    ("weak", "universal scalability law", (1.0, 0.02, 0.001)),
    ("weak", "latency and bandwidth", (1.0, 0.005, 0.1)),
]


def law(kind: Kind, name: str) -> Model:
    return next(model for model in MODELS[kind] if model.name == name)


def measured(
    model: Model,
    parameters: Sequence[float],
    rng: np.random.Generator,
    *,
    noise: float = 0.02,
    repeats: int = 5,
    counts: Sequence[int] = COUNTS,
) -> dict[int, list[float]]:
    return {
        n: list(model.time(np.array(parameters), np.array([float(n)])) * np.exp(rng.normal(0, noise, repeats)))
        for n in counts
    }


def truth(model: Model, parameters: Sequence[float], workers: int) -> float:
    return float(model.time(np.array(parameters), np.array([float(workers)]))[0])


def test_the_laws_by_hand() -> None:
    four = np.array([4.0])
    assert law("strong", "Amdahl").time(np.array([8.0, 0.25]), four)[0] == 8 * (0.25 + 0.75 / 4)
    # Gustafson: the scaled speed-up is s + (1 - s) n = 3.4 of 4, so that a step takes 4 / 3.4 of one worker's.
    assert law("weak", "Gustafson").time(np.array([8.0, 0.2]), four)[0] == pytest.approx(8 * 4 / 3.4)
    # Contention 0.1 x 3 and coherence 0.01 x 12 on top of one.
    usl = np.array([8.0, 0.1, 0.01])
    assert law("strong", "universal scalability law").time(usl, four)[0] == pytest.approx(8 * 1.42 / 4)
    assert law("weak", "universal scalability law").time(usl, four)[0] == pytest.approx(8 * 1.42)
    # Four workers: 2 x 2 messages, 3/4 of the bytes twice.
    linear = np.array([8.0, 0.1, 1.0])
    assert law("strong", "latency and bandwidth").time(linear, four)[0] == pytest.approx(2 + 0.4 + 1.5)
    assert law("weak", "latency and bandwidth").time(linear, four)[0] == pytest.approx(8 + 0.4 + 1.5)


@pytest.mark.parametrize(("kind", "name", "parameters"), LAWS)
def test_parameters_come_back(kind: Kind, name: str, parameters: tuple[float, ...]) -> None:
    model = law(kind, name)
    times = measured(model, parameters, np.random.default_rng(1), noise=1e-5)
    found = fit_model(model, times)
    assert found
    assert found.parameters == pytest.approx(parameters, rel=0.02)
    assert found.explained > 0.9999


@pytest.mark.parametrize(("kind", "name", "parameters"), [LAWS[0], LAWS[1], LAWS[3], LAWS[5]])
def test_the_right_law_is_chosen_where_the_data_can_tell(kind: Kind, name: str, parameters: tuple[float, ...]) -> None:
    times = measured(law(kind, name), parameters, np.random.default_rng(2), noise=0.001)
    result = fit(kind, times)
    assert result.model == name
    assert result.parameters == pytest.approx(dict(zip(law(kind, name).parameters, parameters, strict=True)), rel=0.1)


@pytest.mark.parametrize(("kind", "name", "parameters", "trials"), [(*LAWS[0], 500), (*LAWS[2], 150), (*LAWS[5], 150)])
def test_intervals_cover_the_truth(kind: Kind, name: str, parameters: tuple[float, ...], trials: int) -> None:
    """Also for twice as many workers as were measured, and though the law itself is not known."""
    model, rng = law(kind, name), np.random.default_rng(3)
    at = {8: 0, 32: 0}
    for _ in range(trials):
        laws = candidates(kind, measured(model, parameters, rng))
        assert laws
        for workers in at:
            value = laws.time(workers)
            at[workers] += value.low <= truth(model, parameters, workers) <= value.high
    for workers, hits in at.items():
        assert 0.90 <= hits / trials <= 0.99, workers


def test_the_doubt_which_law_it_is_widens_a_forecast() -> None:
    """From four counts Amdahl's law and the others differ little; at sixteen workers they do."""
    times = measured(law("strong", LAWS[1][1]), LAWS[1][2], np.random.default_rng(4), counts=(1, 2, 4, 8))
    laws = candidates("strong", times)
    assert laws
    alone = type(laws)(laws.laws[:1])
    mixed, single = laws.time(32), alone.time(32)
    assert mixed.high - mixed.low > 1.2 * (single.high - single.low)
    assert mixed.value == single.value


def test_the_largest_count_is_held_out() -> None:
    result = fit("strong", measured(law("strong", "Amdahl"), (1.0, 0.05), np.random.default_rng(5), noise=0.001))
    assert result.held_out
    assert result.held_out.workers == 16
    assert abs(result.held_out.miss) < 0.02
    broken = measured(law("strong", "Amdahl"), (1.0, 0.05), np.random.default_rng(5), noise=0.001)
    broken[16] = [2 * time for time in broken[16]]  # the network's second switch
    held_out = fit("strong", broken).held_out
    assert held_out
    assert held_out.miss == pytest.approx(-0.5, abs=0.02)


def test_forecasts_are_told_from_measurements() -> None:
    result = fit(
        "strong", measured(law("strong", "Amdahl"), (1.0, 0.05), np.random.default_rng(6), counts=(1, 2, 4, 16))
    )
    assert {point.workers: point.measured for point in result.curve} == {
        **{1: True, 2: True, 4: True, 8: False, 16: True, 32: False, 64: False}
    }


def test_too_few_counts_are_refused() -> None:
    refused = fit("strong", {1: [1.0, 1.0], 2: [0.6, 0.6], 4: [0.4, 0.4]})
    assert refused.model is None
    assert refused.refused == "3 worker counts; a law needs 4"


def test_single_repeats_of_four_counts_are_too_little_for_any_law() -> None:
    refused = fit("strong", {1: [1.0], 2: [0.6], 4: [0.4], 8: [0.3]})
    assert refused.refused == "no law could be fitted: too few repeats"


def test_times_that_follow_no_law_are_refused() -> None:
    rng = np.random.default_rng(7)
    refused = fit("strong", {n: list(np.exp(rng.normal(0, 0.5, 5))) for n in COUNTS})
    assert refused.refused
    assert "explains" in refused.refused


def test_good_weak_scaling_is_not_refused_though_there_is_little_to_explain() -> None:
    rng = np.random.default_rng(8)
    result = fit("weak", {n: list(np.exp(rng.normal(0, 0.01, 5))) for n in COUNTS})
    assert result.model
    assert result.curve[-1].step_time_s.value == pytest.approx(1, abs=0.1)


def test_the_report_says_law_hold_out_and_forecast(tmp_path: Path) -> None:
    model, rng = law("strong", "Amdahl"), np.random.default_rng(9)
    configs = [synthetic.config(n, repeat=repeat) for n in COUNTS for repeat in range(3)]
    times = [truth(model, (0.1, 0.05), one["workers"]) * float(np.exp(rng.normal(0, 0.005))) for one in configs]
    synthetic.write(tmp_path, [synthetic.record(one, [time_s] * 4) for one, time_s in zip(configs, times, strict=True)])
    report = build_report(load_cells(tmp_path))
    [series] = report.strong
    assert series.fit
    assert series.fit.parameters == pytest.approx({"t1_s": 0.1, "serial_fraction": 0.05}, rel=0.1)
    line = law_line(series)
    assert line.startswith("; law: Amdahl (t1=0.0")
    assert "held out 16 workers: misses by" in line
    assert "; forecast: 32 workers 8." in line
    first = msgspec.json.decode(extra_p(report).splitlines()[0])
    assert first == {
        "params": {"workers": 1},
        "callpath": f"{report.sweep}->strong->{series.label}",
        "metric": "step_time_s",
        "value": pytest.approx([time_s for one, time_s in zip(configs, times, strict=True) if one["workers"] == 1]),
    }
