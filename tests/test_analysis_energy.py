"""Energy and money from records with known joules and prices: numbers, columns, words, targets, recommendations."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from analysis.advice.candidates import Wanted
from analysis.cells.measures import estimate_of, label_of
from analysis.cells.target import to_target
from analysis.exports.results import columns, results_csv
from analysis.recommend import main, recommend
from analysis.report import main as report_main
from analysis.runs import metrics
from analysis.runs.energy import NOT_RECORDED, of_clocks
from analysis.runs.load import Cell, load_cells
from analysis.schema import Report
from analysis.series import build_report
from analysis.study.panels import Subject, make_panel
from analysis.tables import formats
from analysis.tables.cells import scaling_table
from analysis.wording import energy_words
from benchmarks.core.energy import SCOPES
from benchmarks.core.record import Record
from tests import synthetic
from tests.test_analysis_recommend import MILLION, PRICED
from tests.test_analysis_target import record as course_of

WHY = "no energy counter: /sys/class/powercap has no package"
# Joules of a window of 4 steps, and seconds of a step of 64 samples. More workers are faster, and use more.
WINDOWS: Mapping[int, tuple[float, float]] = {1: (80.0, 0.4), 2: (100.0, 0.25), 4: (160.0, 0.2)}


def test_measures_are_plain_ratios() -> None:
    assert metrics.energy_j_per_million_samples(80.0, 256) == 312_500.0
    assert metrics.mean_power_w(80.0, 1.6) == 50.0
    # 15,625 steps of 0.2 s on 4 workers are 12,500 worker-seconds.
    assert metrics.cost_per_million_samples(0.2, 64, 4, 3.0) == pytest.approx(12_500 / 3600 * 3)


def records(windows: Mapping[int, tuple[float, float]] = WINDOWS, repeats: int = 3, **changes: Any) -> list[Record]:
    return [
        synthetic.record(
            synthetic.config(workers, repeat=repeat, cluster=PRICED),
            [step_s] * 4,
            **({"energy": synthetic.energy(*[[joules / workers]] * workers)} | changes),
        )
        for workers, (joules, step_s) in windows.items()
        for repeat in range(repeats)
    ]


def report_of(folder: Path, found: list[Record]) -> Report:
    synthetic.write(folder, found)
    return build_report(load_cells(folder))


def test_a_cell_has_its_energy_power_and_cost(tmp_path: Path) -> None:
    one, two, four = report_of(tmp_path, records()).cells
    for point, joules, watts, cost in (
        (one, 80.0, 50.0, 6250),
        (two, 100.0, 100.0, 7812.5),
        (four, 160.0, 200.0, 12500),
    ):
        assert point.energy_j_per_million_samples is not None
        assert point.energy_j_per_million_samples.value == pytest.approx(joules / 256 * 1e6)
        assert point.mean_power_w is not None
        assert point.mean_power_w.value == pytest.approx(watts)
        assert point.cost_per_million_samples is not None
        assert point.cost_per_million_samples.value == pytest.approx(cost / 3600 * 3)
        assert point.idle_power_w == 60.0 * point.workers
        assert (point.energy_scope, point.energy_unknown_because) == (SCOPES["nvml"], None)


def test_the_median_repeat_counts_and_the_others_make_its_interval(tmp_path: Path) -> None:
    found = records({2: (100.0, 0.25)})
    for joules, record in zip((90.0, 100.0, 130.0), found, strict=True):
        record.energy = synthetic.energy([joules / 2], [joules / 2])
    (point,) = report_of(tmp_path, found).cells
    value = point.energy_j_per_million_samples
    assert value is not None
    assert value.value == pytest.approx(100.0 / 256 * 1e6)
    assert value.low == pytest.approx(90.0 / 256 * 1e6)
    assert value.high == pytest.approx(130.0 / 256 * 1e6)


def terminal(report: Report) -> str:
    stream = io.StringIO()
    formats.print_report(report, Console(file=stream, width=100, highlight=False))
    assert max(map(len, stream.getvalue().splitlines())) <= 100
    return stream.getvalue()


def test_the_tables_have_columns_and_say_what_they_count(tmp_path: Path) -> None:
    report = report_of(tmp_path, records())
    page = formats.markdown(report, [])
    header = next(line for line in page.splitlines() if "speed-up" in line and line.startswith("|"))
    for name in (r"energy \[kJ/1e6\]", r"power \[W\]", r"cost \[USD/1e6\]"):
        assert name in header
    assert "energy: for a million samples, in the window alone; of the workers' GPUs, without their hosts." in page
    assert "312" in page, "80 J for 256 samples are 312 kJ for a million"
    assert "Energy" not in terminal(report)


def test_side_by_side_and_lone_cells_show_it_in_the_terminal_too(tmp_path: Path) -> None:
    strategies = [{"name": name} for name in ("ddp", "fsdp")]
    found = [
        synthetic.record(
            synthetic.config(2, strategy=strategy),
            run_id=f"{strategy['name']}",
            cell_id=f"cell-{strategy['name']}",
            energy=synthetic.energy([50.0], [50.0]),
        )
        for strategy in strategies
    ]
    for folder, some in (("both", found), ("lone", found[:1])):
        shown = terminal(report_of(tmp_path / folder, some))
        assert "391" in shown, "100 J for 256 samples are 391 kJ for a million"
        assert "kJ/1e6" in shown


def test_where_nothing_is_known_a_line_says_why_and_no_column_is_there(tmp_path: Path) -> None:
    report = report_of(tmp_path, records(energy=synthetic.energy(source="rapl", unknown=WHY)))
    shown = terminal(report)
    assert " ".join(shown.split()).count(f"Energy is unknown: {WHY}") == 1
    assert "kJ" not in shown
    assert "kJ" not in formats.markdown(report, [])
    assert all(point.energy_j_per_million_samples is None for point in report.cells)


def test_where_some_cells_have_none_they_have_a_dash_and_the_line_counts_them(tmp_path: Path) -> None:
    found = records()
    for record in found[:3]:
        record.energy = synthetic.energy(unknown=WHY)
    report = report_of(tmp_path, found)
    assert f"Energy of 1 of 3 cells is unknown: {WHY}" in " ".join(terminal(report).split())
    table = scaling_table(report, "strong")
    assert table is not None
    place = table.header.index("energy [kJ/1e6]")
    assert [row[place].text for row in table.rows] == ["-", "391", "625"]


def test_one_span_that_is_unknown_makes_the_whole_unknown(tmp_path: Path) -> None:
    (point,) = report_of(tmp_path, records({2: (1.0, 0.25)}, energy=synthetic.energy([1.0], [None]))).cells
    assert point.energy_j_per_million_samples is None
    assert point.energy_unknown_because == "a counter failed within the window"


def test_old_records_say_that_they_are_old(tmp_path: Path) -> None:
    report = report_of(tmp_path, records(energy=None))
    assert {point.energy_unknown_because for point in report.cells} == {NOT_RECORDED}


def test_files_for_programs_have_it_in_full(tmp_path: Path) -> None:
    report = report_of(tmp_path, records())
    for text in (formats.cells_csv(report), results_csv(report)):
        first = next(csv.DictReader(io.StringIO(text)))
        assert float(first["energy_j_per_million_samples"]) == pytest.approx(312_500)
        assert float(first["mean_power_w_high"]) == pytest.approx(50)
        assert float(first["idle_power_w"]) == 60.0
        assert float(first["cost_per_million_samples"]) == pytest.approx(6250 / 3600 * 3)
        assert first["energy_scope"] == SCOPES["nvml"]
    units = {column.name: column.unit for column in columns(report)}
    assert units["energy_j_per_million_samples"] == "J"
    assert units["mean_power_w_low"] == "W"
    assert units["cost_per_million_samples"] == "USD"


def cells_of(folder: Path, found: list[Record]) -> list[Cell]:
    synthetic.write(folder, found)
    return load_cells(folder).cells


def test_studies_can_plot_it_and_name_what_is_missing(tmp_path: Path) -> None:
    found = records()
    for record in found[-3:]:
        record.energy = synthetic.energy(unknown=WHY)
    cells = cells_of(tmp_path, found)
    panel = make_panel(Subject(cells=cells, title=""), {"kind": "bars", "y": "energy_j_per_million_samples"})
    assert sorted(point.y.value for point in panel.series[0].points) == pytest.approx([312_500, 390_625])
    assert panel.missing == [f"4 workers: {WHY}"]
    panel = make_panel(Subject(cells=cells, title=""), {"kind": "bars", "y": "cost_per_million_samples"})
    assert panel.y_label == label_of("cost_per_million_samples", cells) == "cost of a million samples [USD]"
    assert len(panel.series[0].points) == 3
    assert panel.missing == []


def to_accuracy(accuracies: list[float], span_j: list[float | None], repeat: int = 0) -> Record:
    made = course_of(accuracies, repeat)
    made.energy = synthetic.energy(span_j, span_j)
    return made


def test_energy_to_target_ends_with_the_span_that_arrives(tmp_path: Path) -> None:
    """Two ranks; the target of 0.9 is reached after the second of four epochs."""
    (cell,) = cells_of(tmp_path, [to_accuracy([0.5, 0.92, 0.95, 0.99], [3.0, 4.0, 5.0, 6.0])])
    value = estimate_of(cell, "energy_to_target_j")
    assert value is not None
    assert value.value == 2 * (3.0 + 4.0)


def test_a_run_that_never_arrives_has_spent_at_least_what_is_known(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, [to_accuracy([0.5, 0.6, 0.7, 0.8], [3.0, 4.0, 5.0, 6.0])])
    value = to_target(cell, "energy_j")
    assert value is not None
    assert (value.is_bound, value.value) == (True, 36.0)
    cut = to_accuracy([0.5, 0.6], [3.0, None])
    cut.status = "timeout"
    (cell,) = cells_of(tmp_path / "cut", [cut])
    value = to_target(cell, "energy_j")
    assert value is not None
    assert (value.is_bound, value.value) == (True, 6.0)


def test_energy_to_target_is_unknown_where_that_of_a_run_is(tmp_path: Path) -> None:
    arrived = to_accuracy([0.5, 0.95], [3.0, None])
    other = to_accuracy([0.5, 0.95], [3.0, 4.0], repeat=1)
    (cell,) = cells_of(tmp_path, [arrived, other])
    assert estimate_of(cell, "energy_to_target_j") is None
    assert estimate_of(cell, "time_to_target_s") is not None


def test_the_frugal_one_is_recommended_and_not_the_fast_one(tmp_path: Path) -> None:
    synthetic.write(tmp_path, records(repeats=6))
    result = recommend(tmp_path, "energy", MILLION)
    assert result.answers[0].best is not None
    assert result.answers[0].best.label == "1 worker"
    assert result.answers[0].best.energy_j is not None
    assert result.answers[0].best.energy_j.value == pytest.approx(312_500)
    assert result.answers[0].probability_best == 1.0
    assert "313 kJ" in result.answers[0].sentence or "312 kJ" in result.answers[0].sentence
    assert "the runner-up, 2 workers, uses 25% more" in result.answers[0].sentence
    fast = recommend(tmp_path, "time", MILLION)
    assert fast.answers[0].best is not None
    assert fast.answers[0].best.label == "4 workers"


def test_energy_scales_with_the_samples_wanted(tmp_path: Path) -> None:
    synthetic.write(tmp_path, records(repeats=6))
    result = recommend(tmp_path, "energy", Wanted(samples=2e6, max_workers=2))
    assert result.answers[0].best is not None
    assert result.answers[0].best.energy_j is not None
    assert result.answers[0].best.energy_j.value == pytest.approx(625_000)


def test_cells_without_energy_are_left_out_with_the_reason(tmp_path: Path) -> None:
    found = records(repeats=6)
    for record in found[:6]:
        record.energy = synthetic.energy(unknown=WHY)
    synthetic.write(tmp_path, found)
    result = recommend(tmp_path, "energy", MILLION)
    assert result.answers[0].best is not None
    assert result.answers[0].best.label == "2 workers"
    assert result.excluded == [f"1 worker: no measured energy ({WHY})"]
    assert recommend(tmp_path, "time", MILLION).excluded == []


def test_no_energy_anywhere_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write(tmp_path, records(energy=synthetic.energy(source="rapl", unknown=WHY)))
    for command in (main, report_main):
        assert command([str(tmp_path), "--goal", "energy"]) == 2
        error = capsys.readouterr().err
        assert error == f"error: --goal energy: no cell of {tmp_path} has measured energy ({WHY})\n"


def test_gpus_and_packages_are_not_alike(tmp_path: Path) -> None:
    found = records(repeats=6)
    for record in found[:6]:
        record.energy = synthetic.energy([80.0], source="rapl")
    synthetic.write(tmp_path, found)
    assert "Their energies are not alike" in recommend(tmp_path, "energy", MILLION).answers[0].sentence
    assert "alike" not in recommend(tmp_path, "time", MILLION).answers[0].sentence


def test_the_command_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic.write(tmp_path, records(repeats=6))
    assert main([str(tmp_path), "--goal", "energy"]) == 0
    out = capsys.readouterr().out
    assert "energy" in out
    assert "391 kJ" in out
    assert report_main([str(tmp_path), "--goal", "energy", "--no-figures"]) == 0
    assert "<dt>Energy</dt><dd>31" in (tmp_path / "analysis" / "report.html").read_text()


def test_energies_in_words() -> None:
    assert [energy_words(joules) for joules in (850.0, 12_300.0, 4.56e6, 1.2e9)] == [
        "850 J",
        "12.3 kJ",
        "4.56 MJ",
        "1.2 GJ",
    ]


def test_a_clock_that_falls_is_said(tmp_path: Path) -> None:
    steady = synthetic.energy([1.0], clocks_mhz=[1410.0] * 10 + [1380.0] * 10)
    fallen = synthetic.energy([1.0], clocks_mhz=[1410.0] * 10 + [1240.0] * 10)
    assert of_clocks(steady) == of_clocks(None) == of_clocks(synthetic.energy([1.0], clocks_mhz=[1410.0, 700.0])) == []
    (oddity,) = of_clocks(fallen)
    words = "the clock of rank 0's GPU on node0 fell by 12% during the window, from 1410 to 1240 MHz, at up to 71 °C"
    assert oddity.words == words
    of_two = msgspec.structs.replace(fallen, counters=[*steady.counters, *fallen.counters])
    report = report_of(tmp_path, records({1: (80.0, 0.4)}, repeats=1, energy=of_two))
    assert [odd.words for odd in report.cells[0].oddities] == [words]
