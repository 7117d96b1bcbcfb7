"""The figure and the table that answer a sweep's question, as its file describes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.cells.labels import label, plain_value, telling
from analysis.cells.measures import MEASURES, estimate_of, label_of
from analysis.runs.load import Cell
from analysis.study.panels import SCALING, SHARED, Subject, check_types, make_panel, measures_of
from analysis.study_schema import Panel, Study, StudyRow
from benchmarks.core import rules
from benchmarks.core.config import known_keys
from benchmarks.core.errors import ConfigError, unknown

Entry = Mapping[str, Any]
"""Of a sweep's `figure`: a panel, or one for each value of a key."""


def build_study(
    figure: Sequence[Entry], cells: Sequence[Cell], problems: list[str], folder: Path | None = None
) -> Study | None:
    """The study of a sweep; None where its file describes no figure, or the scaling figures alone.

    An entry that cannot be drawn is named in `problems`; the others are drawn all the same.
    """
    entries = [(number, entry) for number, entry in enumerate(figure) if entry.get("kind") != SCALING]
    if not entries:
        return None
    keys = telling([cell.config for cell in cells])
    ordered = sorted(cells, key=lambda cell: cell.place)
    panels: list[Panel] = []
    names: dict[str, None] = {}
    for number, entry in entries:
        try:
            names |= dict.fromkeys(measures_of(entry))
            panels += _panels(entry, number, ordered, folder)
        except ConfigError as error:
            problems.append(f"figure[{number}]: {error}")
    known = [name for name in names if name in MEASURES]
    return Study(
        label_keys=keys,
        measures={name: label_of(name, ordered) for name in known},
        rows=[_row(cell, keys, known) for cell in ordered],
        panels=panels,
        with_scaling=len(entries) < len(figure),
    )


def check_figure(figure: Sequence[Entry]) -> list[str]:
    """What is wrong with a sweep's `figure` as far as can be known before anything has run, one line each."""
    problems = []
    for number, entry in enumerate(figure):
        try:
            if entry.get("kind") == SCALING:
                _only_the_kind(entry)
            else:
                make_panel(Subject(cells=[], title=""), entry)
                measures_of(entry)
                _check_keys(entry)
        except ConfigError as error:
            problems.append(f"figure[{number}]: {error}")
    return problems


def _only_the_kind(entry: Entry) -> None:
    for key in entry.keys() - {"kind"}:
        raise unknown(f"option of kind={SCALING}", key, ())


def _check_keys(entry: Entry) -> None:
    """Raise ConfigError where an entry speaks of a key that no configuration has."""
    named = [*_by(entry), *rules.names(str(entry.get("where", "True")))]
    for key in [*named, *([entry["x"]] if entry["kind"] == "over" else [])]:
        if key not in (known := known_keys(key)) and not key.startswith("slowdown."):
            raise unknown("key", key, known)


def _by(entry: Entry) -> list[str]:
    by = entry.get("by") or []
    return [by] if isinstance(by, str) else list(by)


def _panels(entry: Entry, number: int, cells: Sequence[Cell], folder: Path | None) -> list[Panel]:
    """One panel for each combination of the values of the keys in `by`, of the cells that keep the rule `where`."""
    check_types(entry, {key: kind for key, kind in SHARED.items() if key in entry})
    by = _by(entry)
    groups: dict[str, list[Cell]] = {}
    for cell in _kept(entry.get("where"), cells):
        groups.setdefault(label(cell.config, by) if by else "", []).append(cell)
    if not groups:
        raise ConfigError(f"where={entry.get('where')}: no cell keeps this rule")
    panels = []
    for name, group in groups.items():
        title = ": ".join(filter(None, [entry.get("title"), name]))
        panel = make_panel(Subject(cells=group, title=title, folder=folder), entry)
        panel.entry = number
        panel.notes = [*panel.notes, *([entry["note"]] if "note" in entry else [])]
        panels.append(panel)
    return panels


def _kept(rule: str | None, cells: Iterable[Cell]) -> list[Cell]:
    """A key that a cell lacks, as another strategy's option, is null in the rule."""
    if rule is None:
        return list(cells)
    nothing = dict.fromkeys(rules.names(rule))
    return [cell for cell in cells if rules.holds(rule, nothing | cell.config)]


def _row(cell: Cell, keys: Sequence[str], names: Sequence[str]) -> StudyRow:
    reasons = Counter(run.reason for run in cell.runs if not run.measured and run.reason)
    return StudyRow(
        cell_id=cell.cell_id,
        label=[plain_value(cell.config.get(key)) for key in keys],
        n=len(cell.measured()),
        status=cell.state(),
        reason=reasons.most_common(1)[0][0] if reasons else None,
        values={name: estimate_of(cell, name) for name in names},
    )
