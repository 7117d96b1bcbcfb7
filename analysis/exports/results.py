"""All numbers of a sweep as one table for other programs, the meaning of its columns, and the page as Markdown.

`results.csv` has one row for each cell; `dictionary.csv` says of each column what it means and its unit, in the words
of `analysis/schema.py`. `results.parquet` (`analysis/exports/parquet.py`) has both, and types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, get_args, get_type_hints

import msgspec

from analysis.advice.answers import Answer
from analysis.page.rules import rules
from analysis.page.tables import ShownTable, diagnosis_shown, laws_table, origins_table
from analysis.recommend import Recommendation
from analysis.schema import Point, Report, ScalingPoint, Series
from analysis.statistics.estimate import Estimate
from analysis.tables.amounts import AMOUNTS
from analysis.tables.formats import escape_markdown, write_csv
from analysis.wording import clean_long

_PLAIN = ("cell_id", "status", "reason", "workers", "global_batch", "batch_per_worker", "repeats_planned", "repeats_ok")
_ESTIMATES = ("step_time_s", "throughput_samples_per_s", "epoch_time_s")
_NUMBERS = (
    "step_time_p95_s",
    "step_time_p99_s",
    "accuracy",
    "straggler_ratio",
    "exposed_comm_s",
    "bytes_per_step",
    "peak_memory_bytes",
)
_RATIOS = ("speedup", "efficiency")
_UNITS = (
    ("_samples_per_s", "samples/s"),
    ("_per_s", "1/s"),
    ("energy_j_per_million_samples", "J"),
    ("_w", "W"),
    ("_s", "s"),
    ("_bytes", "bytes"),
    ("bytes_per_step", "bytes"),
    ("_batch", "samples"),
    ("batch_per_worker", "samples"),
)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of `results.csv`."""

    name: str
    unit: str
    meaning: str
    type: type
    """Of its values, `str`, `int`, `float` or `bool`; any may be missing."""
    of: Callable[[Point], object]


def columns(report: Report) -> list[Column]:
    """All columns, those of settings, series, phases and measures as the sweep has them."""
    found = [_field(name) for name in _PLAIN]
    found += [_setting(key, report.cells) for key in report.setting_keys]
    found += [_field("steps"), _field("repeats_missing")]
    for name in _ESTIMATES:
        found += _ends(name, _meaning(Point, name), _unit(name), _get(name))
    found += [_field(name) for name in _NUMBERS]
    for name in AMOUNTS:
        unit = (report.currency or "") if name == "cost_per_million_samples" else _unit(name)
        found += _ends(name, _meaning(Point, name), unit, _get(name))
    found += [_field(name) for name in ("idle_power_w", "energy_scope", "energy_unknown_because")]
    for kind, series in (("strong", report.strong), ("weak", report.weak)):
        found += _ratios(kind, series)
    phases = dict.fromkeys(phase for point in report.cells for phase in point.ledger_s)
    found += [_phase(phase) for phase in phases]
    found += _measures(report)
    notes = _meaning(Point, "notes")
    return [*found, Column(name="notes", unit="", meaning=notes, type=str, of=lambda point: "; ".join(point.notes))]


def results_csv(report: Report) -> str:
    """One row for each cell, numbers in full precision, nothing for unknown."""
    shown = columns(report)
    return write_csv([one.name for one in shown], [[one.of(point) for one in shown] for point in report.cells])


def dictionary_csv(report: Report) -> str:
    """One row for each column of `results.csv`."""
    return write_csv(["column", "unit", "meaning"], [[one.name, one.unit, one.meaning] for one in columns(report)])


def report_markdown(report: Report, advice: Recommendation | None, scaling: str) -> str:
    """The page as text: the answer, then `scaling`, which is the Markdown of all tables; laws, provenance, rules."""
    title, _, tables = scaling.partition("\n\n")
    told = [line for one in advice.answers for line in _told(one)] if advice else ["**No cell has a number yet.**"]
    parts = [title, *told, tables.rstrip()]
    parts += [_table(table) for table in (diagnosis_shown(report), laws_table(report), origins_table(report)) if table]
    parts.append("## Twelve rules for benchmarks (Hoefler and Belli, SC15), and this sweep")
    lines = [
        f"{rule.number}. {escape_markdown(rule.text)} **{rule.verdict}**: {escape_markdown(rule.evidence)}"
        for rule in rules(report)
    ]
    parts.append("\n".join(map(clean_long, lines)))
    return "\n\n".join(parts) + "\n"


def _told(answer: Answer) -> list[str]:
    why = [escape_markdown(clean_long(answer.why))] if answer.why else []
    return [f"**{escape_markdown(clean_long(answer.sentence))}**", *why]


