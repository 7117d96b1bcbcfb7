"""What is shown of a search: the best trials and those near them, the history, which settings matter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from analysis.figures.study import study_drawing
from analysis.figures.style import figure_files
from analysis.runs.load import load_cells
from analysis.scaling import main
from analysis.schema import Report
from analysis.series import build_report
from analysis.study.importance import FEWEST_TRIALS, importances
from analysis.study.panels import Subject
from analysis.study.panels.tuning import history
from analysis.study.search import distance
from analysis.tables.formats import markdown, trials_csv
from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import Evaluation, Status
from benchmarks.core.sweep import Plan
from benchmarks.tuning.definition import Search
from benchmarks.tuning.trials import JOURNAL_NAME, Outcome, Study, Trial, read_studies
from benchmarks.tuning.tuner import Tuner
from tests.slurm_cases import leave_record
from tests.tuning_cases import LR, MOMENTUM, Maker, a_folder, a_search, accuracy, searched

FIGURE = [{"kind": "history", "title": "search"}]
SPACE = {
    "optimizer.lr": LR,
    "optimizer.momentum": MOMENTUM,
    "optimizer.implementation": {"choices": ["loop", "foreach"]},
}


class Recorded(Maker):
    """With a manifest, as real makers leave it; the sweep's file describes a figure."""

    def __call__(self, plan: Plan) -> None:
        with_figure = Plan(
            sweep=type(plan.sweep)(name="test", question="Which?", figure=FIGURE), runs=plan.runs, dropped=plan.dropped
        )
        self.folder.write_manifest(with_figure, [])
        super().__call__(plan)


def reported(folder: SweepFolder, search: Search, fails: dict[int, Status] | None = None) -> Report:
    Tuner(search, folder, 2, Recorded(folder, fails)).run(lambda trial, study: None)
    return build_report(load_cells(folder.path))


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return a_folder(tmp_path)


def a_trial(number: int, value: float | None, **params: Any) -> Trial:
    outcome = Outcome(state="complete", values={4: value}) if value is not None else Outcome(state="unfit", reason="x")
    return Trial(number=number, params={f"optimizer.{key}": each for key, each in params.items()}, outcome=outcome)


def test_distance_is_that_of_the_space_as_it_was_searched() -> None:
    definition = a_search(space=SPACE).definition
    corner = a_trial(0, 1.0, lr=1e-4, momentum=0.0, implementation="loop")
    assert distance(corner, corner, definition) == 0
    assert distance(corner, a_trial(1, 1.0, lr=1.0, momentum=0.99, implementation="foreach"), definition) == 1
    decade = a_trial(1, 1.0, lr=1e-3, momentum=0.0, implementation="loop")
    assert distance(corner, decade, definition) == pytest.approx(0.25 / math.sqrt(3))
    without = Trial(number=1, params={"optimizer.lr": 1e-4, "optimizer.implementation": "loop"}, outcome=None)
    assert distance(corner, without, definition) == pytest.approx(1 / math.sqrt(3))


def test_the_best_trials_and_their_neighbours(folder: SweepFolder) -> None:
    report = reported(folder, a_search(trials=20, parallel=4, pruning={"reduction": 2}), {0: "diverged"})
    found = report.search
    assert found is not None
    rows = {row.number: row for row in found.trials}
    complete = [row for row in found.trials if row.state == "complete"]
    assert rows[found.best[0]].value == max(float(str(row.value)) for row in complete)
    values = [float(str(rows[number].value)) for number in found.best]
    assert values == sorted(values, reverse=True)
    assert found.best[0] not in found.nearest
    distances = [float(str(rows[number].distance)) for number in found.nearest]
    assert distances == sorted(distances)
    others = [row.distance for row in found.trials if row.distance is not None and row.number != found.best[0]]
    assert distances == sorted(others)[:5]
    assert found.states["unfit"] == 1
    assert (rows[1].state, rows[1].value, rows[1].reason) == ("unfit", None, "diverged: on purpose")
    assert found.saved is not None
    csv = trials_csv(report).splitlines()
    assert csv[0] == "trial,state,accuracy,after_epochs,optimizer.lr,optimizer.momentum,distance_from_best,reason"
    assert len(csv) == 21
    page = markdown(report, ["study.png"])
    assert "Best trials" in page
    assert "unfit" in page
    assert "pruning: " in page


def test_lowest_loss_is_best(folder: SweepFolder) -> None:
    report = reported(folder, a_search(trials=6, metric="loss"))
    assert report.search is not None
    assert report.study is not None
    rows = {row.number: row for row in report.search.trials}
    assert rows[report.search.best[0]].value == min(float(str(row.value)) for row in rows.values())
    best = [point.y.value for series in report.study.panels[0].series for point in series.points if point.on_front]
    assert best == sorted(best, reverse=True)
    assert best[-1] == rows[report.search.best[0]].value


