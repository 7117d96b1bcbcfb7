"""Records: whole or absent, never overwritten, refused when not understood."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks.core.record import (
    RECORD_NAME,
    SCHEMA_VERSION,
    Check,
    Record,
    RecordError,
    Span,
    Window,
    archive,
    finite,
    read_record,
    replace,
    write_once,
    write_record,
)
from tests.conftest import PROJECT, MakeRun


def a_record(make_run: MakeRun) -> Record:
    run = make_run()
    return Record(
        run_id=run.run_id,
        cell_id=run.cell_id,
        sweep="test",
        repeat=0,
        attempt=1,
        status="ok",
        reason=None,
        config=run.as_dict(),
        workers=1,
        nodes=1,
        started_at="2026-01-01T00:00:00+00:00",
        wall_time_s=1.0,
        window=Window(
            clock="monotonic",
            step_time_s=[0.25, 0.25],
            compute_time_s=[0.2, 0.2],
            data_wait_s=[0.05, 0.05],
            exposed_comm_s=None,
            samples=[16, 16],
            loss=[2.3, None],
            spans=[Span(steps=2, samples=32, wall_time_s=0.5)],
        ),
        ranks=[],
        evaluation=[],
        memory=None,
        energy=None,
        ledger={"start": 0.5, "window": 0.5},
        ceilings=None,
        sanity=[Check(name="finite_loss", passed=True, detail="")],
        notes=[],
        environment={"host": "n1"},
    )


def test_written_and_read_back(make_run: MakeRun, tmp_path: Path) -> None:
    record = a_record(make_run)
    path = write_record(tmp_path, record)
    assert path == tmp_path / RECORD_NAME
    assert read_record(path) == record
    assert [item.name for item in tmp_path.iterdir()] == [RECORD_NAME]


def test_never_overwritten(make_run: MakeRun, tmp_path: Path) -> None:
    record = a_record(make_run)
    write_record(tmp_path, record)
    record.status = "error"
    with pytest.raises(FileExistsError):
        write_record(tmp_path, record)
    assert read_record(tmp_path / RECORD_NAME).status == "ok"
    archive(tmp_path, 1)
    write_record(tmp_path, record)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["record.attempt1.json", RECORD_NAME]


def test_numbers_that_are_not_finite_do_not_enter() -> None:
    assert [finite(value) for value in (1.5, float("nan"), float("inf"), -float("inf"))] == [1.5, None, None, None]
    assert b"NaN" not in msgspec.json.encode(float("nan"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "not a readable record"),
        (b'{"schema_version": 1, "run_id": "x", "cell', "not a readable record"),
        (b'{"hello": "world"}', "not a readable record"),
        (b"\xff\xfe\x00binary", "not a readable record"),
        (b"[1, 2]", "not a readable record"),
        (b'{"schema_version": 2}', "schema version 2, this program reads version 1"),
        (b'{"schema_version": 1, "status": "fine"}', "not a readable record"),
    ],
)
def test_other_files_are_refused_by_name(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / RECORD_NAME
    path.write_bytes(content)
    with pytest.raises(RecordError, match=why) as caught:
        read_record(path)
    assert str(path) in str(caught.value)


def test_every_truncation_of_a_record_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    whole = write_record(tmp_path, a_record(make_run)).read_bytes()
    cut = tmp_path / "cut.json"
    for length in range(0, len(whole.rstrip()), 97):
        cut.write_bytes(whole[:length])
        with pytest.raises(RecordError):
            read_record(cut)


def test_an_unknown_field_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    plain = json.loads(write_record(tmp_path, a_record(make_run)).read_bytes())
    (tmp_path / "more.json").write_text(json.dumps(plain | {"more": 1}))
    with pytest.raises(RecordError, match="more"):
        read_record(tmp_path / "more.json")
    assert plain["schema_version"] == SCHEMA_VERSION


def test_a_full_disk_leaves_no_part_of_a_record_and_keeps_the_old_one(tmp_path: Path) -> None:
    """The operating system itself refuses the bytes, by a limit on the size of files."""
    old = tmp_path / "old.json"
    old.write_bytes(b"whole")
    program = (
        "import pathlib, resource\n"
        "from benchmarks.core.record import replace, write_once\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "for write, name in ((write_once, 'new.json'), (replace, 'old.json')):\n"
        "    try:\n"
        "        write(folder / name, bytes(100_000))\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["File too large"] * 2
    assert [item.name for item in tmp_path.iterdir()] == ["old.json"]
    assert old.read_bytes() == b"whole"


def test_writing_once_and_replacing(tmp_path: Path) -> None:
    path = write_once(tmp_path / "file", b"one")
    with pytest.raises(FileExistsError):
        write_once(path, b"two")
    assert path.read_bytes() == b"one"
    assert replace(path, b"three").read_bytes() == b"three"
