"""Studies: every measure and every kind of panel gives the numbers computed by hand; mistakes are one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import study_check
from analysis.cells import measures
from analysis.cells.labels import axis_label, label, telling
from analysis.figures.axes import _spaced
from analysis.figures.study import _rows, study_drawing
from analysis.figures.style import figure_files
from analysis.runs.course import course
from analysis.runs.load import Cell, Run, load_cells
from analysis.runs.measured import measure
from analysis.scaling import all_files
from analysis.schema import Report, json_schema
from analysis.series import build_report
from analysis.statistics.estimate import Estimate
from analysis.study.build import build_study, check_figure
from analysis.study.panels import Subject, kinds, make_panel, panel_kind
from analysis.study.panels.comparing import best_of
from analysis.study_schema import Panel, PanelPoint, PanelSeries, Study
from analysis.tables.formats import latex, markdown
from benchmarks.core.errors import ConfigError
from benchmarks.core.record import Communication, Evaluation, Memory, Record, Span
from tests import synthetic

EPOCHS: dict[str, Any] = {"steps": None, "epochs": 2}

# Two epochs of two steps of 32 samples on two workers; rank 1 has a larger part in the second epoch.
SPANS = [
    Span(steps=2, samples=64, wall_time_s=4.0, samples_by_rank=[32, 32], sync_wait_s_by_rank=[0.0, 2.0]),
    Span(steps=2, samples=64, wall_time_s=3.0, samples_by_rank=[16, 48], sync_wait_s_by_rank=[0.5, 0.5]),
]


def two_epochs(repeat: int = 0, spans: Sequence[Span] = SPANS, factor: float = 1.0, **changes: Any) -> Record:
    """A run whose every number is known; `factor` stretches its times."""
    of = synthetic.config(2, global_batch=32, repeat=repeat, **EPOCHS | changes)
    stretched = [msgspec.structs.replace(span, wall_time_s=span.wall_time_s * factor) for span in spans]
    times = [2.0 * factor, 2.0 * factor, 1.5 * factor, 1.5 * factor]
    window = msgspec.structs.replace(
        synthetic.window(times, [32] * 4, stretched),
        data_wait_s=[0.1, 0.2, 0.3, 0.4],
        exposed_comm_s=[0.5, 0.5, 0.25, 0.25],
        loss=[2.0, 1.0, None, 0.5],
    )
    servers = {"servers": [{"busy_fraction": 0.25}, {"busy_fraction": 0.75}]}
    return synthetic.record(
        of, times, window=window, strategy_facts=servers,
        evaluation=[
            Evaluation(after_steps=2, time_s=0.4, samples=10, accuracy=0.6, loss=0.9),
            Evaluation(after_steps=4, time_s=0.2, samples=10, accuracy=0.8, loss=0.7),
        ],
        memory=Memory(peak_host_bytes=5_000_000, peak_device_bytes=None),
        communication=Communication(
            bytes_per_step=3_000_000, unsynchronised_step_s=None, allreduce_bytes=8, allreduce_s=1.0,
            allreduce_gb_per_s=1.5,
        ),
    )  # fmt: skip


def loaded(folder: Path, *records: Record) -> list[Cell]:
    synthetic.write(folder, records)
    return load_cells(folder).cells


KNOWN = {
    "step_time_s": 7.0 / 4,
    "epoch_time_s": 3.5,
    "train_time_s": 7.0,
    "throughput_samples_per_s": 128 / 7.0,
    "data_wait_s": (0.3 + 0.7) / 2,
    "other_training_s": (3.7 + 2.3) / 2,
    "evaluation_s": 0.3,
    "sync_wait_s": (1.0 + 0.5) / 2,
    "exposed_comm_s": 0.375,
    "compute_s": 1.75 - 0.375,
    "allreduce_gb_per_s": 1.5,
    "sent_mb": 3.0,
    "peak_memory_mb": 5.0,
    "accuracy": 0.8,
    "loss": 0.7,
    "train_loss": 0.5,
    "epochs_to_converge": 2.0,
    "server_busy": 0.75,
}


def test_every_measure_gives_the_number_computed_by_hand(tmp_path: Path) -> None:
    (cell,) = loaded(tmp_path, two_epochs())
    for name, value in KNOWN.items():
        found = measures.estimate_of(cell, name)
        assert found is not None, name
        assert found.value == pytest.approx(value), name
        assert found.low <= found.value * (1 + 1e-9), name
        assert found.high >= found.value * (1 - 1e-9), name
        assert measures.measure(name).label.endswith("]"), name


def test_a_measure_is_the_median_over_repeats_and_the_interval_holds_them(tmp_path: Path) -> None:
    (cell,) = loaded(tmp_path, *(two_epochs(repeat, factor=factor) for repeat, factor in enumerate((1.0, 3.0, 2.0))))
    found = measures.estimate_of(cell, "train_time_s")
    assert found is not None
    assert found.value == pytest.approx(14.0)
    assert 7.0 * 0.8 < found.low <= 7.0 * 1.1
    assert 21.0 * 0.9 < found.high < 21.0 * 1.2
    accuracy = measures.estimate_of(cell, "accuracy")
    assert accuracy == Estimate(value=0.8, low=0.8, high=0.8)  # no step's noise in what is no time


def test_convergence_counts_epochs_up_to_the_first_near_the_best(tmp_path: Path) -> None:
    def evaluated(*accuracies: float) -> Cell:
        span = Span(steps=1, samples=32, wall_time_s=1.0)
        of = synthetic.config(1, global_batch=32, steps=None, epochs=2 * len(accuracies))
        evaluations = [
            Evaluation(after_steps=number + 1, time_s=0.1, samples=10, accuracy=accuracy, loss=None)
            for number, accuracy in enumerate(accuracies)
        ]
        spans = [span] * max(1, len(accuracies))
        window = synthetic.window([1.0] * len(spans), [32] * len(spans), spans)
        folder = tmp_path / "-".join(map(str, accuracies))
        (cell,) = loaded(folder, synthetic.record(of, window=window, evaluation=evaluations))
        return cell

    # A span of two epochs each: 0.895 is near enough to 0.9, 0.885 is not; what comes after does not count.
    found = measures.estimate_of(evaluated(0.5, 0.885, 0.895, 0.9, 0.6), "epochs_to_converge")
    assert found is not None
    assert found.value == 6.0
    assert measures.estimate_of(evaluated(0.9), "epochs_to_converge") is None


def test_what_a_run_does_not_know_is_no_number(tmp_path: Path) -> None:
    of = synthetic.config(1, global_batch=32)
    (cell,) = loaded(tmp_path, synthetic.record(of, evaluation=[]))
    for name in ("epoch_time_s", "accuracy", "evaluation_s", "sync_wait_s", "exposed_comm_s", "compute_s", "sent_mb"):
        assert measures.estimate_of(cell, name) is None, name
    record = two_epochs()
    record.evaluation = record.evaluation[1:]  # not of all epochs: no mean over epochs, but a last one
    (cell,) = loaded(tmp_path / "half", record)
    assert measures.estimate_of(cell, "evaluation_s") is None
    assert measures.estimate_of(cell, "epochs_to_converge") is None
    assert measures.estimate_of(cell, "accuracy") == Estimate(value=0.8, low=0.8, high=0.8)


def test_curves_follow_epochs_samples_and_time(tmp_path: Path) -> None:
    cells = loaded(tmp_path, two_epochs())

    def points(**options: str) -> list[Any]:
        (series,) = make_panel(Subject(cells=cells, title=""), {"kind": "curves", **options}).series
        return [(point.x, point.y.value) for point in series.points]

    assert points(y="accuracy") == [(1.0, 0.6), (2.0, 0.8)]
    assert points(y="accuracy", x="samples") == [(64.0, 0.6), (128.0, 0.8)]
    assert points(y="loss", x="train_time_s") == [(4.0, 0.9), (7.0, 0.7)]
    assert points(y="train_loss") == [(1.0, 1.5), (2.0, 0.5)]
    assert points(y="epoch_time_s") == [(1.0, 4.0), (2.0, 3.0)]
    assert points(y="batch") == [(1.0, 32.0), (2.0, 32.0)]
    assert points(y="data_wait_s") == [(1.0, pytest.approx(0.3)), (2.0, pytest.approx(0.7))]


def test_the_batch_is_that_of_full_steps_and_ranks_have_their_share_of_it(tmp_path: Path) -> None:
    """An epoch's last batch is smaller, and says nothing."""
    of = synthetic.config(2, global_batch=32, **EPOCHS)
    record = synthetic.epochs_record(of, [1.0, 1.0], steps_per_epoch=3, last_batch=8)
    assert record.window
    for span, by_rank in zip(record.window.spans, ([36, 36], [18, 54]), strict=True):
        span.samples_by_rank = by_rank
    cells = loaded(tmp_path, record)
    (line,) = make_panel(Subject(cells=cells, title=""), {"kind": "curves", "y": "batch"}).series
    assert [point.y.value for point in line.points] == [32.0, 32.0]
    lines = make_panel(Subject(cells=cells, title=""), {"kind": "ranks", "y": "batch"}).series
    assert [[point.y.value for point in line.points] for line in lines] == [[16.0, 8.0], [16.0, 24.0]]