def test_the_history_marks_pruned_and_failed_trials(folder: SweepFolder) -> None:
    report = reported(folder, a_search(trials=9, parallel=3, pruning={"reduction": 2}), {1: "oom"})
    assert report.study is not None
    panel = report.study.panels[0]
    assert panel.x_of_missing == [2.0]
    assert panel.missing == ["trial 2: unfit, oom: on purpose"]
    labels = [series.label for series in panel.series]
    assert labels[0] == "4 epochs"
    assert "1 epoch" in labels
    assert sum(len(series.points) for series in panel.series) == 8
    front = [point for series in panel.series for point in series.points if point.on_front]
    assert all(point in panel.series[0].points for point in front), "a short run's value cannot be the best"
    values = [point.y.value for point in sorted(front, key=lambda point: float(point.x))]
    assert values == sorted(values)
    files = figure_files(study_drawing(report.study))
    assert files["study.png"].startswith(b"\x89PNG")


def test_a_short_runs_value_is_never_the_best(folder: SweepFolder) -> None:
    class Overfits(Maker):
        def make(self, run: Any) -> None:
            value = accuracy(run) / (run.config.epochs or 1) ** 2
            evaluation = Evaluation(after_steps=5, time_s=1.0, samples=360, accuracy=value, loss=1.0)
            leave_record(self.folder, run, "ok", evaluation=[evaluation])

    searched(a_search(trials=8, pruning={"reduction": 2}), folder, Overfits(folder))
    panel = history(Subject(cells=[], title="", folder=folder.path))
    full, *shorter = panel.series
    assert max(point.y.value for series in shorter for point in series.points) > max(p.y.value for p in full.points)
    assert any(point.on_front for point in full.points)
    assert not any(point.on_front for series in shorter for point in series.points)


def step_in_lr(study: Study) -> Study:
    """The same settings with other values: a step of 1 in the middle decade of lr, and a slope of 0.5 of momentum."""

    def value(trial: Trial) -> float:
        lr, momentum = (float(str(trial.params[f"optimizer.{key}"])) for key in ("lr", "momentum"))
        return (lr > 1e-2) + 0.5 * momentum

    trials = [
        Trial(number=each.number, params=each.params, outcome=Outcome(state="complete", values={4: value(each)}))
        for each in study.trials
    ]
    return Study(definition=study.definition, trials=trials)


def test_the_setting_that_matters_has_the_importance(folder: SweepFolder) -> None:
    """On the logarithmic scale, halves of the space differ by 1: a variance of 1/4, and 1/48 is momentum's.

    On the plain scale a hundredth of the space would differ from the rest, and momentum would matter more.
    """
    study = step_in_lr(searched(a_search(trials=40, sampler="random"), folder))
    found, notes = importances(study)
    assert list(found) == ["optimizer.lr", "optimizer.momentum"]
    assert found["optimizer.lr"].value == pytest.approx(12 / 13, abs=0.08)
    assert found["optimizer.lr"].low > 0.7
    assert found["optimizer.lr"].low <= found["optimizer.lr"].value <= found["optimizer.lr"].high
    assert notes == ["importance for accuracy after 4 epochs, 40 trials", "importance: not reliable below 50 trials"]


def test_no_importance_from_a_few_trials_or_from_nothing(folder: SweepFolder) -> None:
    study = searched(a_search(trials=FEWEST_TRIALS, sampler="random"), folder)
    assert importances(study)[0]
    few = Study(definition=study.definition, trials=study.trials[:-1])
    assert importances(few) == ({}, ["importance: 9 trials have a value, at least 10 are needed"])
    same = [a_trial(number, 0.5, lr=0.001 * (number + 1), momentum=0.1 * number) for number in range(9)]
    assert importances(Study(definition=study.definition, trials=[*same, *same]))[0] == {}


def test_importance_is_that_after_the_first_rung(folder: SweepFolder) -> None:
    study = searched(a_search(trials=24, parallel=4, pruning={"reduction": 2}), folder)
    _, notes = importances(study)
    assert notes[0] == "importance for accuracy after 1 epoch, 24 trials"


def test_a_journal_that_cannot_be_read_is_named(folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    reported(folder, a_search(trials=2))
    (folder.path / JOURNAL_NAME).write_text("no journal\nat all\n")
    assert main([str(folder.path), "--no-figures"]) == 0
    err = capsys.readouterr().err
    assert f"warning: {folder.path / JOURNAL_NAME}: not a readable journal of trials" in err


def test_a_history_of_no_search_is_refused(folder: SweepFolder) -> None:
    with pytest.raises(Exception, match="this kind of panel shows a search, and there is none"):
        history(Subject(cells=[], title="", folder=folder.path))
    assert read_studies(folder.path) == []
