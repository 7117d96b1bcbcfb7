"""Sweeps through a real Slurm, as an ordinary user: every end that a job can have, and the grid complete after all."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.core.record import RECORD_NAME, Record, read_record
from tests.ordinary_user import SCRIPT, STATE, USER, as_user
from tests.test_cluster_runs import environment, home, supervisors
from tests.test_command_line import wait_until
from tests.test_onehost import cluster
from tests.test_readme import ON_THE_CLUSTER

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "home"]  # the modules' fixtures: the cluster is up, the user has a clone

# One short run; jobs may run side by side, since nothing here judges their speed.
SWEEP = (
    ".venv/bin/python -m benchmarks.run --multirun cluster=onehost sweep=smoke workload=faulty strategy=ddp "
    "batch_per_worker=16 warmup_steps=1 evaluate=false sweep.repeats=1 "
    "cluster.slurm.array_parallelism=4 ~cluster.slurm.sbatch.dependency"
)
SLOW = "workload.fault=sleep workload.sleep_s=0.1 workload.rank=0 steps=150"


class Sweeps:
    """The user's shell in the clone."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def shell(self, command: str) -> str:
        return as_user("bash", "-c", f"cd {self.home} && {command}", **environment(self.home, extra=True))

    def submit(self, results: str, settings: str) -> str:
        return self.shell(f"{SWEEP} {settings} results={results}")

    def status(self, results: str) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.shell(f".venv/bin/python -m slurm.status --json --results {results}"))
        return shown

    def runs(self, results: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status(results)["runs"]
        return found

    def ended(self, results: str, limit_s: float = 180) -> dict[str, int]:
        """How many runs ended in each state, when none is in Slurm's hands any more."""
        deadline_s = time.monotonic() + limit_s
        status = self.status(results)
        while {"submitted", "running"} & set(status["counts"]):
            assert time.monotonic() < deadline_s, status
            time.sleep(1.0)
            status = self.status(results)
        print(*(record.reason for record in self.records(results) if record.reason), sep="\n")  # why, if a test fails
        counts: dict[str, int] = status["counts"]
        return counts

    def until(self, results: str, test: Callable[[list[dict[str, Any]]], bool], limit_s: float = 120) -> None:
        assert wait_until(lambda: test(self.runs(results)), limit_s), self.status(results)

    def records(self, results: str) -> list[Record]:
        return [read_record(path) for path in sorted((self.home / results).glob(f"*/*/*/{RECORD_NAME}"))]


@pytest.fixture(scope="module")
def sweeps(home: Path) -> Sweeps:
    return Sweeps(home)


@pytest.fixture(scope="module")
def submitted(sweeps: Sweeps) -> None:
    """Several sweeps at once, so that their jobs share the waiting."""
    sweeps.submit("overtime", "workers=1 workload.fault=sleep workload.rank=0 workload.sleep_s=1 steps=200")
    [run] = sweeps.runs("overtime")
    as_user("scontrol", "update", f"JobId={run['job']}", "TimeLimit=1")
    sweeps.submit(
        "limit", "workers=1 workload.fault=sleep workload.sleep_s=0.5 workload.rank=0 steps=400 run_limit_s=50"
    )
    sweeps.submit("shapes", "workers=1,2,4,8 steps=3")
    sweeps.submit("two_nodes", "workers=2 nodes=2 steps=3")
    sweeps.submit("faults", "workers=1 workload.fault=raise,exhaust workload.rank=0 steps=3")
    sweeps.submit("memory", "workers=1 workload.fault=fill workload.rank=0 steps=100 memory_gb_per_worker=1.5")


def test_the_readmes_commands(sweeps: Sweeps) -> None:
    """In their order, in a fresh clone: plan, submit, look, watch to the end, tables."""
    outputs = {command: sweeps.shell(command) for command in ON_THE_CLUSTER}
    assert "#SBATCH --partition=cpu" in outputs["make plan CLUSTER=onehost"]
    [submitted] = [out for command, out in outputs.items() if command.startswith("make sweep")]
    assert "submitted 4 runs as 2 job arrays" in submitted
    assert "4 ok" in outputs["make status ARGS=--watch"].splitlines()[-2]
    assert "4 ok, 0 failed, 0 missing" in outputs["make report"]
    assert "0 runs cancelled" in outputs["make cancel"]


def test_mixed_shapes_over_one_and_two_nodes(submitted: None, sweeps: Sweeps) -> None:
    assert sweeps.ended("shapes") == {"ok": 4}
    assert {(record.workers, record.nodes) for record in sweeps.records("shapes")} == {(1, 1), (2, 1), (4, 1), (8, 2)}
    ids = {run["job"] for run in sweeps.runs("shapes")}
    assert ids == {None}, "what has its record is no job any more"
    tables = sweeps.shell(".venv/bin/python -m analysis.scaling --results shapes --no-figures")
    assert "weak scaling" in tables.lower()
    assert "8" in tables.split("Weak scaling")[1]


def test_two_nodes_of_one_worker(submitted: None, sweeps: Sweeps) -> None:
    assert sweeps.ended("two_nodes") == {"ok": 1}
    [record] = sweeps.records("two_nodes")
    assert (record.workers, record.nodes) == (2, 2)


def test_an_exception_and_a_refused_allocation(submitted: None, sweeps: Sweeps) -> None:
    assert sweeps.ended("faults") == {"error": 1, "oom": 1}
    errors = [record for record in sweeps.records("faults") if record.status == "error"]
    assert errors[0].reason
    assert errors[0].reason.message == "broken on purpose"
    # Failed runs must not read as completed in Slurm's own accounts.
    assert set(accounts("smoke", sweeps, "faults")) == {"FAILED"}


def test_out_of_memory(submitted: None, sweeps: Sweeps) -> None:
    assert sweeps.ended("memory") == {"oom": 1}


def test_its_own_time_limit_leaves_what_was_measured(submitted: None, sweeps: Sweeps) -> None:
    assert sweeps.ended("limit") == {"timeout": 1}
    [record] = sweeps.records("limit")
    assert record.window
    assert 5 <= len(record.window.step_time_s) < 100
    assert all(time_s >= 0.5 for time_s in record.window.step_time_s)


def test_slurms_time_limit(submitted: None, sweeps: Sweeps) -> None:
    """It was cut to a minute behind the suite's back, so its own deadline comes too late."""
    assert sweeps.ended("overtime") == {"timeout": 1}


def test_the_same_command_again_submits_nothing(submitted: None, sweeps: Sweeps) -> None:
    sweeps.ended("shapes")
    assert "nothing to submit" in sweeps.submit("shapes", "workers=1,2,4,8 steps=3")


def test_killed_cancelled_and_then_complete(sweeps: Sweeps) -> None:
    """A worker is killed, a supervisor is killed, a job is cancelled; the same command completes the grid."""
    settings = f"workers=1 {SLOW} optimizer.lr=0.1,0.2,0.3,0.4"
    sweeps.submit("killed", settings)
    first, second, third, _ = sorted(sweeps.runs("killed"), key=lambda run: str(run["job"]))
    ends: dict[str, Callable[[], object]] = {
        first["run_id"]: lambda: os.kill(worker_of(sweeps.home / "killed", first["run_id"]), 9),
        second["run_id"]: lambda: os.kill(supervisor_of(second["job"]), 9),
        third["run_id"]: lambda: as_user("scancel", third["job"]),
    }
    for run_id, end in ends.items():
        sweeps.until("killed", lambda runs, run_id=run_id: in_window(runs, run_id))  # type: ignore[misc]
        end()
    assert sweeps.ended("killed") == {"error": 2, "cancelled": 1, "ok": 1}
    by_id = {record.run_id: record for record in sweeps.records("killed")}
    assert by_id[first["run_id"]].reason.kind == "signal SIGKILL"  # type: ignore[union-attr]
    assert by_id[second["run_id"]].notes == ["written from Slurm's accounting"]
    assert by_id[third["run_id"]].status == "cancelled"
    assert "submitted 3 runs" in sweeps.submit("killed", settings)
    assert sweeps.ended("killed") == {"ok": 4}
    assert sorted(record.attempt for record in sweeps.records("killed")) == [1, 2, 2, 2]


def test_slurmctld_restarted_in_the_middle(sweeps: Sweeps) -> None:
    sweeps.submit("restarted", f"workers=1,8 {SLOW}")
    sweeps.until("restarted", lambda runs: any(run["step"] for run in runs))
    stop("slurmctld")
    during = sweeps.status("restarted")
    assert "does not answer" in str(during["runs"]) or during["counts"].get("running")
    assert "lost" not in during["counts"]
    assert subprocess.run(["bash", SCRIPT, "up"], capture_output=True).returncode == 0
    assert sweeps.ended("restarted") == {"ok": 2}


def test_without_accounting(sweeps: Sweeps) -> None:
    """Signs of life and the queue are enough to tell a run that goes on from one that is gone."""
    stop("slurmdbd")
    try:
        sweeps.submit("unaccounted", f"workers=1 {SLOW} optimizer.lr=0.1,0.2")
        sweeps.until("unaccounted", lambda runs: all(run["step"] for run in runs))
        assert any("no accounting" in warning for warning in sweeps.status("unaccounted")["warnings"])
        victim = sweeps.runs("unaccounted")[0]
        os.kill(supervisor_of(victim["job"]), 9)
        assert sweeps.ended("unaccounted") == {"ok": 1, "lost": 1}
        [lost] = [record for record in sweeps.records("unaccounted") if record.status == "lost"]
        assert lost.run_id == victim["run_id"]
    finally:
        assert subprocess.run(["bash", SCRIPT, "up"], capture_output=True).returncode == 0


def test_a_drained_node_is_waited_for(sweeps: Sweeps) -> None:
    subprocess.run(["scontrol", "update", "NodeName=n4", "State=DRAIN", "Reason=test"], check=True)
    try:
        sweeps.submit("drained", "workers=1 steps=3 cluster.slurm.nodelist=n4")
        time.sleep(8.0)  # longer than the scheduler's interval
        [run] = sweeps.runs("drained")
        assert run["state"] == "submitted"
        assert "n4" in run["reason"] or "Resources" in run["reason"] or "Node" in run["reason"]
    finally:
        subprocess.run(["scontrol", "update", "NodeName=n4", "State=RESUME"], check=True)
    assert sweeps.ended("drained") == {"ok": 1}


def test_cancelled_by_our_own_command_and_two_submitters(sweeps: Sweeps) -> None:
    settings = "workers=1,2 steps=3 optimizer.lr=0.1,0.2,0.3 cluster.slurm.partition=down"
    both = f"({SWEEP} {settings} results=twice > one.log 2>&1 & {SWEEP} {settings} results=twice > two.log 2>&1; wait)"
    sweeps.shell(both)
    assert sweeps.status("twice")["counts"] == {"submitted": 6}
    held = as_user("squeue", "--noheader", "--array", "--states=all", "--name=scalebench-smoke", "--partition=down")
    assert len(held.splitlines()) == 6
    assert "6 runs" in sweeps.shell(".venv/bin/python -m slurm.cancel --results twice")
    assert sweeps.ended("twice") == {"planned": 6}
    assert "submitted 6 runs" in sweeps.submit("twice", settings)
    sweeps.shell(".venv/bin/python -m slurm.cancel --results twice")


def test_what_slurm_refuses_is_said_and_nothing_is_left(sweeps: Sweeps) -> None:
    before = queue()
    for settings, said in (
        ("cluster.slurm.partition=nope", "no such partition; Slurm has cpu, down, gpu"),
        ("cluster.slurm.constraint=nope", "1 core, 5 min): Batch job submission failed: Invalid feature specification"),
        ("cluster.slurm.reservation=nope", "Requested reservation is invalid"),
        ("threads_per_worker=64", "larger than partition cpu"),
        ("budget_worker_hours=0.001", "budget_worker_hours=0.001"),
    ):
        done = refused(sweeps, f"{SWEEP} workers=1 threads_per_worker=1 steps=3 {settings} results=refused")
        assert done.returncode == 2, done.stdout + done.stderr
        assert said.lower() in done.stderr.lower()
        assert done.stderr.count("\n") == 1, done.stderr
    assert queue() <= before


def test_a_folder_that_the_nodes_do_not_see(sweeps: Sweeps) -> None:
    """The submitter's machine has a file system of its own over the results."""
    before = queue()
    (sweeps.home / "private").mkdir(exist_ok=True)
    inside = f"mount -t tmpfs -o mode=1777 none {sweeps.home}/private && exec runuser -u {USER} -- bash -c '{{}}'"
    command = f"cd {sweeps.home} && {SWEEP} workers=1 steps=3 results=private/results"
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", inside.format(command)],
        env={**os.environ, **environment(sweeps.home, extra=True)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "does not see" in done.stderr
    assert queue() <= before


def queue() -> set[str]:
    return set(as_user("squeue", "--noheader", "--array", "--name=scalebench-smoke", "--format=%i").split())


def in_window(runs: list[dict[str, Any]], run_id: str) -> bool:
    return any(run["run_id"] == run_id and run["reason"] == "window" for run in runs)


def refused(sweeps: Sweeps, command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["runuser", "-u", USER, "--", "bash", "-c", f"cd {sweeps.home} && {command}"],
        env={**os.environ, "HOME": str(sweeps.home.parent), **environment(sweeps.home, extra=True)},
        capture_output=True,
        text=True,
    )


def accounts(sweep: str, sweeps: Sweeps, results: str) -> Iterator[str]:
    """The states of a sweep's jobs in Slurm's accounting."""
    ledger = (sweeps.home / results / "onehost" / sweep / "ledger.jsonl").read_text().splitlines()
    jobs = [event["job"] for event in map(json.loads, ledger) if event["event"] == "submitted"]
    for job in jobs:
        assert wait_until(lambda job=job: sacct(job) not in ("RUNNING", "COMPLETING"), 30)  # type: ignore[misc]
        yield sacct(job)


def sacct(job: str) -> str:
    return as_user("sacct", "-n", "-P", "-X", "--jobs", job, "--format=State").strip()


def supervisor_of(job: str) -> int:
    """The process that runs a job's only supervisor."""
    array, _, task = job.partition("_")
    for pid in supervisors("submitit.core._submit"):
        variables = (Path("/proc") / str(pid) / "environ").read_text().split("\0")
        if f"SLURM_ARRAY_JOB_ID={array}" in variables and f"SLURM_ARRAY_TASK_ID={task}" in variables:
            return pid
    raise AssertionError(f"no supervisor of {job}")


def worker_of(results: Path, run_id: str) -> int:
    """The process that writes a run's first log."""
    [log] = results.glob(f"*/*/{run_id}/attempt1/rank0.log")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "fd" / "2").readlink() == log:
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no worker writes {log}")


def stop(daemon: str) -> None:
    pid = int((STATE / "run" / f"{daemon}.pid").read_text())
    os.kill(pid, 15)
    assert wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not _command(pid), 30)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
