"""The figure and the table that answer a sweep's question, as its file describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.labels import label, telling
from analysis.load import Cell
from analysis.measures import MEASURES, estimate_of, label_of
from analysis.panels import Subject, make_panel, measures_of
from analysis.schema import Panel, Study, StudyRow
from benchmarks import rules
from benchmarks.errors import ConfigError


def build_study(
    figure: Sequence[Mapping[str, Any]], cells: Sequence[Cell], problems: list[str], folder: Path | None = None
) -> Study | None:
    """The study of a sweep; None where its file describes no figure.

    A panel that cannot be made is named in `problems`; the others are made all the same.
    """
    if not figure:
        return None
    keys = telling([cell.config for cell in cells])
    ordered = sorted(cells, key=lambda cell: cell.place)
    panels: list[Panel] = []
    names: dict[str, None] = {}
    for options in figure:
        try:
            names |= dict.fromkeys(measures_of(options))
            panels += _panels(options, ordered, folder)
        except (ConfigError, KeyError) as error:
            problems.append(
                f"figure: {error}" if isinstance(error, ConfigError) else f"figure: {options} lacks {error}"
            )
    known = [name for name in names if name in MEASURES]
    return Study(
        label_keys=keys,
        measures={name: label_of(name, ordered) for name in known},
        rows=[_row(cell, keys, known) for cell in ordered],
        panels=panels,
    )


def _panels(options: Mapping[str, Any], cells: Sequence[Cell], folder: Path | None) -> list[Panel]:
    """One panel for each combination of the values of the keys in `by`, of the cells that keep the rule `where`."""
    by = [options["by"]] if isinstance(options.get("by"), str) else list(options.get("by") or ())
    rule = options.get("where")
    kept = [cell for cell in cells if rule is None or rules.holds(str(rule), cell.config)]
    groups: dict[str, list[Cell]] = {}
    for cell in kept:
        groups.setdefault(label(cell.config, by) if by else "", []).append(cell)
    title = str(options.get("title", ""))
    return [
        make_panel(Subject(cells=group, title=": ".join(filter(None, [title, name])), folder=folder), options)
        for name, group in groups.items()
    ]


def _row(cell: Cell, keys: Sequence[str], names: Sequence[str]) -> StudyRow:
    measured = sum(run.measured is not None for run in cell.runs)
    status = "ok" if measured else cell.runs[0].status if cell.runs else "planned"
    return StudyRow(
        cell_id=cell.cell_id,
        label=[label(cell.config, [key]) if cell.config.get(key) is not None else "-" for key in keys],
        n=measured,
        status=status,
        values={name: estimate_of(cell, name) for name in names},
    )