def test_losses_are_means_over_blocks_of_steps(tmp_path: Path) -> None:
    steps = 25
    spans = [Span(steps=steps, samples=steps * 32, wall_time_s=1.0)] * 2
    window = synthetic.window([0.04] * 2 * steps, [32] * 2 * steps, spans)
    window.loss = [float(step) for step in range(2 * steps)]
    of = synthetic.config(1, global_batch=32, **EPOCHS)
    cells = loaded(tmp_path, synthetic.record(of, window=window))
    (series,) = make_panel(Subject(cells=cells, title=""), {"kind": "losses"}).series
    points = [(point.x, point.y.value) for point in series.points]
    assert len(points) == 20
    assert points[:3] == [(64.0, 0.5), (160.0, 3.0), (224.0, 5.5)]  # steps 0-1, 2-4, 5-6
    assert points[10] == (25 * 32 + 64.0, 25.5)
    assert points[-1] == (2 * 25 * 32.0, 48.0)
    (cell,) = loaded(tmp_path / "short", two_epochs())
    (series,) = make_panel(Subject(cells=[cell], title=""), {"kind": "losses"}).series
    assert [(point.x, point.y.value) for point in series.points] == [(32.0, 2.0), (64.0, 1.0), (128.0, 0.5)]


def test_ranks_have_lines_of_their_own(tmp_path: Path) -> None:
    cells = loaded(tmp_path, two_epochs())
    batch = make_panel(Subject(cells=cells, title=""), {"kind": "ranks", "y": "batch"})
    lines = {series.label: [point.y.value for point in series.points] for series in batch.series}
    assert lines == {"all, rank 0": [16.0, 8.0], "all, rank 1": [16.0, 24.0]}
    waits = make_panel(Subject(cells=cells, title=""), {"kind": "ranks", "y": "sync_wait_s"})
    assert [[point.y.value for point in series.points] for series in waits.series] == [[0.0, 0.5], [2.0, 0.5]]
    assert waits.y_label == "waiting for other workers [s per epoch]"