def _table(table: ShownTable) -> str:
    from tabulate import tabulate

    rows = [[escape_markdown(f"{one.text} {one.interval}".strip()) for one in row.entries] for row in table.rows]
    align = ["right" if numeric else "left" for numeric in table.numeric]
    drawn = tabulate(rows, headers=table.header, tablefmt="pipe", colalign=align, disable_numparse=True)
    return "\n\n".join([f"## {table.title}", drawn, *(f"- {escape_markdown(note)}" for note in table.notes)])


@cache
def _descriptions(of: type[msgspec.Struct]) -> dict[str, str]:
    """What the schema says of each field."""
    schema: dict[str, Any] = msgspec.json.schema(of)["$defs"][of.__name__]["properties"]
    return {name: str(one.get("description", "")) for name, one in schema.items()}


def _meaning(of: type[msgspec.Struct], name: str) -> str:
    return _descriptions(of)[name]


def _unit(name: str) -> str:
    return next((unit for ending, unit in _UNITS if name.endswith(ending)), "")


def _get(name: str) -> Callable[[Point], Any]:
    return lambda point: getattr(point, name)


def _field(name: str) -> Column:
    return Column(
        name=name, unit=_unit(name), meaning=_meaning(Point, name), type=_types_of_fields()[name], of=_get(name)
    )


@cache
def _types_of_fields() -> dict[str, type]:
    """Of a point's fields, without the null that may stand for each."""
    hints = get_type_hints(Point)
    return {name: next(one for one in (*get_args(hint), hint) if one is not NoneType) for name, hint in hints.items()}


def _setting(key: str, cells: Sequence[Point]) -> Column:
    """A setting of a name that the point itself has, such as `steps`, is told apart by a word in front."""
    return Column(
        name=f"setting_{key}" if key in Point.__struct_fields__ else key,
        unit="",
        meaning="A setting in which the cells differ.",
        type=common_type(point.settings.get(key) for point in cells),
        of=lambda point: point.settings.get(key),
    )


def common_type(values: Iterable[object]) -> type:
    """The type that holds all these settings without loss: text, where they are mixed."""
    known = [value for value in values if value is not None]
    types = {type(value) for value in known}
    if types == {int}:
        return int if all(-(2**63) <= value < 2**63 for value in known if isinstance(value, int)) else str
    if types == {int, float} and all(float(value) == value for value in known if isinstance(value, int)):
        return float
    return types.pop() if types in ({float}, {bool}) else str


def _phase(phase: str) -> Column:
    meaning = f"The run's phase `{clean_long(phase)}`: median over the repeats that have it."
    return Column(
        name=f"ledger_{phase}_s", unit="s", meaning=meaning, type=float, of=lambda point: point.ledger_s.get(phase)
    )


def _ends(name: str, meaning: str, unit: str, of: Callable[[Point], Estimate | None]) -> list[Column]:
    """A number and both ends of its interval; of a lower bound only the lower end is known."""

    def value(point: Point) -> float | None:
        found = of(point)
        return None if found is None or found.is_bound else found.value

    def low(point: Point) -> float | None:
        found = of(point)
        return None if found is None else found.low

    def high(point: Point) -> float | None:
        found = of(point)
        return None if found is None or found.is_bound or found.open_above else found.high

    return [
        Column(name=name, unit=unit, meaning=meaning, type=float, of=value),
        Column(name=f"{name}_low", unit=unit, meaning=f"Lower end of the 95 % interval of {name}.", type=float, of=low),
        Column(
            name=f"{name}_high", unit=unit, meaning=f"Upper end of the 95 % interval of {name}.", type=float, of=high
        ),
    ]


def _ratios(kind: str, series: Sequence[Series]) -> Iterable[Column]:
    """Of the cell's series of this kind, of which it is in one at most."""
    if not series:
        return
    points = {point.cell_id: point for one in series for point in one.points}
    numbers = {point.cell_id: one.number for one in series for point in one.points}
    yield Column(
        name=f"{kind}_series",
        unit="",
        meaning=_meaning(Series, "number"),
        type=int,
        of=lambda cell: numbers.get(cell.cell_id),
    )
    for name in _RATIOS:
        meaning = _meaning(ScalingPoint, name)

        def of(cell: Point, name: str = name) -> Estimate | None:
            found = points.get(cell.cell_id)
            return getattr(found, name) if found else None

        yield from _ends(f"{kind}_{name}", meaning, "", of)


def _measures(report: Report) -> Iterable[Column]:
    """What the study's figure shows and no other column has."""
    if report.study is None:
        return
    rows = {row.cell_id: row.values for row in report.study.rows}
    for name, label in report.study.measures.items():
        if name in (*_ESTIMATES, *_NUMBERS, *AMOUNTS):
            continue
        unit = label.rpartition("[")[2].rstrip("]") if label.endswith("]") else ""

        def of(cell: Point, name: str = name) -> Estimate | None:
            return rows.get(cell.cell_id, {}).get(name)

        yield from _ends(name, f"Median over repeats: {clean_long(label)}.", unit, of)
