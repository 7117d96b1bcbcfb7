"""Tables of a sweep that is running: drawn again as records come, each read once, and over when nothing is missing."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from analysis import watch
from analysis.runs.load import read_entries
from analysis.scaling import main
from benchmarks.core.record import archive
from tests import synthetic

CONFIGS = [synthetic.config(workers, repeat=repeat) for workers in (1, 2) for repeat in (0, 1)]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each record is read."""
    counted: Counter[Path] = Counter()

    def counting(paths: Sequence[Path]) -> object:
        counted.update(paths)
        return read_entries(paths)

    monkeypatch.setattr(watch, "read_entries", counting)
    return counted


def at_each_rest(monkeypatch: pytest.MonkeyPatch, *happens: Callable[[], None], took_s: float = 0.0) -> list[float]:
    """Let these happen, one in each pause; returns the pauses, in seconds. One pause more fails the test."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        happens[len(pauses) - 1]()

    now = count(0.0, took_s)
    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: next(now), time=time.time, strftime=lambda _: "12:34:56")
    monkeypatch.setattr(watch, "time", clock)
    return pauses


def leave(folder: Path, *numbers: int) -> Callable[[], None]:
    return lambda: synthetic.write(folder, [synthetic.record(CONFIGS[number]) for number in numbers])


def watched(folder: Path, **console: object) -> str:
    out = io.StringIO()
    watch.watch(folder, Console(file=out, width=100, **console))  # type: ignore[arg-type]
    return out.getvalue()


def test_each_change_is_shown_once_and_each_record_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[Path]
) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS)
    pauses = at_each_rest(
        monkeypatch, leave(tmp_path, 0), lambda: None, leave(tmp_path, 1, 2), lambda: None, leave(tmp_path, 3)
    )
    out = watched(tmp_path)
    lines = [line for line in out.splitlines() if line.startswith("12:34:56")]
    assert lines == [
        "12:34:56  0 of 4 runs done, 0 running, 4 missing",
        "12:34:56  1 of 4 runs done, 0 running, 3 missing",
        "12:34:56  3 of 4 runs done, 0 running, 1 missing",
    ]
    assert "no base yet" in out.split("12:34:56")[1]
    assert "4 runs planned: 3 ok, 0 failed, 1 missing" in out.split("12:34:56")[3]
    assert "\x1b" not in out
    assert pauses == [5.0] * 5
    assert set(reads.values()) == {1}
    assert len(reads) == 4


def test_the_numbers_are_those_of_a_single_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS[:3])
    at_each_rest(monkeypatch, leave(tmp_path, 0, 3), leave(tmp_path, 1), leave(tmp_path, 2))
    _, last = watch.watch(tmp_path, Console(file=io.StringIO(), width=100))
    assert last == watch.look(tmp_path)[1]
    assert last.runs.ok == 4


def test_a_cell_that_no_plan_has_is_not_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS[:2])
    leave(tmp_path, 2)()
    at_each_rest(monkeypatch, leave(tmp_path, 0), leave(tmp_path, 1))
    _, last = watch.watch(tmp_path, Console(file=io.StringIO(), width=100))
    assert [(point.workers, point.repeats_ok) for point in last.cells] == [(1, 2), (2, 1)]


def test_it_stays_while_a_run_is_tried_again_and_reads_the_new_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Counter[Path]
) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS[:2])
    first, second = (tmp_path / synthetic.run_id(of) for of in CONFIGS[:2])
    synthetic.write(tmp_path, [synthetic.failed(CONFIGS[0], "oom"), synthetic.failed(CONFIGS[1], "timeout")])

    def starts() -> None:
        (second / "progress.json").write_text("{}")

    def dies() -> None:
        os.utime(second / "progress.json", (time.time() - 100, time.time() - 100))
        leave(tmp_path, 2)()

    def ends() -> None:
        archive(second, 1)
        leave(tmp_path, 1)()

    at_each_rest(monkeypatch, starts, leave(tmp_path, 3), dies, ends)
    lines = [line for line in watched(tmp_path).splitlines() if line.startswith("12:34:56")]
    assert lines == [
        "12:34:56  1 of 2 runs done, 0 running, 1 failed and to be tried again, 0 missing",
        "12:34:56  1 of 2 runs done, 1 running, 0 missing",
        "12:34:56  1 of 2 runs done, 0 running, 1 failed and to be tried again, 0 missing",
    ]
    assert (reads[first / "record.json"], reads[second / "record.json"]) == (1, 2)


def test_a_slow_look_is_followed_by_a_long_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS[:1])
    pauses = at_each_rest(monkeypatch, leave(tmp_path, 0), took_s=3.0)
    watched(tmp_path)
    assert pauses == [12.0]


def test_the_picture_fits_the_terminal_and_says_what_it_hides(tmp_path: Path) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS)
    leave(tmp_path, 0, 2)()
    tables = watch.drawn_tables(watch.look(tmp_path)[1], Console(width=100))

    def shown(height: int) -> list[str]:
        return watch.picture("a line", tables, Console(width=100, height=height)).plain.split("\n")

    lines, cut = shown(500), shown(15)
    assert len(cut) == 14
    assert cut[:13] == lines[:13]
    assert cut[13] == f"... {len(lines) - 13} lines more than this terminal is high"
    assert "lines more" not in "".join(lines)
    assert max(map(len, lines)) <= 100
    assert shown(len(lines) + 1) == lines
    assert shown(1) == ["a line", f"... {len(lines) - 1} lines more than this terminal is high"]


def test_a_terminal_shows_one_picture_drawn_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS[:2])
    at_each_rest(monkeypatch, leave(tmp_path, 0), lambda: None, leave(tmp_path, 1))
    out = watched(tmp_path, force_terminal=True, height=30)
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1  # the cursor is hidden, and back
    assert out.count("12:34:56") == 3  # the time goes on, also where nothing has changed
    assert "all runs have ended" in out


def test_files_are_written_at_the_end_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS[:2])

    def nothing_yet() -> None:
        assert not (tmp_path / "analysis").exists()
        leave(tmp_path, 0, 1)()

    at_each_rest(monkeypatch, nothing_yet)
    assert main([str(tmp_path), "--watch", "--no-figures"]) == 0
    out = capsys.readouterr().out
    assert out.index("0 of 2 runs done") < out.index("2 runs planned: 2 ok")
    assert out.rstrip().endswith("cells.csv")
    assert (tmp_path / "analysis" / "cells.csv").is_file()


def test_a_folder_without_a_plan_misses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(tmp_path, 0)()
    at_each_rest(monkeypatch)
    assert main([str(tmp_path), "--watch", "--no-figures"]) == 0
    assert "1 ok" in capsys.readouterr().out


@contextlib.contextmanager
def in_a_terminal(folder: Path, rows: int) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command with a terminal of its own, looking ten times a second."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 90, 0, 0))
    program = (
        "import sys\nfrom analysis import watch\nfrom analysis.scaling import main\n"
        "watch._INTERVAL_S = 0.1\nwatch._REST = 0\nsys.exit(main([sys.argv[1], '--watch', '--no-figures']))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], cwd=ROOT, env=environment | {"TERM": "xterm"},
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, *words: str) -> str:
    """What the terminal got, up to where all words have come."""
    text, until = "", time.monotonic() + 240
    while not all(word in text for word in words):
        assert time.monotonic() < until, text
        try:
            text += os.read(terminal, 65536).decode()
        except OSError as error:  # the other end is closed
            raise AssertionError(text) from error
    return text


def test_ctrl_c_in_a_terminal(tmp_path: Path) -> None:
    synthetic.write_manifest(tmp_path, CONFIGS)
    leave(tmp_path, 0)()
    with in_a_terminal(tmp_path, rows=12) as (process, terminal):
        text = read_until(terminal, "1 of 4 runs done", "lines more than this terminal is high")
        assert "\x1b[?25l" in text
        leave(tmp_path, 1)()
        read_until(terminal, "2 of 4 runs done")
        os.write(terminal, b"\x03")
        assert "Traceback" not in read_until(terminal, "\x1b[?25h")
        assert process.wait(20) == 130
    assert not (tmp_path / "analysis").exists()
