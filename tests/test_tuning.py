"""Tuning sweeps on a known objective: what is found, what is pruned, and that a crash anywhere changes nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import msgspec
import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from analysis.study.search import distance
from benchmarks.core.errors import ConfigError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import Evaluation, Status
from benchmarks.core.sweep import Plan, at_size, read_sweep
from benchmarks.tuning.definition import read_search
from benchmarks.tuning.rungs import Pruning, epochs_not_trained, promoted, rungs
from benchmarks.tuning.search_space import Interval
from benchmarks.tuning.text import epochs_saved, summary, trial_line
from benchmarks.tuning.trials import JOURNAL_NAME, Study, read_studies
from benchmarks.tuning.tuner import StoppedError, Tuner
from tests.conftest import base_mapping
from tests.slurm_cases import leave_record
from tests.tuning_cases import LR, MOMENTUM, Maker, a_folder, a_search, searched

PRUNING = {"first_epochs": 1, "reduction": 2}
SPACE = {"optimizer.lr": LR, "optimizer.momentum": MOMENTUM}


class KilledError(BaseException):
    """What no `except Exception` stops, as SIGKILL."""


def settings(study: Study) -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


def states(study: Study) -> list[str]:
    return [trial.outcome.state if trial.outcome else "running" for trial in study.trials]


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return a_folder(tmp_path)


# ---- what is found


def test_the_region_of_the_optimum_is_found(folder: SweepFolder) -> None:
    study = searched(a_search(trials=40, parallel=2), folder)
    assert study.best is not None
    lr, momentum = study.best.params["optimizer.lr"], study.best.params["optimizer.momentum"]
    assert isinstance(lr, float)
    assert isinstance(momentum, float)
    assert 0.015 < lr < 0.06
    assert 0.6 < momentum < 0.99
    # Within 0.75 decades of the optimum are three eighths of the range: of twenty, random search tries seven there.
    near = [0.0053 < float(str(trial.params["optimizer.lr"])) < 0.17 for trial in study.trials]
    assert sum(near[20:]) >= 13


def test_trials_are_told_in_order(folder: SweepFolder) -> None:
    told: list[tuple[int, int]] = []
    tuner = Tuner(a_search(trials=7, parallel=3), folder, 2, Maker(folder))
    tuner.run(lambda trial, study: told.append((trial.number, sum(each.outcome is not None for each in study.trials))))
    assert told == [(number, number + 1) for number in range(7)]


def test_loss_is_minimised(folder: SweepFolder) -> None:
    study = searched(a_search(trials=8, metric="loss"), folder)
    losses = [trial.value for trial in study.trials if trial.value is not None]
    assert study.best is not None
    assert len(losses) == 8
    assert study.best.value == min(losses)


def test_the_value_is_the_median_over_repeats(folder: SweepFolder) -> None:
    class Uneven(Maker):
        def make(self, run: Any) -> None:
            value = [0.6, 0.9, 0.1][run.config.repeat]
            evaluation = Evaluation(after_steps=5, time_s=1.0, samples=360, accuracy=value, loss=None)
            leave_record(self.folder, run, "ok", evaluation=[evaluation])

    study = searched(a_search(trials=1, repeats=3), folder, Uneven(folder))
    assert study.trials[0].value == 0.6
    assert study.trials[0].outcome is not None
    assert len(study.trials[0].outcome.runs) == 3


def test_the_number_of_trials_is_the_total(folder: SweepFolder) -> None:
    first = searched(a_search(trials=3), folder)
    more = searched(a_search(trials=5), folder)
    assert settings(more)[:3] == settings(first)
    assert len(more.trials) == 5
    maker = Maker(folder)
    assert settings(searched(a_search(trials=4), folder, maker)) == settings(more)
    assert not maker.plans


def test_another_definition_is_another_study_and_its_runs_are_not_made_twice(folder: SweepFolder) -> None:
    choices = {"optimizer.lr": {"choices": [0.1, 0.2]}, "optimizer.momentum": {"choices": [0.5, 0.9]}}
    maker = Maker(folder)
    searched(a_search(space=choices, trials=6), folder, maker)
    searched(a_search(space=choices, trials=6, seed=5, sampler="random"), folder, maker)
    studies = read_studies(folder.path)
    assert [(study.definition.seed, len(study.trials)) for study in studies] == [(0, 6), (5, 6)]
    assert set(maker.made.values()) == {1}
    assert len(maker.made) <= 4


def test_settings_are_short_and_within_their_range(folder: SweepFolder) -> None:
    space = {
        "optimizer.lr": {"low": 0.0123456, "high": 0.0123462},
        "optimizer.momentum": {"low": 0.1, "high": 0.75, "step": 0.2},
    }
    study = searched(a_search(space=space, trials=12, sampler="random"), folder)
    for trial in study.trials:
        lr, momentum = trial.params["optimizer.lr"], trial.params["optimizer.momentum"]
        assert isinstance(lr, float)
        assert 0.0123456 <= lr <= 0.0123462
        assert momentum in (0.1, 0.3, 0.5, 0.7)


def test_an_option_is_asked_for_where_its_variant_has_it(folder: SweepFolder) -> None:
    space = {"optimizer.beta1": {"low": 0.8, "high": 0.99}, "optimizer": {"choices": ["sgd", "adam"]}, **SPACE}

    class Same(Maker):
        def make(self, run: Any) -> None:
            evaluation = Evaluation(after_steps=5, time_s=1.0, samples=9, accuracy=0.5, loss=1.0)
            leave_record(self.folder, run, "ok", evaluation=[evaluation])

    study = searched(a_search(space=space, trials=14), folder, Same(folder))
    names = {trial.params["optimizer"] for trial in study.trials}
    assert names == {"sgd", "adam"}
    for trial in study.trials:
        expected = {"sgd": "optimizer.momentum", "adam": "optimizer.beta1"}[str(trial.params["optimizer"])]
        assert set(trial.params) == {"optimizer", "optimizer.lr", expected}


# ---- pruning


def test_rungs_grow_by_the_reduction_up_to_the_full_length() -> None:
    assert rungs(None, 9) == [9]
    assert rungs(Pruning(first_epochs=1, reduction=3), 9) == [1, 3, 9]
    assert rungs(Pruning(first_epochs=1, reduction=3), 26) == [1, 3, 26]
    assert rungs(Pruning(first_epochs=1, reduction=3), 27) == [1, 3, 9, 27]
    assert rungs(Pruning(first_epochs=2, reduction=4), 7) == [2, 7]
    assert rungs(Pruning(first_epochs=1, reduction=2), 2) == [1, 2]


def test_the_best_one_in_so_many_is_promoted() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    assert [value for value in values if promoted(value, values, 3, maximises=True)] == [0.6, 0.7]
    assert [value for value in values if promoted(value, values, 3, maximises=False)] == [0.1, 0.2]
    assert [value for value in values if promoted(value, values, 2, maximises=True)] == [0.5, 0.6, 0.7]
    assert promoted(0.3, [0.3], 3, maximises=True)
    assert not promoted(0.3, [0.3, 0.4], 3, maximises=True)
    assert promoted(0.5, [0.5, 0.5, 0.5], 3, maximises=True)


def test_what_pruning_saves() -> None:
    # Nine trials on rungs 1, 3, 9: all run one epoch, three go on for three, one for nine: 9 + 9 + 9 instead of 81.
    assert epochs_not_trained([1] * 6 + [2] * 2 + [3], [1, 3, 9]) == 81 - 27
    assert epochs_not_trained([2], [1, 9]) == -1


def test_a_group_is_halved_on_each_rung(folder: SweepFolder) -> None:
    maker = Maker(folder)
    study = searched(a_search(trials=8, parallel=8, pruning=PRUNING), folder, maker)
    lengths = [Counter(run.config.epochs for run in plan.runs) for plan in maker.plans]
    assert lengths == [{1: 8}, {2: 4}, {4: 2}]
    assert Counter(states(study)) == {"pruned": 6, "complete": 2}
    best = max(float(str(trial.outcome.values[1])) for trial in study.trials if trial.outcome)
    assert study.best is not None
    assert study.best.outcome is not None
    assert study.best.outcome.values[1] == best
    assert epochs_saved(study) == "pruning: 24 epochs trained instead of 32, 8 saved"


def test_each_group_that_has_room_for_it_is_halved_by_itself(folder: SweepFolder) -> None:
    """However good the first trials were: a pruned one of theirs cannot keep later ones from going on."""

    class Worse(Maker):
        def make(self, run: Any) -> None:
            value = 1 / (1 + self.made.total())
            self.made[run.config.run_id] += 1
            evaluation = Evaluation(after_steps=5, time_s=1.0, samples=9, accuracy=value, loss=1.0)
            leave_record(self.folder, run, "ok", evaluation=[evaluation])

    study = searched(a_search(trials=11, parallel=4, pruning=PRUNING), folder, Worse(folder))
    groups = [states(study)[:4], states(study)[4:8], states(study)[8:]]
    assert [group.count("complete") for group in groups] == [1, 1, 1]


def test_a_trial_is_judged_against_all_before_it(folder: SweepFolder) -> None:
    study = searched(a_search(trials=12, pruning=PRUNING), folder)
    for trial in study.trials:
        before = [each.outcome.values for each in study.trials[: trial.number + 1] if each.outcome]
        assert trial.outcome is not None
        for length, longer in ((1, 2), (2, 4)):
            if length in trial.outcome.values:
                known = [values[length] for values in before if length in values]
                goes_on = promoted(trial.outcome.values[length], known, 2, maximises=True)
                assert goes_on == (longer in trial.outcome.values)
    assert {"pruned", "complete"} == set(states(study))


# ---- failures


def test_a_setting_that_diverges_is_unfit_and_one_whose_machine_fails_is_failed(folder: SweepFolder) -> None:
    maker = Maker(folder, fails={0: "diverged", 2: "node_fail", 3: "node_fail", 4: "node_fail"})
    study = searched(a_search(trials=4), folder, maker)
    assert states(study) == ["unfit", "complete", "failed", "complete"]
    assert [trial.value is None for trial in study.trials] == [True, False, True, False]
    assert sorted(maker.made.values()) == [1, 1, 2, 2], "what may pass is tried again, a setting's own fault is not"
    assert study.trials[0].outcome is not None
    assert study.trials[0].outcome.reason == "diverged: on purpose"
    assert "2 complete" in summary(study)
    assert trial_line(study.trials[0], study, 4).endswith("unfit: diverged: on purpose")


def test_a_trial_that_diverges_later_keeps_its_first_value(folder: SweepFolder) -> None:
    """Later trials are compared with it, whether or not the command was stopped in between."""
    study = searched(a_search(trials=6, pruning=PRUNING), folder, Maker(folder, fails={1: "diverged"}))
    first = study.trials[0].outcome
    assert first is not None
    assert (first.state, list(first.values), len(first.runs)) == ("unfit", [1], 1)
    for trial in study.trials[1:]:
        assert trial.outcome is not None
        known = [each.outcome.values[1] for each in study.trials[: trial.number + 1] if each.outcome]
        assert promoted(trial.outcome.values[1], known, 2, maximises=True) == (2 in trial.outcome.values)


def test_the_sampler_keeps_away_from_settings_that_diverge(folder: SweepFolder) -> None:
    class Diverges(Maker):
        def make(self, run: Any) -> None:
            evaluation = Evaluation(after_steps=5, time_s=1.0, samples=9, accuracy=0.5, loss=1.0)
            good = run.settings["optimizer.lr"] < 0.01
            leave_record(self.folder, run, "ok" if good else "diverged", evaluation=[evaluation] if good else [])

    study = searched(a_search(trials=40), folder, Diverges(folder))
    unfit = [state == "unfit" for state in states(study)]
    assert sum(unfit[:10]) >= 3
    assert sum(unfit[20:]) <= 8  # as if it had not been told of them: 20 of 20


def test_a_setting_that_cannot_run_is_shown_and_the_search_goes_on(folder: SweepFolder) -> None:
    halves = {"optimizer.momentum": {"choices": [0.0, 0.9]}, "optimizer": {"choices": ["sgd", "sgd_nesterov"]}}
    space = {"optimizer.lr": LR, **halves}
    study = searched(a_search(space=space, trials=12, sampler="random"), folder)
    impossible = [
        trial
        for trial in study.trials
        if trial.params["optimizer"] == "sgd_nesterov" and not trial.params["optimizer.momentum"]
    ]
    assert impossible
    assert [trial for trial in study.trials if trial.value is None] == impossible
    reasons = {trial.outcome.reason for trial in impossible if trial.outcome}
    [reason] = reasons
    assert reason is not None
    assert "Nesterov's look-ahead is made of momentum" in reason


def test_cancelled_runs_stop_the_search_and_are_made_by_the_next_command(folder: SweepFolder) -> None:
    class Cancelled(Maker):
        def __call__(self, plan: Plan) -> None:
            leave_record(self.folder, plan.runs[0], "cancelled")

    with pytest.raises(StoppedError, match="2 of 2 runs under way were cancelled; the same command goes on"):
        searched(a_search(trials=4, parallel=2), folder, Cancelled(folder))
    [study] = read_studies(folder.path)
    assert states(study) == ["running", "running"]
    assert states(searched(a_search(trials=4, parallel=2), folder)) == ["complete"] * 4


# ---- determinism and crashes


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_the_seed_decides(sampler: str, tmp_path: Path) -> None:
    found = [
        settings(searched(a_search(trials=14, sampler=sampler, seed=seed), a_folder(tmp_path / str(number))))
        for number, seed in enumerate((3, 3, 4))
    ]
    assert found[0] == found[1]
    assert all(one != other for one, other in zip(found[0], found[2], strict=True))


def test_trials_asked_for_together_are_apart(folder: SweepFolder) -> None:
    study = searched(a_search(trials=36, parallel=12), folder)
    nearest = [
        min(distance(one, other, study.definition) for other in group if other is not one)
        for group in (study.trials[12:24], study.trials[24:])
        for one in group
    ]
    assert mean(nearest) > 0.07  # 0.03 where they do not know of each other


def test_what_optuna_is_told(folder: SweepFolder) -> None:
    """Its samplers look at these alone."""
    fails: dict[int, Status] = {0: "node_fail", 1: "node_fail", 3: "diverged"}
    study = searched(a_search(trials=8, pruning=PRUNING), folder, Maker(folder, fails))
    storage = JournalStorage(JournalFileBackend(str(folder.path / JOURNAL_NAME)))
    kept = optuna.load_study(study_name=study.definition.name, storage=storage)
    assert kept.direction == optuna.study.StudyDirection.MAXIMIZE
    names = {"complete": "COMPLETE", "pruned": "PRUNED", "unfit": "PRUNED", "failed": "FAIL"}
    assert [trial.state.name for trial in kept.trials] == [names[state] for state in states(study)]
    assert set(states(study)) == set(names)
    for trial, told in zip(study.trials, kept.trials, strict=True):
        assert trial.outcome is not None
        is_pruned = trial.outcome.state == "pruned"
        assert told.intermediate_values == (trial.outcome.values if is_pruned else {})
        if trial.value is not None:
            assert told.value == trial.value


class Mortal:
    """Lets a command live for so many writes of its journal; it dies in the middle of the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        self.left = 10**9
        self.torn = False
        append = JournalFileBackend.append_logs

        def mortal(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
            if self.left == 0:
                if self.torn:
                    with path.open("ab") as file:
                        file.write(msgspec.json.encode(logs[0])[:20])
                    path.with_name(f"{path.name}.lock").symlink_to(path)
                raise KilledError
            self.left -= 1
            append(backend, logs)

        monkeypatch.setattr(JournalFileBackend, "append_logs", mortal)


@pytest.mark.parametrize("torn", [False, True])
def test_a_search_that_is_killed_all_the_time_finds_the_same(
    torn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within asking, between asking and running, between running and telling, within telling."""
    search = a_search(trials=16, parallel=3, pruning=PRUNING)
    whole = searched(search, a_folder(tmp_path / "whole"))

    folder = a_folder(tmp_path / "killed")
    mortal = Mortal(monkeypatch, folder.path / JOURNAL_NAME)
    mortal.torn = torn
    maker = Maker(folder)
    deaths = 0
    for life in itertools.cycle([2, 7, 3, 5, 4, 6, 1, 8]):
        mortal.left = life
        try:
            killed = searched(search, folder, maker)
            break
        except KilledError:
            deaths += 1
    assert deaths > 20
    assert killed == whole
    assert set(maker.made.values()) == {1}


def test_a_search_that_is_killed_while_runs_are_made(tmp_path: Path) -> None:
    search = a_search(trials=15, parallel=4, pruning=PRUNING)
    whole = searched(search, a_folder(tmp_path / "whole"))
    folder = a_folder(tmp_path / "killed")

    class Dies(Maker):
        def make(self, run: Any) -> None:
            if self.made.total() >= self.calls:
                raise KilledError
            super().make(run)

    maker = Dies(folder, calls=0)
    while True:
        try:
            killed = searched(search, folder, maker)
            break
        except KilledError:
            maker.calls += 1
    assert killed == whole
    assert maker.calls > 20
    assert set(maker.made.values()) == {1}


def test_reading_a_study_writes_nothing(folder: SweepFolder) -> None:
    assert read_studies(folder.path) == []
    assert not (folder.path / JOURNAL_NAME).exists()
    searched(a_search(trials=2), folder)
    path = folder.path / JOURNAL_NAME
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')  # somebody is writing
    content = path.read_bytes()
    [study] = read_studies(folder.path)
    assert states(study) == ["complete", "complete"]
    assert path.read_bytes() == content


# ---- mistakes


@pytest.mark.parametrize(
    ("tune", "line"),
    [
        ({"spaces": {}}, r"^key of sweep.tune=spaces: not known \(did you mean space\?\)"),
        ({"trials": 0}, r"^sweep.tune.trials=0: must be a whole number >= 1"),
        (
            {"metric": "acuracy"},
            r"^sweep.tune.metric=acuracy: not known \(did you mean accuracy\?\); allowed: accuracy, loss",
        ),
        ({"sampler": "cmaes"}, r"^sweep.tune.sampler=cmaes: not known; allowed: random, tpe"),
        ({"pruning": {"reduction": 1}}, r"^sweep.tune.pruning.reduction=1: must be a whole number >= 2"),
        ({"pruning": {"min": 1}}, r"^key of sweep.tune.pruning=min: not known; allowed: first_epochs, reduction"),
        ({"pruning": {"first_epochs": 4}}, r"^sweep.tune.pruning.first_epochs=4: must be below epochs=4"),
        ({"space": {}}, r"^sweep.tune.space=\{\}: nothing is left to be searched"),
        (
            {"space": {"optimizer.lrr": LR}},
            r"^key of sweep.tune.space=optimizer.lrr: not known \(did you mean optimizer.lr\?\)",
        ),
        (
            {"space": {"optimizer.beta1": LR}},
            r"^key of sweep.tune.space=optimizer.beta1: not known.*allowed: .*optimizer.lr, ",
        ),
        ({"space": {"wrkers": {"choices": [1, 2]}}}, r"^key of sweep.tune.space=wrkers: not known; allowed: "),
        ({"space": {"chanels_last": {"choices": [True, False]}}}, r"did you mean channels_last"),
        (
            {"space": {"workers": {"choices": [1, 2]}}},
            r"^sweep.tune.space.workers: says where, for how long or how often",
        ),
        ({"space": {"epochs": {"low": 1, "high": 3}}}, r"^sweep.tune.space.epochs: says where, for how long"),
        (
            {"space": {"data": {"choices": ["digits", "mnist"]}}},
            r"^sweep.tune.space.data: values on different data cannot",
        ),
        ({"space": {"seed": {"low": 1, "high": 3}}}, r"^sweep.tune.space.seed: says where, for how long"),
        ({"space": {"optimizer.lr": 0.1}}, r"^sweep.tune.space.optimizer.lr=0.1: must be \{choices"),
        (
            {"space": {"optimizer.lr": {"lo": 1}}},
            r"^key of sweep.tune.space.optimizer.lr=lo: not known \(did you mean low\?\)",
        ),
        ({"space": {"optimizer.lr": {"low": 1}}}, r"^sweep.tune.space.optimizer.lr.high=None: must be a number"),
        (
            {"space": {"optimizer.lr": {"low": 1, "high": 0.5}}},
            r"^sweep.tune.space.optimizer.lr: low=1, high=0.5: low must be",
        ),
        ({"space": {"optimizer.lr": {**LR, "low": 0}}}, r"low=0, high=1, log=true: a logarithmic range begins above 0"),
        ({"space": {"optimizer.lr": {**LR, "step": 0.1}}}, r"step=0.1: a range is logarithmic or has steps, not both"),
        (
            {"space": {"optimizer.lr": {"low": 0.1, "high": 0.2, "step": 0.3}}},
            r"step=0.3: must be above 0, and at most",
        ),
        (
            {"space": {"optimizer.lr": {"choices": [0.1]}}},
            r"^sweep.tune.space.optimizer.lr.choices=\[0.1\]: must be a list of at",
        ),
        ({"space": {"optimizer.lr": {"choices": [0.1, 0.2], "log": True}}}, r"has choices, and log of a range"),
        ({"space": {"optimizer.lr": {"choices": [0.1, "big"]}}}, r"^optimizer.lr=big: must be a number"),
        (
            {"space": {"channels_last": {"low": 0, "high": 1}}},
            r"^sweep.tune.space.channels_last: has no numbers",
        ),
        ({"space": {"optimizer": {"low": 0, "high": 1}}}, r"^sweep.tune.space.optimizer: has no numbers"),
        (
            {"space": {"optimizer": {"choices": ["sgd", "adamm"]}}},
            r"^optimizer=adamm: not known \(did you mean adam\?\)",
        ),
        ({"space": {"global_batch": {"low": 8.5, "high": 16}}}, r"must be a whole number"),
        (
            {"space": {"optimizer.momentum": {"low": 0.5, "high": 1.5}}},
            r"^sweep.tune.space.optimizer.momentum: 1.5 cannot run: optimizer=sgd needs 0 <= optimizer.momentum < 1",
        ),
        (
            {"space": {"global_batch": {"choices": [16, 5000]}}},
            r"global_batch: 5000 cannot run: global_batch=5000: larger than",
        ),
    ],
)
def test_a_mistake_is_one_line(tune: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line) as caught:
        a_search(**tune)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fixed", "axes", "line"),
    [
        ({"evaluate": False}, {}, r"^evaluate=false: sweep.tune.metric=accuracy is measured by evaluation"),
        ({"optimizer.lr": 0.1}, {}, r"^sweep.tune.space.optimizer.lr: the sweep sets this key, too"),
        ({}, {"optimizer": "adam"}, r"^key of sweep.tune.space=optimizer.momentum: not known"),
        ({}, {"workers": [1, 2]}, r"^sweep.tune.space.workers: says where, for how long"),
        ({}, {"optimizer.lr": 0.1, "optimizer.momentum": 0.9}, r"^sweep.tune.space=\{\}: nothing is left"),
    ],
)
def test_mistakes_of_the_rest_of_the_sweep(fixed: dict[str, Any], axes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        a_search(axes=axes, fixed=fixed)


def test_steps_cannot_be_pruned() -> None:
    with pytest.raises(ConfigError, match=r"^sweep.tune.pruning: runs of steps=9 cannot be shortened by epochs"):
        a_search(fixed={"steps": 9, "epochs": None}, pruning={})
    assert a_search(fixed={"steps": 9, "epochs": None}).definition.rungs == [9]


def test_an_axis_of_several_values_is_told_where_it_belongs() -> None:
    tune = {"space": SPACE, "trials": 2}
    sweep = read_sweep({"name": "test", "axes": {"optimizer": ["sgd", "adam"]}, "tune": tune})
    with pytest.raises(ConfigError, match=r"search it as sweep.tune.space: \{optimizer: \{choices: \[...\]\}\}"):
        read_search(sweep, {}, base_mapping(batch_per_worker=16))


def test_the_command_line_fixes_keys_and_adds_choices_and_ranges() -> None:
    axes = {
        "optimizer.lr": 0.1,
        "channels_last": [True, False],
        "optimizer.weight_decay": Interval(low=1e-5, high=1e-2, log=True),
        "batch_per_worker": "8..32x2",
        "workers": 1,
    }
    search = a_search(axes=axes)
    space = {dimension.key: dimension for dimension in search.definition.space}
    assert sorted(space) == ["batch_per_worker", "channels_last", "optimizer.momentum", "optimizer.weight_decay"]
    assert space["batch_per_worker"].choices == [8, 16, 32]
    assert (space["optimizer.weight_decay"].log, space["optimizer.weight_decay"].high) == (True, 1e-2)
    assert search.definition.base["optimizer.lr"] == 0.1
    assert not {"batch_per_worker", "global_batch"} & search.definition.base.keys()


def test_whole_numbers_are_searched_where_the_key_is_one(folder: SweepFolder) -> None:
    space = {"workload.hidden_size": {"low": 8, "high": 64, "log": True}, "optimizer.momentum": {"low": 0, "high": 0.5}}
    search = a_search(space=space, axes={"optimizer.lr": 0.1})
    assert [dimension.whole for dimension in search.definition.space] == [True, False]
    study = searched(search, folder)
    assert all(type(trial.params["workload.hidden_size"]) is int for trial in study.trials)


def test_a_size_changes_what_it_names_of_the_search() -> None:
    tune = {"space": SPACE, "trials": 30, "parallel": 3}
    tiny = at_size(read_sweep({"name": "test", "tune": tune, "sizes": {"tiny": {"tune": {"trials": 4}}}}), "tiny")
    assert (tiny.tune["trials"], tiny.tune["parallel"]) == (4, 3)
