"""Panels: the kinds of coordinate systems that a sweep's figure is made of.

One module for a few kinds. A kind is a function from cells and the options of the sweep's file to a `Panel`, which
holds all its data; `analysis/figures/study.py` draws it. The options of a kind are its keyword parameters: their
annotations say what is allowed. The keys `kind`, `title`, `by`, `where` and `note` of the file are for
`analysis/study/build.py`.

A kind must do without cells, too: so a sweep's file is checked before anything runs.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from analysis.cells.labels import label, telling
from analysis.cells.measures import unknown_because
from analysis.runs.load import Cell
from analysis.study_schema import Panel
from benchmarks.core.config import one_line
from benchmarks.core.errors import ConfigError, unknown

SCALING = "scaling"
"""Not a panel: the figures of strong and weak scaling are made as well."""

SHARED = {"kind": str, "title": str, "by": str | list[str], "where": str, "note": str}
"""What an entry of any kind may say, and what it must be."""


@dataclass(kw_only=True)
class Subject:
    """What a panel is about."""

    cells: Sequence[Cell]
    """In the order of the sweep's file, which is that of bars and lines."""
    title: str
    folder: Path | None = None
    """The sweep's, for kinds that show more than cells."""

    def lines(self, x_key: str | None = None) -> dict[str, list[Cell]]:
        """The cells by their labels, without the key that is the x axis; a cell each where there is none."""
        keys = telling([cell.config for cell in self.cells], () if x_key is None else (x_key,))
        groups: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.cells:
            identity = (cell.cell_id,) if x_key is None else tuple(repr(cell.config.get(key)) for key in keys)
            groups.setdefault(identity, []).append(cell)
        found: dict[str, list[Cell]] = {}
        for cells in groups.values():
            name = label(cells[0].config, keys)
            same = sum(other == name or other.startswith(f"{name} (") for other in found)
            found[f"{name} ({same + 1})" if name in found else name] = cells
        return found

    def missing(self, *measures: str) -> list[str]:
        """Cells without a number: label and state; and those with one, but for these measures, with the reason."""
        cells = {name: found[0] for name, found in self.lines().items()}
        unmeasured = [f"{name}: {cell.state()}" for name, cell in cells.items() if not cell.measured()]
        reasons = {name: [unknown_because(cell, one) for one in measures] for name, cell in cells.items()}
        return unmeasured + [f"{name}: {why}" for name, found in reasons.items() for why in filter(None, found)]


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
    """The panel that an entry of a sweep's figure describes.

    Raises:
        ConfigError: there is no such kind, option or measure, or a value is not what the option takes.
    """
    kind, own = checked(options)
    return _kinds[kind](subject, **own)


def measures_of(options: Mapping[str, Any]) -> list[str]:
    """The measures that a panel shows. Raises ConfigError as `make_panel` does."""
    kind, own = checked(options)
    return _measures_of[kind](own)


def checked(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind that an entry names, and its own options. Raises ConfigError where one is missing, unknown or wrong."""
    kind = options.get("kind")
    if not isinstance(kind, str) or kind not in kinds():
        raise unknown("kind", kind, [*kinds(), SCALING])
    own = {key: value for key, value in options.items() if key not in SHARED}
    parameters = list(inspect.signature(_kinds[kind]).parameters.values())[1:]
    for key in own:
        if key not in (names := [parameter.name for parameter in parameters]):
            raise unknown(f"option of kind={kind}", key, [*names, *SHARED])
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in own:
            raise ConfigError(f"{parameter.name}: must be given, kind={kind} needs it")
    hints = get_type_hints(_kinds[kind]) | SHARED
    check_types(options, {key: hints[key] for key in options})
    return kind, own


def check_types(options: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raise ConfigError, one line of key, value and what is allowed, where a value is not of its key's type."""
    wanted = msgspec.defstruct("Options", list(types.items()), kw_only=True)
    try:
        msgspec.convert(dict(options), wanted)
    except msgspec.ValidationError as error:
        raise one_line(error, options) from error


def same_unit(labels: Sequence[str]) -> str:
    """The unit that labels end in, as `[s]`. Raises ConfigError where they differ: what adds up has one unit."""
    units = Counter("[" + label.rpartition("[")[2] for label in labels)
    if len(units) > 1:
        raise ConfigError(f"parts: measures that add up have the same unit, not {', '.join(units)}")
    return next(iter(units), "")
