"""Repeats in rounds: each cell of a sweep gets more until its number is known well enough, or the cap is reached.

Nothing is remembered but the manifest and the records: the manifest says which repeats were planned, and a cell is
looked at when all of these have ended. So a command may be killed anywhere, and whoever gives it again finds every cell
where it was; a round that was cut off is finished before its cells are looked at, as if it had not been.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.core.errors import ConfigError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.repeat_target import (
    JUDGED_FROM,
    RepeatTarget,
    Width,
    Widths,
    percent,
    rounds_of,
    shortfall,
    steps_of,
)
from benchmarks.core.sweep import Plan, PlannedRun, Sweep

State = Literal["under way", "failed", "there", "more", "capped"]

_SHOWN = 5
_NO_WIDTH = Width(repeats=0, repeats_ok=0, half_width=float("inf"))


class Once:
    """Every cell has the sweep's own number of repeats."""

    def extended(self, plan: Plan) -> Plan:
        """The plan as it is."""
        return plan

    def outlook(self, _plan: Plan) -> str:
        """Nothing is to be added."""
        return ""


class CellState(msgspec.Struct, frozen=True, kw_only=True):
    """One cell, as it is before the next round."""

    first: PlannedRun
    state: State
    width: Width
    repeats: int
    """Those that are to be there now: of `more`, with the next round's."""

    @property
    def cell_id(self) -> str:
        """As in the manifest."""
        return self.first.config.cell_id


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Adds repeats to a plan, as far as the records in a sweep's folder ask for them."""

    target: RepeatTarget
    folder: SweepFolder
    max_attempts: int
    widths: Callable[[Path], Widths]
    """Reads the records of a sweep's folder."""
    say: Callable[[str], object]
    """Is told how the cells stand, whenever some of them have ended a round."""

    def extended(self, plan: Plan) -> Plan:
        """A sweep's plan with all repeats that are to be there now.

        The caller submits or makes what is missing of it, and asks again when that has ended: until nothing is missing.
        """
        cells = self.cells(plan)
        if any(cell.state != "under way" for cell in cells):
            self.say(told(cells, self.target))
        return self._plan(plan, {cell.cell_id: cell.repeats for cell in cells})

    def outlook(self, plan: Plan) -> str:
        """What may be added after what is planned now, for people."""
        open_cells = [cell for cell in self.cells(plan) if cell.state in ("under way", "more")]
        more = [(cell.first.config, self.target.max_repeats - cell.repeats) for cell in open_cells]
        hours = sum(config.workers * config.run_limit_s * count for config, count in more) / 3600
        return (
            f"target_ci={percent(self.target.half_width)}: cells get more repeats until then, up to "
            f"{self.target.max_repeats}; at most {sum(count for _, count in more)} further runs, {hours:.2f} "
            "worker-hours\n"
        )

    def cells(self, plan: Plan) -> list[CellState]:
        """All cells, in the plan's order."""
        first_runs = _first_runs(plan)
        widths = self.widths(self.folder.path)
        known = self._known(plan, first_runs, widths)
        planned = self._plan(plan, known)
        missing = self.folder.remaining(planned, self.max_attempts)
        under_way = {run.config.cell_id for run in missing if not run.config.profile}
        return [
            self._state(first, plan.sweep, known[cell_id], None if cell_id in under_way else widths.get(cell_id))
            for cell_id, first in first_runs.items()
        ]

    def _known(self, plan: Plan, first_runs: Mapping[str, PlannedRun], widths: Widths) -> dict[str, int]:
        """How many repeats of each cell are planned already, or have a record."""
        known = dict.fromkeys(first_runs, plan.sweep.repeats)
        manifest = self.folder.manifest()
        timed = [run for run in manifest.runs if not run.config.get("profile")] if manifest else []
        found = [(run.cell_id, run.repeat + 1) for run in timed]
        found += [(cell_id, width.repeats) for cell_id, width in widths.items()]
        for cell_id, repeats in found:
            if cell_id in known:
                known[cell_id] = min(max(known[cell_id], repeats), self.target.max_repeats)
        return known

    def _state(self, first: PlannedRun, sweep: Sweep, repeats: int, width: Width | None) -> CellState:
        def cell(state: State, repeats: int = repeats) -> CellState:
            return CellState(first=first, state=state, width=width or _NO_WIDTH, repeats=repeats)

        if width is None:
            return cell("under way")
        if not width.repeats_ok:
            return cell("failed")
        if self.target.reached(width):
            return cell("there")
        later = [step for step in steps_of(sweep.repeats, self.target.max_repeats) if step > repeats]
        return cell("more", later[0]) if later else cell("capped")

    def _plan(self, plan: Plan, repeats: Mapping[str, int]) -> Plan:
        """With so many repeats of each cell: the sweep's own, then round by round, each in an order of its own."""
        first_runs, seed = _first_runs(plan), plan.sweep.shuffle_seed
        runs = list(plan.runs)
        for number, added in enumerate(rounds_of(plan.sweep.repeats, self.target.max_repeats), start=1):
            of_round = [(cell_id, repeat) for repeat in added for cell_id in first_runs]
            if seed is not None:
                random.Random(seed + number).shuffle(of_round)  # an order that does not depend on which cells need more
            runs += [repeat_of(first_runs[each], repeat) for each, repeat in of_round if repeat < repeats[each]]
        return msgspec.structs.replace(plan, runs=runs, repeat_target=self.target)


