"""The sweeper: hands Hydra's overrides to `benchmarks.core.sweep`, and each planned run to Hydra's launcher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from benchmarks.command_line.boxed import go_inside
from benchmarks.command_line.composed import CONTROL_KEYS, as_overrides, check_data_folder, run_mapping, sweep_of
from benchmarks.command_line.console import SweepProgress, counted, show_plan
from benchmarks.core.adaptive import Once, Rounds
from benchmarks.core.errors import ConfigError, UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import OWN_FAULT, WELL
from benchmarks.core.sweep import Plan, PlannedRun, override, plan, shown_keys
from benchmarks.supervision.team import team_here
from benchmarks.tuning.definition import read_search
from benchmarks.tuning.search_space import Interval
from hydra_plugins.scalebench.launcher import SlurmLauncher
from hydra_plugins.scalebench.repeats import repeats_of_cells
from hydra_plugins.scalebench.tuning import tune


class ScalebenchSweeper(Sweeper):
    """Plans a sweep of `conf/sweep/` and launches what is missing, one run after another, through any launcher."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook: keep the composed configuration and make the launcher."""
        from hydra.core.plugins import Plugins

        self.composed = config
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )

    def sweep(self, arguments: list[str]) -> None:
        """Plan, show or run. `arguments` are the command line's overrides, as typed."""
        if team_here().nodes > 1:
            raise UserError("a sweep is started once, not by srun on every node; start single runs so")
        cfg = self.composed
        submits = isinstance(self.launcher, SlurmLauncher) and self.launcher.submits(cfg.cluster)
        overrides = OverridesParser.create().parse_overrides(arguments)
        axes, passed_on = _split(overrides)
        sweep = sweep_of(cfg, _of_sweep(overrides))
        base = run_mapping(_without(cfg, axes), sweep.name, here=not submits)
        folder = SweepFolder(Path(cfg.results) / cfg.cluster.name / sweep.name)
        repeats = repeats_of_cells(cfg, sweep, folder)
        if sweep.tune:
            tune(cfg, None if submits else self.launcher, read_search(sweep, axes, base), passed_on)
            return
        the_plan = plan(override(sweep, _enumerated(axes)), base)
        order = SlurmLauncher.order(the_plan, base, cfg) if submits else None
        if cfg.plan:
            now = repeats.extended(the_plan)
            order = order and msgspec.structs.replace(order, plan=now)
            submission = SlurmLauncher.described(order, folder) if order else None
            show_plan(now, folder, folder.remaining(now, cfg.max_attempts))
            print(repeats.outlook(the_plan), end="")
            if submission:
                print(submission)
            return
        if order:
            folder = SweepFolder.create(Path(cfg.results), cfg.cluster.name, sweep.name)
            raise SystemExit(SlurmLauncher.submit(msgspec.structs.replace(order, extended=repeats.extended), folder))
        for run in the_plan.runs:
            check_data_folder(run.config)
        folder = SweepFolder.create(Path(cfg.results), cfg.cluster.name, sweep.name)
        go_inside(cfg, [run.config for run in the_plan.runs])
        with folder.lock():
            statuses = self._make(folder, the_plan, repeats, passed_on)
        print(f"{counted(statuses)}; results in {folder.path}")
        if any(status not in WELL | OWN_FAULT for status in statuses):
            raise SystemExit(1)

    def _make(self, folder: SweepFolder, first: Plan, repeats: Once | Rounds, passed_on: list[str]) -> list[str]:
        """Make what is missing here, each run once, round by round; returns how they ended."""
        statuses: list[str] = []
        made: set[str] = set()
        while True:
            the_plan = repeats.extended(first)
            folder.write_manifest(the_plan, shown_keys(the_plan))
            left_out = made | SlurmLauncher.in_flight(folder)
            remaining = folder.remaining(the_plan, self.composed.max_attempts)
            runs = [run for run in remaining if run.config.run_id not in left_out]
            if not runs:
                return statuses
            statuses += self._run(folder, runs, passed_on)
            made |= {run.config.run_id for run in runs}

    def _run(self, folder: SweepFolder, runs: list[PlannedRun], passed_on: list[str]) -> list[str]:
        with SweepProgress(folder.path.name, len(runs)) as progress:
            for number, run in enumerate(runs):
                progress.running(run.config.run_id)
                [job] = self.launcher.launch([[*passed_on, *as_overrides(run)]], initial_job_idx=number)
                progress.finished(job.return_value)
        return progress.statuses


def _split(overrides: list[Override]) -> tuple[dict[str, Any], list[str]]:
    """The overrides that are axes, with their values; and those that only say which sweep, where and how."""
    axes: dict[str, Any] = {}
    passed_on: list[str] = []
    for item in overrides:
        key = item.key_or_group
        if key.partition(".")[0] in (*CONTROL_KEYS, "cluster"):
            if item.is_sweep_override():
                raise ConfigError(f"{str(item.input_line).lstrip('+')}: cannot be an axis of a sweep; give one value")
            passed_on.append(str(item.input_line))
        elif item.is_interval_sweep():
            value = item.value()
            assert isinstance(value, IntervalSweep)
            assert value.start is not None
            assert value.end is not None
            axes[key] = Interval(low=value.start, high=value.end, log="log" in value.tags)
        elif item.is_sweep_override():
            axes[key] = [_plain(value) for value in item.sweep_iterator()]
        else:
            axes[key] = _plain(item.value())
    return axes, passed_on


def _of_sweep(overrides: list[Override]) -> dict[str, Any]:
    """What is typed of the sweep itself, as `sweep.repeats=6`."""
    typed = {item.key_or_group.partition(".")[2]: item for item in overrides if item.key_or_group.startswith("sweep.")}
    return {key: _plain(item.value()) for key, item in typed.items()}


def _enumerated(axes: dict[str, Any]) -> dict[str, Any]:
    """The axes, none of them a range."""
    for key, values in axes.items():
        if isinstance(values, Interval):
            raise ConfigError(f"{key}=interval(...): only a tuning sweep searches a range; give values, as {key}=1,2,4")
    return axes


def _plain(value: object) -> object:
    return value.text if isinstance(value, QuotedString) else value


def _without(cfg: DictConfig, axes: Mapping[str, Any]) -> DictConfig:
    """The composed configuration less what the axes set: Hydra has put `1,2` where a number belongs."""
    bare = cfg.copy()
    for key in axes:
        if "." not in key and not OmegaConf.is_dict(bare.get(key)):
            OmegaConf.update(bare, key, None, force_add=True)
    return bare
