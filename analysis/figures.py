"""Which figures a report has, and drawing them: of a large sweep beside everything else, in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING

from analysis import drawing, plots
from analysis.style import figure_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.schema import Report

Drawn = Callable[[], dict[str, bytes]]
"""Gives the figures as files, name to content, PNG and SVG, once they are drawn."""

_MANY_CELLS = 500
"""From here on the tables and the page take so long that it pays to start a process: its imports take two seconds."""


def figure_names(report: Report) -> list[str]:
    """File names of the figures, as PNG; none where nothing has a number yet."""
    return [f"{name}.png" for name in _drawings(report)]


@contextmanager
def being_drawn(report: Report) -> Iterator[Drawn]:
    """Figures for which one asks when everything else is done."""
    if len(report.cells) < _MANY_CELLS:
        yield partial(_draw, report)
        return
    # Ctrl-C ends that process at once and without a word: this one says what there is to say.
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    ) as pool:
        yield pool.submit(_draw, report).result


def _draw(report: Report) -> dict[str, bytes]:
    return figure_files(_drawings(report))


def _drawings(report: Report) -> Mapping[str, Callable[[], Figure]]:
    study = report.study
    of_study = drawing.study_drawing(study) if study else {}
    return of_study | (plots.scaling_drawings(report) if study is None or study.with_scaling else {})
