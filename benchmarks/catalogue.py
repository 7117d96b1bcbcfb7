"""All sweeps with their questions and what they cost: `python -m benchmarks.catalogue`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import hydra
from rich.console import Console
from rich.table import Table

from benchmarks.command_line.composed import run_mapping
from benchmarks.command_line.hydra_errors import HYDRA_ERRORS, one_line
from benchmarks.core.errors import ConfigError, UserError
from benchmarks.core.sweep import FULL_SIZE, Sweep, at_size, plan
from benchmarks.core.sweep_files import sweep_named
from benchmarks.core.variants import CONF_DIR, names_on
from benchmarks.tuning.definition import read_search

_WIDTH_OF_FILES = 120


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the list; the arguments are overrides of the configuration, as `cluster=greene`. Returns the exit code."""
    overrides = list(sys.argv[1:] if arguments is None else arguments)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH_OF_FILES)
    try:
        base = _base(overrides)
        table = Table("sweep", "question", box=None, header_style="bold", padding=(0, 2, 0, 0))
        for column in ("runs", "worker-hours at most", "runs, tiny"):
            table.add_column(column, justify="right")
        for name in names_on("sweep"):
            sweep = sweep_named(name)
            table.add_row(name, sweep.question, *_cost(sweep, base))
    except (UserError, *HYDRA_ERRORS) as error:
        text = str(error) if isinstance(error, UserError) else one_line(error)
        sys.stderr.write(f"error: {text}\n")
        return UserError.exit_code
    console.print(table)
    return 0


def _base(overrides: list[str]) -> dict[str, Any]:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return run_mapping(hydra.compose("config", overrides=overrides), "list")


def _cost(sweep: Sweep, base: dict[str, Any]) -> list[str]:
    """Runs and worker-hours at the full size, and runs at the tiny one; a dash where nothing can run here."""
    costs = []
    for size in (FULL_SIZE, "tiny"):
        try:
            runs, hours = _most(at_size(sweep, size), base)
        except ConfigError:
            costs.append(("-", "-"))
        else:
            costs.append((str(runs), f"{hours:.1f}"))
    return [costs[0][0], costs[0][1], costs[1][0]]


def _most(sweep: Sweep, base: dict[str, Any]) -> tuple[int, float]:
    """Runs and worker-hours, at most: how many runs a search prunes is not known before."""
    if sweep.tune:
        search = read_search(sweep, {}, base)
        return search.trials * search.runs_of_trial, search.trials * search.worker_hours_limit
    planned = plan(sweep, base)
    return len(planned.runs), planned.worker_hours_limit


if __name__ == "__main__":
    sys.exit(main())
