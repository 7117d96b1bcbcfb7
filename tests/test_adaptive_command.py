"""`target_ci` as people type it: one cell needs more repeats and another does not, and what cannot be is one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
from omegaconf import OmegaConf

from analysis.runs.load import load_cells
from analysis.series import build_report
from benchmarks.core.adaptive import repeat_of
from benchmarks.core.config import RunConfig
from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import RECORD_NAME, read_record, write_record
from benchmarks.core.sweep import PlannedRun, read_sweep
from hydra_plugins.scalebench.repeats import repeats_of_cells
from tests.test_command_line import Shell

SWEEP = (
    *("--multirun", "sweep=smoke", "workload=mlp", "strategy=single", "workers=1", "batch_per_worker=16,32"),
    *("sweep.repeats=1", "steps=4", "warmup_steps=1", "evaluate=false"),
)
TARGET = ("target_ci=20%", "max_repeats=9")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    one = Shell(tmp_path / "results")
    yield one
    assert one.none_alive_within(10), "a command left processes behind"


def add_repeats(first: Path, noisy: bool) -> None:
    """Make of a cell's measured repeat eight, of a second a step, or by turns of a half and one and a half."""
    record = read_record(first)
    assert record.window
    first.unlink()
    run = PlannedRun(config=RunConfig.from_mapping(record.config), settings={})
    assert run.config.run_id == record.run_id
    for repeat in range(8):
        config = repeat_of(run, repeat).config
        time_s = 1 + noisy * (0.5 if repeat % 2 else -0.5)
        spans = [msgspec.structs.replace(record.window.spans[0], wall_time_s=4 * time_s)]
        window = msgspec.structs.replace(record.window, step_time_s=[time_s] * 4, spans=spans)
        of = {"run_id": config.run_id, "repeat": repeat, "config": config.as_dict(), "window": window}
        folder = first.parent.parent / config.run_id
        folder.mkdir(exist_ok=True)
        write_record(folder, msgspec.structs.replace(record, **of))


def test_one_cell_needs_more_repeats_and_the_other_does_not(shell: Shell) -> None:
    code, _, err = shell.run(*SWEEP)
    assert (code, err) == (0, "")
    for path in list(shell.sweep.path.glob(f"*/{RECORD_NAME}")):
        add_repeats(path, noisy=read_record(path).config["global_batch"] == 32)
    before = {path: path.stat().st_mtime_ns for path in shell.sweep.path.glob(f"*/{RECORD_NAME}")}
    assert len(before) == 16

    code, out, err = shell.run(*SWEEP, *TARGET)
    assert (code, err) == (0, "")
    assert "target_ci=20 %, 2 cells: 1 there, 1 to get more repeats\n  mlp-single-w1-b32-fp32-" in out
    assert ": +-50 % after 8, 9 now\n" in out
    [made] = [path for path in shell.sweep.path.glob(f"*/{RECORD_NAME}") if path not in before]
    record = read_record(made)
    assert (record.config["global_batch"], record.repeat, record.config["seed"]) == (32, 8, 9)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what was measured is not measured again"
    assert "after 9 repeats (target 20 %)\n1 ok; results in " in out
    report = build_report(load_cells(shell.sweep.path))
    assert [(point.repeats_ok, point.repeats_missing) for point in report.cells] == [(8, 0), (9, 0)]
    [note] = report.cells[1].notes
    assert note.startswith("interval still +-")

    code, out, err = shell.run(*SWEEP, *TARGET)
    assert (code, err) == (0, "")
    assert out.endswith(f"nothing to do; results in {shell.sweep.path}\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--multirun", "target_ci=2"], "target_ci=2: must be above 0 and below 100 %, as 2% or 0.02; or null"),
        (["--multirun", "sweep=tune", "target_ci=2%"], "target_ci=2 %: sweep=tune is a tuning sweep, whose trials"),
        (["batch_per_worker=8", "target_ci=2%"], "target_ci=2%: only a sweep adds repeats; add --multirun, or type"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(shell: Shell, arguments: Sequence[str], line: str) -> None:
    code, out, err = shell.run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert not shell.results.exists()


def test_where_numpy_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "analysis"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numpy", None)
    cfg = OmegaConf.create({"target_ci": "2%", "max_repeats": 20, "max_attempts": 3})
    line = r"^target_ci=2%: intervals are made with numpy, which is not installed here; pip install numpy$"
    with pytest.raises(UserError, match=line):
        repeats_of_cells(cfg, read_sweep({"name": "test"}), SweepFolder(tmp_path))
