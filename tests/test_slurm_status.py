"""What becomes of jobs: each way to end, what is shown of those that run, and what one may conclude from silence."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from benchmarks.core.folder import SweepFolder
from benchmarks.core.progress import PROGRESS_NAME
from benchmarks.core.record import Record, Status
from slurm.commands import past_jobs
from slurm.launch import launch
from slurm.status import as_plain, current
from tests.fake_slurm import NO_ACCOUNTING, NO_CONTROLLER, NO_DBD, FakeSlurm
from tests.slurm_cases import (
    age_ledger,
    an_order,
    folder,
    ids,
    job,
    jobs_of,
    leave_progress,
    leave_record,
    runs_in_queue,
)

__all__ = ["folder", "job"]  # fixtures


def state_of(folder: SweepFolder) -> str:
    [run] = current(folder).runs
    return run.state


def record_of(folder: SweepFolder) -> Record:
    [run_id] = jobs_of(folder)
    record = folder.record(run_id)
    assert record
    return record


@pytest.mark.parametrize(
    ("ended", "steps", "expected", "kind"),
    [
        ("FAILED", {}, "error", "Slurm: FAILED"),
        ("TIMEOUT", {}, "timeout", "Slurm: TIMEOUT"),
        ("DEADLINE", {}, "timeout", "Slurm: DEADLINE"),
        ("NODE_FAIL", {}, "node_fail", "Slurm: NODE_FAIL"),
        ("BOOT_FAIL", {}, "node_fail", "Slurm: BOOT_FAIL"),
        ("PREEMPTED", {}, "preempted", "Slurm: PREEMPTED"),
        ("CANCELLED by 1001", {}, "cancelled", "Slurm: CANCELLED"),
        ("OUT_OF_MEMORY", {}, "oom", "Slurm: OUT_OF_MEMORY"),
        ("FAILED", {"step_0": "OUT_OF_MEMORY"}, "oom", "Slurm: OUT_OF_MEMORY"),
        ("FAILED", {"batch": "OUT_OF_MEMORY", "step_0": "FAILED"}, "oom", "Slurm: OUT_OF_MEMORY"),
        ("COMPLETED", {}, "lost", "lost"),
        ("REVOKED", {}, "lost", "lost"),
    ],
)
def test_each_way_to_end_without_a_record(
    ended: str, steps: dict[str, str], expected: Status, kind: str, slurm: FakeSlurm, folder: SweepFolder, job: str
) -> None:
    slurm.start(job, ago_s=100)
    slurm.end(job, ended, "9:0", ago_s=40, **steps)
    (folder.path / "slurm" / f"{job}_0_log.out").write_text("\n".join(f"line {number}" for number in range(50)))
    assert state_of(folder) == expected
    record = record_of(folder)
    assert (record.status, record.attempt, record.wall_time_s) == (expected, 1, 60.0)
    assert record.reason is not None
    assert record.reason.kind == kind
    assert record.reason.log_tail == [f"line {number}" for number in range(30, 50)]
    if expected != "lost":
        assert record.reason.message == f"job {job} ended with exit code 9:0 on n1 and left no record"
    before = (folder.path / "ledger.jsonl").read_bytes()
    assert state_of(folder) == expected
    assert (folder.path / "ledger.jsonl").read_bytes() == before, "settled once"


def test_a_job_without_a_log_hints_at_the_file_system(slurm: FakeSlurm, folder: SweepFolder, job: str) -> None:
    slurm.start(job)
    slurm.end(job, "FAILED")
    state_of(folder)
    reason = record_of(folder).reason
    assert reason is not None
    assert reason.message.endswith(f"and left no record and no log; do the nodes see {folder.path}?")


def test_a_record_says_more_than_slurm(slurm: FakeSlurm, folder: SweepFolder, job: str) -> None:
    leave_record(folder, an_order(workers=1, repeats=1).plan.runs[0], "diverged")
    slurm.start(job)
    slurm.end(job, "FAILED")
    assert state_of(folder) == "diverged"


@pytest.mark.parametrize("accounting", ["", NO_ACCOUNTING, NO_DBD])
def test_a_job_that_nobody_knows_is_lost(accounting: str, slurm: FakeSlurm, folder: SweepFolder, job: str) -> None:
    slurm.update(job, forgotten=True)
    slurm.down(sacct=accounting)
    state = current(folder)
    assert [run.state for run in state.runs] == ["lost"]
    assert record_of(folder).reason is not None
    assert [warning.startswith("no accounting: sacct: ") for warning in state.warnings] == [True] * bool(accounting)
    launch(an_order(workers=1, repeats=1), folder)
    assert [event["attempt"] for event in folder.events() if event["event"] == "submitted"] == [1, 2]


def test_other_peoples_jobs_are_not_lost_where_slurm_hides_them(
    slurm: FakeSlurm, folder: SweepFolder, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slurm.commands.me", lambda: "somebody_else")
    slurm.update(job, forgotten=True)
    [run] = current(folder).runs
    assert run.state == "submitted"
    assert "Slurm shows no such job of" in str(run.reason)


def test_a_job_that_was_just_submitted_or_just_wrote_is_not_lost_yet(slurm: FakeSlurm, folder: SweepFolder) -> None:
    launch(an_order(workers=1, repeats=1), folder)
    slurm.update("100", forgotten=True)
    assert state_of(folder) == "running"
    age_ledger(folder, 1000.0)
    leave_progress(folder)
    assert state_of(folder) == "running"
    leave_progress(folder, age_s=120)
    assert state_of(folder) == "lost"
    assert not (folder.run_folder(record_of(folder).run_id) / PROGRESS_NAME).exists()


@pytest.mark.parametrize("ahead_s", [3600.0, 1e7])
def test_a_nodes_clock_that_is_ahead_does_not_keep_a_dead_job_alive(
    ahead_s: float, slurm: FakeSlurm, folder: SweepFolder, job: str
) -> None:
    slurm.start(job)
    slurm.end(job, "FAILED")
    leave_progress(folder, age_s=-ahead_s)
    assert state_of(folder) == "error"


def test_accounting_that_lags_behind_the_queue_is_waited_for(slurm: FakeSlurm, folder: SweepFolder, job: str) -> None:
    """Else a job out of memory would be called lost, and be tried again."""
    slurm.start(job, ago_s=100)
    slurm.end(job, "OUT_OF_MEMORY", ago_s=1)
    slurm.update(job, accounted="RUNNING")
    assert state_of(folder) == "running"
    slurm.update(job, accounted=None, ended=time.time() - 20)
    assert state_of(folder) == "oom"


def test_accounting_that_never_learns_of_the_end(slurm: FakeSlurm, folder: SweepFolder, job: str) -> None:
    slurm.start(job, ago_s=15 * 60 + 20)  # its 15 minutes are over
    slurm.end(job, "FAILED")
    slurm.update(job, accounted="RUNNING")
    assert state_of(folder) == "lost"


@pytest.mark.parametrize("sacct", ["", NO_DBD])
def test_nothing_is_lost_while_the_controller_does_not_answer(
    sacct: str, slurm: FakeSlurm, folder: SweepFolder, job: str
) -> None:
    slurm.update(job, forgotten=True)
    slurm.down(squeue=NO_CONTROLLER, sacct=sacct)
    state = current(folder)
    assert [(run.state, run.reason) for run in state.runs] == [("submitted", "Slurm does not answer")]
    assert state.warnings[0].startswith("the queue is not known: squeue: ")
    leave_progress(folder)
    assert state_of(folder) == "running"
    launch(an_order(workers=1, repeats=1), folder)
    assert len(slurm.calls("sbatch")) == 1


def test_a_users_own_defaults_of_squeue_do_not_hide_jobs(
    slurm: FakeSlurm, folder: SweepFolder, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    assert state_of(folder) == "submitted"


@pytest.mark.parametrize("whole", [True, False])
def test_cancelled_while_it_waited_is_planned_again_without_a_spent_attempt(
    whole: bool, slurm: FakeSlurm, folder: SweepFolder
) -> None:
    order = an_order()
    launch(order, folder)
    slurm.set(user="me")
    cancelled = ["100_0", "100_1"] if whole else ["100_1"]
    for task in cancelled:
        slurm.update(task, state="CANCELLED by 1001", ended=time.time() - 30)
    counts = current(folder).counts
    assert counts == ({"planned": 2} if whole else {"submitted": 1, "planned": 1})
    assert list(folder.path.glob("*/record.json")) == []
    launch(order, folder)
    assert runs_in_queue(slurm) == ids(order)
    assert {event["attempt"] for event in folder.events() if event["event"] == "submitted"} == {1}


def test_some_versions_give_a_job_that_never_began_a_start() -> None:
    from slurm.commands import PastJob

    facts: dict[str, Any] = {"exit_code": "0:0", "elapsed_s": 0, "started_s": 5, "ended_s": 5, "job": "1"}
    assert PastJob(state="CANCELLED", nodes="None assigned", **facts).never_began
    assert not PastJob(state="CANCELLED", nodes="n1", **facts).never_began


def test_the_line_of_waiting_tasks_goes_stale(slurm: FakeSlurm) -> None:
    lines = ["7_1|FAILED|1:0|5|1700000000|1700000005|n1", "7_1.0|OUT_OF_MEMORY|0:125|5|1700000000|1700000005|n1"]
    lines += ["7_[0-2%1]|PENDING|0:0|0|Unknown|Unknown|None assigned", "7_2|CANCELLED by 1001|0:0|0|None|None|", "junk"]
    (slurm.bin / "sacct").write_text("#!/bin/sh\ncat <<END\n" + "\n".join(lines) + "\nEND\n")
    (slurm.bin / "cat").symlink_to("/bin/cat")
    found = past_jobs(["7"])
    assert {job: (past.state, past.out_of_memory) for job, past in found.items()} == {
        **{"7_0": ("PENDING", False), "7_1": ("FAILED", True), "7_2": ("CANCELLED", False)},
    }
    assert (found["7_1"].started_s, found["7_1"].ended_s, found["7_2"].started_s) == (1700000000, 1700000005, None)


@pytest.mark.alone
def test_ten_thousand_runs_within_three_seconds_with_one_call_each(slurm: FakeSlurm, folder: SweepFolder) -> None:
    order = an_order(workers=1, repeats=1)
    launch(order, folder)
    manifest = folder.manifest()
    assert manifest
    [one] = manifest.runs
    runs = [msgspec.structs.replace(one, run_id=f"run-{number}") for number in range(10_000)]
    (folder.path / "sweep.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, runs=runs)))
    facts: dict[str, Any] = {"attempt": 1, "token": "t", "minutes": 15, "user": "somebody"}
    folder.note_all(
        "submitted",
        [{"run_id": run.run_id, "job": f"{200 + n // 1000}_{n % 1000}", **facts} for n, run in enumerate(runs)],
    )
    with slurm.state() as values:
        [task] = values["tasks"]
        values["tasks"] = [{**task, "job": 200 + n // 1000, "index": n % 1000, "limit": "20"} for n in range(10_000)]
    for command in ("squeue", "sacct"):
        assert len(slurm.calls(command)) == 0
    started = time.process_time()
    state = current(folder)
    took_s = time.process_time() - started  # of this process: a busy machine is no excuse, and no fault
    assert state.counts == {"submitted": 10_000}
    assert [len(slurm.calls(command)) for command in ("squeue", "sacct")] == [1, 1]
    assert took_s < 3.0
    assert len(json.dumps(msgspec.to_builtins(as_plain(state)))) > 10_000


def test_a_torn_ledger_is_read_as_far_as_it_goes(slurm: FakeSlurm, folder: SweepFolder, job: str) -> None:
    with (folder.path / "ledger.jsonl").open("ab") as ledger:
        ledger.write(b'{"at":"2026-01-01T00:00:00+00:00","event":"ended","run_id":"' + b"\xff")
    assert state_of(folder) == "submitted"
