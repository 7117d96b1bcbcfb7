"""Glue between `target_ci` and the intervals of the tables, by which it is judged."""

from __future__ import annotations

import sys

from omegaconf import DictConfig

from benchmarks.core.adaptive import Once, Rounds, check_sweep
from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.repeat_target import read_repeat_target
from benchmarks.core.sweep import Sweep


def repeats_of_cells(cfg: DictConfig, sweep: Sweep, folder: SweepFolder) -> Once | Rounds:
    """How many repeats the cells of a sweep get.

    Raises:
        UserError: `target_ci` or `max_repeats` cannot be, or numpy is not installed here.
    """
    target = read_repeat_target(cfg.target_ci, cfg.max_repeats)
    if target is None:
        return Once()
    check_sweep(target, sweep)
    try:
        from analysis.cells.intervals import widths  # the only look from here into that room; it needs numpy
    except ModuleNotFoundError as error:
        raise UserError(
            f"target_ci={cfg.target_ci}: intervals are made with {error.name}, which is not installed here; "
            f"pip install {error.name}"
        ) from error
    return Rounds(target=target, folder=folder, max_attempts=cfg.max_attempts, widths=widths, say=sys.stdout.write)
