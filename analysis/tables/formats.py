"""The tables in the formats that people and programs read: terminal, Markdown, LaTeX, CSV.

Names come from configuration files, so each format escapes what it would otherwise obey.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, get_args

from analysis.runs.diagnosis import Cause
from analysis.schema import Point, Report, ScalingPoint, Series
from analysis.statistics.estimate import Estimate
from analysis.tables.amounts import AMOUNTS
from analysis.tables.ceilings import ceilings_table
from analysis.tables.cells import cells_table, scaling_table
from analysis.tables.columns import (
    BOTTLENECK,
    TERMINAL_WIDTH,
    Entry,
    TextTable,
    dropped_table,
    summary,
)
from analysis.tables.oddities import oddities_table
from analysis.tables.profiles import profile_table
from analysis.tables.search import search_table
from analysis.tables.side_by_side import strategies_table
from analysis.tables.study import study_table
from analysis.wording import clean, clean_long

if TYPE_CHECKING:
    from rich.console import Console

_MOST_TERMINAL_ROWS = 60
_TERMINAL_WIDTHS = {"workers": 7, "n": 7, "accuracy": 8, "straggler": 9, "global batch": 7, BOTTLENECK: 9}
_TERMINAL_NAMES = {BOTTLENECK: "limit"}
"""Where a column's values are narrower than its name."""
_LEFT = frozenset({BOTTLENECK, "status", "settings", "reason"})


def all_tables(report: Report) -> list[TextTable]:
    """The tables that have rows, in the order in which they are shown."""
    tables = [
        search_table(report) or study_table(report),
        scaling_table(report, "strong"),
        scaling_table(report, "weak"),
        (strategies_table(report) or cells_table(report)) if report.study is None else None,
        ceilings_table(report),
        oddities_table(report),
        profile_table(report),
        dropped_table(report),
    ]
    return [table for table in tables if table]


def print_report(report: Report, console: Console) -> None:
    """All tables, at most `TERMINAL_WIDTH` columns wide."""
    from rich.text import Text

    console.print(
        Text(
            f"{clean(report.sweep)} on {clean(report.cluster)}: {clean_long(report.question)}".rstrip(": "),
            style="bold",
        )
    )
    for line in summary(report):
        console.print(Text(line))
    for table in all_tables(report):
        console.print()
        console.print(Text(table.title, style="bold"))
        _print_sections(table, console)
        for note in table.notes:
            console.print(Text(note, style="dim"))


def _print_sections(table: TextTable, console: Console) -> None:
    from rich.text import Text

    shown = 0
    for heading, count in table.sections or [("", len(table.rows))]:
        rows = table.rows[shown : shown + count]
        if shown + count > _MOST_TERMINAL_ROWS:
            rows = rows[: max(0, _MOST_TERMINAL_ROWS - shown)]
        if heading and rows:
            console.print()
            console.print(Text(heading))
        if rows:
            console.print(_terminal_table(table, rows, min(console.width, TERMINAL_WIDTH)))
            for failure in filter(None, table.failures[shown : shown + len(rows)]):
                console.print(Text(f"  {failure}", style="red"))
        shown += count
    if shown > _MOST_TERMINAL_ROWS:
        console.print(Text(f"... and {shown - _MOST_TERMINAL_ROWS} rows more, in the files below", style="italic"))