def check_sweep(target: RepeatTarget, sweep: Sweep) -> None:
    """Raise ConfigError where a sweep cannot have such a target."""
    if sweep.tune:
        raise ConfigError(
            f"target_ci={percent(target.half_width)}: sweep={sweep.name} is a tuning sweep, whose trials have "
            "sweep.repeats repeats each; set target_ci to null"
        )
    if sweep.repeats > target.max_repeats:
        raise ConfigError(f"max_repeats={target.max_repeats}: must be at least sweep.repeats={sweep.repeats}")


def repeat_of(first: PlannedRun, repeat: int) -> PlannedRun:
    """Another repeat of a cell, from its first: the same that a plan with more repeats has."""
    own = {"seed": first.config.seed + repeat, "repeat": repeat}
    return msgspec.structs.replace(
        first, config=msgspec.structs.replace(first.config, **own), settings=first.settings | own
    )


def _first_runs(plan: Plan) -> dict[str, PlannedRun]:
    """By cell."""
    found: dict[str, PlannedRun] = {}
    for run in plan.runs:
        if run.config.repeat == 0 and not run.config.profile:
            found.setdefault(run.config.cell_id, run)
    return found


def told(cells: Sequence[CellState], target: RepeatTarget) -> str:
    """How the cells stand, in a line; then those that are looked at again and those that have come to the cap."""
    counts = Counter(cell.state for cell in cells)
    words: dict[State, str] = {
        "there": "there",
        "more": "to get more repeats",
        "under way": "not yet to be judged",
        "capped": "not there with all repeats that they may have",
        "failed": "failed",
    }
    line = ", ".join(f"{counts[state]} {said}" for state, said in words.items() if counts[state])
    lines = [f"target_ci={percent(target.half_width)}, {len(cells)} cell{'s' * (len(cells) > 1)}: {line}"]
    lines += _widest([cell for cell in cells if cell.state == "more"], _needs_more)
    lines += _widest([cell for cell in cells if cell.state == "capped"], lambda cell: shortfall(cell.width, target))
    return "\n".join(lines) + "\n"


def _needs_more(cell: CellState) -> str:
    if cell.width.repeats_ok < JUDGED_FROM:
        return f"{cell.width.repeats_ok} repeats are too few to judge, {cell.repeats} now"
    return f"+-{percent(cell.width.half_width)} after {cell.width.repeats_ok}, {cell.repeats} now"


def _widest(cells: Sequence[CellState], words: Callable[[CellState], str]) -> list[str]:
    ordered = sorted(cells, key=lambda cell: -cell.width.half_width)
    lines = [f"  {cell.cell_id}: {words(cell)}" for cell in ordered[:_SHOWN]]
    return [*lines, f"  and {len(ordered) - _SHOWN} more"] if len(ordered) > _SHOWN else lines
