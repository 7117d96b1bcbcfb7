"""What profiled runs say of their cells: where a step's time goes, the heaviest operators, what is held."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from analysis.cells.labels import label, telling
from analysis.runs.load import Cell
from analysis.schema import ProfileRow
from analysis.statistics.estimate import Estimate
from benchmarks.core.profile import RankProfile


def ranks_of(cell: Cell) -> list[RankProfile]:
    """One for each rank of the cell's profiled run, by rank; empty where it has none that ended well."""
    for profile in cell.profiles:
        if profile.ranks:
            return sorted(profile.ranks, key=lambda one: one.rank)
    return []


def _mean(of: Callable[[RankProfile], float]) -> Callable[[Cell], Estimate | None]:
    """The mean over ranks; one run, so there is no interval."""

    def of_cell(cell: Cell) -> Estimate | None:
        values = [of(one) for one in ranks_of(cell)]
        return Estimate(value=(mean := fmean(values)), low=mean, high=mean) if values else None

    return of_cell


PROFILED: Mapping[str, tuple[str, Callable[[Cell], Estimate | None]]] = {
    "profile_compute_s": ("computing, per profiled step [s]", _mean(lambda one: one.split.compute_s)),
    "profile_copy_s": ("copying [s]", _mean(lambda one: one.split.copy_s)),
    "profile_exposed_communication_s": (
        "communication, exposed [s]",
        _mean(lambda one: one.split.exposed_communication_s),
    ),
    "profile_idle_s": ("idle [s]", _mean(lambda one: one.split.idle_s)),
    "profile_hidden_communication_s": (
        "communication behind it, not in the sum [s]",
        _mean(lambda one: one.split.hidden_communication_s),
    ),
    "profile_step_s": ("profiled step [s]", _mean(lambda one: one.split.step_s)),
    "profile_parameters": ("parameters of a worker", _mean(lambda one: float(one.parameters.elements))),
    "profile_gradients": ("gradients of a worker", _mean(lambda one: float(one.gradients.elements))),
}
"""Measures of a cell: label, and how it is found. Means over ranks."""


def profile_rows(cells: Sequence[Cell]) -> list[ProfileRow]:
    """A row for each cell that has a profile, in the order of the sweep's file."""
    ordered = sorted(cells, key=lambda cell: cell.place)
    keys = telling([cell.config for cell in ordered])
    return [
        ProfileRow(cell_id=cell.cell_id, label=label(cell.config, keys), run_id=profile.run_id, ranks=ranks_of(cell))
        for cell in ordered
        for profile in cell.profiles[:1]
        if profile.ranks
    ]


def traces(row: ProfileRow) -> list[str]:
    """The files of its traces, below the sweep's folder."""
    return [f"{row.run_id}/{rank.trace}" for rank in row.ranks if rank.trace]


def counted(row: ProfileRow) -> str:
    """Parameters and gradients of rank 0, in words."""
    first = row.ranks[0]
    return "; ".join(
        f"{name}: {count.elements:,} in {count.tensors} tensors, {count.bytes / 1e6:.3g} MB"
        for name, count in (("parameters", first.parameters), ("gradients", first.gradients))
    )


def slowed(row: ProfileRow) -> str:
    """How much the profiler itself takes, in words."""
    first = row.ranks[0]
    return f"profiled step {first.split.step_s * 1e3:.3g} ms, else {first.plain_step_s * 1e3:.3g} ms"