def _terminal_table(table: TextTable, rows: Sequence[Sequence[Entry]], width: int) -> object:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = [index for index, name in enumerate(table.header) if name not in table.hidden_in_terminal]
    drawn = Table(box=box.SIMPLE_HEAD, width=width, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    has_intervals = [any(row[index].interval for row in rows) for index in range(len(table.header))]
    for index in shown:
        name = table.header[index]
        fixed = _TERMINAL_WIDTHS.get(name) or (14 if has_intervals[index] else None)
        numeric = name not in _LEFT and (fixed is not None or _all_numbers(row[index].text for row in rows))
        shown_name = Text(_TERMINAL_NAMES.get(name, name))
        drawn.add_column(shown_name, justify="right" if numeric else "left", min_width=fixed, overflow="fold")
    for row in rows:
        cells = []
        for index in shown:
            text = Text(row[index].text.partition(":")[0] if table.failures else row[index].text)
            if row[index].interval:
                text.append(f"\n{row[index].interval}", style="dim")
            cells.append(text)
        drawn.add_row(*cells)
    return drawn


def _all_numbers(texts: object) -> bool:
    return all(re.fullmatch(r"[\d.e+-]+", text) for text in texts)  # type: ignore[attr-defined]


def escape_markdown(text: str) -> str:
    """Harmless as a table's cell and as running text: no markup, no HTML, no further column."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|$~#!])", r"\\\1", text)


def markdown(report: Report, figures: Sequence[str]) -> str:
    """The whole report as one Markdown page; `figures` are file names beside it."""
    title = escape_markdown(clean(f"{report.sweep} on {report.cluster}"))
    parts = [f"# Scaling of {title}", escape_markdown(clean_long(report.question))]
    parts.append("\n".join(f"- {escape_markdown(line)}" for line in summary(report)))
    for table in all_tables(report):
        parts.append(f"## {escape_markdown(table.title)}")
        parts += [escape_markdown(heading) + "  " for heading, _ in table.sections] and [
            "\n".join(f"- {escape_markdown(heading)}" for heading, _ in table.sections)
        ]
        parts.append(_tabulated(table, "pipe", escape_markdown))
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in table.notes))
    if figures:
        parts.append("## Figures")
        parts += [f"![{name.partition('.')[0]}]({name})" for name in figures]
    if report.problems:
        parts.append("## Skipped\n\n" + "\n".join(f"- {escape_markdown(clean_long(line))}" for line in report.problems))
    return "\n\n".join(part for part in parts if part) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after the end of a row, a bracket would be read as the row's distance
    "]": "{]}",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "¶": r"\P{}",
    "…": r"\ldots{}",
}


def escape_latex(text: str) -> str:
    """Harmless as text in LaTeX; characters that its common fonts lack become question marks."""

    def one(char: str) -> str:
        is_known = char.isascii() or (ord(char) < 0x180 and unicodedata.category(char).startswith("L"))
        return _LATEX.get(char) or (char if is_known and char.isprintable() else "?")

    return re.sub(r"-(?=-)", "-{}", "".join(map(one, text)))  # two hyphens would become a dash


def latex(report: Report) -> str:
    """All tables, each as a `table` float. Needs the package `graphicx` and the T1 font encoding."""
    parts = [
        "% Made by analysis.scaling; \\input this file.",
        "% Needs \\usepackage{graphicx} and \\usepackage[T1]{fontenc} in the preamble.",
    ]
    for table in all_tables(report):
        below = "\\\\\n".join(map(escape_latex, [heading for heading, _ in table.sections] + table.notes))
        parts.append(
            f"\\begin{{table}}\n\\centering\n\\caption{{{escape_latex(table.title)}}}\n\\label{{tab:{table.name}}}\n"
            f"\\resizebox{{\\textwidth}}{{!}}{{%\n{_tabulated(table, 'latex_raw', escape_latex)}}}\n"
            f"\\begin{{minipage}}{{\\textwidth}}\\footnotesize\n{below}\n\\end{{minipage}}\n\\end{{table}}"
        )
    return "\n".join(parts) + "\n"


def _tabulated(table: TextTable, style: str, escape: Callable[[str], str]) -> str:
    from tabulate import tabulate

    rows = [[escape(f"{entry.text} {entry.interval}".strip()) for entry in row] for row in table.rows]
    numeric = [all(re.match(r"[\d-]", row[index].text) for row in table.rows) for index in range(len(table.header))]
    align = ["right" if right else "left" for right in numeric]
    return tabulate(
        rows, headers=list(map(escape, table.header)), tablefmt=style, colalign=align, disable_numparse=True
    )


def scaling_csv(report: Report, series: Sequence[Series]) -> str:
    """One row for each point of each series, numbers in full precision, nothing for unknown."""
    header = [
        "series",
        "base_workers",
        *_csv_header(report),
        *_interval_header("speedup"),
        *_interval_header("efficiency"),
    ]
    rows = [
        [one.number, one.base.workers if one.base else None, *_csv_row(report, point), *_scaling_values(point)]
        for one in series
        for point in one.points
    ]
    return write_csv([*header, "above_ideal"], rows)


def cells_csv(report: Report) -> str:
    """One row for each cell of the sweep, those of series among them."""
    return write_csv(_csv_header(report), [_csv_row(report, point) for point in report.cells])


def study_csv(report: Report) -> str:
    """One row for each cell of the study, with its measures in full precision."""
    study = report.study
    assert study is not None
    header = ["cell_id", *study.label_keys, "repeats_ok"]
    header += [column for name in study.measures for column in _interval_header(name)]
    rows: list[list[object]] = []
    for row in study.rows:
        values = [value for name in study.measures for value in _interval_values(row.values[name])]
        rows.append([row.cell_id, *row.label, row.n, *values, row.status])
    return write_csv([*header, "status"], rows)


def trials_csv(report: Report) -> str:
    """One row for each trial of a search."""
    search = report.search
    assert search is not None
    header = ["trial", "state", search.metric, f"after_{search.unit}", *search.keys, "distance_from_best", "reason"]
    rows: list[list[object]] = [
        [
            *(trial.number, trial.state, trial.value, trial.length),
            *(trial.settings.get(key) for key in search.keys),
            *(trial.distance, trial.reason),
        ]
        for trial in search.trials
    ]
    return write_csv(header, rows)


def _scaling_values(point: ScalingPoint) -> list[object]:
    return [*_interval_values(point.speedup), *_interval_values(point.efficiency), point.above_ideal]


def _csv_header(report: Report) -> list[str]:
    header = ["cell_id", *report.setting_keys, "workers", "global_batch", "batch_per_worker", "status", "reason"]
    header += ["repeats_planned", "repeats_ok", "steps", *_interval_header("step_time_s")]
    header += ["step_time_p95_s", "step_time_p99_s"]
    header += [*_interval_header("throughput_samples_per_s"), *_interval_header("epoch_time_s")]
    header += ["accuracy", "straggler_ratio", "exposed_comm_s", "bytes_per_step", "peak_memory_bytes"]
    return [
        *header,
        BOTTLENECK,
        *(f"{cause}_share" for cause in get_args(Cause)),
        *_interval_header("mfu"),
        *_interval_header("mfu_of_ceiling"),
        *(column for name in AMOUNTS for column in _interval_header(name)),
        *("idle_power_w", "energy_scope", "energy_unknown_because"),
        "doubts",
        "oddities",
        "notes",
    ]


def _csv_row(report: Report, point: Point) -> list[object]:
    row: list[object] = [point.cell_id, *(point.settings.get(key) for key in report.setting_keys)]
    row += [point.workers, point.global_batch, point.batch_per_worker, point.status, point.reason]
    row += [point.repeats_planned, point.repeats_ok, point.steps or None, *_interval_values(point.step_time_s)]
    row += [point.step_time_p95_s, point.step_time_p99_s]
    row += [*_interval_values(point.throughput_samples_per_s), *_interval_values(point.epoch_time_s)]
    row += [point.accuracy, point.straggler_ratio, point.exposed_comm_s, point.bytes_per_step, point.peak_memory_bytes]
    found = point.bottleneck
    row += [found and found.name, *(found and found.shares[cause] for cause in get_args(Cause))]
    row += [*_interval_values(point.mfu), *_interval_values(point.mfu_of_ceiling)]
    row += [value for name in AMOUNTS for value in _interval_values(getattr(point, name))]
    row += [point.idle_power_w, point.energy_scope, point.energy_unknown_because, "; ".join(point.doubts)]
    return [*row, "; ".join(f"{odd.kind}: {odd.words}" for odd in point.oddities), "; ".join(point.notes)]


def _interval_header(name: str) -> list[str]:
    return [name, f"{name}_low", f"{name}_high"]


def _interval_values(estimate: Estimate | None) -> list[float | None]:
    if estimate is None:
        return [None, None, None]
    # Of a lower bound only the lower end is known.
    value = None if estimate.is_bound else estimate.value
    return [value, estimate.low, None if estimate.is_bound or estimate.open_above else estimate.high]


def write_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV by RFC 4180. Text that a spreadsheet would take for a formula gets an apostrophe in front."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_guarded, header))
    writer.writerows([[_guarded(value) for value in row] for row in rows])
    return buffer.getvalue()


def _guarded(value: object) -> object:
    if value is None or isinstance(value, (int, float)):
        return value
    text = clean_long(str(value))
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
