"""The figures: what is drawn where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import scaling
from analysis.figures.report import begun, figure_names
from analysis.runs.load import load_cells
from analysis.schema import Report
from analysis.series import build_report
from tests import synthetic

FIGURES = {f"{name}.{kind}" for name in ("throughput", "speedup", "efficiency") for kind in ("png", "svg")}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """One strong series on 2, 4 and 8 workers, the last crowded; 16 failed."""
    folder = tmp_path_factory.mktemp("small")
    records = [synthetic.record(synthetic.config(n, repeat=r), [0.1 / n + r / 100] * 4) for n in (2, 4) for r in (0, 1)]
    records += [synthetic.record(synthetic.config(8), [0.02] * 4, notes=["oversubscribed"])]
    records += [synthetic.failed(synthetic.config(16), "oom")]
    synthetic.write(folder, records)
    return build_report(load_cells(folder))


def panel(report: Report, name: str) -> Axes:
    (measure,) = [measure for measure in scaling._MEASURES if measure.name == name]
    (axes,) = scaling._draw(report, scaling._rows(report), measure).axes
    return axes


def markers(axes: Axes, marker: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_marker() == marker]


def test_points_hollow_where_crowded_and_a_cross_where_failed(small: Report) -> None:
    axes = panel(small, "throughput")
    drawn = {
        (workers, value): line.get_markerfacecolor() == "white"
        for line in markers(axes, "o")
        for workers, value in np.asarray(line.get_xydata()).tolist()
    }
    values = {p.workers: p.throughput_samples_per_s.value for p in small.strong[0].points if p.throughput_samples_per_s}
    assert drawn == {(2, values[2]): False, (4, values[4]): False, (8, values[8]): True}
    (cross,) = markers(axes, "x")
    assert list(cross.get_xdata()) == [16]  # type: ignore[arg-type]
    bars = [bar for container in axes.containers for bar in container[2][0].get_segments()]
    assert len(bars) == 3  # an interval at each point


def test_ideal_line_goes_through_the_base(small: Report) -> None:
    (ideal,) = [line for line in panel(small, "speedup").lines if line.get_linestyle() == "--"]
    assert [list(ideal.get_xdata()), list(ideal.get_ydata())] == [[2, 16], [1, 8]]  # type: ignore[arg-type]
    (one,) = [line for line in panel(small, "efficiency").lines if line.get_linestyle() == "--"]
    assert list(one.get_ydata()) == [1, 1]  # type: ignore[arg-type]


def test_axes_have_units_ticks_at_measured_workers_and_a_legend_with_n(small: Report) -> None:
    axes = panel(small, "throughput")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("workers", "throughput [samples/s]")
    assert list(axes.get_xticks()) == [2, 4, 8, 16]
    legend = axes.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["64 (n=2,2,1)", "hollow: oversubscribed", "failed, no number"]


def test_nothing_measured_makes_no_figure(tmp_path: Path) -> None:
    synthetic.write(tmp_path, [synthetic.failed(synthetic.config(n), "oom") for n in (1, 2)])
    assert figure_names(build_report(load_cells(tmp_path))) == []


def drawn(report: Report) -> dict[str, bytes]:
    return begun(report)()


def test_a_large_sweeps_figures_are_drawn_elsewhere_and_are_the_same(
    small: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = drawn(small)
    monkeypatch.setattr("analysis.figures.report._MANY_CELLS", 1)
    monkeypatch.setattr("analysis.figures.report.figure_files", None)  # of this process
    assert drawn(small) == here


def test_figures_of_many_series_and_hostile_names(tmp_path: Path) -> None:
    records = []
    for index, name in enumerate(["$\\frac{1}{", "_hidden", "<script>", "x" * 300, *map(str, range(14))]):
        for workers in (1, 2, 7, 8):
            of = synthetic.config(workers, global_batch=56, strategy={"name": name})
            ids = {"cell_id": f"{index}-{workers}", "run_id": f"{index}-{workers}"}
            records.append(synthetic.record(of, [0.1 / workers] * 4, **ids))
    synthetic.write(tmp_path, records)
    report = build_report(load_cells(tmp_path))
    rows = scaling._rows(report)
    assert [(title, len(kinds["strong"])) for title, kinds in rows] == [("lenet (1 of 3)", 8)]
    files = drawn(report)
    assert set(files) == FIGURES
    assert set(figure_names(report)) == {name for name in FIGURES if name.endswith(".png")}
    assert b"<script" not in files["speedup.svg"]
    assert b"10 more series are in the tables only" in files["speedup.svg"]


def test_tick_labels_do_not_touch() -> None:
    assert scaling._ticks([1, 2, 4, 8]) == [1, 2, 4, 8]
    assert scaling._ticks([3]) == [3]
    many = scaling._ticks(list(range(1, 65)))
    assert scaling._ticks([1, 2, 7, 8]) == [1, 2, 7, 8]
    assert len(many) <= 18
    assert many[:2] == [1, 2]
