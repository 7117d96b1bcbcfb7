"""The commands as people type them on a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks.core.errors import ConfigError
from benchmarks.core.folder import SweepFolder
from hydra_plugins.scalebench.launcher import SlurmLauncher
from tests.conftest import PROJECT
from tests.fake_slurm import FakeSlurm
from tests.slurm_cases import a_plan, cluster_file, jobs_of, runs_in_queue

SWEEP = ("workload=mlp", "strategy=ddp", "workers=1,2", "batch=64", "sweep.repeats=2", "sweep.scaling=[strong]")


class Shell:
    def __init__(self, tmp_path: Path) -> None:
        self.results = tmp_path / "results"
        self.folder = SweepFolder(self.results / "onehost" / "smoke")

    def run(self, module: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            cwd=PROJECT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    def sweep(self, *arguments: str, **environment: str) -> tuple[int, str, str]:
        words = ("--multirun", f"results={self.results}", "sweep=smoke", *arguments)
        return self.run("benchmarks.run", *words, **environment)


@pytest.fixture
def shell(slurm: FakeSlurm, tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_plan_submit_again_and_cancel(slurm: FakeSlurm, shell: Shell) -> None:
    code, plan, err = shell.sweep("cluster=onehost", *SWEEP, "plan=true")
    assert (code, err) == (0, "")
    assert "2 cells, 4 runs (4 to be made)" in plan
    assert "2 job arrays, at most " in plan
    assert not shell.results.exists()
    assert slurm.calls("sbatch") == []

    code, out, err = shell.sweep("cluster=onehost", *SWEEP)
    assert (code, err) == (0, "")
    assert out.startswith("submitted 4 runs as 2 job arrays (100, 101); at most ")
    assert len(runs_in_queue(slurm)) == 4
    for task in ("100_0", "101_1"):
        script = slurm.script(task)
        assert script in plan, "the plan shows the exact text"

    code, out, err = shell.sweep("cluster=onehost", *SWEEP)
    assert (code, out, err) == (0, f"nothing to submit; results in {shell.folder.path}\n", "")
    assert len(slurm.calls("sbatch")) == 2

    code, out, err = shell.run("slurm.status", "--results", str(shell.results))
    assert (code, err) == (0, "")
    assert f"{shell.folder.path}: 4 submitted" in out
    code, out, err = shell.run("slurm.cancel", str(shell.folder.path))
    assert (code, out, err) == (0, "4 runs cancelled; the same `make sweep` submits them again\n", "")
    assert slurm.tasks(active=True) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["cluster=template"], "cluster.slurm.account: must be set for cluster=template; with ARGS="),
        (["cluster=greene"], "cluster.slurm.account: must be set for cluster=greene; with ARGS="),
        (["cluster=onehost", "cluster.slurm.partition=nope"], "cluster.slurm.partition=nope: no such partition; Slurm"),
        (["cluster=onehost", "cluster.slurm.partitoin=x"], "key of cluster.slurm=partitoin: not known (did you mean"),
        (["cluster=onehost", "cluster.slurm.exclusive=1,2"], "cluster.slurm.exclusive=1,2: cannot be an axis"),
        (
            ["cluster=onehost", "cluster.slurm.account='a\\b'"],
            "cluster.slurm.account='a\\\\b': must be one line of print",
        ),
        (["cluster=onehost", "node_type=gpu,v100"], "node_type=v100: not known; allowed: cpu, gpu"),
        (["cluster=onehost", "workers=32"], "sweep=smoke: nothing to run, all "),
        (["cluster=onehost", "budget_worker_hours=0.1"], "budget_worker_hours=0.1: the "),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    slurm: FakeSlurm, shell: Shell, arguments: Sequence[str], line: str
) -> None:
    code, out, err = shell.sweep(*arguments, SCALEBENCH_ACCOUNT="???")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert slurm.tasks() == []
    assert not (shell.folder.path / "sweep.json").exists()


def test_a_refusal_is_one_line_in_slurms_own_words(slurm: FakeSlurm, shell: Shell) -> None:
    slurm.set(refused_sbatch=[2])
    code, out, err = shell.sweep("cluster=onehost", *SWEEP)
    assert (code, out) == (2, "")
    assert err.startswith("error: sbatch, for the shape (")
    assert err.endswith("Invalid account or account/partition combination specified\n")
    assert err.count("\n") == 1
    assert slurm.tasks(active=True) == []


def test_no_slurm_here(shell: Shell) -> None:
    code, out, err = shell.sweep("cluster=onehost", *SWEEP, PATH="/nowhere")
    assert (code, out) == (2, "")
    assert err == (
        "error: sinfo: not on PATH, so there is no Slurm here; go to a login node, or run here with "
        "HYDRA_LAUNCHER=basic\n"
    )


def test_the_basic_launcher_runs_here_whatever_the_clusters_file_says(slurm: FakeSlurm, shell: Shell) -> None:
    arguments = (
        "workload=mlp",
        "strategy=single",
        "workers=1",
        "batch=64",
        "steps=2",
        "evaluate=false",
        "sweep.repeats=1",
    )
    code, out, err = shell.sweep(
        "cluster=onehost", *arguments, "sweep.scaling=[weak]", "threads_per_worker=1", HYDRA_LAUNCHER="basic"
    )
    assert (code, err) == (0, "")
    assert "1 ok" in out
    assert not (slurm.folder / "calls.jsonl").exists()
    assert jobs_of(shell.folder) == {}


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"budget_worker_hours": 0}, "budget_worker_hours=0: must be a number above 0, or null"),
        ({"budget_worker_hours": float("nan")}, "budget_worker_hours=nan: must be a number above 0, or null"),
        ({"budget_worker_hours": True}, "budget_worker_hours=True: must be a number above 0, or null"),
        ({"budget_worker_hours": "much"}, "budget_worker_hours=much: must be a number above 0, or null"),
        ({"max_attempts": 0}, "max_attempts=0: must be a whole number from 1"),
        ({"max_attempts": "many"}, "max_attempts=many: must be a whole number from 1"),
        ({"wait": "long"}, "wait=long: must be true or false"),
    ],
)
def test_how_to_submit_is_checked(settings: dict[str, Any], line: str) -> None:
    cluster = cluster_file("onehost")
    defaults = {"budget_worker_hours": None, "max_attempts": 3, "wait": False}
    with pytest.raises(ConfigError) as caught:
        SlurmLauncher.order(a_plan(cluster, workers=1), {"cluster": cluster}, OmegaConf.create(defaults | settings))
    assert str(caught.value) == line
