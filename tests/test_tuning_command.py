"""A search as people start it: killed and gone on with, two at once, and one line for a mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import RECORD_NAME, read_record
from benchmarks.tuning.trials import read_studies
from tests.conftest import PROJECT
from tests.test_command_line import Shell, wait_until

SEARCH = (
    *("--multirun", "sweep=tune", "workload=mlp", "epochs=2", "sweep.tune.trials=4", "sweep.tune.parallel=2"),
    *("sweep.tune.pruning={first_epochs:1,reduction:2}", "device=cpu", "optimizer.momentum=0.9", "warmup_steps=1"),
)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    one = Shell(tmp_path / "results")
    yield one
    assert one.none_alive_within(10), "a command left processes behind"


def test_a_search_that_is_killed_goes_on(shell: Shell) -> None:
    folder = SweepFolder(shell.results / "local" / "tune")
    first = shell.start(*SEARCH)
    assert wait_until(lambda: bool(list(folder.path.glob(f"*/{RECORD_NAME}"))), 120)
    code, _, err = shell.run(*SEARCH)
    assert code == 2
    assert f"being run already, by process {first.pid} on" in err
    first.kill()
    first.communicate(timeout=20)
    made = {path: path.stat().st_mtime_ns for path in folder.path.glob(f"*/{RECORD_NAME}")}

    again = shell.start(*SEARCH)
    out, err = again.communicate(timeout=240)
    assert (again.returncode, err) == (0, "")
    [study] = read_studies(folder.path)
    assert len(study.trials) == 4
    assert {trial.outcome.state for trial in study.trials if trial.outcome} == {"complete", "pruned"}
    assert all({"optimizer.lr", "optimizer.weight_decay"} == set(trial.params) for trial in study.trials)
    assert "trial 4 of 4" in out
    assert "pruning: " in out
    best = study.best
    assert best is not None
    assert (
        f"best: trial {best.number + 1}, accuracy {best.value:.4f}: optimizer.lr={best.params['optimizer.lr']}" in out
    )
    assert {path: path.stat().st_mtime_ns for path in made} == made, "what was made is not made again"
    for path in folder.path.glob(f"*/{RECORD_NAME}"):
        record = read_record(path)
        assert (record.status, record.attempt, record.config["optimizer"]["momentum"]) == ("ok", 1, 0.9)

    shown = subprocess.run(
        [sys.executable, "-m", "analysis.scaling", str(folder.path), "--no-figures"],
        capture_output=True, text=True, cwd=PROJECT, check=True,
    )  # fmt: skip
    assert "Best trials" in shown.stdout
    assert (folder.path / "analysis" / "trials.csv").read_text().count("\n") == 5


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sweep.tune.trials=0"], "sweep.tune.trials=0: must be a whole number >= 1"),
        (["optimizer=adam"], "key of sweep.tune.space=optimizer.momentum: not known"),
        (["optimizer.lr=interval(1,0.1)"], "sweep.tune.space.optimizer.lr: low=1, high=0.1: low must be below high"),
        (["sweep=smoke", "optimizer.lr=interval(0.1,1)"], "optimizer.lr=interval(...): only a tuning sweep"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(shell: Shell, arguments: Sequence[str], line: str) -> None:
    code, out, err = shell.run("--multirun", "sweep=tune", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert not shell.results.exists()
