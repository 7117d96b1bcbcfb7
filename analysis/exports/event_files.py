"""A sweep's runs as TensorBoard's event files, for those who compare runs there: `--export tensorboard`.

A folder for each timed run that has a record: what its steps took and reached, its evaluations, and, for the HPARAMS
tab, its settings and results. A step's number is how many are done. Needs the package `tensorboard`, and neither torch
nor TensorFlow.
"""

from __future__ import annotations

import math
import tempfile
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from analysis.exports.results import common_type
from analysis.runs.load import Loaded, Run
from analysis.runs.measured import Measured
from analysis.runs.metrics import throughput_samples_per_s
from analysis.schema import Report
from analysis.tables.formats import escape_markdown
from analysis.wording import clean_long
from benchmarks.core.folder import record_files
from benchmarks.core.record import WELL, Record, RecordError, Window, read_record
from benchmarks.core.variants import Option

FOLDER = "tensorboard"
_MOST_POINTS = 1_000
"""Of a run's steps; of a longer run one in two, three, ... is taken."""
_MOST_POINTS_IN_ALL = 500_000
"""Beyond, runs get fewer each: for 10,000 runs, 50."""
_RESULTS = {
    "result/throughput_samples_per_s": "throughput [samples/s]",
    "result/step_time_s": "time per step [s]",
    "result/accuracy": "accuracy after the last evaluation",
}
_SIZES = ("workers", "global_batch", "batch_per_worker")
_STATE = "state"


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What all runs share."""

    types: Mapping[str, type]
    """Of the settings in which runs differ, by name."""
    most_points: int


def export(loaded: Loaded, report: Report, out: Path) -> Path:
    """Write the folder `tensorboard`, in place of the one that may be there, and return its path.

    Raises:
        OSError: it cannot be written; the one that was there stays.
    """
    runs = {run_id: (run, settings) for run_id, run, settings in _runs(loaded, report)}
    keys = dict.fromkeys(key for _, settings in runs.values() for key in settings)
    facts = _Facts(
        types={key: common_type(settings.get(key) for _, settings in runs.values()) for key in keys},
        most_points=max(1, min(_MOST_POINTS, _MOST_POINTS_IN_ALL // max(1, len(runs)))),
    )
    target = out / FOLDER
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}.", dir=out) as name:
        made = Path(name) / "new"
        _write(made, [_experiment(facts, [settings for _, settings in runs.values()])])
        for path in record_files(loaded.folder):
            try:
                record = read_record(path)
            except RecordError:
                continue  # it is among the report's problems
            if found := runs.pop(record.run_id, None):
                _write(made / path.parent.name, _events(record, *found, facts))
        if target.exists():
            target.rename(Path(name) / "old")
        made.rename(target)
    return target


def _runs(loaded: Loaded, report: Report) -> Iterator[tuple[str, Run, dict[str, Option]]]:
    """Every run with a record, and what tells it from others."""
    for cell in loaded.cells:
        same = {key: cell.config.get(key) for key in report.setting_keys} | {key: getattr(cell, key) for key in _SIZES}
        for run in cell.runs:
            yield run.run_id, run, same | {"repeat": run.repeat, _STATE: run.status}


def _write(folder: Path, events: Sequence[Event]) -> None:
    folder.mkdir(parents=True)
    first = Event(wall_time=events[0].wall_time, file_version="brain.Event:2")
    with (folder / f"events.out.tfevents.{events[0].wall_time:.0f}.scalebench").open("wb") as file:
        writer = RecordWriter(file)
        for event in (first, *events):
            writer.write(event.SerializeToString())


def _experiment(facts: _Facts, settings: Sequence[Mapping[str, Option]]) -> Event:
    """What the columns of the HPARAMS tab are."""
    infos = []
    for name, of in facts.types.items():
        values = {str(one[name]) for one in settings if one.get(name) is not None}
        info = api_pb2.HParamInfo(name=name, type=_HPARAM_TYPES[of], differs=len(values) > 1)
        if of is str:
            info.domain_discrete.extend(sorted(values))
        infos.append(info)
    metrics = [
        api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=name) for tag, name in _RESULTS.items()
    ]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metrics)
    return Event(summary=Summary(value=[_hparams_value(metadata.EXPERIMENT_TAG, experiment=experiment)]))


_HPARAM_TYPES = {
    str: api_pb2.DATA_TYPE_STRING,
    int: api_pb2.DATA_TYPE_FLOAT64,
    float: api_pb2.DATA_TYPE_FLOAT64,
    bool: api_pb2.DATA_TYPE_BOOL,
}


def _hparams_value(tag: str, **content: Any) -> Any:
    """A value of the HParams plugin: all of it is in its metadata."""
    data = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary.Value(tag=tag, metadata=data, tensor=metadata.NULL_TENSOR)


def _events(record: Record, run: Run, settings: Mapping[str, Option], facts: _Facts) -> list[Event]:
    """All of one run. One that gives no number has its state, and no series."""
    began_s = _moment_s(record.started_at)
    ended_s = began_s + record.wall_time_s
    start = SessionStartInfo(group_name=run.run_id, start_time_secs=began_s)
    for name, value in settings.items():
        if value is not None:
            setattr(start.hparams[name], *_plain_value(value, facts.types[name]))
    state = api_pb2.STATUS_SUCCESS if run.status in WELL else api_pb2.STATUS_FAILURE
    end = SessionEndInfo(status=state, end_time_secs=ended_s)
    series: list[Event] = []
    if run.measured and record.window:
        series = _series(record, record.window, began_s, facts.most_points)
        series.append(_scalars(series[-1].wall_time, run.measured.steps, _results(record, run.measured)))
    stride = _stride(len(record.window.step_time_s), facts.most_points) if record.window and series else 1
    head = [_hparams_value(metadata.SESSION_START_INFO_TAG, session_start_info=start)]
    tail = [_hparams_value(metadata.SESSION_END_INFO_TAG, session_end_info=end)]
    return [
        Event(wall_time=began_s, summary=Summary(value=[*head, *text_pb("run", _words(run, stride)).value])),
        *series,
        Event(wall_time=max([ended_s, *(event.wall_time for event in series[-1:])]), summary=Summary(value=tail)),
    ]


def _moment_s(text: str) -> float:
    """Since 1970; 0 where the record has no time that can be read."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _plain_value(value: Option, of: type) -> tuple[str, Option]:
    """The field of a protobuf Value, and what goes there."""
    if of is bool:
        return "bool_value", value
    return ("string_value", str(value)) if of is str else ("number_value", value)


