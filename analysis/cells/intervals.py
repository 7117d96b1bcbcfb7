"""A cell's time per step with its interval: one place for the tables and for whoever decides on more repeats.

It needs numpy and nothing else besides the core, since it works on login nodes.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

from analysis.runs.load import Cell, load_cells
from analysis.statistics.bootstrap import Floats, bootstrap_median, estimate
from analysis.statistics.estimate import Estimate
from benchmarks.core.folder import sweep_files
from benchmarks.core.repeat_target import RepeatTarget, Width, shortfall


def step_time(cell: Cell) -> tuple[Estimate, Floats] | None:
    """The median over repeats in seconds, and the draws of it that ratios are made from.

    None where no repeat gives a number.
    """
    measured = cell.measured()
    if not measured:
        return None
    times = [one.step_time_s for one in measured]
    draws = bootstrap_median(times, [one.factors for one in measured], seed=cell.cell_id)
    return estimate(median(times), draws), draws


def width_of(cell: Cell, time: Estimate | None) -> Width:
    """How wide the interval of a cell's time per step is."""
    return Width(
        repeats=max((run.repeat + 1 for run in cell.runs), default=0),
        repeats_ok=len(cell.measured()),
        half_width=(time.high - time.low) / 2 / time.value if time else math.inf,
    )


def widths(folder: Path) -> dict[str, Width]:
    """Of all cells with a record in a sweep's folder, whether or not there is one."""
    if next(sweep_files(folder), None) is None:
        return {}
    cells = [cell for cell in load_cells(folder).cells if cell.runs]
    return {cell.cell_id: width_of(cell, found[0] if (found := step_time(cell)) else None) for cell in cells}


def shortfalls(cell: Cell, time: Estimate | None, target: RepeatTarget | None) -> list[str]:
    """That a cell has all the repeats it may have and its interval is wider than the target; or nothing."""
    if target is None or time is None:
        return []
    width = width_of(cell, time)
    has_all = len(cell.runs) >= target.max_repeats
    return [shortfall(width, target)] if has_all and not target.reached(width) else []
