"""Whole runs with loaders: the same training, what the record says of them, and what is left when they go wrong."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.core.config import RunConfig
from benchmarks.core.record import Record, Window
from benchmarks.process.heartbeat import Heartbeat
from benchmarks.supervision.agent import preload
from benchmarks.supervision.supervisor import supervise as supervise_any
from tests.conftest import MakeRun

SLOW = {"augmentation": "slow", "loader": "processes", "strategy": "single", "steps": None, "epochs": 1}


def supervise(run: RunConfig, folder: Path) -> Record:
    preload()
    record = supervise_any(run, folder)
    assert record
    return record


def window_of(record: Record) -> Window:
    assert record.status == "ok", record.reason
    assert record.window is not None
    return record.window


def living() -> dict[int, int]:
    """The parents of all processes, ended ones that nobody has asked about left out."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    return parents


def descendants(pid: int) -> set[int]:
    """All processes below one."""
    parents, fresh = living(), {pid}
    found: set[int] = set()
    while fresh:
        fresh = {child for child, parent in parents.items() if parent in fresh} - found
        found |= fresh
    return found


@pytest.fixture
def _leaves_nothing() -> Iterator[None]:
    preload()
    before = descendants(os.getpid())
    yield
    wait_until_gone(descendants(os.getpid()) - before)


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 3  # torch's own watchdog looks every five seconds
    while left := pids & living().keys():
        assert time.monotonic() < deadline, f"still alive: {left}"
        time.sleep(0.05)


def test_two_workers_train_the_same_with_every_loader(make_run: MakeRun, tmp_path: Path) -> None:
    """Two epochs of two ranks, augmented, with growing batches: losses and accuracy bit by bit."""
    settings: dict[str, Any] = {
        **{"workers": 2, "global_batch": 200, "steps": None, "epochs": 2, "augmentation": "crop_flip"},
        **{
            "batch_schedule": "growing",
            "batch_schedule__every": 1,
            "batch_schedule__most": 2,
            "augmentation__padding": 1,
        },
    }
    records = {}
    for name in ("host", "resident", "processes"):
        records[name] = supervise(make_run(**settings, loader=name), tmp_path / name)
    wanted = window_of(records["host"])
    assert len({tuple(window_of(record).loss) for record in records.values()}) == 1
    assert len({record.evaluation[-1].accuracy for record in records.values()}) == 1
    steps = len(wanted.samples)
    assert steps == 8 + 4
    for record in records.values():
        for rank in record.ranks:
            loaded = rank.loaded_bytes_per_step
            assert loaded == pytest.approx(sum(wanted.samples) / 2 * (64 + 8) / steps, rel=0.01)
    memory = {name: record.memory.peak_host_bytes for name, record in records.items() if record.memory}
    assert memory["processes"] > memory["host"] + 2 * 10e6, "its helpers are counted in"


@pytest.mark.alone
@pytest.mark.usefixtures("_leaves_nothing")
def test_a_loader_process_that_is_killed_ends_the_run_with_a_reason(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(make_run(**SLOW, augmentation__fault="kill"), tmp_path)
    assert record.status == "error"
    assert record.reason
    assert (record.reason.phase, record.reason.kind) == ("window", "LoaderProcessError")
    assert record.reason.message.startswith("loader=processes: ended before its time: process ")
    assert "signal SIGKILL" in record.reason.message


@pytest.mark.alone
@pytest.mark.usefixtures("_leaves_nothing")
def test_a_loader_process_that_hangs_is_found_by_the_watch(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(make_run(**SLOW, augmentation__fault="hang", hang_limit_s=8), tmp_path)
    assert record.status == "timeout"
    assert record.reason
    assert record.reason.kind == "hang"
    assert any("dataloader.py" in line for line in record.reason.log_tail), "the stack says who waits"


@pytest.mark.alone
def test_nothing_is_left_when_the_training_worker_is_killed(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 of a worker in the middle of its window: its loader processes and their fork server end with it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the run's own heartbeat is, and no other run's
    helpers: set[int] = set()

    def kill() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not helpers:
            time.sleep(0.05)
            for path in tmp_path.glob("scalebench-*/heartbeat"):
                pulse = Heartbeat(path, 1).read()[0]
                if pulse.phase == "window" and pulse.step > 5:
                    helpers.update(descendants(pulse.pid))
                    os.kill(pulse.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    settings = {**SLOW, "augmentation__sleep_s": 0.01, "epochs": 20, "loader__workers": 3}
    record = supervise(make_run(**settings), tmp_path / "run")
    thread.join()
    assert record.reason
    assert record.reason.kind == "signal SIGKILL"
    assert len(helpers) >= 1 + 3, "a fork server and three loader processes, at least"
    wait_until_gone(helpers)


def test_a_part_of_the_data_and_labels_that_mean_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    """As the record says it: so many samples in an epoch; and a model that learns, but nothing of use."""
    settings = {"strategy": "single", "batch_per_worker": 32, "steps": None, "epochs": 12}
    part = supervise(make_run(**settings, data_fraction=0.25), tmp_path / "part")
    control = supervise(make_run(**settings, data_fraction=0.25, shuffle_labels=True), tmp_path / "control")
    assert window_of(part).spans[0].samples == window_of(control).spans[0].samples == 359
    assert part.evaluation[-1].accuracy > 0.8
    assert control.evaluation[-1].accuracy < 0.3
    assert part.run_id != control.run_id
