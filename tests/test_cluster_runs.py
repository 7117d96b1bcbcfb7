"""Runs inside allocations of a real Slurm, as an ordinary user with a clone and a .venv of their own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.core.record import RECORD_NAME, Record, read_record
from tests.ordinary_user import as_user, clone_with_venv
from tests.test_command_line import wait_until
from tests.test_onehost import cluster, submit
from tests.test_readme import COMMANDS

pytestmark = pytest.mark.cluster
__all__ = ["cluster"]  # the module's fixture: the cluster is up

PYTHON = ".venv/bin/python -m benchmarks.run"
FAULTY = f"{PYTHON} nodes=2 workload=faulty workers=2 global_batch=32 warmup_steps=2"


@pytest.fixture(scope="module")
def home(user_home: Path, workshop: Path, cluster: None) -> Iterator[Path]:
    """A clone in the user's home."""
    clone = user_home / "scalebench"
    clone_with_venv(clone, workshop)
    yield clone
    shutil.rmtree(clone)


def in_clone(home: Path, command: str, extra: bool = False) -> str:
    """Run a command as the user does; node names are this host's, so gloo must be told the interface."""
    return as_user("bash", "-c", f"cd {home} && {command}", **environment(home, extra))


def environment(home: Path, extra: bool) -> dict[str, str]:
    kept = {"GLOO_SOCKET_IFNAME": "lo", "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    return kept | ({"SCALEBENCH_EXTRA": str(home / "tests" / "extra")} if extra else {"SCALEBENCH_EXTRA": ""})


def records(home: Path, results: str) -> list[Record]:
    return [read_record(path) for path in (home / results).glob(f"*/*/*/{RECORD_NAME}")]


def test_the_readmes_job_step_over_two_nodes(home: Path) -> None:
    [command] = [command for command in COMMANDS if command.startswith("srun")]
    out = in_clone(home, f"{command} results=readme")
    assert "samples/s, accuracy" in out
    [record] = records(home, "readme")
    assert (record.status, record.nodes, record.workers) == ("ok", 2, 4)
    assert record.environment["slurm_job"]["SLURM_JOB_PARTITION"] == "cpu"
    assert record.config["threads_per_worker"] == 1
    assert record.config["cluster"]["cores_per_node"] == 2, "what Slurm granted, not what the host has"


def test_a_sweep_inside_an_allocation_of_one_node(home: Path) -> None:
    sweep = f"{PYTHON} --multirun sweep=smoke workload=mlp workers=1,2 batch=64 steps=10 sweep.repeats=1 results=sweep"
    out = in_clone(home, f"srun --nodes=1 --cpus-per-task=2 {sweep}")
    assert "ok; results in" in out
    assert {record.status for record in records(home, "sweep")} == {"ok"}
    tables = in_clone(home, ".venv/bin/python -m analysis.scaling --results sweep --no-figures")
    assert "0 failed, 0 missing" in tables


def test_a_cancelled_job_leaves_its_record(home: Path) -> None:
    job = start(home, "workload.fault=sleep workload.sleep_s=0.1 steps=3000 results=cancelled")
    as_user("scancel", job)
    assert wait_until(lambda: bool(records(home, "cancelled")), 30)
    assert [record.status for record in records(home, "cancelled")] == ["cancelled"]


def test_a_supervisor_that_is_killed_is_a_failed_node(home: Path) -> None:
    start(home, "workload.fault=sleep workload.sleep_s=0.1 steps=3000 results=killed")
    [victim] = [pid for pid in supervisors("results=killed") if variable(pid, "SLURM_NODEID") == "1"]
    os.kill(victim, 9)
    assert wait_until(lambda: bool(records(home, "killed")), 90)
    assert [record.status for record in records(home, "killed")] == ["node_fail"]
    assert wait_until(lambda: not supervisors("results=killed"), 30)


def start(home: Path, settings: str) -> str:
    """The id of a job on two nodes whose workers have begun to train."""
    results = settings.split("results=")[1]
    exports = " ".join(f"{key}={value}" for key, value in environment(home, extra=True).items())
    step = f"srun --ntasks-per-node=1 {FAULTY} {settings}"
    job = submit(f"cd {home} && export {exports} && {step}", "--nodes=2", "--cpus-per-task=2", "--time=5")
    assert wait_until(lambda: len(list((home / results).rglob("rank*.log"))) == 2, 90), job
    time.sleep(2.0)
    return job


def supervisors(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().decode() if entry.name.isdigit() else ""
        except OSError:
            continue
        if mark in command and command.split("\0")[0].endswith("/python"):
            found.append(int(entry.name))
    return found


def variable(pid: int, name: str) -> str | None:
    pairs = (Path("/proc") / str(pid) / "environ").read_text().split("\0")
    return dict(pair.partition("=")[::2] for pair in pairs if "=" in pair).get(name)
