"""What people see of a sweep, and how they wait for it and cancel it."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from rich.console import Console

from benchmarks.core.folder import CANCEL_NAME, SweepFolder
from slurm import status
from slurm.cancel import cancel
from slurm.cancel import main as cancel_main
from slurm.launch import launch
from slurm.state import look
from slurm.status import current
from tests.fake_slurm import FakeSlurm
from tests.slurm_cases import age_ledger, an_order, folder, job, leave_progress, leave_record

__all__ = ["folder", "job"]  # fixtures


def test_what_is_shown(slurm: FakeSlurm, folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    order = an_order(workers=1, repeats=4)
    launch(order, folder)
    first, second = order.plan.runs[:2]
    leave_record(folder, first, "error")
    slurm.start("100_0")
    slurm.end("100_0", "FAILED")
    slurm.start("100_1", ago_s=30)
    leave_progress(folder, run_id=second.config.run_id)
    capsys.readouterr()
    assert status.main([str(folder.path)]) == 0
    out = capsys.readouterr().out
    assert f"{folder.path}: 1 running, 2 submitted, 1 error\n" in out
    assert "worker-hours used, at most" in out
    assert "queued: 2 (Resources)" in out
    [line] = [line for line in out.splitlines() if second.config.run_id in line]
    assert line.split() == [second.config.run_id, "100_1", "n1", "window", "7", "of", "20", "1,234"]
    assert f"error: {first.config.run_id} (attempt 1) Broken: on purpose" in out


def test_progress_of_an_earlier_attempt_is_not_shown(slurm: FakeSlurm, folder: SweepFolder, job: str) -> None:
    order = an_order(workers=1, repeats=1)
    leave_record(folder, order.plan.runs[0], "error")
    slurm.start(job)
    slurm.end(job, "FAILED")
    launch(order, folder)
    slurm.start("101")
    for attempt, shown in ((1, ("running", "starting", None)), (2, ("running", "window", 7))):
        leave_progress(folder, attempt=attempt)
        [run] = current(folder).runs
        assert (run.state, run.reason, run.step) == shown


def test_status_for_programs(
    slurm: FakeSlurm, folder: SweepFolder, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.start(job, ago_s=90)
    leave_progress(folder)
    capsys.readouterr()
    assert status.main(["--json", "--results", str(folder.path.parent.parent)]) == 0
    out = json.loads(capsys.readouterr().out)
    assert {key: out[key] for key in ("folder", "sweep", "cluster", "counts", "warnings")} == {
        **{"folder": str(folder.path), "sweep": "test", "cluster": "onehost", "counts": {"running": 1}},
        "warnings": [],
    }
    [run] = out["runs"]
    assert (run["job"], run["step"], run["steps"], run["samples_per_s"], run["nodes"]) == ("100", 7, 20, 1234.5, "n1")
    assert out["worker_hours_used"] == pytest.approx(90 / 3600, rel=0.1)
    assert out["worker_hours_used"] + out["worker_hours_left"] == pytest.approx(0.25)


@pytest.mark.parametrize("command", [status.main, cancel_main])
def test_no_sweep_here_is_one_line(command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: no sweep's results here; run `make sweep` first, or name a sweep's folder\n"
    )
    assert command([str(tmp_path / "typo")]) == 2
    assert capsys.readouterr().err.startswith(
        f"error: {tmp_path}/typo: no sweep.json here that can be read; run `make sweep`"
    )
    assert not (tmp_path / "typo").exists()


def test_cancel(slurm: FakeSlurm, folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    order = an_order(workers=1, repeats=3)
    launch(order, folder)
    slurm.start("100_0")
    leave_record(folder, order.plan.runs[0], "ok")
    slurm.end("100_0", "COMPLETED", "0:0")
    slurm.start("100_1")
    capsys.readouterr()
    assert cancel_main([str(folder.path)]) == 0
    assert capsys.readouterr().out == "2 runs cancelled; the same `make sweep` submits them again\n"
    assert slurm.calls("scancel") == [["--quiet", "100"]]
    assert (folder.path / CANCEL_NAME).exists()
    slurm.update("100_1", ended=time.time() - 20)
    assert current(folder).counts == {"ok": 1, "cancelled": 1, "planned": 1}
    assert cancel(folder) == 0
    launch(order, folder)
    assert not (folder.path / CANCEL_NAME).exists(), "else new jobs would think that people stopped them"
    again = {event["run_id"]: event["attempt"] for event in folder.events() if event["event"] == "submitted"}
    assert list(again.values()) == [1, 2, 1]


def test_cancel_says_slurms_own_words(
    slurm: FakeSlurm, folder: SweepFolder, job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.set(user="you")
    capsys.readouterr()
    assert cancel_main([str(folder.path)]) == 2
    assert capsys.readouterr().err == "error: scancel: Kill job error on job id 100: Access/permission denied\n"


def test_a_folder_of_somebody_else_is_shown_and_not_written(
    slurm: FakeSlurm, folder: SweepFolder, job: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: SweepFolder, patience_s: float = 0.0) -> None:
        raise PermissionError(13, "Permission denied", str(self.path / "lock"))

    monkeypatch.setattr(SweepFolder, "lock", denied)
    slurm.start(job)
    slurm.end(job, "FAILED")
    capsys.readouterr()
    assert status.main([str(folder.path)]) == 0
    assert "1 lost" in capsys.readouterr().out
    assert list(folder.path.glob("*/record.json")) == []
    assert cancel_main([str(folder.path)]) == 1
    assert capsys.readouterr().err == f"error: {folder.path}/lock: Permission denied\n"


def test_watching_ends_when_all_have_ended(
    slurm: FakeSlurm, folder: SweepFolder, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            slurm.start(job)
        else:
            slurm.end(job, "NODE_FAIL")

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep))
    out = io.StringIO()
    assert status.watch(folder, Console(file=out)).counts == {"node_fail": 1}
    assert looks == [10.0, 10.0]
    assert "1 node_fail" in out.getvalue()


def test_waiting_tries_again_what_may_pass(
    slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = msgspec.structs.replace(an_order(workers=1, repeats=1), wait=True)

    def sleep(seconds: float) -> None:
        for task in slurm.tasks(active=True):
            slurm.start(task["id"])
            slurm.end(task["id"], "NODE_FAIL")
        age_ledger(folder, 100.0)

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep))
    assert launch(order, folder) == 1
    assert [event["attempt"] for event in folder.events() if event["event"] == "submitted"] == [1, 2, 3]
    assert look(folder).counts == {"node_fail": 1}
    assert sorted(path.name for path in folder.path.glob("*/record*")) == [
        *("record.attempt1.json", "record.attempt2.json", "record.json")
    ]


@pytest.mark.parametrize("began", [True, False])
def test_whoever_waits_does_not_submit_again_what_was_cancelled(
    began: bool, slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = msgspec.structs.replace(an_order(workers=1, repeats=1), wait=True)

    def sleep(seconds: float) -> None:
        if began:
            slurm.start("100")
        cancel(folder)
        slurm.update("100", ended=time.time() - 30)
        age_ledger(folder, 100.0)

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep))
    assert launch(order, folder) == 1
    assert len(slurm.calls("sbatch")) == 1
    launch(msgspec.structs.replace(order, wait=False), folder)
    assert len(slurm.calls("sbatch")) == 2
