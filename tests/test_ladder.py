"""The panel of the acceleration ladder: each cell named by what it changes, with its gain over the baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.runs.load import load_cells
from analysis.study.panels import Subject
from analysis.study.panels.ladder import ladder
from analysis.study_schema import Panel
from benchmarks.core.record import Evaluation, Record
from tests import synthetic

RUNGS: dict[str, tuple[dict[str, Any], float]] = {
    "baseline": ({}, 0.4),
    "channels_last=true": ({"channels_last": True}, 0.2),
    "bf16": ({"precision": {"name": "bf16"}}, 0.1),
    "... + channels_last=true": ({"channels_last": True, "precision": {"name": "bf16"}}, 0.05),
}
"""Settings that differ from the baseline, and seconds of a step."""


def panel_of(folder: Path, y: str, failing: str | None = None) -> Panel:
    records: list[Record] = []
    for number, (name, (settings, step_s)) in enumerate(RUNGS.items()):
        for repeat in range(2):
            of = synthetic.config(1, repeat=repeat, **settings)
            ids: dict[str, Any] = {"cell_id": f"cell{number}", "run_id": f"cell{number}-r{repeat}"}
            evaluations = [Evaluation(after_steps=4, time_s=step_s / 2, samples=100, accuracy=0.5, loss=1.0)]
            if name == failing:
                records.append(synthetic.record(of, window=None, status="oom", **ids))
            else:
                records.append(synthetic.record(of, [step_s] * 4, evaluation=evaluations, **ids))
    synthetic.write(folder, records)
    cells = sorted(load_cells(folder).cells, key=lambda cell: cell.cell_id)
    return ladder(Subject(cells=cells, title="training"), y=y)


@pytest.mark.parametrize(
    ("y", "values"),
    [
        ("step_time_s", [0.4, 0.2, 0.1, 0.05]),
        ("throughput_samples_per_s", [160, 320, 640, 1280]),
        ("evaluation_samples_per_s", [500, 1000, 2000, 4000]),
    ],
)
def test_each_rung_shows_how_many_times_better_it_is(tmp_path: Path, y: str, values: list[float]) -> None:
    """Twice, four and eight times, of times and of rates alike."""
    [series] = panel_of(tmp_path, y).series
    assert [point.x for point in series.points] == list(RUNGS)
    assert [point.y.value for point in series.points] == pytest.approx(values)
    assert series.points[0].y_over is None
    gains = [point.y_over.value for point in series.points if point.y_over]
    assert gains == pytest.approx([2, 4, 8])
    assert [point.n for point in series.points] == [2] * 4


def test_without_a_baseline_there_is_no_gain(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, "step_time_s", failing="baseline")
    [series] = panel.series
    assert [point.x for point in series.points] == list(RUNGS)[1:]
    assert [point.y_over for point in series.points] == [None] * 3
    assert panel.missing == ["baseline: oom"]


def test_a_rung_that_failed_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    panel = panel_of(tmp_path, "step_time_s", failing="bf16")
    [series] = panel.series
    assert [point.x for point in series.points] == [name for name in RUNGS if name != "bf16"]
    assert panel.missing == ["bf16: oom"]


def test_a_rung_says_what_it_adds_to_the_one_before_only_if_it_stands_on_that(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"precision": {"name": "bf16"}},
        {"threads_per_worker": 2},
        {"precision": {"name": "bf16"}, "channels_last": True},
        {"precision": {"name": "bf16"}, "channels_last": True, "threads_per_worker": 2},
    ]
    records = [
        synthetic.record(synthetic.config(1, **own), cell_id=f"cell{number}", run_id=f"cell{number}")
        for number, own in enumerate(settings)
    ]
    synthetic.write(tmp_path, records)
    cells = sorted(load_cells(tmp_path).cells, key=lambda cell: cell.cell_id)
    [series] = ladder(Subject(cells=cells, title=""), y="step_time_s").series
    assert [point.x for point in series.points] == [
        *("baseline", "bf16", "threads_per_worker=2"),
        *("bf16, channels_last=true", "... + threads_per_worker=2"),
    ]
