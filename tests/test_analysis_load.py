"""Reading a sweep's folder: whole, half-finished and damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from analysis.runs.load import load_cells
from benchmarks.core.errors import UserError
from benchmarks.core.folder import newest_sweep
from benchmarks.core.record import RECORD_NAME, Check, Evaluation, Span
from tests import synthetic


def only_run(folder: Path, **changes: Any) -> Any:
    synthetic.write(folder, [synthetic.record(synthetic.config(1), **changes)])
    (cell,) = load_cells(folder).cells
    return cell.runs[0]


def test_cell_gathers_its_repeats_in_order(tmp_path: Path) -> None:
    configs = [synthetic.config(2, repeat=repeat) for repeat in (2, 0, 1)]
    records = [synthetic.record(of, [0.1 + of["repeat"]] * 4, run_id=f"run{9 - of['repeat']}") for of in configs]
    synthetic.write(tmp_path, records)
    (cell,) = load_cells(tmp_path).cells
    assert [run.measured.step_time_s for run in cell.runs if run.measured] == pytest.approx([0.1, 1.1, 2.1])
    assert (cell.workers, cell.global_batch, cell.batch_per_worker) == (2, 64, 32)


def test_time_per_step_is_from_totals_so_stalls_between_steps_count(tmp_path: Path) -> None:
    spans = [Span(steps=4, samples=256, wall_time_s=0.8)]  # the steps themselves took 0.4 s
    run = only_run(tmp_path, window=synthetic.window([0.1] * 4, [64] * 4, spans))
    assert run.measured.step_time_s == pytest.approx(0.2)


def test_twice_the_steps_same_time_per_step(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "a", [synthetic.record(synthetic.config(1), [0.1] * 4)])
    synthetic.write(tmp_path / "b", [synthetic.record(synthetic.config(1), [0.1] * 8)])
    once, twice = (load_cells(tmp_path / name).cells[0].runs[0].measured for name in "ab")
    assert once
    assert twice
    assert once.step_time_s == pytest.approx(twice.step_time_s)
    assert (once.steps, twice.steps) == (4, 8)


def test_smaller_last_batch_counts_by_its_samples(tmp_path: Path) -> None:
    of = synthetic.config(1, global_batch=100, epochs=2, steps=None)
    synthetic.write(tmp_path, [synthetic.epochs_record(of, [3.0, 3.0], steps_per_epoch=2, last_batch=50)])
    measured = load_cells(tmp_path).cells[0].runs[0].measured
    assert measured
    assert measured.step_time_s == pytest.approx(2.0)
    assert measured.epoch_time_s == pytest.approx(3.0)


def test_last_evaluation_and_ranks(tmp_path: Path) -> None:
    evaluations = [Evaluation(after_steps=n, time_s=0.1, samples=1, accuracy=n / 10, loss=None) for n in (1, 7)]
    ranks = [synthetic.rank_summary(rank, own) for rank, own in enumerate((0.1, 0.1, 0.25))]
    measured = only_run(tmp_path, evaluation=evaluations, ranks=ranks).measured
    assert measured.accuracy == 0.7
    assert measured.straggler_ratio == 2.5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"sanity": [Check(name="equal_replicas", passed=False, detail="rank 1 differs")]},
            "check equal_replicas failed",
        ),
        ({"window": None}, "no timed window"),
        ({"window": synthetic.window([], [], [])}, "no timed window"),
        ({"window": synthetic.window([0.1], [64], [Span(steps=1, samples=64, wall_time_s=0.0)])}, "in 0.0 s"),
        ({"window": synthetic.window([0.1], [0], [Span(steps=1, samples=0, wall_time_s=0.1)])}, "0 samples"),
        ({"window": synthetic.window([0.1], [64], [Span(steps=2, samples=64, wall_time_s=0.1)])}, "for 2 steps"),
        ({"window": synthetic.window([0.1], [64], [Span(steps=1, samples=640, wall_time_s=0.1)])}, "its spans 640"),
    ],
)
def test_an_ok_without_sanity_gives_no_number(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    run = only_run(tmp_path, **changes)
    assert run.measured is None
    assert run.status == "invalid"
    assert reason in run.reason


@pytest.mark.parametrize("status", ["diverged", "oom", "timeout", "lost"])
def test_a_failed_run_gives_no_number_even_with_a_window(tmp_path: Path, status: str) -> None:
    run = only_run(tmp_path, status=status)
    assert (run.status, run.measured) == (status, None)


def damaged(folder: Path) -> dict[str, str]:
    """Records that cannot be read, among good ones: folder name to what the warning must say."""
    good = json.loads((folder / "lenet-ddp-w1-b64-r0" / RECORD_NAME).read_text())
    contents = {
        "truncated": (json.dumps(good)[:500], "not a readable record"),
        "empty": ("", "not a readable record"),
        "binary": ("\xff\xfe\x00", "not a readable record"),
        "foreign": (json.dumps({"schema_version": 1, "hello": "world"}), "not a readable record"),
        "future": (json.dumps(good | {"schema_version": 99}), "schema version 99"),
        "copied": (json.dumps(good), "the same run as"),
        "no_batch": (json.dumps(good | {"run_id": "x", "cell_id": "x", "config": {"workers": 1}}), "global_batch=None"),
        "liar": (json.dumps(good | {"run_id": "y", "workers": 7}), "workers=7, but 1"),
        "stray": (json.dumps(good | {"run_id": "z", "config": synthetic.config(1, global_batch=9)}), "but its cell"),
    }
    for name, (content, _) in contents.items():
        (folder / f"z_{name}").mkdir()
        (folder / f"z_{name}" / RECORD_NAME).write_bytes(content.encode("latin-1"))
    return {name: text for name, (_, text) in contents.items()}


def test_damaged_records_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    configs = [synthetic.config(workers) for workers in (1, 2)]
    synthetic.write(tmp_path, [synthetic.record(of) for of in configs])
    synthetic.write_manifest(tmp_path, configs)
    expected = damaged(tmp_path)
    loaded = load_cells(tmp_path)
    assert loaded.unreadable == len(loaded.problems) == len(expected)
    for name, text in expected.items():
        (line,) = [line for line in loaded.problems if line.startswith(str(tmp_path / f"z_{name}" / RECORD_NAME))]
        assert text in line
    assert [len(cell.runs) for cell in loaded.cells] == [1, 1]


@pytest.mark.parametrize(
    ("manifest", "text"),
    [(None, "not there"), ("{", "not readable"), ("future", "schema version 2")],
)
def test_without_a_manifest_the_records_still_count(tmp_path: Path, manifest: str | None, text: str) -> None:
    synthetic.write(tmp_path, [synthetic.record(synthetic.config(1))])
    if manifest == "future":
        synthetic.write_manifest(tmp_path, [], schema_version=2)
    elif manifest:
        (tmp_path / "sweep.json").write_text(manifest)
    loaded = load_cells(tmp_path)
    assert loaded.manifest is None
    assert text in loaded.problems[0]
    assert len(loaded.cells) == 1


def test_earlier_attempts_and_other_files_are_ignored(tmp_path: Path) -> None:
    one = synthetic.record(synthetic.config(1))
    synthetic.write(tmp_path, [one])
    (tmp_path / one.run_id / "record.attempt1.json").write_text("{")
    (tmp_path / "analysis").mkdir()
    (tmp_path / "ledger.jsonl").write_text("{}")
    synthetic.write_manifest(tmp_path, [])
    assert load_cells(tmp_path).problems == []


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make sweep"):
        load_cells(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_cells(tmp_path / "nowhere")
    with pytest.raises(UserError, match="make sweep"):
        newest_sweep(tmp_path / "results")


def test_a_folder_above_the_sweep_is_met_with_a_hint(tmp_path: Path) -> None:
    synthetic.write_manifest(tmp_path / "local" / "smoke", [])
    with pytest.raises(UserError, match=r"did you mean .*local/smoke"):
        load_cells(tmp_path)


def test_newest_sweep_is_the_one_written_last(tmp_path: Path) -> None:
    for name in ("old", "new"):
        synthetic.write_manifest(tmp_path / "local" / name, [])
    synthetic.write(tmp_path / "local" / "old", [synthetic.record(synthetic.config(1))])
    (tmp_path / "local" / "junk").mkdir()
    for path, stamp in (("old/sweep.json", 1), ("new/sweep.json", 2), ("old/lenet-ddp-w1-b64-r0/record.json", 3)):
        os.utime(tmp_path / "local" / path, (stamp, stamp))
    assert newest_sweep(tmp_path).name == "old"
    os.utime(tmp_path / "local/new/sweep.json", (4, 4))
    assert newest_sweep(tmp_path).name == "new"


def test_single_runs_are_no_sweep_unless_there_is_nothing_else(tmp_path: Path) -> None:
    synthetic.write(tmp_path / "local" / "single_runs", [synthetic.record(synthetic.config(1))])
    assert newest_sweep(tmp_path).name == "single_runs"
    synthetic.write_manifest(tmp_path / "local" / "older", [])
    os.utime(tmp_path / "local" / "older" / "sweep.json", (1, 1))
    assert newest_sweep(tmp_path).name == "older"
