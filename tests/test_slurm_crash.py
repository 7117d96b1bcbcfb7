"""A submitter that dies, at any point, and two at once: the same command again, and each run is submitted once."""

from __future__ import annotations

import multiprocessing
import signal
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from benchmarks.core.folder import LEDGER_NAME, SweepFolder
from slurm.cancel import cancel
from slurm.launch import Order, launch
from slurm.state import look
from slurm.status import current
from tests.fake_slurm import FakeSlurm
from tests.slurm_cases import a_folder, an_order, folder, ids, runs_in_queue

__all__ = ["folder"]  # fixtures


def two_arrays() -> Order:
    return an_order(workers=1, node_type=["cpu", "gpu"], repeats=2)


def launch_there(path: Path) -> None:
    launch(two_arrays(), SweepFolder(path))


def submitter(folder: SweepFolder) -> BaseProcess:
    """Another process that gives the command."""
    process = multiprocessing.get_context("spawn").Process(target=launch_there, args=(folder.path,))
    process.start()
    return process


@pytest.mark.parametrize(
    ("kill", "left", "resubmitted"),
    [
        ({"kill_before_sbatch": 1}, 0, True),
        ({"kill_after_sbatch": 1}, 2, True),
        ({"kill_before_sbatch": 2}, 2, True),
        ({"kill_after_sbatch": 2}, 4, True),
        ({"kill_at_release": "before"}, 4, False),
        ({"kill_at_release": "after"}, 4, False),
    ],
)
def test_a_submitter_that_is_killed(
    kill: dict[str, object], left: int, resubmitted: bool, slurm: FakeSlurm, folder: SweepFolder
) -> None:
    slurm.set(**kill)
    first = submitter(folder)
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    assert len(slurm.tasks(active=True)) == left
    released = kill == {"kill_at_release": "after"}
    assert {task["priority"] > 0 for task in slurm.tasks(active=True)} <= {released}, "nothing may have begun"
    slurm.set(kill_before_sbatch=0, kill_after_sbatch=0, kill_at_release="")
    assert set(current(folder).counts) == {"planned"} if resubmitted else {"submitted"}

    before = {task["job"] for task in slurm.tasks(active=True)}
    launch(two_arrays(), folder)
    assert runs_in_queue(slurm) == ids(two_arrays())
    after = {task["job"] for task in slurm.tasks(active=True)}
    assert (before.isdisjoint(after), before == after) == (resubmitted, not resubmitted)
    assert {event["attempt"] for event in folder.events() if event["event"] == "submitted"} == {1}
    calls = len(slurm.calls("sbatch"))
    launch(two_arrays(), folder)
    assert len(slurm.calls("sbatch")) == calls
    assert look(folder).counts == {"submitted": 4}


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.4, 0.5, 0.9, 1.0])
def test_a_ledger_that_was_cut_off_while_the_runs_were_noted(
    kept: float, slurm: FakeSlurm, folder: SweepFolder
) -> None:
    """Whatever part of the lines got there, no run may be in two jobs, and none may be forgotten."""
    for command in ("before", ""):
        slurm.set(kill_at_release=command)
        if command:
            first = submitter(folder)
            first.join(60)
            assert first.exitcode == -signal.SIGKILL
            path = folder.path / LEDGER_NAME
            content = path.read_bytes()
            start = content.index(b'{"at"', content.rindex(b'"submitting"'))
            path.write_bytes(content[: start + int(kept * (len(content) - start))])
        else:
            launch(two_arrays(), folder)
    assert runs_in_queue(slurm) == ids(two_arrays())
    assert look(folder).counts == {"submitted": 4}
    assert {event["attempt"] for event in folder.events() if event["event"] == "submitted"} == {1}


def test_a_line_that_was_cut_off_does_not_take_the_next_one_with_it(folder: SweepFolder) -> None:
    folder.note("one")
    with (folder.path / LEDGER_NAME).open("ab") as ledger:
        ledger.write(b'{"at":"2026-01-01T00:00:00+00:00","event":"tw')
    folder.note("three")
    folder.note_all("four", [{"run_id": "a"}, {"run_id": "b"}])
    assert [event["event"] for event in folder.events()] == ["one", "three", "four", "four"]


@pytest.mark.parametrize(("kill", "known"), [({"kill_after_sbatch": 2}, 0), ({"kill_at_release": "before"}, 4)])
def test_jobs_of_a_crashed_submission_can_be_cancelled(
    kill: dict[str, object], known: int, slurm: FakeSlurm, folder: SweepFolder
) -> None:
    slurm.set(**kill)
    first = submitter(folder)
    first.join(60)
    assert len(slurm.tasks(active=True)) == 4
    slurm.set(kill_after_sbatch=0, kill_at_release="")
    assert cancel(folder) == known
    assert slurm.tasks(active=True) == []


def test_jobs_that_run_already_are_not_released_again(slurm: FakeSlurm, folder: SweepFolder) -> None:
    slurm.set(kill_at_release="after")
    submitter(folder).join(60)
    slurm.set(kill_at_release="")
    slurm.start("100_0")
    slurm.start("101_1")
    launch(two_arrays(), folder)  # Slurm would refuse
    assert runs_in_queue(slurm) == ids(two_arrays())


def test_the_same_runs_in_another_folder_are_left_alone(slurm: FakeSlurm, tmp_path: Path) -> None:
    """Both sweeps have the same name and the same runs; one submitter died, the other's jobs are still held."""
    mine, other = a_folder(tmp_path), a_folder(tmp_path / "other")
    for each in (mine, other):
        slurm.set(sbatch_calls=0, kill_after_sbatch=2)
        process = submitter(each)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
    slurm.set(kill_after_sbatch=0)
    assert [task["job"] for task in slurm.tasks(active=True)] == [100, 100, 101, 101, 102, 102, 103, 103]
    launch(two_arrays(), mine)
    assert {task["job"] for task in slurm.tasks(active=True)} == {102, 103, 104, 105}


def test_two_submitters_at_once_submit_each_run_once(slurm: FakeSlurm, folder: SweepFolder) -> None:
    both = [submitter(folder), submitter(folder)]
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert runs_in_queue(slurm) == ids(two_arrays())
    assert len(slurm.calls("sbatch")) == 2


def test_jobs_of_another_user_cannot_be_withdrawn_and_slurm_says_so(slurm: FakeSlurm, folder: SweepFolder) -> None:
    slurm.set(kill_after_sbatch=1)
    submitter(folder).join(60)
    slurm.set(kill_after_sbatch=0, user="you")
    with pytest.raises(Exception, match=r"^scancel: Kill job error on job id 100: Access/permission denied$"):
        launch(two_arrays(), folder)
    assert len(slurm.calls("sbatch")) == 1
    slurm.set(user="me")
    launch(two_arrays(), folder)
    assert runs_in_queue(slurm) == ids(two_arrays())
