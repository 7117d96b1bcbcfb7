"""The command line: one run (`python -m benchmarks.run workers=2 ...`), or a sweep (`--multirun sweep=strong`).

Hydra composes the configuration from `conf/`; everything after that is the project's own. A sweep's cells come from
`hydra_plugins/scalebench`, which has Hydra's launcher call `run_job` once for each.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from benchmarks.command_line.boxed import go_inside
from benchmarks.command_line.composed import check_data_folder, run_mapping, sweep_of
from benchmarks.command_line.hydra_errors import HYDRA_ERRORS, one_line
from benchmarks.core.cluster import placed, threads_share
from benchmarks.core.config import RunConfig
from benchmarks.core.errors import UserError, told
from benchmarks.core.folder import SweepFolder
from benchmarks.supervision.interruption import Interrupted

if TYPE_CHECKING:
    from benchmarks.core.record import Record

SINGLE_RUNS = "single_runs"


def run_job(cfg: DictConfig) -> Record | None:
    """Make one run here and leave its record; None on the nodes that only take part."""
    from benchmarks.supervision.supervisor import supervise
    from benchmarks.supervision.team import team_here

    team = team_here()
    sweep = sweep_of(cfg).name if _in_sweep() else SINGLE_RUNS
    mapping = run_mapping(cfg, sweep)
    if mapping["nodes"] is None:
        mapping["nodes"] = team.nodes
    if mapping["threads_per_worker"] is None:
        mapping["threads_per_worker"] = threads_share(placed(mapping)) or 1
    run = RunConfig.from_mapping(mapping)
    check_data_folder(run)
    if run.nodes != team.nodes:
        raise UserError(
            f"nodes={run.nodes}: this command runs on {team.nodes}; inside an allocation, start it as "
            f"srun --nodes={run.nodes} --ntasks-per-node=1 .venv/bin/python -m benchmarks.run ..."
        )
    folder = SweepFolder.create(Path(cfg.results), run.cluster.name, sweep)
    go_inside(cfg, [run])
    earlier = folder.record(run.run_id)
    attempt = earlier.attempt + 1 if earlier else 1
    if not team.leads:
        return supervise(run, folder.run_folder(run.run_id), attempt, team)
    folder.note("running", run.run_id, attempt=attempt)
    try:
        record = supervise(run, folder.run_folder(run.run_id), attempt, team)
    except Interrupted as stop:
        folder.note("ended", run.run_id, attempt=attempt, status=stop.status)
        raise
    folder.note("ended", run.run_id, attempt=attempt, status=record.status if record else None)
    return record


def _task(cfg: DictConfig) -> Record | None:
    """What Hydra calls. A user's mistake leaves as SystemExit, past Hydra's own report of a failed job."""
    try:
        if not _in_sweep() and cfg.plan:
            raise UserError("plan=true: only a sweep has a plan; add --multirun, or type make plan")
        if not _in_sweep() and cfg.target_ci is not None:
            raise UserError(f"target_ci={cfg.target_ci}: only a sweep adds repeats; add --multirun, or type make sweep")
        record = run_job(cfg)
    except (UserError, OSError) as error:
        raise SystemExit(_say(error)) from error
    if record and not _in_sweep():
        from benchmarks.command_line.console import outcome
        from benchmarks.core.record import WELL

        print(outcome(record))
        if record.status not in WELL:
            raise SystemExit(1)
    return record


def _in_sweep() -> bool:
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def main() -> None:
    """Run; a user's mistake ends with one line and exit code 2, an interruption with 128 + its signal."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come through as exceptions, and end as one line here
    # A cluster's file leaves out what it does not need; it can be set all the same, and is checked by name afterwards.
    sys.argv[1:] = [re.sub(r"^cluster\.", "++cluster.", argument) for argument in sys.argv[1:]]
    try:
        hydra.main(version_base="1.3", config_path="../conf", config_name="config")(_task)()
    except (UserError, OSError, *HYDRA_ERRORS) as error:
        sys.exit(_say(error))
    except (Interrupted, KeyboardInterrupt) as stop:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(128 + (stop.number if isinstance(stop, Interrupted) else 2))


def _say(error: BaseException) -> int:
    """Print an error as one line; returns the exit code."""
    if isinstance(error, HYDRA_ERRORS):
        line, code = one_line(error), UserError.exit_code
    else:
        assert isinstance(error, (UserError, OSError))
        line, code = told(error)
    print(f"error: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
