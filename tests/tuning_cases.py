"""Searches over a known objective: runs are not made, their records are left."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import Evaluation, Status
from benchmarks.core.sweep import Plan, PlannedRun, read_sweep
from benchmarks.tuning.definition import Search, read_search
from benchmarks.tuning.trials import Study
from benchmarks.tuning.tuner import Tuner
from tests.conftest import base_mapping
from tests.slurm_cases import leave_record

LR = {"low": 1e-4, "high": 1.0, "log": True}
MOMENTUM = {"low": 0.0, "high": 0.99}


def a_search(axes: dict[str, Any] | None = None, fixed: dict[str, Any] | None = None, **tune: Any) -> Search:
    """Eight trials of two keys, of four epochs each, without pruning; `tune` says otherwise."""
    section = {"space": {"optimizer.lr": LR, "optimizer.momentum": MOMENTUM}, "trials": 8} | tune
    sweep = {"name": "test", "fixed": {"steps": None, "epochs": 4} | (fixed or {}), "tune": section}
    base = base_mapping(workload="mlp", batch_per_worker=16)
    return read_search(read_sweep(sweep | {"repeats": tune_repeats(section)}), axes or {}, base)


def tune_repeats(section: dict[str, Any]) -> int:
    return int(section.pop("repeats", 1))


def a_folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder.create(tmp_path / "results", "local", "test")


def accuracy(run: PlannedRun) -> float:
    """The best is at lr=0.03 and momentum=0.8; longer runs are better, and shorter ones no different in order."""
    lr, momentum = run.settings["optimizer.lr"], run.settings["optimizer.momentum"]
    assert isinstance(lr, float)
    assert isinstance(momentum, float)
    away = (math.log10(lr / 0.03)) ** 2 + 2 * (momentum - 0.8) ** 2
    return (1 - 0.5 ** (run.config.epochs or 1)) / (1 + away)


class Maker:
    """Leaves the records that runs would leave, and counts them."""

    def __init__(self, folder: SweepFolder, fails: dict[int, Status] | None = None, calls: int = 10**6) -> None:
        self.folder = folder
        self.made: Counter[str] = Counter()
        self.plans: list[Plan] = []
        self.fails = fails or {}
        """Status by the number of the run, in the order in which they are made."""
        self.calls = calls

    def __call__(self, plan: Plan) -> None:
        self.plans.append(plan)
        for run in plan.runs:
            while self.folder.remaining(Plan(sweep=plan.sweep, runs=[run], dropped=[]), 2):
                self.make(run)

    def make(self, run: PlannedRun) -> None:
        status = self.fails.get(self.made.total(), "ok")
        self.made[run.config.run_id] += 1
        value = accuracy(run)
        evaluation = Evaluation(after_steps=5, time_s=1.0, samples=360, accuracy=value, loss=1 - value)
        path = self.folder.run_folder(run.config.run_id) / "record.json"
        attempt = 1
        if path.exists():
            attempt, _ = 2, path.rename(path.with_name("record.attempt1.json"))
        leave_record(self.folder, run, status, attempt, evaluation=[evaluation] if status == "ok" else [])


def searched(search: Search, folder: SweepFolder, maker: Maker | None = None) -> Study:
    """The study at its end."""
    return Tuner(search, folder, 2, maker or Maker(folder)).run(lambda trial, study: None)
