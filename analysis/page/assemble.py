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

from analysis.cells.labels import cell_name
from analysis.page.chart import Chart
from analysis.page.grid import heat_maps
from analysis.page.rules import rules
from analysis.page.scaling import scaling_charts
from analysis.page.spent import ledger_chart, pareto_chart
from analysis.page.study import panel_chart
from analysis.page.tables import diagnosis_shown, filters, laws_table, origins_table, tables
from analysis.recommend import Recommendation
from analysis.schema import Report
from analysis.tables.columns import summary
from analysis.wording import between, clean, clean_long, duration, energy_words


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
    script, plotly = _own("page.js"), plotly_source()
    return environment.get_template("page.html.j2").render(
        report=report,
        title=clean(f"{report.sweep} on {report.cluster}"),
        question=clean_long(report.question),
        answers=advice.answers if advice else [],
        advice=advice,
        summary=summary(report),
        filters=filters(report),
        groups=groups,
        tables=tables(report),
        diagnosis=diagnosis_shown(report),
        laws=laws_table(report),
        origins=origins_table(report),
        rules=rules(report),
        failures=[point for point in report.cells if point.reason or not point.repeats_ok],
        excluded=[clean_long(line) for line in advice.excluded] if advice else [],
        problems=[clean_long(line) for line in report.problems],
        style=_own("page.css"),
        script=script,
        plotly=plotly,  # asleep until the page's script wakes it
        policy=_policy([script, plotly]),
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
