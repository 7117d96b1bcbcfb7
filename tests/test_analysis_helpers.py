"""Large sweeps, of which other processes read a part: what is read is the same, and Ctrl-C is as quiet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from analysis import helpers
from analysis.runs import load
from analysis.runs.load import load_cells
from benchmarks.core.record import RECORD_NAME
from tests import synthetic
from tests.conftest import PROJECT
from tests.test_command_line import wait_until

CONFIGS = [synthetic.config(workers, repeat=repeat) for workers in (1, 2, 4) for repeat in range(3)]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Nine records, of which two cannot be read: one in each half."""
    synthetic.write(tmp_path, [synthetic.record(config, [0.1] * 30) for config in CONFIGS])
    paths = sorted(tmp_path.glob(f"*/{RECORD_NAME}"))
    for path in (paths[1], paths[-2]):
        path.write_text("{")
    return tmp_path


def test_helpers_read_what_this_process_would(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = load_cells(sweep)
    read_here: list[Path] = []
    real = load.read_entry
    monkeypatch.setattr(load, "read_entry", lambda path: read_here.append(path) or real(path))  # type: ignore[func-returns-value]
    monkeypatch.setattr(load, "_MANY_RECORDS", len(CONFIGS))
    monkeypatch.setattr(load, "count_helpers", lambda: 1)
    together = load_cells(sweep)
    assert len(read_here) == 5, "the larger half"
    assert together.problems == alone.problems
    assert len(together.problems) == 3, "two records and the manifest"
    assert [run.run_id for cell in together.cells for run in cell.runs] == [
        run.run_id for cell in alone.cells for run in cell.runs
    ]
    for one, other in zip(together.cells, alone.cells, strict=True):
        assert one.config == other.config
        assert [repr(run.measured) for run in one.runs] == [repr(run.measured) for run in other.runs]


def test_one_core_has_no_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert helpers.count_helpers() == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert helpers.count_helpers() == 8


# Before anything else, as a shell that begins a background job does.
IGNORING = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
READY = (
    "import os, sys, time; from analysis.figures import report; from analysis.runs import load; "
    "load._MANY_RECORDS = report._MANY_CELLS = 1; "
    "from analysis.helpers import helpers; from analysis.report import main; "
)


@contextmanager
def report_of(sweep: Path, start: str) -> Iterator[subprocess.Popen[str]]:
    """A report whose helper has something to do, in a process group of its own, as a terminal's foreground job is."""
    with subprocess.Popen(
        [sys.executable, "-c", f"{READY}{start}print('ready', flush=True); sys.exit(main([{str(sweep)!r}]))"],
        cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process


@pytest.mark.parametrize(
    ("start", "after_s", "codes"),
    [
        ("helpers().submit(time.sleep, 60); ", 0.5, {130}),
        ("", 0.1, {0, 130}),  # the report may be over
        ("", 1.0, {0, 130}),
        ("", 2.5, {0, 130}),
        (IGNORING, 0.5, {0}),
    ],
)
def test_ctrl_c_ends_all_of_them_without_a_word(sweep: Path, start: str, after_s: float, codes: set[int]) -> None:
    with report_of(sweep, start) as process:
        time.sleep(after_s)
        out, err = interrupted(process)
    assert process.returncode in codes, err
    if process.returncode:
        assert "Traceback" not in err
        assert out == ""
    assert wait_until(lambda: not alive(process.pid), 10)


@pytest.mark.parametrize("after_s", [0.0, 0.2, 1.0])
def test_they_do_not_outlive_a_report_that_is_killed(sweep: Path, after_s: float) -> None:
    with report_of(sweep, "helpers().submit(time.sleep, 60); ") as process:
        time.sleep(after_s)
        process.kill()
    assert wait_until(lambda: not alive(process.pid), 10)


def test_one_that_is_killed_is_told_in_one_line(sweep: Path) -> None:
    with report_of(sweep, "helpers().submit(os.kill, helpers().submit(os.getpid).result(), 9); ") as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.splitlines() == [
        "error: a process that helped was killed, perhaps for want of memory: on one core (taskset) none helps"
    ]


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it says until it ends. As people do: pressed again where nothing happens, since an import may lose it."""
    for _ in range(20):
        os.killpg(process.pid, signal.SIGINT)
        try:
            return process.communicate(timeout=3)
        except subprocess.TimeoutExpired:
            continue
    raise AssertionError("it goes on whatever is pressed")


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
