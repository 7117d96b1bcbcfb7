"""Submission: one array for each shape, what is missing and nothing else, all of it or nothing."""

from __future__ import annotations

import os
from typing import Any

import pytest

from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import Status
from slurm.launch import launch
from tests.fake_slurm import FakeSlurm
from tests.slurm_cases import (
    an_order,
    cluster_file,
    folder,
    ids,
    jobs_of,
    leave_record,
    refused,
    runs_in_queue,
)

__all__ = ["folder"]  # fixtures


def finish_all(slurm: FakeSlurm, state: str = "COMPLETED") -> None:
    for task in slurm.tasks(active=True):
        slurm.start(task["id"])
        slurm.end(task["id"], state, "0:0")


def test_one_array_for_each_shape(slurm: FakeSlurm, folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    order = an_order(workers=[1, 2, 8], threads_per_worker=2, node_type=["cpu", "gpu"], repeats=3)
    assert launch(order, folder) == 0
    assert len(slurm.calls("sbatch")) == 6
    assert runs_in_queue(slurm) == ids(order)
    out = capsys.readouterr().out
    assert "submitted 18 runs as 6 job arrays (100, 101, 102, 103, 104, 105); at most 16.50 worker-hours" in out
    partitions = {task["id"]: slurm.script(task["id"]).split("--partition=")[1][:3] for task in slurm.tasks()}
    for run in order.plan.runs:
        [job] = jobs_of(folder)[run.config.run_id]
        assert partitions[job] == run.config.node_type


def test_arrays_are_split_at_what_slurm_allows(slurm: FakeSlurm, folder: SweepFolder) -> None:
    slurm.set(max_array_size=4)  # the largest index is 3
    order = an_order(workers=1, repeats=7)
    launch(order, folder)
    assert [task["id"] for task in slurm.tasks()] == ["100_0", "100_1", "100_2", "101_0", "101_1", "101_2", "102"]
    assert runs_in_queue(slurm) == ids(order)


def test_arrays_are_split_at_what_the_clusters_file_says(slurm: FakeSlurm, folder: SweepFolder) -> None:
    launch(an_order(cluster_file("onehost", max_array_size=2), workers=1, repeats=3), folder)
    assert [task["id"] for task in slurm.tasks()] == ["100_0", "100_1", "101"]
    assert not [call for call in slurm.calls("scontrol") if call[0] == "show"]


def test_max_queued_leaves_the_rest_for_later(
    slurm: FakeSlurm, folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    order = an_order(cluster_file("onehost", max_queued=3), workers=[1, 2], repeats=2)
    launch(order, folder)
    assert len(runs_in_queue(slurm)) == 3
    assert "1 more wait for room in the queue: give the same command again later" in capsys.readouterr().out
    launch(order, folder)
    assert len(runs_in_queue(slurm)) == 3, "there is no room yet"
    assert "1 more wait for room in the queue" in capsys.readouterr().out
    by_id = {run.config.run_id: run for run in order.plan.runs}
    leave_record(folder, by_id[next(iter(jobs_of(folder)))], "ok")
    finish_all(slurm)
    launch(order, folder)
    submitted = jobs_of(folder)
    assert sorted(submitted) == ids(order)


def test_the_same_command_again_submits_nothing(
    slurm: FakeSlurm, folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    order = an_order()
    launch(order, folder)
    ledger = (folder.path / "ledger.jsonl").read_bytes()
    capsys.readouterr()
    assert launch(order, folder) == 0
    assert capsys.readouterr().out == f"nothing to submit; results in {folder.path}\n"
    assert (folder.path / "ledger.jsonl").read_bytes() == ledger
    assert len(slurm.calls("sbatch")) == 1
    finish_all(slurm)
    for run in order.plan.runs:
        leave_record(folder, run, "ok")
    launch(order, folder)
    assert len(slurm.calls("sbatch")) == 1


def test_a_larger_plan_adds_what_is_new(slurm: FakeSlurm, folder: SweepFolder) -> None:
    launch(an_order(workers=1, threads_per_worker=2, repeats=2), folder)
    larger = an_order(workers=[1, 2], threads_per_worker=2, repeats=2)
    launch(larger, folder)
    assert runs_in_queue(slurm) == ids(larger)


@pytest.mark.parametrize(
    ("status", "again"),
    [
        *[("timeout", 3), ("node_fail", 3), ("preempted", 3), ("comm_error", 3), ("error", 3), ("lost", 3)],
        *[("oom", 1), ("diverged", 1), ("invalid", 1), ("ok", 1), ("cancelled", 5)],
    ],
)
def test_what_is_tried_again_and_how_often(status: Status, again: int, slurm: FakeSlurm, folder: SweepFolder) -> None:
    order = an_order(workers=1, repeats=1, max_attempts=3)
    [run] = order.plan.runs
    for attempt in range(1, 6):
        launch(order, folder)
        if len(runs_in_queue(slurm)) == 0:
            break
        finish_all(slurm)
        record = folder.run_folder(run.config.run_id) / "record.json"
        if record.exists():
            record.rename(record.with_name(f"record.attempt{attempt - 1}.json"))
        leave_record(folder, run, status, attempt)
    attempts = [event["attempt"] for event in folder.events() if event["event"] == "submitted"]
    assert attempts == list(range(1, again + 1))


def test_a_refusal_of_the_second_array_leaves_nothing_in_the_queue(
    slurm: FakeSlurm, folder: SweepFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    slurm.set(refused_partitions=["gpu"])
    order = an_order(workers=1, node_type=["cpu", "gpu"], repeats=2)
    said = refused(order, folder)
    assert said.startswith("sbatch, for the shape (1 gpu node, 1 worker each, 4 cores, 15 min): ")
    assert said.endswith(
        "invalid partition specified: gpu; Batch job submission failed: Invalid partition name specified"
    )
    assert capfd.readouterr() == ("", ""), "said once, by whoever catches it"
    assert slurm.tasks(active=True) == []
    slurm.set(refused_partitions=[])
    launch(order, folder)
    assert runs_in_queue(slurm) == ids(order)
    assert {event["attempt"] for event in folder.events() if event["event"] == "submitted"} == {1}


def test_a_refusal_that_was_none(slurm: FakeSlurm, folder: SweepFolder) -> None:
    """sbatch gives up waiting for an answer, and Slurm has the job all the same."""
    slurm.set(time_out_at_sbatch=2)
    order = an_order(workers=1, node_type=["cpu", "gpu"], repeats=2)
    assert refused(order, folder).endswith("Socket timed out on send/recv operation")
    assert slurm.tasks(active=True) == []
    launch(order, folder)
    assert runs_in_queue(slurm) == ids(order)


def test_a_refusal_when_nothing_can_be_withdrawn(slurm: FakeSlurm, folder: SweepFolder) -> None:
    slurm.set(refused_sbatch=[2])
    slurm.down(scancel="scancel: error: Unable to contact slurm controller (connect failure)")
    order = an_order(workers=1, node_type=["cpu", "gpu"], repeats=2)
    assert "Invalid account or account/partition combination specified" in refused(order, folder), "the first reason"
    assert {task["priority"] for task in slurm.tasks(active=True)} == {0}, "held, so nothing starts"
    slurm.down(scancel="")
    launch(order, folder)
    assert runs_in_queue(slurm) == ids(order)


def test_slurm_does_not_answer_when_jobs_are_released(slurm: FakeSlurm, folder: SweepFolder) -> None:
    order, path = an_order(cluster_file("onehost", max_array_size=5)), slurm.bin / "scontrol"
    whole = path.read_text()
    path.write_text("#!/bin/sh\necho 'slurm_suspend error: Unable to contact slurm controller' >&2\nexit 1\n")
    assert "Unable to contact slurm controller" in refused(order, folder)
    path.write_text(whole)
    launch(order, folder)
    assert runs_in_queue(slurm) == ids(order)
    assert len(slurm.calls("sbatch")) == 1


def test_a_full_disk_when_the_ledger_is_written(
    slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = an_order()

    def full(self: SweepFolder, event: str, facts: Any) -> None:
        raise OSError(28, "No space left on device", "ledger.jsonl")

    note_all = SweepFolder.note_all
    monkeypatch.setattr(
        SweepFolder,
        "note_all",
        lambda self, event, facts: (full if event == "submitted" else note_all)(self, event, facts),
    )
    with pytest.raises(OSError, match="No space left"):
        launch(order, folder)
    assert slurm.tasks(active=True) == []
    monkeypatch.setattr(SweepFolder, "note_all", note_all)
    launch(order, folder)
    assert runs_in_queue(slurm) == ids(order)


def test_variables_that_would_win_over_the_script_are_hidden_from_sbatch(
    slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"SBATCH_TIMELIMIT": "1", "SBATCH_ACCOUNT": "mine", "SBATCH_PARTITION": "gpu", "SBATCH_ARRAY_INX": "0-9"}
    given |= {"SLURM_JOB_ID": "7", "SLURM_MEM_PER_CPU": "100"}  # in somebody's allocation
    for key, value in given.items():
        monkeypatch.setenv(key, value)
    launch(an_order(), folder)  # the cluster's file names a partition, and leaves the account open
    assert [task["variables"] for task in slurm.tasks()] == [{"SBATCH_ACCOUNT": "mine"}] * 2
    assert {key: os.environ[key] for key in given} == given