def test_bars_parts_and_over_give_each_cell_its_number(tmp_path: Path) -> None:
    spans = [Span(steps=4, samples=4 * 64, wall_time_s=4.0)]
    slow = synthetic.window([1.0] * 4, [64] * 4, spans)
    slow.exposed_comm_s = [0.25] * 4
    fast = synthetic.window([0.5] * 4, [64] * 4, [msgspec.structs.replace(spans[0], wall_time_s=2.0)])
    fast.exposed_comm_s = [0.1] * 4
    cells = loaded(
        tmp_path,
        synthetic.record(synthetic.config(1), [1.0] * 4, window=slow),
        synthetic.record(synthetic.config(2), [0.5] * 4, window=fast),
    )
    subject = Subject(cells=sorted(cells, key=lambda cell: cell.workers), title="")
    options = {"kind": "bars", "y": "step_time_s", "base": "1 worker", "best": True}
    panel = make_panel(subject, options)
    (series,) = panel.series
    assert [(point.x, point.y.value, point.n) for point in series.points] == [
        ("1 worker", 1.0, 1),
        ("2 workers", 0.5, 1),
    ]
    assert series.points[0].y_over is None
    assert series.points[1].y_over == Estimate(value=0.5, low=0.5, high=0.5)
    assert panel.notes == ["best: 2 workers (0.500 s)"]
    stacked = make_panel(subject, {"kind": "parts", "parts": ["compute_s", "exposed_comm_s"]})
    values = [[round(point.y.value, 9) for point in series.points] for series in stacked.series]
    assert values == [[0.75, 0.4], [0.25, 0.1]]
    assert stacked.y_label == "time [s]"
    line = make_panel(subject, {"kind": "over", "x": "workers", "y": "throughput_samples_per_s"})
    assert [(point.x, point.y.value) for point in line.series[0].points] == [(1.0, 64.0), (2.0, 128.0)]
    assert (line.x_label, line.y_label) == ("workers", "throughput [samples/s]")


