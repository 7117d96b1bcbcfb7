"""The tables: what they say, and that no name can do harm in any format."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from analysis.runs.load import load_cells
from analysis.schema import Report
from analysis.series import build_report
from analysis.tables import cells, formats
from analysis.tables.side_by_side import strategies_table
from analysis.wording import clean, clean_long, number
from benchmarks.core.record import Memory
from benchmarks.core.sweep import Dropped
from tests import synthetic

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b|c",
    "=HYPERLINK(\"http://x\",'y')",
    "50%_$x^2$ & #1 {~} \\input{/etc/passwd}",
    "*bold* `code` [link](javascript:1) ![i](x)",
    "[bold red]rich[/] \x1b[31mred\x1b[0m\nnext line\r\n| new | row |",
    "x" * 500,
    "-1+1|cmd",
    "@SUM(A1)",
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("demo")
    synthetic.demo_sweep(folder)
    return build_report(load_cells(folder))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    folder = tmp_path_factory.mktemp("hostile")
    records = []
    for index, name in enumerate(HOSTILE):
        for workers in (1, 2):
            of = synthetic.config(workers, workload={"name": name})
            names = {"cell_id": f"c{index}-{workers}", "run_id": f"c{index}-{workers}"}
            if workers == 1:
                records.append(synthetic.record(of, notes=[name], cell_id=names["cell_id"], run_id=names["run_id"]))
            else:
                failed = synthetic.failed(of, "error", name)
                failed.run_id, failed.cell_id = names["run_id"], names["cell_id"]
                records.append(failed)
    synthetic.write(folder, records)
    synthetic.write_manifest(folder, [], [Dropped(settings={"workload": name}, reason=name) for name in HOSTILE])
    return build_report(load_cells(folder))


def terminal(report: Report, width: int = 100) -> str:
    stream = io.StringIO()
    formats.print_report(report, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


def test_worked_example_to_the_third_digit_in_every_format(tmp_path: Path) -> None:
    for workers, time in ((1, 18.34), (4, 5.02)):
        of = synthetic.config(workers, global_batch=8192 * workers, epochs=2, steps=None)
        synthetic.write(tmp_path, [synthetic.epochs_record(of, [time, time], 8 // workers)])
    report = build_report(load_cells(tmp_path))
    for text in (terminal(report), formats.markdown(report, [])):
        assert "3.65" in text
        assert "0.913" in text
        assert "A ratio below 1 of weak-scaling times is an efficiency, not a speed" in text.replace("\n", " ")
    assert "3.65" in formats.latex(report)
    (_, row) = csv.DictReader(io.StringIO(formats.scaling_csv(report, report.weak)))
    assert round(float(row["speedup"]), 3) == 3.653
    assert round(float(row["efficiency"]), 3) == 0.913
    assert float(row["epoch_time_s"]) == pytest.approx(5.02)


def test_terminal_says_base_failures_and_what_is_missing(demo: Report) -> None:
    text = terminal(demo)
    assert "96 runs planned: 87 ok, 4 failed (3 oom, 1 timeout), 5 missing" in text
    assert re.search(r"lenet ddp, global batch 512; base: 1 worker, \d\d\.\d ms per step, \d{4} samples/s", text)
    assert "8 workers: 3 of 3 failed: oom (hang: rank 3: out of memory)" in text
    assert "4 workers: 1 of 3 failed: timeout" in text
    assert re.search(r"^ +8 +0 +- +- +- +- +- +planned", text, re.MULTILINE)
    assert "strategy=single needs workers == 1" in text
    assert "8 †" in text
    assert "† oversubscribed" in text
    assert "75 % with 3" in " ".join(text.split())


@pytest.mark.parametrize("width", [100, 80])
def test_terminal_keeps_its_width(demo: Report, hostile: Report, width: int) -> None:
    for report in (demo, hostile):
        assert max(map(len, terminal(report, width).splitlines())) <= width


def test_terminal_shortens_endless_tables(tmp_path: Path) -> None:
    records = [synthetic.record(synthetic.config(n, global_batch=b)) for n in (1, 2) for b in range(2, 102, 2)]
    synthetic.write(tmp_path, records)
    text = terminal(build_report(load_cells(tmp_path)))
    assert "... and 40 rows more" in text


def test_base_line_names_smaller_points_without_a_number(tmp_path: Path) -> None:
    configs = [synthetic.config(n) for n in (1, 2, 4)]
    synthetic.write(tmp_path, [synthetic.failed(configs[0], "oom"), *map(synthetic.record, configs[1:])])
    (series,) = build_report(load_cells(tmp_path)).strong
    assert cells.base_line(series) == "base: 2 workers, 100 ms per step, 640 samples/s (without a number: 1: oom)"


def test_intervals_are_shown_with_their_own_ends(tmp_path: Path) -> None:
    times = {1: (0.4, 0.4, 0.4), 2: (0.20, 0.25, 0.32)}
    synthetic.write(
        tmp_path,
        [synthetic.record(synthetic.config(n, repeat=r), [t] * 4) for n in times for r, t in enumerate(times[n])],
    )
    text = formats.markdown(build_report(load_cells(tmp_path)), []).replace("\\", "")
    (row,) = [line for line in text.splitlines() if re.match(r"\|\s+1 \|\s+2 \|", line)]
    shown = [part.strip() for part in row.split("|")]
    assert "250 [200, 320]" in shown  # ms
    assert "256 [200, 320]" in shown  # samples/s
    assert "1.60 [1.25, 2.00]" in shown
    assert "0.800 [0.625, 1.00]" in shown


def test_above_ideal_has_a_mark_and_a_footnote(tmp_path: Path) -> None:
    synthetic.write(tmp_path, [synthetic.record(synthetic.config(n), [t] * 4) for n, t in ((1, 0.4), (2, 0.1))])
    text = terminal(build_report(load_cells(tmp_path)))
    assert "2 †" in text
    assert "† above the ideal by more than the interval" in text


def test_cells_outside_series_are_listed(tmp_path: Path) -> None:
    synthetic.write(
        tmp_path, [synthetic.record(synthetic.config(1)), synthetic.record(synthetic.config(2, global_batch=6))]
    )
    report = build_report(load_cells(tmp_path))
    text = terminal(report)
    assert "Cells outside any series" in text
    assert "No scaling series" in text
    assert "What was planned is not known: 2 ok, 0 failed" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8858, "0.886"),
        (1.7716, "1.77"),
        (18.07, "18.1"),
        (4103.4, "4103"),
        (99.94, "99.9"),
        (99.97, "100"),
        (1.0, "1.00"),
        (0.9996, "1.00"),
        (0.000123, "1.23e-04"),
        (0, "0"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_markdown_tables_have_equal_columns_and_no_markup_from_names(hostile: Report) -> None:
    text = formats.markdown(hostile, ["speedup.png"])
    assert "<script" not in text
    assert "![speedup](speedup.png)" in text
    assert not re.search(r"(?<!\\)\[link", text)
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 2
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in block}) == 1
    assert len(blocks[1]) == len(HOSTILE) + 2  # one row each, no new rows


def test_latex_has_no_active_characters_from_names(hostile: Report) -> None:
    text = formats.latex(hostile)
    assert "\\input{/etc" not in text
    assert text.count("\\begin{table}") == text.count("\\end{table}") == 2
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    body = text.split("\\hline")[1:]
    assert not any(re.search(r"(?<!\\)[$#_%^~]", part.partition("\\end{tabular}")[0]) for part in body)


@given(st.text())
def test_latex_escape_leaves_nothing_active(text: str) -> None:
    escaped = formats.escape_latex(text)
    bare = re.sub(r"\\[a-zA-Z]+\{\}|\\[{}$&#%_]|\{[\[\]]\}|-\{\}", "", escaped)
    assert not re.search(r"[\\{}$&#%_^~<>|\"\[\]]|--", bare)


@given(st.text())
def test_markdown_escape_leaves_nothing_active(text: str) -> None:
    escaped = formats.escape_markdown(clean(text))
    bare = re.sub(r"\\[\\`*_{}\[\]|$~#!]|&amp;|&lt;|&gt;", "", escaped)
    assert not re.search(r"[\\`*_{}\[\]|$~#!<>&\n]", bare)


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_csv_round_trips_and_guards_formulas(texts: list[str]) -> None:
    (_, row) = csv.reader(io.StringIO(formats.write_csv(["h"] * len(texts), [texts])))
    for text, read in zip(texts, row, strict=True):
        assert not read.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert read.removeprefix("'") == clean_long(text).removeprefix("'")


def test_csv_of_hostile_names(hostile: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(formats.cells_csv(hostile))))
    assert len(rows) == 2 * len(HOSTILE)
    assert all(None not in row and None not in row.values() for row in rows)
    assert {row["workload"] for row in rows} >= {"'=HYPERLINK(\"http://x\",'y')", "'-1+1|cmd", "'@SUM(A1)", "x" * 500}
    assert float(rows[0]["step_time_s"] or "nan") == pytest.approx(0.1) or rows[0]["status"] == "error"


def test_csv_numbers_stay_numbers() -> None:
    assert formats.write_csv(["a", "b", "c"], [[-1.5, None, 3]]) == "a,b,c\n-1.5,,3\n"


def test_terminal_obeys_no_codes_from_names(hostile: Report) -> None:
    text = terminal(hostile)
    assert "\x1b" not in text
    assert "[bold red]rich[/]" in text


def test_strategies_stand_side_by_side(tmp_path: Path) -> None:
    """By strategy and number of workers, each with the options that tell its own cells apart."""
    ddp = [synthetic.config(2, strategy={"name": "ddp", "bucket_mb": 25, "hook": hook}) for hook in ("none", "fp16")]
    pipeline = synthetic.config(2, strategy={"name": "pipeline", "schedule": "gpipe"})
    single = synthetic.config(1, strategy={"name": "single"})
    on_cpu = Memory(peak_host_bytes=9_000_000, peak_device_bytes=None)
    records = [
        synthetic.record(config, cell_id=f"cell{n}", run_id=f"run{n}", memory=on_cpu)
        for n, config in enumerate((single, *ddp))
    ]
    on_gpu = Memory(peak_host_bytes=9_000_000, peak_device_bytes=3_000_000)
    synthetic.write(tmp_path, [*records, synthetic.record(pipeline, memory=on_gpu)])
    table = strategies_table(build_report(load_cells(tmp_path)))
    assert table is not None
    shown = [
        [row[table.header.index(name)].text for name in ("strategy", "workers", "memory [MB]")] for row in table.rows
    ]
    assert shown == [
        ["ddp hook=fp16", "2", "9.00"],
        ["ddp hook=none", "2", "9.00"],
        ["pipeline", "2", "3.00"],
        ["single", "1", "9.00"],
    ]
    assert "Strategies side by side" in terminal(build_report(load_cells(tmp_path)))


def test_one_strategy_has_nothing_beside_it(tmp_path: Path) -> None:
    synthetic.write(tmp_path, [synthetic.record(synthetic.config(n)) for n in (1, 2)])
    assert strategies_table(build_report(load_cells(tmp_path))) is None
