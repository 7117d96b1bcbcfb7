"""Why a job was told to end, asked of a stand-in for scontrol: the answers are those of Slurm 22.05, shortened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.core.folder import CANCEL_NAME
from benchmarks.core.progress import PROGRESS_NAME
from benchmarks.core.record import RECORD_NAME, read_record
from benchmarks.process.heartbeat import PHASES, Pulse
from benchmarks.supervision import allocation
from benchmarks.supervision.agent import Exit
from benchmarks.supervision.allocation import job, why_terminated
from benchmarks.supervision.verdict import of_interruption, of_node
from tests.test_command_line import Shell, shell, wait_until

__all__ = ["shell"]  # the fixture: no process is left behind

SIZE = ("workers=2", "global_batch=32", "steps=600")
ARRAY_TASK = {"SLURM_ARRAY_JOB_ID": "117", "SLURM_ARRAY_TASK_ID": "3"}
SHOWN = (
    "JobId=120 ArrayJobId=117 ArrayTaskId=3 JobName=a b UserId=me(1) JobState={state} Reason={reason} "
    "Dependency=(null) Requeue=1 Restarts={restarts} RunTime=00:00:01 TimeLimit=00:01:00 "
    "PreemptEligibleTime=2026-11-20T11:40:16 PreemptTime={preempted} SuspendTime=None Ntask=0:0:*:*"
)


def answer(
    state: str = "COMPLETING", reason: str = "None", restarts: int = 0, preempted: str = "None", code: int = 0
) -> str:
    shown = SHOWN.format(state=state, reason=reason, restarts=restarts, preempted=preempted)
    return f'[ "$*" = "-o show job 117_3" ] || exit 9\necho "{shown}"; exit {code}'


@pytest.fixture(autouse=True)
def _array_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "120", **ARRAY_TASK}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    (tmp_path / "sweep").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "sweep"


def fake_scontrol(sweep: Path, script: str) -> None:
    path = sweep.parent / "bin" / "scontrol"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (answer(), "cancelled", "was cancelled (Slurm: COMPLETING)"),
        (answer(state="CANCELLED"), "cancelled", "was cancelled"),
        (answer(state="RUNNING"), "cancelled", "was cancelled (Slurm: RUNNING)"),  # scancel of one step
        (answer(preempted="2026-11-20T11:40:19"), "preempted", "preempted the job at 2026-11-20T11:40:19"),
        (answer(state="RUNNING", preempted="2026-11-20T11:40:19"), "preempted", "preempted the job"),  # GraceTime
        (answer(restarts=1), "preempted", "put the job back into the queue"),
        (answer(reason="TimeLimit"), "timeout", "time limit, 00:01:00"),
        (answer(code=1), "preempted", "could not be asked"),
        ("echo slurm_load_jobs error: Invalid job id specified >&2", "preempted", "could not be asked"),
        ("exec sleep 60", "preempted", "could not be asked"),
    ],
)
def test_what_slurm_says(sweep: Path, monkeypatch: pytest.MonkeyPatch, script: str, status: str, words: str) -> None:
    monkeypatch.setattr(allocation, "_ASK_LIMIT_S", 0.5)
    fake_scontrol(sweep, script)
    assert why_terminated(sweep)[0] == status
    assert words in why_terminated(sweep)[1]


def test_a_job_on_its_second_start_has_not_been_requeued_again(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fake_scontrol(sweep, answer(restarts=1))
    assert why_terminated(sweep)[0] == "cancelled"


def test_in_a_container_without_scontrol(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(sweep.parent / "bin"))
    assert why_terminated(sweep)[0] == "preempted"
    (sweep / CANCEL_NAME).touch()
    assert why_terminated(sweep) == ("cancelled", "the sweep was cancelled")


def test_whoever_cancels_the_sweep_is_believed_before_slurm(sweep: Path) -> None:
    fake_scontrol(sweep, answer(preempted="2026-11-20T11:40:19"))
    (sweep / CANCEL_NAME).touch()
    assert why_terminated(sweep)[0] == "cancelled"


def test_the_jobs_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert job() == "117_3"
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert job() == "120"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert job() is None


@pytest.mark.parametrize(
    ("number", "in_slurm", "status"),
    [
        (signal.SIGTERM, True, "preempted"),
        (signal.SIGTERM, False, "cancelled"),
        (signal.SIGINT, True, "cancelled"),
        (signal.SIGHUP, True, "cancelled"),
    ],
)
def test_only_slurms_own_signal_is_its_word(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, in_slurm: bool, status: str
) -> None:
    fake_scontrol(sweep, answer(preempted="2026-11-20T11:40:19"))
    if not in_slurm:
        for name in ("SLURM_JOB_ID", *ARRAY_TASK):
            monkeypatch.delenv(name)
    word = of_interruption(number, sweep, "window")
    assert word.status == status
    assert word.reason is not None
    assert word.reason.kind == f"signal {number.name}"


def test_a_worker_that_slurms_signal_reaches_first_is_no_failed_worker(
    sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_scontrol(sweep, answer(preempted="2026-11-20T11:40:19"))
    logs = sweep / "a-run" / "attempt1"
    pulse = Pulse(1, PHASES.index("warmup"), 0, 0, 1, 0)
    word = of_node(logs, Exit(ranks=(2,), pulses=(pulse,), rank=2, code=-signal.SIGTERM), [], 0)
    assert (word.status, word.reason and word.reason.phase) == ("preempted", "warmup")
    for name in ("SLURM_JOB_ID", *ARRAY_TASK):
        monkeypatch.delenv(name)
    assert of_node(logs, Exit(ranks=(2,), pulses=(pulse,), rank=2, code=-signal.SIGTERM), [], 0).status == "error"


def test_a_preempted_run_leaves_its_record(sweep: Path, shell: Shell) -> None:
    fake_scontrol(sweep, answer(preempted="2026-11-20T11:40:19"))
    shell.environment |= {name: os.environ[name] for name in ("PATH", "SLURM_JOB_ID", *ARRAY_TASK)}
    process = shell.start("workload=faulty", "workload.fault=sleep", "workload.sleep_s=0.1", *SIZE)
    try:
        assert wait_until(lambda: bool(list(shell.results.rglob("rank1.log"))), 60)
        time.sleep(1.0)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    [path] = shell.results.rglob(RECORD_NAME)
    record = read_record(path)
    assert (record.status, record.reason and record.reason.kind) == ("preempted", "signal SIGTERM")
    assert record.reason is not None
    assert record.reason.phase in {"rendezvous", "data", "build", "warmup", "window"}
    assert not list(shell.results.rglob(PROGRESS_NAME))
