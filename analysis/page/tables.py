"""The tables of the page: those of the terminal, with what the page's filters look at, and those that only it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.page.chart import FILTERS, setting_text, tags
from analysis.schema import Report, Series
from analysis.tables.columns import Entry, TextTable, estimated, plain
from analysis.tables.diagnosis import diagnosis_table
from analysis.tables.formats import all_tables
from analysis.wording import clean, clean_long, number

_NUMBER_STARTS = "0123456789-><"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A table's row with what the page's filters look at."""

    entries: list[Entry]
    tags: dict[str, str]
    bad: bool


@dataclass(frozen=True, kw_only=True)
class ShownTable:
    """A table of the page."""

    name: str
    title: str
    header: list[str]
    numeric: list[bool]
    rows: list[Row]
    sections: list[str]
    notes: list[str]


def filters(report: Report) -> dict[str, list[str]]:
    """The values of each setting that the page can be filtered by; settings that do not differ are left out."""
    found = {
        key: sorted({setting_text(point.settings[key]) for point in report.cells})
        for key in FILTERS
        if key in report.setting_keys
    }
    return {key: values for key, values in found.items() if len(values) > 1}


def tables(report: Report) -> list[ShownTable]:
    """The tables that the terminal and Markdown have, too."""
    choices = filters(report)
    return [_shown(table, choices) for table in all_tables(report)]


def _shown(table: TextTable, choices: dict[str, list[str]]) -> ShownTable:
    status = table.header.index("status") if "status" in table.header else None
    places = {key: table.header.index(key) for key in choices if key in table.header}
    rows = [
        Row(
            entries=row,
            tags={key: _choice(row[place].text, choices[key]) for key, place in places.items()},
            bad=status is not None and not row[status].text.startswith("ok"),
        )
        for row in table.rows
    ]
    return ShownTable(
        name=table.name,
        title=table.title,
        header=table.header,
        numeric=_numeric(table.rows, len(table.header)),
        rows=rows,
        sections=[heading for heading, _ in table.sections],
        notes=table.notes,
    )


def _choice(text: str, choices: Sequence[str]) -> str:
    """The filter's value that an entry stands for: side by side, a strategy's name is followed by its options."""
    fitting = [choice for choice in choices if text == choice or text.startswith(f"{choice} ")]
    return max(fitting, key=len, default=text)


def _numeric(rows: Sequence[Sequence[Entry]], columns: int) -> list[bool]:
    """Whether a column holds numbers, and so is set to the right."""
    return [all(row[index].text[:1] in _NUMBER_STARTS for row in rows) and bool(rows) for index in range(columns)]


def laws_table(report: Report) -> ShownTable | None:
    """The fitted law of each series, or why there is none."""
    found = [series for series in [*report.strong, *report.weak] if series.fit]
    if not found:
        return None
    rows = [Row(entries=_law(series), tags=_tags(series, report), bad=False) for series in found]
    header = ["series", "law", "parameters", "explained", "hold-out", "predicted [ms]", "miss", "forecast [ms]"]
    return ShownTable(
        name="laws",
        title="Scaling laws: what describes each series best, and how well it told the largest count beforehand",
        header=header,
        numeric=[False, False, False, True, True, True, True, False],
        rows=rows,
        sections=[],
        notes=[
            "explained: share of the variance of log time. Hold-out: the largest number of workers, predicted from all "
            "others; miss = predicted / measured - 1.",
        ],
    )


def _tags(series: Series, report: Report) -> dict[str, str]:
    return {key: setting_text(series.settings[key]) for key in filters(report) if key in series.settings}


def _law(series: Series) -> list[Entry]:
    fit = series.fit
    assert fit is not None
    name = Entry(clean(f"{series.kind} {series.number}: {series.label}"))
    if fit.model is None:
        return [name, Entry(f"none: {clean_long(fit.refused or 'not fitted')}"), *[Entry("-")] * 6]
    parameters = ", ".join(f"{key} = {number(value)}" for key, value in fit.parameters.items())
    held = fit.held_out
    ahead = [point for point in fit.curve if not point.measured and point.workers > series.points[-1].workers]
    forecasts = [f"{p.workers} workers: {' '.join(filter(None, estimated(p.step_time_s, 1e3)))}" for p in ahead]
    return [
        name,
        Entry(clean(fit.model)),
        Entry(parameters),
        plain(fit.explained),
        Entry(f"{held.workers}" if held else "-"),
        estimated(held.predicted_s if held else None, 1e3),
        Entry(f"{held.miss:+.1%}" if held else "-"),
        Entry("; ".join(forecasts) or "-"),
    ]


def origins_table(report: Report) -> ShownTable | None:
    """What the numbers were made with."""
    rows = [
        Row(
            entries=[Entry(origin.fact.removesuffix("s")), Entry(clean(origin.value)), Entry(str(origin.runs))],
            tags={},
            bad=False,
        )
        for origin in report.origins
    ]
    return ShownTable(
        name="origins",
        title="What the numbers were made with, and in how many runs",
        header=["fact", "value", "runs"],
        numeric=[False, False, True],
        rows=rows,
        sections=[],
        notes=[],
    ) if rows else None  # fmt: skip


def diagnosis_shown(report: Report) -> ShownTable | None:
    """What limits each cell, and the evidence."""
    table = diagnosis_table(report)
    if table is None:
        return None
    shown = _shown(table, {})
    choices = filters(report)
    of_cells = [tags(point.settings) for point in report.cells if point.bottleneck]
    rows = [
        replace(row, tags={key: value for key, value in own.items() if key in choices})
        for row, own in zip(shown.rows, of_cells, strict=True)
    ]
    return replace(shown, rows=rows)
