"""Puts the page together: what the template shows, section by section, and the charts' data as JSON.

The page loads nothing: style, scripts and Plotly's own library are inside, and a content security policy lets run only
those scripts whose digests it names, so that nothing in a name of a configuration can become a script or a request.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from analysis.columns import Entry, TextTable, clean, clean_long, estimated, number, plain, summary
from analysis.goals import energy_words
from analysis.page.chart import FILTERS, Chart, setting_text
from analysis.page.grid import heat_maps
from analysis.page.rules import rules
from analysis.page.scaling import scaling_charts
from analysis.page.spent import cell_name, ledger_chart, pareto_chart
from analysis.page.study import panel_chart
from analysis.recommend import Recommendation, between, duration
from analysis.schema import Report, Series
from analysis.tables import all_tables

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


@dataclass(frozen=True, kw_only=True)
class Group:
    """Charts under one heading."""

    name: str
    title: str
    charts: list[Chart]
    notes: list[str]


def page(report: Report, advice: Recommendation | None) -> str:
    """The whole page; without a recommendation where nothing has a number yet."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("analysis.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "lasting": lambda time: duration(time.value),
        "interval": between,
        "one_line": clean_long,
        "cell_name": cell_name,
        "joules": energy_words,
    }
    groups = [group for group in chart_groups(report, advice) if group.charts]
    scripts = [plotly_source(), _own("page.js")]
    return environment.get_template("page.html.j2").render(
        report=report,
        title=clean(f"{report.sweep} on {report.cluster}"),
        question=clean_long(report.question),
        answer=clean_long(advice.sentence) if advice else "No cell has a number yet.",
        advice=advice,
        summary=summary(report),
        filters=filters(report),
        groups=groups,
        tables=tables(report),
        laws=laws_table(report),
        origins=origins_table(report),
        rules=rules(report),
        failures=[point for point in report.cells if point.reason or not point.repeats_ok],
        excluded=[clean_long(line) for line in advice.excluded] if advice else [],
        problems=[clean_long(line) for line in report.problems],
        style=_own("page.css"),
        scripts=scripts,
        policy=_policy(scripts),
        data=embedded([_drawn(chart) for group in groups for chart in group.charts]),
    )


def chart_groups(report: Report, advice: Recommendation | None) -> list[Group]:
    """All charts, in the page's order."""
    scaling, without_chart = scaling_charts(report)
    maps, without_map = heat_maps(report)
    panels = [panel_chart(panel) for panel in report.study.panels] if report.study else []
    pareto = pareto_chart(advice, report) if advice else None
    ledger = ledger_chart(report)
    return [
        Group(name="study", title="The question's figure", charts=panels, notes=[]),
        Group(
            name="scaling-charts",
            title="How it scales",
            charts=scaling,
            notes=[
                "Bars: 95 % intervals. Where a law could be fitted, the line is the law and the band its 95 % "
                "interval, beyond the last mark a forecast; else lines join what was measured."
            ]
            + ([f"{without_chart} more series are in the tables only."] if without_chart else []),
        ),
        Group(
            name="grid",
            title="Workers and batch size",
            charts=maps,
            notes=["Grey cells have no number; they say their state. Places left empty are not in the sweep."]
            + ([f"{without_map} more grids are in the tables only."] if without_map else []),
        ),
        Group(name="cost", title="Time and cost", charts=[pareto] if pareto else [], notes=[]),
        Group(name="ledger", title="Where the time goes", charts=[ledger] if ledger else [], notes=[]),
    ]


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


def _drawn(chart: Chart) -> dict[str, Any]:
    whole = asdict(chart)
    return {key: whole[key] for key in ("traces", "layout", "wide")}


def embedded(value: object) -> str:
    """JSON as it may stand in a script element: nothing in it can end the element or open a comment."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c").replace("\u2028", "\\u2028")


@cache
def plotly_source() -> str:
    """Plotly's own script, as its package ships it (MIT licence, named in its head)."""
    return files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")


def _own(name: str) -> str:
    return files("analysis.page").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """What the browser may do with the page: these scripts, its own style, images that it makes itself; no requests."""
    digests = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
