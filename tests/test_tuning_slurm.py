"""A search with Slurm: groups are submitted as arrays, waited for, found again, cancelled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from analysis.runs.load import load_cells
from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.sweep import read_sweep
from benchmarks.tuning.definition import Search, read_search
from benchmarks.tuning.trials import Study, read_studies
from benchmarks.tuning.tuner import TUNING_LOCK, StoppedError
from hydra_plugins.scalebench.tuning import tune
from slurm import status
from slurm.cancel import cancel
from slurm.state import look
from tests.conftest import base_mapping
from tests.fake_slurm import FakeSlurm
from tests.slurm_cases import age_ledger, cluster_file, jobs_of, run_jobs
from tests.tuning_cases import LR, MOMENTUM, Maker, searched
from tests.tuning_cases import a_folder as a_local_folder

Play = Callable[[], None]


def a_search(**section: Any) -> Search:
    base = base_mapping(workload="mlp", batch_per_worker=16)
    base |= {"cluster": cluster_file("onehost"), "device": "auto", "threads_per_worker": None}
    whole = {"space": {"optimizer.lr": LR, "optimizer.momentum": MOMENTUM}, "trials": 6, "parallel": 3} | section
    sweep = read_sweep({"name": "test", "fixed": {"steps": None, "epochs": 4}, "tune": whole})
    return read_search(sweep, {}, base)


class Command:
    """The command that somebody gives, and the cluster on which its jobs run."""

    def __init__(self, tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
        self.results, self.slurm = tmp_path / "results", slurm
        self.folder = SweepFolder(self.results / "onehost" / "test")
        self.maker = Maker(self.folder)
        self.play: Play = self.run_jobs
        monkeypatch.setattr(status, "time", SimpleNamespace(sleep=lambda _: self.play()))

    def give(self, search: Search, **settings: Any) -> None:
        keys = {"plan": False, "wait": False, "budget_worker_hours": None, "max_attempts": 3}
        cfg = OmegaConf.create(
            {
                "results": str(self.results),
                "cluster": {"name": "onehost", "slurm": {"account": "me"}},
                **keys,
                **settings,
            }
        )
        tune(cfg, None, search, [])

    def run_jobs(self) -> None:
        run_jobs(self.slurm, self.maker.make)

    @property
    def study(self) -> Study:
        [study] = read_studies(self.folder.path)
        return study


@pytest.fixture
def command(tmp_path: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, slurm, monkeypatch)


def params(study: Study) -> list[Any]:
    return [(trial.number, trial.params, trial.outcome and trial.outcome.state) for trial in study.trials]


PRUNING = {"first_epochs": 1, "reduction": 2}


def test_groups_are_submitted_as_arrays_and_found_as_on_one_machine(
    command: Command, tmp_path: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    search = a_search(pruning=PRUNING)
    command.give(search)
    here = searched(search, a_local_folder(tmp_path / "here"))
    assert params(command.study) == params(here)
    out = capsys.readouterr().out
    assert "this command has to stay until the search is over" in out
    assert "6 trials: " in out
    sizes = [sum(task["job"] == job for task in slurm.tasks()) for job in (100, 101, 102)]
    assert sizes == [3, 1, 1], "all trials of a group, then the best of them, twice"
    assert set(command.maker.made.values()) == {1}
    loaded = load_cells(command.folder.path)
    assert len(loaded.cells) == len(command.maker.made)
    assert not loaded.problems
    assert set(look(command.folder).counts) == {"ok"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemError])
def test_jobs_in_flight_are_found_again(command: Command, slurm: FakeSlurm, stop: type[BaseException]) -> None:
    def stopped() -> None:
        raise stop

    command.play = stopped
    with pytest.raises((SystemExit, SystemError)) as caught:
        command.give(a_search())
    if stop is KeyboardInterrupt:
        assert isinstance(caught.value, SystemExit)
        assert caught.value.code == 130
    assert look(command.folder).counts == {"submitted": 3}
    command.play = command.run_jobs
    command.give(a_search())
    assert all(len(jobs) == 1 for jobs in jobs_of(command.folder).values())
    assert len(slurm.calls("sbatch")) == 2
    assert [trial.outcome is not None for trial in command.study.trials] == [True] * 6


def test_cancelling_stops_the_search_and_the_next_command_goes_on(command: Command, slurm: FakeSlurm) -> None:
    def cancelled() -> None:
        assert cancel(command.folder) == 3
        age_ledger(command.folder, 100.0)

    command.play = cancelled
    with pytest.raises(StoppedError, match="3 of 3 runs under way were cancelled"):
        command.give(a_search())
    assert len(slurm.calls("sbatch")) == 1
    asked = [trial.params for trial in command.study.trials]
    command.play = command.run_jobs
    command.give(a_search())
    assert [trial.params for trial in command.study.trials[:3]] == asked
    assert len(command.study.trials) == 6


def test_a_node_that_fails_is_no_fault_of_the_setting(command: Command, slurm: FakeSlurm) -> None:
    def fails() -> None:
        for task in slurm.tasks(active=True):
            slurm.start(task["id"])
            slurm.end(task["id"], "NODE_FAIL")
        age_ledger(command.folder, 100.0)

    command.play = fails
    with pytest.raises(SystemExit) as caught:
        command.give(a_search(trials=2, parallel=2), max_attempts=2)
    assert caught.value.code == 1
    assert [trial.outcome and trial.outcome.state for trial in command.study.trials] == ["failed", "failed"]
    assert [len(jobs) for jobs in jobs_of(command.folder).values()] == [2, 2]


def test_the_budget_is_for_all_trials(command: Command, slurm: FakeSlurm) -> None:
    line = r"^budget_worker_hours=1.9: the 4 trials may take 2.00; nothing was submitted"
    with pytest.raises(UserError, match=line):
        command.give(a_search(pruning=PRUNING, trials=4, parallel=2), budget_worker_hours=1.9)
    assert not slurm.calls("sbatch")


def test_two_at_once_are_refused(command: Command, slurm: FakeSlurm) -> None:
    folder = SweepFolder.create(command.results, "onehost", "test")
    with folder.lock(name=TUNING_LOCK), pytest.raises(UserError, match="is being run already, by process"):
        command.give(a_search())
    assert not slurm.calls("sbatch")
    with folder.lock():  # as `make status` and `make cancel` do, for a moment
        pass


def test_the_plan_shows_space_cost_and_script(
    command: Command, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    command.give(a_search(pruning=PRUNING), plan=True)
    out = capsys.readouterr().out
    assert "optimizer.lr: 0.0001 to 1, logarithmic\n" in out
    assert "6 trials (6 to be made), 3 at a time, by tpe, for the highest accuracy\n" in out
    assert "a trial's runs have 1, 2, 4 epochs; the best 1 in 2 go on\n" in out
    assert "at most 18 runs (3 for a trial); at most 3.00 worker-hours" in out
    assert "#SBATCH --job-name" in out
    assert not slurm.calls("sbatch")
    assert not command.folder.path.exists()
