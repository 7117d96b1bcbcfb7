"""Recommendations from sweeps with a known truth: the best cell, what it costs, how sure, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.advice.candidates import Wanted
from analysis.recommend import main, recommend
from analysis.statistics.estimate import Estimate
from analysis.wording import between, duration
from tests import synthetic

PRICED = {
    **{"name": "local", "device": "cpu", "cores_per_node": 64, "gpus_per_node": 0},
    **{"price_per_worker_hour": 3.0, "currency": "USD"},
}
# Seconds per step of 64 samples: twice the workers are 1.8 times as fast, but for 8, which are no faster than 4.
STEPS_S = {1: 0.36, 2: 0.2, 4: 0.11, 8: 0.11}
MILLION = Wanted(samples=1e6)


def sweep(folder: Path, steps_s: Mapping[int, float] = STEPS_S, *, noise: float = 0.001, **changes: Any) -> Path:
    rng = np.random.default_rng(1)
    records = [
        synthetic.record(synthetic.config(workers, repeat=repeat, **changes), [time_s * float(factor)] * 4)
        for workers, time_s in steps_s.items()
        for repeat, factor in enumerate(np.exp(rng.normal(0, noise, 6)))
    ]
    synthetic.write(folder, records)
    return folder


def test_the_fastest_is_told_with_its_time(tmp_path: Path) -> None:
    result = recommend(sweep(tmp_path, {1: 0.36, 2: 0.2, 4: 0.11}), "time", MILLION)
    assert result.answers[0].best
    assert result.answers[0].best.label == "4 workers"
    assert result.answers[0].best.time_s.value == pytest.approx(0.11 * 1e6 / 64, rel=0.01)
    assert result.answers[0].best.worker_hours.value == pytest.approx(4 * 0.11 * 1e6 / 64 / 3600, rel=0.01)
    assert result.answers[0].best.cost is None
    assert result.answers[0].runner_up
    assert result.answers[0].runner_up.label == "2 workers"
    assert result.answers[0].probability_best == 1.0
    assert "the runner-up, 2 workers, takes 82% more" in result.answers[0].sentence


def test_the_cheapest_is_another_one(tmp_path: Path) -> None:
    """1 worker: 0.36 s; 2 workers: 0.4 worker-seconds a step. So one worker is cheapest, at 3 a worker-hour."""
    result = recommend(sweep(tmp_path, {1: 0.36, 2: 0.2, 4: 0.11}, cluster=PRICED), "cost", MILLION)
    assert result.answers[0].best
    assert result.answers[0].best.label == "1 worker"
    assert result.answers[0].best.cost
    assert result.answers[0].best.cost.value == pytest.approx(3 * 0.36 * 1e6 / 64 / 3600, rel=0.01)


def test_equal_cells_are_not_told_apart(tmp_path: Path) -> None:
    result = recommend(sweep(tmp_path, noise=0.02), "time", MILLION)
    assert {result.measured[0].workers, result.measured[1].workers} == {4, 8}
    assert len(result.answers[0].like_best) == 1
    assert "cannot tell it from" in result.answers[0].sentence
    assert result.answers[0].probability_best is not None
    assert 0.2 < result.answers[0].probability_best < 1


def test_the_front_of_time_and_cost(tmp_path: Path) -> None:
    """Eight workers are not faster than four and cost twice as much; all others buy time with money."""
    result = recommend(sweep(tmp_path, STEPS_S | {8: 0.12}), "time", MILLION)
    assert {choice.workers for choice in result.measured if choice.on_front} == {1, 2, 4}


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        (Wanted(samples=1e6, max_workers=2), [2, 1]),
        (Wanted(samples=1e6, deadline_s=3500.0), [4, 2]),  # 0.2 s x 15,625 steps are 3,125 s; 0.36 s are 5,625 s
        (Wanted(samples=1e6, min_accuracy=0.95), []),
    ],
)
def test_conditions(tmp_path: Path, wanted: Wanted, left: list[int]) -> None:
    result = recommend(sweep(tmp_path, {1: 0.36, 2: 0.2, 4: 0.11}), "time", wanted)
    assert [choice.workers for choice in result.measured] == left
    assert len(result.excluded) == 3 - len(left)
    if not left:
        assert result.answers[0].best is None
        assert result.excluded[0].endswith("accuracy 0.900, not 0.95")


def test_forecasts_are_kept_apart_and_are_never_the_best(tmp_path: Path) -> None:
    times = {n: 0.4 * (0.05 + 0.95 / n) for n in (1, 2, 4, 8)}
    result = recommend(sweep(tmp_path, times), "time", MILLION)
    assert result.answers[0].best
    assert result.answers[0].best.workers == 8
    assert {choice.workers for choice in result.predicted} == {16, 32}
    sixteen = next(choice for choice in result.predicted if choice.workers == 16)
    truth = 0.4 * (0.05 + 0.95 / 16) * 1e6 / 64
    assert sixteen.time_s.low <= truth <= sixteen.time_s.high
    assert sixteen.cell_id is None


def test_failed_cells_are_left_out_by_name(tmp_path: Path) -> None:
    sweep(tmp_path, {1: 0.36, 2: 0.2})
    synthetic.write(tmp_path, [synthetic.failed(synthetic.config(4), "oom")])
    assert recommend(tmp_path, "time", MILLION).excluded == ["4 workers: no number (oom)"]


def test_durations() -> None:
    assert [duration(s) for s in (45.2, 186.0, 8640.0, 432000.0)] == ["45.2 s", "3.1 min", "2.4 h", "5 days"]
    assert between(Estimate(value=180.0, low=60.0, high=7200.0)) == "[1, 120]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--deadline", "soon"], "--deadline=soon: must be a number with s, m, h or d"),
        (["--samples", "-3"], "--samples=-3: must be a number above 0"),
        (["--max-workers", "many"], "--max-workers=many: must be a number above 0"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep(tmp_path, cluster=PRICED)
    assert main([str(tmp_path), "--goal", "cost", "--deadline", "2h", "--max-workers", "4"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("Cheapest: run 1 worker. 1e+06 samples take 93.8 min [93.")
    assert "left out: 8 workers: 8 workers, more than 4" in out


def test_few_repeats_are_never_sure_and_the_cheaper_one_is_named(tmp_path: Path) -> None:
    """Four workers take 0.44 worker-seconds a step, one takes 0.36: it is 18 % cheaper, and 0.36 / 0.11 as slow."""
    rng = np.random.default_rng(2)
    for repeats, words in ((1, "a first look and no decision"), (2, "2 repeats are few")):
        folder = tmp_path / str(repeats)
        for workers, time_s in ((1, 0.36), (4, 0.11)):
            for repeat in range(repeats):
                steps_s = [time_s * float(factor) for factor in np.exp(rng.normal(0, 0.001, 4))]
                synthetic.write(folder, [synthetic.record(synthetic.config(workers, repeat=repeat), steps_s)])
        [one] = recommend(folder, "time", MILLION).answers
        assert words in one.sentence
        assert "Sure to" not in one.sentence
        assert "sweep.repeats=6" in one.sentence
        assert one.sentence.endswith("Cheapest: 1 worker takes 227% longer and 18% less in worker-hours.")


def test_models_and_data_have_answers_of_their_own(tmp_path: Path) -> None:
    """The faster model is no way to train the slower one."""
    for name, factor in (("lenet", 1.0), ("mlp", 0.1)):
        sweep(tmp_path, {workers: factor * time_s for workers, time_s in STEPS_S.items()}, workload={"name": name})
    result = recommend(tmp_path, "time", Wanted(samples=1e6, max_workers=4))
    assert [one.best.label for one in result.answers if one.best] == ["lenet, 4 workers", "mlp, 4 workers"]
    assert [one.runner_up.label for one in result.answers if one.runner_up] == ["lenet, 2 workers", "mlp, 2 workers"]
    assert [choice.label for choice in result.measured][:3] == ["mlp, 4 workers", "mlp, 2 workers", "mlp, 1 worker"]
    assert sum(choice.on_front for choice in result.measured) == 6
