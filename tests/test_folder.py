"""A sweep's folder: what remains to be done, who holds it, what it remembers."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.core.errors import UserError
from benchmarks.core.folder import LEDGER_NAME, SweepFolder
from benchmarks.core.record import Status, write_record
from benchmarks.core.sweep import Plan, plan, read_sweep
from tests.conftest import MakeRun, base_mapping
from tests.test_record import a_record


def make_plan(**axes: Any) -> Plan:
    sweep = read_sweep({"name": "test", "axes": axes, "scaling": ["strong"]})
    return plan(sweep, base_mapping(workload="mlp", batch_per_worker=16))


@pytest.mark.parametrize(
    ("status", "attempt", "remains"),
    [
        ("ok", 1, False),
        ("oom", 1, False),
        ("diverged", 1, False),
        ("invalid", 1, False),
        ("timeout", 1, True),
        ("error", 2, True),
        ("error", 3, False),
        ("comm_error", 1, True),
        ("cancelled", 1, True),
        ("cancelled", 9, True),
    ],
)
def test_what_remains(make_run: MakeRun, tmp_path: Path, status: Status, attempt: int, remains: bool) -> None:
    folder = SweepFolder.create(tmp_path, "local", "test")
    the_plan = make_plan(workers=[1, 2])
    done = the_plan.runs[0].config
    record = a_record(make_run)
    record.run_id, record.status, record.attempt = done.run_id, status, attempt
    folder.run_folder(done.run_id).mkdir()
    write_record(folder.run_folder(done.run_id), record)
    left = [run.config.run_id for run in folder.remaining(the_plan, max_attempts=3)]
    assert (done.run_id in left) is remains
    assert the_plan.runs[1].config.run_id in left


def test_a_damaged_record_is_made_again(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, "local", "test")
    the_plan = make_plan(workers=[1])
    run_folder = folder.run_folder(the_plan.runs[0].config.run_id)
    run_folder.mkdir()
    (run_folder / "record.json").write_text('{"schema_version": 1,')
    assert len(folder.remaining(the_plan, max_attempts=3)) == 1


def test_manifest_keeps_the_runs_of_earlier_plans(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, "local", "test")
    folder.write_manifest(make_plan(workers=[1]), ["workers"])
    manifest = folder.write_manifest(make_plan(workers=[1, 2]), ["workers", "global_batch"])
    assert [run.config["workers"] for run in manifest.runs] == [1, 2]
    assert manifest.axes == ["workers", "global_batch"]
    assert folder.manifest() == manifest


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); name another folder with results="):
        SweepFolder.create(tmp_path / "file", "local", "test")


def _hold(path: Path, held: Any, release: Any) -> None:
    with SweepFolder(path).lock():
        held.set()
        release.wait(30)


def test_two_processes_cannot_run_the_same_sweep(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folder = SweepFolder.create(tmp_path, "local", "test")
    held, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(folder.path, held, release))
    holder.start()
    assert held.wait(30)
    with pytest.raises(UserError, match=rf"being run already, by process {holder.pid} on \S+ since"), folder.lock():
        pass
    release.set()
    holder.join(30)
    with folder.lock():
        pass


def test_ledger_is_one_line_an_event(tmp_path: Path) -> None:
    folder = SweepFolder.create(tmp_path, "local", "test")
    folder.note("running", "a", attempt=1)
    folder.note("ended", "a", attempt=1, status="ok")
    lines = [json.loads(line) for line in (folder.path / LEDGER_NAME).read_text().splitlines()]
    assert [(line["event"], line["run_id"], line["attempt"]) for line in lines] == [
        ("running", "a", 1),
        ("ended", "a", 1),
    ]