def fake_cell(name: str, times_s: Sequence[float]) -> Cell:
    """A cell of repeats that took so long, for a step each."""
    records = [synthetic.record(synthetic.config(1, repeat=repeat), [time] * 4) for repeat, time in enumerate(times_s)]

    runs = [
        Run(
            run_id=f"{name}{r.repeat}",
            repeat=r.repeat,
            status="ok",
            reason=None,
            measured=measure(r, course(r)),
            origin={},
        )
        for r in records
    ]
    return Cell(cell_id=name, config={}, workers=1, global_batch=64, batch_per_worker=64, runs=runs)


def test_a_cells_state_tells_what_is_missing_of_it() -> None:
    cell = fake_cell("a", [1.0])
    assert cell.state() == "ok"
    cell.planned = {"a0", "a1", "a2"}
    assert cell.state() == "ok, but 2 missing"
    failed = [Run(run_id=f"a{n}", repeat=n, status="oom", reason=None, measured=None, origin={}) for n in (1, 2)]
    assert replace(cell, runs=failed[:1]).state() == "1 oom, 2 missing"
    assert replace(cell, runs=failed, planned={"a1", "a2"}).state() == "oom"
    assert replace(cell, runs=[]).state() == "planned"


def test_the_best_is_named_and_those_that_are_not_told_apart() -> None:
    near = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02]
    cells = {"a": near[::-1], "b": [time * 1.01 for time in near], "c": [time * 3 for time in near]}
    made = [fake_cell(name, times) for name, times in cells.items()]
    assert best_of(made, list(cells), "step_time_s") == ["best: a (1.01 s), not told apart from b"]
    assert best_of(made, list(cells), "throughput_samples_per_s") == ["best: a (63.4 samples/s), not told apart from b"]
    assert best_of(made, list(cells), "accuracy")[0].endswith("not told apart from b, c")
    assert best_of([], [], "step_time_s") == []


def test_zero_is_the_best_without_a_division() -> None:
    zero, one = fake_cell("zero", [1.0]), fake_cell("one", [1.0])
    for cell, wait in ((zero, 0.0), (one, 4.0)):
        (run,) = cell.runs
        assert run.measured
        run.measured.course[0].data_wait_s = wait
    with np.errstate(all="raise"):
        assert best_of([zero, one], ["zero", "one"], "data_wait_s") == ["best: zero (0 s)"]


