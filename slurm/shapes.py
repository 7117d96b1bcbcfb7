"""What each run needs of Slurm, and which runs need the same: one job array for each shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.sweep import PlannedRun
from slurm.commands import NodeGroup
from slurm.site import Site, site_of

# Times that jobs ask for, in minutes. Few of them, so that runs of about the same length share an array.
_STEPS_MIN = (2, 3, 5, 10, 15, 20, 30, 45, 60, 90, 120, 180, 240, 360, 480, 720, 1080, 1440)
_DAY_MIN = 1440

# A run that once took t gets at least this many times t: nodes and neighbours differ.
_SLACK = 2.0
_LEAST_SLACK_S = 60.0


class Shape(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """What Slurm must allocate."""

    node_type: str
    """Empty where the cluster names no kinds of node."""
    nodes: int
    workers_per_node: int
    cores_per_node: int
    gpus_per_node: int
    memory_mb_per_node: int
    """0: what Slurm gives by default."""
    minutes: int

    @property
    def worker_hours(self) -> float:
        """At most, for one run."""
        return self.nodes * self.workers_per_node * self.minutes / 60

    def __str__(self) -> str:
        parts = [
            f"{self.nodes} {self.node_type} node{'s' * (self.nodes > 1)}".replace("  ", " "),
            f"{self.workers_per_node} worker{'s' * (self.workers_per_node > 1)} each",
            f"{self.cores_per_node} core{'s' * (self.cores_per_node > 1)}",
            *([f"{self.gpus_per_node} GPU{'s' * (self.gpus_per_node > 1)}"] if self.gpus_per_node else []),
            *([f"{self.memory_mb_per_node} MB"] if self.memory_mb_per_node else []),
            f"{self.minutes} min",
        ]
        return ", ".join(parts)


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of one shape, in the sweep's order: one job array, as long as the site takes it."""

    shape: Shape
    site: Site
    runs: list[PlannedRun]


def shape_of(run: RunConfig, site: Site, limit_s: float) -> Shape:
    """What one run needs; `limit_s` is the time that its job may take."""
    memory_gb = run.memory_gb_per_worker or site.memory_gb_per_worker or 0.0
    return Shape(
        node_type=run.node_type or "",
        nodes=run.nodes,
        workers_per_node=run.workers_per_node,
        cores_per_node=run.workers_per_node * run.threads_per_worker,
        gpus_per_node=run.workers_per_node if run.device == "cuda" else 0,
        memory_mb_per_node=math.ceil(memory_gb * run.workers_per_node * 1024),
        minutes=_minutes(limit_s),
    )


def _minutes(limit_s: float) -> int:
    needed = math.ceil(limit_s / 60)
    return next((step for step in _STEPS_MIN if step >= needed), math.ceil(needed / _DAY_MIN) * _DAY_MIN)


def batches(
    runs: Sequence[PlannedRun], cluster: Mapping[str, Any], earlier_s: Mapping[str, float] | None = None
) -> list[Batch]:
    """Runs by shape. `earlier_s`: how long runs of the same cell took, by cell.

    A run's job may take its `run_limit_s`, or twice what the cell has taken before, where that is less; and the site's
    allowance for its start.

    Raises:
        ConfigError: the cluster's file is not sound.
    """
    sites: dict[str | None, Site] = {}
    found: dict[Shape, list[PlannedRun]] = {}
    for planned in runs:
        run = planned.config
        site = sites.get(run.node_type) or sites.setdefault(run.node_type, site_of(cluster, run.node_type))
        limit_s = run.run_limit_s
        if (took_s := (earlier_s or {}).get(run.cell_id)) is not None:
            limit_s = min(limit_s, max(_SLACK * took_s, took_s + _LEAST_SLACK_S))
        found.setdefault(shape_of(run, site, limit_s + site.start_allowance_s), []).append(planned)
    return [
        Batch(shape=shape, site=sites[shape.node_type or None], runs=of_shape)
        for shape, of_shape in sorted(found.items())
    ]


def earlier_times_s(folder: SweepFolder, runs: Sequence[PlannedRun]) -> dict[str, float]:
    """The longest that a run of each cell has taken on this cluster, in this sweep or another, where one was `ok`."""
    cells = {run.config.run_id: run.config.cell_id for run in runs}
    longest: dict[str, float] = {}
    for sweep in _sweeps_beside(folder.path):
        for entry in sweep.iterdir():
            cell = cells.get(entry.name)
            head = SweepFolder(sweep).head(entry.name) if cell else None
            if cell and head and head.status == "ok":
                longest[cell] = max(head.wall_time_s, longest.get(cell, 0.0))
    return longest


def _sweeps_beside(path: Path) -> list[Path]:
    return [entry for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []


def check_fits(batch: Batch, groups: Sequence[NodeGroup]) -> None:
    """Refuse a shape that its partition can never hold; where Slurm chooses the partition, any may.

    Raises:
        UserError: it does not fit; the text says what there is.
    """
    shape, name = batch.shape, batch.site.partition
    partitions = set(name.split(",")) if name else {group.partition for group in groups}
    there = [group for group in groups if group.partition in partitions]
    if not there:
        known = ", ".join(sorted({group.partition for group in groups}))
        raise UserError(f"cluster.slurm.partition={name}: no such partition; Slurm has {known}")
    reasons = {partition: _misfit(batch, [g for g in there if g.partition == partition]) for partition in partitions}
    if all(reasons.values()):
        partition, reason = next(iter(sorted(reasons.items())))
        raise UserError(f"shape ({shape}) is larger than partition {partition}: {reason}")


def _misfit(batch: Batch, groups: Sequence[NodeGroup]) -> str | None:
    shape, kind = batch.shape, batch.site.gpu_type
    fitting = [
        group
        for group in groups
        if group.cores >= shape.cores_per_node
        and group.memory_mb >= shape.memory_mb_per_node
        and (group.gpus.get(kind, 0) if kind else sum(group.gpus.values())) >= shape.gpus_per_node
    ]
    if not fitting:
        most = max(groups, key=lambda group: (sum(group.gpus.values()), group.cores), default=None)
        if most is None:
            return "it has no nodes"
        gpus = ", ".join(f"{count} {kind}".rstrip() for kind, count in most.gpus.items()) or "none"
        lacking = bool(shape.gpus_per_node and kind and not any(kind in group.gpus for group in groups))
        offers = f"its nodes have {most.cores} cores, {most.memory_mb} MB, GPUs: {gpus}"
        return offers + f"; none of type {kind}" * lacking
    if (there := sum(group.nodes for group in fitting)) < shape.nodes:
        return f"it has {there} such nodes"
    if (limit := max(group.time_limit_min for group in fitting)) < shape.minutes:
        return f"its time limit is {limit:g} minutes; lower run_limit_s"
    return None
