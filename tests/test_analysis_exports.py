"""The same numbers for other programs: Parquet with types, TensorBoard's event files."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2, metadata

from analysis.exports import event_files
from analysis.exports.parquet import results_parquet
from analysis.exports.results import common_type, dictionary_csv, results_csv
from analysis.report import main as report_main
from analysis.runs.load import load_cells
from analysis.scaling import main
from analysis.schema import SCHEMA_VERSION, Report
from analysis.series import build_report
from benchmarks.core.record import Evaluation
from tests import synthetic
from tests.test_analysis_report import HOSTILE, write_hostile


def report_of(folder: Path) -> Report:
    return build_report(load_cells(folder))


def table_of(report: Report) -> Any:
    return parquet.read_table(io.BytesIO(results_parquet(report)))


def test_parquet_has_the_numbers_of_the_csv_with_types_units_and_meanings(tmp_path: Path) -> None:
    configs = [
        synthetic.config(workers, global_batch=batch, workload={"name": name})
        for name in ("lenet", "mlp")
        for workers in (1, 2)
        for batch in (64, 128)
    ]
    lost, _, *well = configs
    records = [
        synthetic.record(of, [0.1 + 0.001 * step for step in range(number)]) for number, of in enumerate(well, 3)
    ]
    synthetic.write(tmp_path, [synthetic.failed(lost, "oom"), *records])
    synthetic.write_manifest(tmp_path, configs)
    report = report_of(tmp_path)
    table = table_of(report)
    rows = list(csv.DictReader(io.StringIO(results_csv(report))))
    assert table.schema.names == list(rows[0])
    for name in table.schema.names:
        texts = [row[name] for row in rows]
        values = table.column(name).to_pylist()
        assert [value in (None, "") for value in values] == [not text for text in texts], name
        known = [(value, text) for value, text in zip(values, texts, strict=True) if text]
        assert all(str(value) == text for value, text in known), name
    assert table.column("status").to_pylist().count("ok") == len(well)
    types = {name: str(table.schema.field(name).type) for name in table.schema.names}
    assert types["workers"] == types["repeats_ok"] == types["strong_series"] == "int64"
    assert (
        types["step_time_s"] == types["accuracy"] == types["ledger_window_s"] == types["weak_speedup_high"] == "double"
    )
    assert types["cell_id"] == types["workload"] == types["reason"] == types["notes"] == "string"
    for row in csv.DictReader(io.StringIO(dictionary_csv(report))):
        told = table.schema.field(row["column"]).metadata
        assert (told[b"unit"].decode(), told[b"meaning"].decode()) == (row["unit"], row["meaning"])
    assert table.schema.metadata[b"schema_version"] == str(SCHEMA_VERSION).encode()
    assert table.schema.metadata[b"sweep"] == b"synthetic"


def test_settings_keep_their_type_and_their_text(tmp_path: Path) -> None:
    configs = [
        synthetic.config(1, steps=steps, channels_last=flag, compile=text, optimizer={"name": "sgd", "lr": lr})
        for steps, flag, text, lr in ((4, False, "=1+1", 1), (8, True, "<b>\n'x'", 0.5))
    ]
    records = [synthetic.record(of, run_id=f"r{n}", cell_id=f"c{n}") for n, of in enumerate(configs)]
    synthetic.write(tmp_path, records)
    table = table_of(report_of(tmp_path)).sort_by("setting_steps")
    assert table.column("setting_steps").to_pylist() == [4, 8]
    assert table.column("steps").to_pylist() == [4, 4]
    assert table.column("channels_last").to_pylist() == [False, True]
    assert table.column("optimizer.lr").to_pylist() == [1.0, 0.5]
    assert table.column("compile").to_pylist() == ["=1+1", "<b>\n'x'"]


@pytest.mark.parametrize(
    ("values", "of"),
    [
        ([1, None, 2], int), ([1, 2.5], float), ([True, None], bool), ([True, 1], str), (["a", 1], str), ([None], str),
        ([2**63], str), ([2**60 + 1, 0.5], str),
    ],
)  # fmt: skip
def test_the_type_of_settings_loses_nothing(values: list[object], of: type) -> None:
    assert common_type(values) is of


def test_without_pyarrow_the_report_is_made_and_says_what_it_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write(tmp_path, [synthetic.record(synthetic.config(n)) for n in (1, 2)])
    synthetic.write_manifest(tmp_path, [synthetic.config(n) for n in (1, 2)])
    assert report_main([str(tmp_path), "--no-figures"]) == 0
    assert (tmp_path / "analysis" / "results.parquet").is_file()
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert report_main([str(tmp_path), "--no-figures", "--out", str(tmp_path / "slim")]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: left out: results.parquet needs pyarrow")
    assert captured.err.count("\n") == 1
    both = [{path.name for path in (tmp_path / name).iterdir()} for name in ("analysis", "slim")]
    assert both[0] - both[1] == {"results.parquet"}
    assert captured.out.rstrip().endswith("report.html")


def exported(folder: Path, *arguments: str) -> Path:
    assert main([str(folder), "--no-figures", "--export", "tensorboard", *arguments]) == 0
    return folder / "analysis" / "tensorboard"


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return events


def hparams(events: EventAccumulator, tag: str) -> Any:
    parse = {
        metadata.SESSION_START_INFO_TAG: metadata.parse_session_start_info_plugin_data,
        metadata.SESSION_END_INFO_TAG: metadata.parse_session_end_info_plugin_data,
        metadata.EXPERIMENT_TAG: metadata.parse_experiment_plugin_data,
    }
    return parse[tag](events.SummaryMetadata(tag).plugin_data.content)


def numbers(events: EventAccumulator, tag: str) -> dict[int, float]:
    return {one.step: one.value for one in events.Scalars(tag)}


def single(values: list[float]) -> list[float]:
    """As TensorBoard keeps them."""
    return [float(np.float32(value)) for value in values]


def a_run(workers: int, steps: int = 6, **changes: Any) -> Any:
    """A record whose every number is another one."""
    times = [0.25 + 0.0625 * step for step in range(steps)]
    record = synthetic.record(synthetic.config(workers, optimizer={"name": "sgd", "lr": 0.1 * workers}), times)
    assert record.window is not None
    record.window.loss = [2.3 - 0.1 * step if step != 1 else None for step in range(steps)]
    record.window.data_wait_s = [0.001 * step for step in range(steps)]
    record.window.exposed_comm_s = [0.002 * step for step in range(steps)]
    record.evaluation = [
        Evaluation(after_steps=after, time_s=5.0, samples=360, accuracy=after / 10, loss=1 / after)
        for after in (steps // 2, steps)
    ]
    record.ledger = {"start": 3.0, "build": 4.0, "window": sum(times), "evaluation": 10.0}
    record.wall_time_s = sum(record.ledger.values())
    for name, value in changes.items():
        setattr(record, name, value)
    return record


def test_series_in_tensorboard_are_the_records(tmp_path: Path) -> None:
    record = a_run(2)
    synthetic.write(tmp_path, [record, a_run(1)])
    events = read(exported(tmp_path) / record.run_id)
    window = record.window
    for tag, values in (
        ("steps/step_time_s", window.step_time_s),
        ("steps/data_wait_s", window.data_wait_s),
        ("steps/exposed_comm_s", window.exposed_comm_s),
    ):
        assert numbers(events, tag) == dict(zip(range(1, 7), single(values), strict=True)), tag
    losses = {step: loss for step, loss in enumerate(window.loss, start=1) if loss is not None}
    assert numbers(events, "steps/loss") == dict(zip(losses, single(list(losses.values())), strict=True))
    assert 2 not in losses
    assert numbers(events, "evaluation/accuracy") == dict(zip((3, 6), single([0.3, 0.6]), strict=True))
    assert numbers(events, "evaluation/loss") == dict(zip((3, 6), single([1 / 3, 1 / 6]), strict=True))
    # Seconds from the run's start: 7 until the window, then steps, with an evaluation of 5 s after the third.
    began_s = 1735689600.0
    ends_s = np.cumsum(window.step_time_s) + 7 + np.array([0, 0, 0, 5, 5, 5])
    assert [one.wall_time - began_s for one in events.Scalars("steps/step_time_s")] == pytest.approx(ends_s)
    assert [one.wall_time - began_s for one in events.Scalars("evaluation/loss")] == pytest.approx(
        [ends_s[2] + 5, ends_s[5] + 5]
    )
    assert sum(window.step_time_s) / 6 == numbers(events, "result/step_time_s")[6]
    assert numbers(events, "result/throughput_samples_per_s")[6] == pytest.approx(6 * 64 / sum(window.step_time_s))
    assert numbers(events, "result/accuracy") == {6: single([0.6])[0]}


def test_runs_are_comparable_in_the_hparams_tab(tmp_path: Path) -> None:
    records = [a_run(1), a_run(2), synthetic.failed(synthetic.config(4), "oom", "rank 3: <b>out</b> of *memory*")]
    synthetic.write(tmp_path, records)
    folder = exported(tmp_path)
    experiment = hparams(read(folder), metadata.EXPERIMENT_TAG)
    types = {info.name: info.type for info in experiment.hparam_infos}
    number, text = api_pb2.DATA_TYPE_FLOAT64, api_pb2.DATA_TYPE_STRING
    assert types == {
        **{"workers": number, "global_batch": number, "batch_per_worker": number, "repeat": number},
        **{"optimizer.lr": number, "state": text},
    }
    assert {info.name for info in experiment.hparam_infos if not info.differs} == {"global_batch", "repeat"}
    [state] = [info for info in experiment.hparam_infos if info.name == "state"]
    assert list(state.domain_discrete) == ["ok", "oom"]
    told = {info.name.tag for info in experiment.metric_infos}
    for record in records:
        events = read(folder / record.run_id)
        start = hparams(events, metadata.SESSION_START_INFO_TAG).hparams
        assert start["workers"].number_value == record.workers
        assert start["batch_per_worker"].number_value == 64 / record.workers
        assert start["optimizer.lr"].number_value == record.config["optimizer"]["lr"]
        assert start["state"].string_value == record.status
        end = hparams(events, metadata.SESSION_END_INFO_TAG)
        assert end.status == (api_pb2.STATUS_SUCCESS if record.status == "ok" else api_pb2.STATUS_FAILURE)
        assert told <= set(events.Tags()["scalars"]) if record.status == "ok" else not events.Tags()["scalars"]
    [words] = events.Tensors("run")[0].tensor_proto.string_val
    assert words.decode() == "**oom**: hang: rank 3: &lt;b&gt;out&lt;/b&gt; of \\*memory\\*"


def test_a_run_that_fails_its_checks_has_no_numbers(tmp_path: Path) -> None:
    record = a_run(1)
    record.sanity[0].passed = False
    synthetic.write(tmp_path, [record])
    events = read(exported(tmp_path) / record.run_id)
    assert events.Tags()["scalars"] == []
    assert hparams(events, metadata.SESSION_START_INFO_TAG).hparams["state"].string_value == "invalid"


def test_long_series_are_thinned_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_files, "_MOST_POINTS", 10)
    record = a_run(1, steps=25)
    synthetic.write(tmp_path, [record])
    events = read(exported(tmp_path) / record.run_id)
    steps = [3, 6, 9, 12, 15, 18, 21, 24, 25]
    assert numbers(events, "steps/step_time_s") == {
        step: single([record.window.step_time_s[step - 1]])[0] for step in steps
    }
    assert sorted(numbers(events, "evaluation/accuracy")) == [12, 25]
    assert b"One step in 3 is shown." in events.Tensors("run")[0].tensor_proto.string_val[0]


def test_many_runs_get_fewer_points_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_files, "_MOST_POINTS_IN_ALL", 10)
    synthetic.write(tmp_path, [a_run(1), a_run(2)])
    folder = exported(tmp_path)
    for run in ("lenet-ddp-w1-b64-r0", "lenet-ddp-w2-b64-r0"):
        assert sorted(numbers(read(folder / run), "steps/step_time_s")) == [2, 4, 6]


def test_another_export_replaces_the_first(tmp_path: Path) -> None:
    first, second = a_run(1), a_run(2)
    synthetic.write(tmp_path, [first, second])
    folder = exported(tmp_path)
    (folder / "left").mkdir()
    shutil.rmtree(tmp_path / second.run_id)
    assert exported(tmp_path) == folder
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {first.run_id}
    assert {path.name for path in folder.parent.iterdir() if path.name.startswith(".")} == set()
    assert len(list((folder / first.run_id).iterdir())) == 1
    assert len(read(folder / first.run_id).Scalars("steps/step_time_s")) == 6


def test_hostile_names_stand_as_they_are_and_lead_nowhere(tmp_path: Path) -> None:
    sweep = write_hostile(tmp_path / "a" / "b")
    before = {path.parent.name for path in sweep.glob("*/record.json")}
    table = table_of(report_of(sweep))
    assert set(table.column("workload").to_pylist()) == set(HOSTILE.values())
    folder = exported(sweep)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == before
    shown = {
        hparams(read(folder / run), metadata.SESSION_START_INFO_TAG).hparams["workload"].string_value for run in before
    }
    assert shown == set(HOSTILE.values())


def test_without_tensorboard_nothing_is_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic.write(tmp_path, [a_run(1)])
    monkeypatch.delitem(sys.modules, "analysis.exports.event_files")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert main([str(tmp_path), "--no-figures", "--export", "tensorboard"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: --export tensorboard needs the package tensorboard (")
    assert captured.err.endswith(": pip install tensorboard\n")
    assert not (tmp_path / "analysis").exists()
