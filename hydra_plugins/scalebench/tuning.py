"""Glue between a tuning sweep and the launchers: its runs are made as those of any sweep are."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig

from benchmarks.command_line.boxed import go_inside
from benchmarks.command_line.composed import as_overrides, check_data_folder
from benchmarks.command_line.console import outcome
from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.sweep import Plan
from benchmarks.tuning.definition import Search
from benchmarks.tuning.text import plan_text, summary, trial_line
from benchmarks.tuning.trials import Study, Trial, read_studies
from benchmarks.tuning.tuner import TUNING_LOCK, Tuner
from hydra_plugins.scalebench.launcher import SlurmLauncher

if TYPE_CHECKING:
    from slurm.launch import Order


def tune(cfg: DictConfig, launcher: Launcher | None, search: Search, passed_on: Sequence[str]) -> None:
    """Search, or with plan=true say what would be searched. Without a launcher, runs go to Slurm.

    Raises:
        UserError: nothing was started, or runs were cancelled.
        SystemExit: a trial has failed for no fault of its setting, or the watch of Slurm's jobs was stopped.
    """
    tuning = _TuningSweep(cfg, launcher, search, passed_on)
    if cfg.plan:
        tuning.show()
    else:
        tuning.run()


class _TuningSweep:
    """Searches through the launcher that Hydra has made: one run after another here, a group at a time with Slurm."""

    def __init__(self, cfg: DictConfig, launcher: Launcher | None, search: Search, passed_on: Sequence[str]) -> None:
        self.cfg, self.launcher, self.search = cfg, launcher, search
        self.passed_on = list(passed_on)
        self.path = Path(cfg.results) / cfg.cluster.name / search.sweep.name
        self.order: Order | None = None if launcher else SlurmLauncher.order(search.example, search.base, cfg)

    def show(self) -> None:
        """What would be searched, and how it would be submitted. Writes nothing."""
        sys.stdout.write(f"{plan_text(self.search, self._done())}; results in {self.path}\n")
        if self.order:
            described = SlurmLauncher.described(self.order, SweepFolder(self.path))
            sys.stdout.write(f"a trial is submitted like this one; those of a group share an array:\n{described}\n")

    def run(self) -> None:
        """Search. Ends with exit code 1 where a trial has failed for no fault of its setting."""
        self._check_budget()
        runs = [run.config for run in self.search.example.runs]
        if not self.order:
            for run in runs:
                check_data_folder(run)
        folder = SweepFolder.create(Path(self.cfg.results), self.cfg.cluster.name, self.search.sweep.name)
        if not self.order:
            go_inside(self.cfg, runs)
        study = self._search(folder)

        sys.stdout.write(f"{summary(study)}\nresults in {folder.path}\n")
        if any(trial.outcome and trial.outcome.state == "failed" for trial in study.trials):
            raise SystemExit(1)

    def _search(self, folder: SweepFolder) -> Study:
        make = partial(self._submit, folder, self.order) if self.order else partial(self._make_here, folder)
        with folder.lock(name=TUNING_LOCK):
            if self.order:
                sys.stdout.write("this command has to stay until the search is over; stopped, it can be given again\n")
            return Tuner(self.search, folder, self.cfg.max_attempts, make).run(self._say)

    def _say(self, trial: Trial, study: Study) -> None:
        sys.stdout.write(trial_line(trial, study, self.search.trials) + "\n")
        sys.stdout.flush()

    def _done(self) -> int:
        name = self.search.definition.name
        trials = [study.trials for study in read_studies(self.path) if study.definition.name == name]
        return sum(trial.outcome is not None for each in trials for trial in each)

    def _check_budget(self) -> None:
        """The budget holds for all trials that are still to be made, whatever pruning may save."""
        if self.order is None or self.order.budget_worker_hours is None:
            return
        left = max(0, self.search.trials - self._done())
        most = left * self.search.worker_hours_limit
        if most > self.order.budget_worker_hours:
            raise UserError(
                f"budget_worker_hours={self.order.budget_worker_hours:g}: the {left} trials may take {most:.2f}; "
                "nothing was submitted. Lower run_limit_s or sweep.tune.trials"
            )

    def _make_here(self, folder: SweepFolder, plan: Plan) -> None:
        """One run after another; one whose failure may pass is tried again."""
        assert self.launcher
        attempts = self.cfg.max_attempts
        with folder.lock():
            if queued := SlurmLauncher.in_flight(folder) & {run.config.run_id for run in plan.runs}:
                raise UserError(
                    f"{folder.path}: Slurm has {len(queued)} of the runs that are next; wait for them, "
                    "or take them back with `make cancel`"
                )
            folder.write_manifest(plan, [dimension.key for dimension in self.search.definition.space])
            for _ in range(attempts):
                for number, run in enumerate(folder.remaining(plan, attempts)):
                    [job] = self.launcher.launch([[*self.passed_on, *as_overrides(run)]], initial_job_idx=number)
                    if job.return_value.status != "ok":
                        sys.stdout.write(outcome(job.return_value) + "\n")

    def _submit(self, folder: SweepFolder, order: Order, plan: Plan) -> None:
        """All at once, as one array for each shape; returns when all have ended."""
        code = SlurmLauncher.submit(msgspec.structs.replace(order, plan=plan, wait=True), folder)
        if code == 130:  # the watch was stopped
            raise SystemExit(code)
