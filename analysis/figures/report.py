"""Which figures a report has, and drawing them: of a large sweep beside everything else, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from analysis.figures.scaling import scaling_drawings
from analysis.figures.study import study_drawing
from analysis.figures.style import figure_files, import_drawing
from analysis.helpers import count_helpers, helpers
from analysis.runs.load import Read, read_entries

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.schema import Report

Drawn = Callable[[], dict[str, bytes]]
"""Gives the figures as files, name to content, PNG and SVG, once they are drawn."""

_MANY_CELLS = 500
"""From here on the tables and the page take so long that it pays to have a helper."""


def figure_names(report: Report) -> list[str]:
    """File names of the figures, as PNG; none where nothing has a number yet."""
    return [f"{name}.png" for name in _drawings(report)]


def reader(*, with_figures: bool) -> Read:
    """How to read a sweep: whoever helps to read goes on to import what draws, which takes two seconds."""
    return partial(read_entries, then=import_drawing) if with_figures else read_entries


def begun(report: Report) -> Drawn:
    """Figures for which one asks when everything else is done."""
    if len(report.cells) < _MANY_CELLS or not count_helpers():
        return partial(figure_files, _drawings(report))
    parts = [helpers().submit(_draw_one, report, name) for name in _drawings(report)]
    return lambda: {name: content for part in parts for name, content in part.result().items()}


def _draw_one(report: Report, name: str) -> dict[str, bytes]:
    return figure_files({name: _drawings(report)[name]})


def _drawings(report: Report) -> Mapping[str, Callable[[], Figure]]:
    study = report.study
    of_study = study_drawing(study) if study else {}
    return of_study | (scaling_drawings(report) if study is None or study.with_scaling else {})