def _words(run: Run, stride: int) -> str:
    """Markdown, as TensorBoard shows texts."""
    reason = f": {escape_markdown(clean_long(run.reason))}" if run.reason else ""
    thinned = f"\n\nOne step in {stride} is shown." if stride > 1 else ""
    return f"**{escape_markdown(run.status)}**{reason}{thinned}"


def _series(record: Record, window: Window, began_s: float, most: int) -> list[Event]:
    """What each step took and reached, and the evaluations among them, at the time when it was over."""
    before = takewhile(lambda phase: phase[0] != "window", record.ledger.items())
    steps_end_s = list(accumulate(window.step_time_s, initial=began_s + sum(time_s for _, time_s in before)))
    evaluations = sorted(record.evaluation, key=lambda one: one.after_steps)
    after = [one.after_steps for one in evaluations]
    evaluated_s = list(accumulate((one.time_s for one in evaluations), initial=0.0))
    of_steps: dict[str, Sequence[float | None]] = {
        "steps/loss": window.loss,
        "steps/step_time_s": window.step_time_s,
        "steps/data_wait_s": window.data_wait_s,
        "steps/exposed_comm_s": window.exposed_comm_s or [],
    }
    events = [
        _scalars(
            steps_end_s[done] + evaluated_s[bisect_left(after, done)],
            done,
            {tag: values[done - 1] for tag, values in of_steps.items() if done <= len(values)},
        )
        for done in _thinned(len(window.step_time_s), most)
    ]
    for number in _thinned(len(evaluations), most):
        one = evaluations[number - 1]
        ended_s = steps_end_s[min(one.after_steps, len(steps_end_s) - 1)] + evaluated_s[number]
        events.append(
            _scalars(ended_s, one.after_steps, {"evaluation/accuracy": one.accuracy, "evaluation/loss": one.loss})
        )
    return sorted(events, key=lambda event: float(event.wall_time))


def _stride(count: int, most: int) -> int:
    return max(1, math.ceil(count / most))


def _thinned(count: int, most: int) -> list[int]:
    """Numbers from 1: all, or one in so many that there are `most`, and the last."""
    stride = _stride(count, most)
    return [*range(stride, count, stride), count] if count else []


def _results(record: Record, measured: Measured) -> dict[str, float | None]:
    """Those of the tables, of this run alone."""
    rate = throughput_samples_per_s(measured.step_time_s, record.config["global_batch"])
    return dict(zip(_RESULTS, (rate, measured.step_time_s, measured.accuracy), strict=True))


def _scalars(wall_time_s: float, step: int, values: Mapping[str, float | None]) -> Event:
    shown = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items() if value is not None]
    return Event(wall_time=wall_time_s, step=step, summary=Summary(value=shown))
