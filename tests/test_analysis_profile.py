"""Profiled runs in the analysis: beside the repeats, never among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from analysis.cells.measures import estimate_of
from analysis.runs.load import load_cells
from analysis.series import build_report
from analysis.study.panels import Subject, make_panel
from analysis.tables.profiles import profile_table
from benchmarks.core.errors import ConfigError
from benchmarks.core.profile import OperatorTime, RankProfile, TensorCount, TimeSplit
from tests import synthetic

EMPTY: dict[str, Any] = {"window": None, "ranks": [], "evaluation": []}


def profile_of(rank: int) -> RankProfile:
    """Rank 1 computes for 1 ms longer, and so waits for that much less."""
    split = TimeSplit(
        compute_s=0.004 + 0.001 * rank,
        copy_s=0.001,
        exposed_communication_s=0.003 - 0.001 * rank,
        idle_s=0.002,
        hidden_communication_s=0.005,
        step_s=0.010,
    )
    held = TensorCount(tensors=2, elements=1_234_567, bytes=4_938_268)
    return RankProfile(
        rank=rank,
        steps=3,
        plain_step_s=0.009,
        split=split,
        operators=[
            OperatorTime(name="aten::mm", calls_per_step=2, self_time_s=0.003, share=0.6),
            OperatorTime(name="aten::add_", calls_per_step=0.5, self_time_s=0.001, share=0.2),
        ],
        parameters=held,
        gradients=held,
        trace=f"trace.rank{rank}.json.gz" if rank else "trace.json.gz",
        trace_events_left_out=0,
    )


def write_profiled(folder: Path, **changes: Any) -> None:
    of = synthetic.config(2, profile=True)
    fields: dict[str, Any] = {"run_id": "p", "status": "profiled", "profile": [profile_of(1), profile_of(0)], **EMPTY}
    synthetic.write(folder, [synthetic.record(of, **fields | changes)])


def test_a_profile_is_no_repeat_in_any_table(tmp_path: Path) -> None:
    """Nor is one that failed a failed repeat; but the sweep's counts know both."""
    synthetic.write(tmp_path, [synthetic.record(synthetic.config(2, repeat=repeat)) for repeat in (0, 1)])
    write_profiled(tmp_path)
    failed = synthetic.failed(synthetic.config(2, profile=True), "oom")
    synthetic.write(tmp_path, [msgspec.structs.replace(failed, run_id="q")])
    report = build_report(load_cells(tmp_path))
    (point,) = report.cells
    assert point.step_time_s is not None
    assert point.step_time_s.value == pytest.approx(0.1)
    assert (point.status, point.repeats_planned, point.repeats_ok, point.reason) == ("ok", 2, 2, None)
    assert not point.failed
    assert (report.runs.ok, report.runs.profiled, report.runs.failed) == (2, 1, {"oom": 1})
    assert [row.run_id for row in report.profiles] == ["p"]


def test_a_profile_with_a_window_gives_no_time_either(tmp_path: Path) -> None:
    """Even if its record should hold one."""
    window = synthetic.record(synthetic.config(2)).window
    write_profiled(tmp_path, status="ok", window=window)
    (point,) = build_report(load_cells(tmp_path)).cells
    assert (point.repeats_ok, point.step_time_s) == (0, None)


def test_a_planned_profile_is_missing_until_it_is_there(tmp_path: Path) -> None:
    repeat, profiled = synthetic.config(2), synthetic.config(2, profile=True, repeat=7)
    synthetic.write(tmp_path, [synthetic.record(repeat)])
    synthetic.write_manifest(tmp_path, [repeat, profiled])
    before = build_report(load_cells(tmp_path))
    assert (before.runs.planned, before.runs.missing, before.cells[0].repeats_missing) == (2, 1, 0)
    write_profiled(tmp_path, run_id=synthetic.run_id(profiled))
    after = build_report(load_cells(tmp_path))
    assert (after.runs.missing, after.runs.profiled) == (0, 1)


def test_the_split_is_the_mean_over_ranks(tmp_path: Path) -> None:
    write_profiled(tmp_path)
    (cell,) = load_cells(tmp_path).cells
    parts = ("compute", "copy", "exposed_communication", "idle")
    found = [estimate_of(cell, f"profile_{part}_s") for part in parts]
    assert [round(1e3 * one.value, 6) for one in found if one] == [4.5, 1.0, 2.5, 2.0]
    whole = estimate_of(cell, "profile_step_s")
    assert whole is not None
    assert sum(one.value for one in found if one) == pytest.approx(whole.value)
    assert build_report(load_cells(tmp_path)).cells[0].status == "profiled"


def test_the_table_names_operators_trace_and_what_is_held(tmp_path: Path) -> None:
    write_profiled(tmp_path)
    table = profile_table(build_report(load_cells(tmp_path)))
    assert table is not None
    assert [[entry.text for entry in row[1:]] for row in table.rows] == [
        ["aten::mm", "2.00", "3.00", "60.0"],
        ["aten::add_", "0.500", "1.00", "20.0"],
    ]
    ((heading, rows),) = table.sections
    assert rows == 2
    for words in ("1,234,567 in 2 tensors, 4.94 MB", "p/trace.json.gz, p/trace.rank1.json.gz", "10 ms, else 9 ms"):
        assert words in heading


def test_the_panel_of_operators_is_of_one_cell(tmp_path: Path) -> None:
    write_profiled(tmp_path)
    cells = load_cells(tmp_path).cells
    panel = make_panel(Subject(cells=cells, title=""), {"kind": "operators", "most": 1})
    assert [(point.x, point.y.value, point.y.words) for point in panel.series[0].points] == [
        ("mm", 3.0, "2 calls, 60 %")
    ]
    with pytest.raises(ConfigError, match="tell them apart with by"):
        make_panel(Subject(cells=cells * 2, title=""), {"kind": "operators"})
