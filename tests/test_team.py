"""Runs over several nodes: one supervisor on each, started as srun starts them. Here the nodes share this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from benchmarks.core.errors import UserError
from benchmarks.core.record import RECORD_NAME, Reason, Record, read_record
from benchmarks.supervision.team import Team, Word, collect_words, team_here
from benchmarks.supervision.verdict import of_run
from tests.conftest import PROJECT, WORKERS_UNTRACED
from tests.test_command_line import wait_until

STEP = {
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "3",
    "SLURMD_NODENAME": "localhost",
    "GLOO_SOCKET_IFNAME": "lo",
}


class Nodes:
    """Two supervisors of one run."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str) -> None:
        for node in ("0", "1"):
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.run", "nodes=2", *arguments, f"results={self.results}"],
                    cwd=PROJECT,
                    env={**os.environ, **WORKERS_UNTRACED, **STEP, "SLURM_NODEID": node},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def finish(self) -> list[tuple[int, str, str]]:
        ends = []
        for process in self.processes:
            out, err = process.communicate(timeout=120)
            ends.append((process.returncode, out, err))
        self.processes = []
        return ends

    def record(self) -> Record:
        [path] = self.results.glob(f"local/single_runs/*/{RECORD_NAME}")
        return read_record(path)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    both = Nodes(tmp_path / "results")
    yield both
    for process in both.processes:
        process.kill()


@pytest.mark.parametrize("workers", [2, 4])
def test_two_nodes_train_together(nodes: Nodes, workers: int) -> None:
    nodes.start("workload=mlp", f"workers={workers}", "global_batch=64", "steps=20")
    (code, out, err), (other_code, other_out, other_err) = nodes.finish()
    assert (code, err) == (0, "")
    assert "samples/s, accuracy" in out
    assert (other_code, other_out, other_err) == (0, "", "")
    record = nodes.record()
    assert (record.status, record.nodes, record.workers) == ("ok", 2, workers)
    assert [rank.rank for rank in record.ranks] == list(range(workers))
    assert record.window is not None
    assert record.window.samples == [64] * 20
    assert next(check for check in record.sanity if check.name == "replicas_equal").passed
    assert sum(record.ledger.values()) == pytest.approx(record.wall_time_s, rel=1e-6)
    left = {
        path.name for path in (nodes.results / "local" / "single_runs" / record.run_id).rglob("*") if path.is_file()
    }
    assert left == {RECORD_NAME, *(f"rank{rank}.log" for rank in range(workers))}


def test_a_failure_on_the_other_node_is_the_reason(nodes: Nodes) -> None:
    nodes.start(
        "workload=faulty", "workload.fault=raise", "workload.call=5", "workers=2", "global_batch=64", "steps=20"
    )
    (code, out, _), _ = nodes.finish()
    assert code == 1
    record = nodes.record()
    assert (record.status, record.reason and record.reason.kind) == ("error", "ZeroDivisionError")
    assert "broken on purpose" in out


def test_a_node_that_dies_is_a_failed_node(nodes: Nodes) -> None:
    nodes.start(
        "workload=faulty", "workload.fault=sleep", "workload.sleep_s=0.1", "workers=2", "global_batch=64", "steps=600"
    )
    assert wait_until(lambda: len(list(nodes.results.rglob("rank*.log"))) == 2, 60)
    time.sleep(1.0)
    nodes.processes[1].send_signal(signal.SIGKILL)
    (code, out, _), _ = nodes.finish()
    assert code == 1
    assert nodes.record().status == "node_fail"
    assert "node 1 has not said within" in out


@pytest.mark.alone
def test_what_both_nodes_have_measured_when_their_time_is_over(nodes: Nodes) -> None:
    """Whichever ends its workers first, the other's lose their peer: they leave their steps as well."""
    fault = ("workload=faulty", "workload.fault=sleep", "workload.sleep_s=0.1")
    nodes.start(*fault, "workers=2", "global_batch=64", "steps=2000", "run_limit_s=40")
    nodes.finish()
    record = nodes.record()
    assert (record.status, record.reason and record.reason.kind) == ("timeout", "run_limit")
    assert record.window is not None
    assert record.window.samples == [64] * len(record.window.step_time_s)
    # Of the quickest step: a busy machine wakes a sleeper late, never early.
    assert min(record.window.step_time_s) == pytest.approx(0.1, rel=0.2)
    assert [rank.rank for rank in record.ranks] == [0, 1]


def test_the_number_of_nodes_must_be_that_of_the_job_step(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.run",
            "nodes=2",
            "workers=2",
            "global_batch=64",
            f"results={tmp_path}/results",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: nodes=2: this command runs on 1; inside an allocation, start it as srun")


def test_who_is_in_the_team(monkeypatch: pytest.MonkeyPatch) -> None:
    assert team_here() == Team()
    for name, value in {**STEP, "SLURM_NODEID": "1"}.items():
        monkeypatch.setenv(name, value)
    assert team_here() == Team(node=1, nodes=2, address="localhost", token="77.3")
    assert not team_here().leads
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(UserError, match="4 tasks on 2 nodes: it must be one on each, --ntasks-per-node=1"):
        team_here()


@pytest.mark.alone
def test_silent_nodes_are_waited_for_together(tmp_path: Path) -> None:
    (tmp_path / "node2.json").write_bytes(msgspec.json.encode(Word(status="ok")))
    started = time.monotonic()
    words = collect_words(Team(nodes=5), tmp_path, Word(status="ok"), limit_s=0.5)
    assert 0.5 <= time.monotonic() - started < 1.2
    assert [word.status for word in words] == ["ok", "node_fail", "ok", "node_fail", "node_fail"]
    assert words[1].reason is not None
    assert "within 0.5 s" in words[1].reason.message


def test_a_cause_goes_before_its_echoes() -> None:
    def word(status: str, kind: str = "x") -> Word:
        return Word(status=status, reason=Reason(phase="window", kind=kind, message=""))  # type: ignore[arg-type]

    fine = Word(status="ok")
    assert of_run([fine, fine], []).status == "ok"
    assert of_run([word("comm_error"), word("oom"), fine], []).status == "oom"
    assert of_run([word("comm_error"), word("comm_error")], []).status == "comm_error"
    assert of_run([word("comm_error"), word("node_fail")], []).status == "node_fail"
