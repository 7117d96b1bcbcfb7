"""The launcher of `HYDRA_LAUNCHER=slurm`, the default: glue between Hydra and `slurm/`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from omegaconf import DictConfig

from benchmarks.core.errors import ConfigError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.sweep import Plan

if TYPE_CHECKING:
    from slurm.launch import Order


class SlurmLauncher(BasicLauncher):
    """Submits runs where the cluster's file has a `slurm` section; where it has none, makes them here, one by one."""

    @staticmethod
    def submits(cluster: Mapping[str, Any]) -> bool:
        """Whether runs on this cluster go to Slurm."""
        return bool(cluster.get("slurm"))

    @staticmethod
    def order(plan: Plan, base: Mapping[str, Any], cfg: DictConfig) -> Order:
        """A plan with what the command line says of its submission."""
        from slurm.launch import Order  # here: local runs do without submitit

        budget = cfg.budget_worker_hours
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0):
            raise ConfigError(f"budget_worker_hours={budget}: must be a number above 0, or null")
        if isinstance(cfg.max_attempts, bool) or not isinstance(cfg.max_attempts, int) or cfg.max_attempts < 1:
            raise ConfigError(f"max_attempts={cfg.max_attempts}: must be a whole number from 1")
        if not isinstance(cfg.wait, bool):
            raise ConfigError(f"wait={cfg.wait}: must be true or false")
        return Order(
            plan=plan,
            cluster=base["cluster"],
            max_attempts=cfg.max_attempts,
            budget_worker_hours=budget,
            wait=cfg.wait,
        )

    @staticmethod
    def described(order: Order, folder: SweepFolder) -> str:
        """What would be submitted."""
        from slurm.launch import describe, planned

        return describe(planned(order, folder))

    @staticmethod
    def submit(order: Order, folder: SweepFolder) -> int:
        """Submit what is missing; returns the exit code."""
        from slurm.launch import launch

        return launch(order, folder)

    @staticmethod
    def in_flight(folder: SweepFolder) -> set[str]:
        """The runs that Slurm has, for a sweep that is gone on with on this machine."""
        if not any(event["event"] == "submitted" for event in folder.events()):
            return set()
        from slurm.state import look

        return look(folder).in_flight