def test_over_many_settings_has_a_line_for_what_else_differs(tmp_path: Path) -> None:
    """In weak scaling it is the batch per worker that stays, in strong scaling the global batch."""
    weak = [synthetic.config(n, global_batch=n * batch) for n in (1, 2) for batch in (16, 32)]
    cells = loaded(tmp_path / "weak", *map(synthetic.record, weak))
    lines = Subject(cells=cells, title="").lines("workers")
    assert {name: len(found) for name, found in lines.items()} == {"batch per worker 16": 2, "batch per worker 32": 2}
    strong = [synthetic.config(n, global_batch=batch) for n in (1, 2) for batch in (16, 32)]
    lines = Subject(cells=loaded(tmp_path / "strong", *map(synthetic.record, strong)), title="").lines("workers")
    assert {name: len(found) for name, found in lines.items()} == {"global batch 16": 2, "global batch 32": 2}


def test_labels_say_what_differs() -> None:
    configs: list[Any] = [
        {"strategy": "ddp", "strategy.hook": "none", "workers": 1, "optimizer.lr": 0.1},
        {"strategy": "ddp", "strategy.hook": "fp16", "workers": 2, "slowdown.1": 2.0, "optimizer.lr": 0.1},
    ]
    keys = telling(configs)
    assert [label(config, keys) for config in configs] == [
        "hook=none, 1 worker, none slowed",
        "hook=fp16, 2 workers, rank 1 slowed 2x",
    ]
    assert label({}, []) == "all"
    assert axis_label("global_batch") == "global batch [samples]"
    assert axis_label("strategy.micro_batch_size") == "micro batch size [samples]"
    assert axis_label("loader.workers") == "loader processes"
    assert axis_label("run_limit_s") == "run limit [s]"


