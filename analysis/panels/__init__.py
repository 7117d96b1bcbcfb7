"""Panels: the kinds of coordinate systems that a sweep's figure is made of.

One module for a few kinds. A kind is a function from cells and the options of the sweep's file to a `Panel`, which
holds all its data; `analysis/drawing.py` draws it. The keys `kind`, `title`, `by` and `where` of the file are for
`analysis/study.py`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.labels import label, telling
from analysis.load import Cell
from analysis.schema import Panel
from benchmarks.errors import ConfigError, unknown


@dataclass(kw_only=True)
class Subject:
    """What a panel is about."""

    cells: Sequence[Cell]
    """In the order of the sweep's file, which is that of bars and lines."""
    title: str
    folder: Path | None = None
    """The sweep's, for kinds that show more than cells."""

    def lines(self, x_key: str | None = None) -> dict[str, list[Cell]]:
        """The cells by their labels, without the key that is the x axis."""
        keys = telling([cell.config for cell in self.cells], () if x_key is None else (x_key,))
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(label(cell.config, keys), []).append(cell)
        return found

    def missing(self) -> list[str]:
        """Cells without a number: label and state."""
        keys = telling([cell.config for cell in self.cells])
        return [
            f"{label(cell.config, keys)}: {cell.runs[0].status if cell.runs else 'planned'}"
            for cell in self.cells
            if not any(run.measured for run in cell.runs)
        ]


Kind = Callable[..., Panel]
_kinds: dict[str, Kind] = {}
_measures_of: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {}


def panel_kind(name: str, measures: Callable[[Mapping[str, Any]], list[str]]) -> Callable[[Kind], Kind]:
    """Decorate the function that makes a panel of a kind.

    It gets a `Subject` and the options as keywords. `measures` says which measures the options name: they become
    columns of the study's table.
    """

    def keep(function: Kind) -> Kind:
        _kinds[name] = function
        _measures_of[name] = measures
        return function

    return keep


def kinds() -> list[str]:
    """The names of all kinds."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(_kinds)


def make_panel(subject: Subject, options: Mapping[str, Any]) -> Panel:
    """The panel that a sweep's file describes. Raises ConfigError where there is no such kind, option or measure."""
    kind = _checked(options)
    try:
        return _kinds[kind](subject, **_own(options))
    except TypeError as error:
        raise ConfigError(f"figure: panel of kind={kind}: {error}") from error


def measures_of(options: Mapping[str, Any]) -> list[str]:
    """The measures that a panel shows."""
    return _measures_of[_checked(options)](_own(options))


def _checked(options: Mapping[str, Any]) -> str:
    kind = str(options.get("kind"))
    if kind not in kinds():
        raise unknown("kind of a figure's panel:", kind, kinds())
    return kind


def _own(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key not in ("kind", "by", "where", "title")}
