"""The command, as people type it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.scaling import main
from analysis.schema import Report, json_schema
from tests import synthetic

ROOT = Path(__file__).resolve().parent.parent
FIGURES = {f"{name}.{kind}" for name in ("throughput", "speedup", "efficiency") for kind in ("png", "svg")}
TABLES = {"scaling.md", "scaling.tex", "scaling.json", "strong.csv", "weak.csv", "cells.csv", "extra-p.jsonl"}
NO_TORCH = """
import runpy, sys

class Refuse:
    # Not `sys.modules['torch'] = None`: scipy, which seaborn imports, takes that for an imported torch.
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "submitit", "hydra", "tensorboard"):
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, Refuse)
"""
RUN = NO_TORCH + "sys.argv[0] = 'analysis.scaling'; runpy.run_module('analysis.scaling', run_name='__main__')"


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, in which torch, submitit and hydra cannot be imported."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{RUN}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def test_whole_command_without_torch(tmp_path: Path) -> None:
    sweep = tmp_path / "results" / "local" / "synthetic"
    synthetic.demo_sweep(sweep)
    done = command(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in (sweep / "analysis").iterdir()} == FIGURES | TABLES
    listed = done.stdout.strip().splitlines()[-len(FIGURES | TABLES) :]
    assert {Path(line).name for line in listed} == FIGURES | TABLES
    assert (sweep / "analysis" / "speedup.png").read_bytes().startswith(b"\x89PNG")
    assert "![speedup](speedup.png)" in (sweep / "analysis" / "scaling.md").read_text()
    # A second time, over its own output: the analysis folder is no run, files are replaced.
    again = command("--no-figures", cwd=tmp_path)
    assert again.returncode == 0
    assert again.stdout.splitlines()[:20] == done.stdout.splitlines()[:20]


def test_json_is_the_documented_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.demo_sweep(tmp_path)
    assert main([str(tmp_path), "--json", "--no-figures", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    report = msgspec.json.decode(printed, type=Report)
    assert msgspec.json.decode((tmp_path / "out" / "scaling.json").read_bytes(), type=Report) == report
    (point,) = [p for p in report.strong[3].points if p.workers == 8]
    assert point.status == "oom"
    assert '"speedup": null' in printed
    assert not (tmp_path / "analysis").exists()


def test_schema_is_printed_and_has_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json-schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema == json_schema()
    assert set(Report.__struct_fields__) == set(schema["$defs"]["Report"]["properties"])
    point: dict[str, Any] = schema["$defs"]["ScalingPoint"]
    assert "null" in json.dumps(point["properties"]["speedup"])
    assert "T(N0) / T(N)" in point["properties"]["speedup"]["description"]
    assert all(definition["description"] for definition in schema["$defs"].values())


def test_damaged_records_are_warned_of_and_the_exit_code_is_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthetic.write(tmp_path, [synthetic.record(synthetic.config(n)) for n in (1, 2)])
    synthetic.write_manifest(tmp_path, [synthetic.config(n) for n in (1, 2)])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "record.json").write_text('{"schema_version": 99}')
    assert main([str(tmp_path), "--no-figures"]) == 0
    captured = capsys.readouterr()
    assert captured.err == f"warning: {tmp_path}/bad/record.json: schema version 99, this program reads version 1\n"
    assert "2 runs planned: 2 ok, 0 failed, 0 missing, 1 records not readable" in captured.out
    assert "schema version 99" in (tmp_path / "analysis" / "scaling.md").read_text()


def test_users_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic.write_manifest(tmp_path / "sweep", [])
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for arguments, text in (
        ([], "make sweep"),
        (["empty"], "make sweep"),
        (["nowhere"], "no such folder"),
        (["sweep", "--out", "file/x", "--no-figures"], "name another folder with --out"),
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        assert text in captured.err
    with pytest.raises(SystemExit) as stopped:
        main(["--wrong"])
    assert stopped.value.code == 2


def test_help_is_quick_and_imports_no_plotting() -> None:
    start = time.monotonic()
    names = ("pandas", "seaborn", "matplotlib", "numpy", "rich", "pyarrow")
    heavy = f"print([name for name in {names} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{NO_TORCH}import analysis.scaling as s; s._parser().format_help(); {heavy}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
    assert time.monotonic() - start < 5  # a loose bound for a busy machine; alone it takes 0.2 s


def test_a_sweep_with_nothing_measured_still_has_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write_manifest(tmp_path, [synthetic.config(n) for n in (1, 2)])
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "no base yet" in out
    assert "2 runs planned: 0 ok, 0 failed, 2 missing" in out