def test_labels_that_would_be_the_same_are_numbered(tmp_path: Path) -> None:
    names = ["x" * 100 + "1", "x" * 100 + "2"]
    records = [
        synthetic.record(synthetic.config(1, strategy={"name": name}), cell_id=str(index), run_id=str(index))
        for index, name in enumerate(names)
    ]
    lines = Subject(cells=loaded(tmp_path, *records), title="").lines()
    assert len(lines) == 2
    assert [name.endswith(" (2)") for name in lines] == [False, True]


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        ({"kind": "bar", "y": "loss"}, "figure[0]: kind=bar: not known (did you mean bars?); allowed: "),
        ({"y": "loss"}, "figure[0]: kind=None: not known; allowed: "),
        ({"kind": "bars"}, "figure[0]: y: must be given, kind=bars needs it"),
        ({"kind": "bars", "y": "los"}, "figure[0]: measure=los: not known (did you mean loss?); allowed: accuracy, "),
        ({"kind": "bars", "y": "loss", "bst": 1}, "figure[0]: option of kind=bars=bst: not known (did you mean best?)"),
        ({"kind": "bars", "y": "loss", "best": "yes"}, "figure[0]: best=yes: must be true or false"),
        ({"kind": "bars", "y": "loss", "title": 3}, "figure[0]: title=3: must be text"),
        ({"kind": "parts", "parts": "loss"}, "figure[0]: parts=loss: must be a list"),
        ({"kind": "parts", "parts": ["loss", "compute_s"]}, "figure[0]: parts: measures that add up have the"),
        ({"kind": "curves", "y": "accuracy", "x": "steps"}, "figure[0]: x=steps: not known; allowed: epoch, samples, "),
        ({"kind": "ranks", "y": "loss"}, "figure[0]: y=loss: not known; allowed: batch, sync_wait_s"),
        ({"kind": "over", "x": "wokers", "y": "loss"}, "figure[0]: key=wokers: not known (did you mean workers?)"),
        ({"kind": "bars", "y": "loss", "by": "strateg"}, "figure[0]: key=strateg: not known (did you mean strategy?)"),
        ({"kind": "bars", "y": "loss", "where": "workers >"}, "figure[0]: rule 'workers >': not an expression"),
        ({"kind": "bars", "y": "loss", "where": "wrkers > 1"}, "figure[0]: key=wrkers: not known (did you mean"),
        ({"kind": "scaling", "y": "loss"}, "figure[0]: option of kind=scaling=y: not known; allowed: nothing"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_one_line_before_anything_runs(entry: dict[str, Any], line: str) -> None:
    (problem,) = check_figure([entry])
    assert problem.startswith(line)
    assert "\n" not in problem


def test_the_check_reads_a_users_own_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "conf" / "sweep"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: mine\nfigure:\n  - {kind: bars, y: lost}\n")
    (folder / "broken.yaml").write_text("name: broken\nfigures: []\n")
    monkeypatch.setenv("SCALEBENCH_EXTRA", str(tmp_path))
    assert study_check.main(["smoke", "hogwild"]) == 0
    assert study_check.main(["mine"]) == 2
    assert study_check.main(["broken"]) == 2
    assert study_check.main(["yours"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: sweep=mine: figure[0]: measure=lost: not known (did you mean loss?); allowed: ")
    assert "broken.yaml: key of sweep=figures: not known (did you mean figure?)" in lines[1]
    assert lines[2].startswith("error: sweep=yours: not known; allowed: ")
    assert len(lines) == 3


def test_every_kind_does_without_cells_so_that_files_can_be_checked() -> None:
    options: dict[str, dict[str, Any]] = {
        "bars": {"y": "loss", "base": "a", "best": True},
        "parts": {"parts": ["compute_s"]},
        "over": {"x": "workers", "y": "loss", "best": True},
        "curves": {"y": "loss"},
        "losses": {},
        "ranks": {"y": "batch"},
    }
    assert set(options) <= set(kinds())
    for kind, own in options.items():
        panel = make_panel(Subject(cells=[], title=""), {"kind": kind, **own})
        assert not any(series.points for series in panel.series)


def test_mistakes_that_only_cells_show_leave_the_other_panels(tmp_path: Path) -> None:
    cells = loaded(tmp_path, two_epochs())
    problems: list[str] = []
    figure = [
        {"kind": "bars", "y": "loss", "base": "single"},
        {"kind": "over", "x": "strategy", "y": "loss"},
        {"kind": "bars", "y": "loss", "where": "strategy == 'single'"},
        {"kind": "bars", "y": "loss", "where": "strategy.mode == 'sync' or workers == 2"},
    ]
    study = build_study(figure, cells, problems)
    assert study is not None
    assert [panel.entry for panel in study.panels] == [3]
    assert [problem.partition(":")[0] for problem in problems] == ["figure[0]", "figure[1]", "figure[2]"]
    assert "no cell of that label" in problems[0]
    assert "allowed: all" in problems[0]
    assert "no cell of the panel" in problems[1]
    assert "no cell keeps this rule" in problems[2]


def test_by_where_and_note_are_for_all_kinds(tmp_path: Path) -> None:
    configs = [
        synthetic.config(n, global_batch=64, strategy={"name": name}) for n in (1, 2, 4) for name in ("ddp", "dbs")
    ]
    cells = loaded(tmp_path, *map(synthetic.record, configs))
    entry = {"kind": "bars", "y": "loss", "by": ["strategy"], "where": "workers > 1", "title": "t", "note": "a word"}
    study = build_study([entry], cells, [])
    assert study is not None
    found = {panel.title: [point.x for series in panel.series for point in series.points] for panel in study.panels}
    assert found == {"t: dbs": ["2 workers", "4 workers"], "t: ddp": ["2 workers", "4 workers"]}
    assert all(panel.notes == ["a word"] for panel in study.panels)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder: hostile names, a failed cell, a half-failed one, one without a repeat, many series."""
    folder = tmp_path_factory.mktemp("hostile")
    names = [
        "$\\frac{1}{",
        "_hidden",
        "<script>alert(1)</script>",
        "x" * 300,
        "line\nbreak",
        *(f"s{i}" for i in range(14)),
    ]
    configs, records = [], []
    for index, name in enumerate(names):
        of = synthetic.config(2, global_batch=32, strategy={"name": name}, **EPOCHS)
        ids = {"cell_id": f"cell{index}", "run_id": f"run{index}"}
        records.append(msgspec.structs.replace(two_epochs(), config=of, **ids))
    records[6] = synthetic.failed(records[6].config, "oom", "rank 1: <b>out</b> of $memory$")
    records[6] = msgspec.structs.replace(records[6], cell_id="cell6", run_id="run6")
    half = synthetic.failed(records[7].config, "timeout", "too long")
    records.append(msgspec.structs.replace(half, cell_id="cell7", run_id="run7b", repeat=1))
    configs = [synthetic.config(4, global_batch=32, strategy={"name": "never"}, **EPOCHS)]
    synthetic.write(folder, records)
    figure = [
        {"kind": "bars", "y": "accuracy", "title": "<b>$x$", "note": "see $HOME & <i>\nmore", "best": True},
        {"kind": "curves", "y": "accuracy"},
        {"kind": "parts", "parts": ["compute_s", "exposed_comm_s"], "where": "workers == 2"},
        {"kind": "scaling"},
    ]
    synthetic.write_manifest(folder, configs, figure=figure, question="Is <this> $safe$?")
    return folder


@pytest.fixture(scope="module")
def report(hostile: Path) -> Report:
    return build_report(load_cells(hostile))


def test_failures_are_shown_in_panels_and_in_the_table(report: Report) -> None:
    study = report.study
    assert study is not None
    assert report.problems == []
    bars, curves, _ = study.panels
    assert sorted(bars.missing) == ["never, 4 workers: planned", "s1, 2 workers: oom"]
    assert len(curves.series) == 18
    rows = {row.label[0]: row for row in study.rows}
    assert (rows["s1"].n, rows["s1"].status, rows["s1"].reason) == (0, "oom", "hang: rank 1: <b>out</b> of $memory$")
    assert (rows["s2"].n, rows["s2"].status, rows["s2"].reason) == (1, "ok, but 1 timeout", "hang: too long")
    assert (rows["never"].n, rows["never"].status) == (0, "planned")
    assert rows["s1"].values["accuracy"] is None


def test_hostile_names_are_harmless_in_every_format(report: Report) -> None:
    files = all_files(report, with_figures=True)
    assert {"study.png", "study.svg", "study.csv", "scaling.md", "scaling.tex", "scaling.json"} <= set(files)
    svg = files["study.svg"].decode()
    assert "<script" not in svg
    assert "and 6 more, in the table only" in svg
    assert "no number: s1, 2 workers: oom" in svg
    page = markdown(report, ["study.png"])
    assert "<script" not in page
    assert "<b>" not in page
    assert "![study](study.png)" in page
    assert "\\$memory\\$" in latex(report)
    # The same records make the same bytes: figures can be compared by their checksums.
    assert all_files(report, with_figures=True) == files


def test_the_scaling_figures_belong_to_a_study_that_asks_for_them(tmp_path: Path) -> None:
    def files(name: str, figure: list[dict[str, Any]]) -> set[str]:
        folder = tmp_path / name
        synthetic.write(folder, [synthetic.record(synthetic.config(n)) for n in (1, 2)])
        synthetic.write_manifest(folder, [synthetic.config(n) for n in (1, 2)], figure=figure)
        report = build_report(load_cells(folder))
        return set(all_files(report, with_figures=True))

    bars, scaling = {"kind": "bars", "y": "step_time_s"}, {"kind": "scaling"}
    assert {"study.png", "speedup.png"} <= files("both", [bars, scaling])
    assert "speedup.png" not in files("bars", [bars])
    alone = files("alone", [scaling])
    assert "speedup.png" in alone
    assert "study.csv" not in alone


def test_the_schema_describes_studies(report: Report) -> None:
    schema = json_schema()["$defs"]
    for name, struct in (("Study", Study), ("Panel", Panel), ("PanelPoint", PanelPoint), ("PanelSeries", PanelSeries)):
        assert set(schema[name]["properties"]) == set(struct.__struct_fields__)
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def panel_of(entry: int, mark: Any = "bars", **changes: Any) -> Panel:
    points = [PanelPoint(x=float(x), y=Estimate(value=x, low=x, high=x), n=1) for x in (1, 2)]
    series = [PanelSeries(label="a", points=points)]
    return Panel(kind="", mark=mark, title="", x_label="x", y_label="y", series=series, entry=entry, **changes)


def test_an_entry_of_several_panels_begins_a_row() -> None:
    rows = _rows([panel_of(entry) for entry in (0, 0, 1, 2, 3, 4, *[5] * 5)])
    assert [[panel.entry for panel in row] for row in rows] == [[0, 0], [1, 2], [3, 4], [5, 5, 5], [5, 5]]


def test_ticks_stand_at_values_and_do_not_touch() -> None:
    assert _spaced([1, 2, 4, 8], logarithmic=True) == [1, 2, 4, 8]
    assert _spaced([7], logarithmic=False) == [7]
    many = _spaced(list(range(1, 101)), logarithmic=False)
    assert many[0] == 1
    assert len(many) <= 21


def overlaps(axes: Any, renderer: Any) -> list[str]:
    """Texts beside a panel that touch each other: values, labels of axes, legend, remarks."""
    legend = axes.get_legend()
    boxes = [(axis.label.get_text(), axis.label.get_window_extent(renderer)) for axis in (axes.xaxis, axes.yaxis)]
    boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts]
    boxes += [("legend", legend.get_window_extent(renderer))] if legend else []
    boxes += [("frame", axes.get_window_extent(renderer))]
    return [
        f"{one} / {other}"
        for index, (one, first) in enumerate(boxes)
        for other, second in boxes[:index]
        if one and other and first.width and second.width and first.overlaps(second)
    ]


def test_nothing_beside_a_panel_touches_anything_else(report: Report, tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from analysis.figures import study

    over = Estimate(value=0.5, low=0.4, high=0.6)
    with_base = panel_of(9, notes=["best: a (1 s)"])
    with_base.series[0].points[1].y_over = over
    assert report.study
    panels = [*report.study.panels, with_base, panel_of(10, "line", missing=["b: oom"])]
    drawn: list[Figure] = []
    figure_files({"study": lambda: drawn.append(study._draw(panels)) or drawn[0]})  # type: ignore[func-returns-value]
    (figure,) = drawn
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    all_axes = [axes for axes in figure.axes if axes.axison]
    assert len(all_axes) == 5
    for axes in all_axes:
        assert overlaps(axes, canvas.get_renderer()) == []
        for text in axes.texts:
            box = text.get_window_extent(canvas.get_renderer())
            assert box.y0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1, text.get_text()


def test_nothing_measured_makes_no_figure() -> None:
    empty = Study(label_keys=[], measures={}, rows=[], panels=[msgspec.structs.replace(panel_of(0), series=[])])
    assert study_drawing(empty) == {}


def test_a_new_kind_is_checked_by_its_parameters() -> None:
    @panel_kind("test_only", lambda _options: [])
    def only(subject: Subject, *, limit: float, names: list[str] | None = None) -> Panel:
        return panel_of(0)

    assert check_figure([{"kind": "test_only", "limit": 1}]) == []
    assert check_figure([{"kind": "test_only", "limit": "x"}]) == ["figure[0]: limit=x: must be a number"]
    assert check_figure([{"kind": "test_only", "limit": 1, "names": 2}]) == [
        "figure[0]: names=2: must be a list or null"
    ]
    with pytest.raises(ConfigError, match="limit: must be given"):
        make_panel(Subject(cells=[], title=""), {"kind": "test_only"})
