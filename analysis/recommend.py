"""Which configuration to run: `python -m analysis.recommend DIR --goal time|cost|energy [--deadline 2h --samples 1e9]`.

The best cell, the runner-up, how sure that is and what it costs; beside it the front of time and cost, and what the
scaling laws expect of worker counts that were not measured. Says so where the measurement cannot tell cells apart.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from analysis import command
from analysis.candidates import Candidate, Wanted, candidates, forecasts, on_front
from analysis.estimate import Estimate
from analysis.goals import AIMS, Goal, comparable, energy_words, scopes_differ
from analysis.load import Loaded, load_cells
from analysis.schema import Report
from analysis.series import build_report
from analysis.statistics import ENOUGH_REPEATS, estimate
from benchmarks.errors import UserError

DEFAULT_SAMPLES = 1_000_000.0
_SURE = 0.95
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Choice(msgspec.Struct, kw_only=True):
    """One configuration with what it would take."""

    label: str
    cell_id: str | None
    """Null for a forecast."""
    workers: int
    time_s: Estimate
    worker_hours: Estimate
    cost: Estimate | None
    """In the cluster's currency; null without a price."""
    energy_j: Estimate | None
    """Null where it was not measured."""
    accuracy: float | None
    on_front: bool
    """No other measured one is both faster and cheaper."""


class Recommendation(msgspec.Struct, kw_only=True):
    """What `--json` prints."""

    goal: Goal
    samples: float
    sentence: str
    why: str
    """What limits the best one; empty without one."""
    best: Choice | None
    runner_up: Choice | None
    probability_best: float | None
    """Share of the bootstrap draws in which the best one is the best of all."""
    like_best: list[str]
    """Those which the measurement cannot tell from the best."""
    measured: list[Choice]
    """By the goal, the best first."""
    predicted: list[Choice]
    """Worker counts that were not measured, by the series' laws; never the best, since nobody has seen them."""
    excluded: list[str]
    """Cells that were not considered, and why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake that the user can mend."""
    return command.carry_out(_parser(), arguments, _run)


def _run(options: argparse.Namespace) -> int:
    wanted = Wanted(
        samples=_number("--samples", options.samples),
        deadline_s=_duration_s(options.deadline),
        max_workers=int(_number("--max-workers", options.max_workers)) if options.max_workers else None,
        min_accuracy=_number("--min-accuracy", options.min_accuracy) if options.min_accuracy else None,
    )
    result = recommend(command.chosen_sweep(options), options.goal, wanted)
    if options.json:
        command.print_json(result)
    else:
        _show(result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = command.sweep_parser("recommend", "Which configuration to run.")
    parser.add_argument("--goal", choices=get_args(Goal), default="time", help="what is to be small (time)")
    parser.add_argument("--samples", default=f"{DEFAULT_SAMPLES:g}", metavar="1e9", help="to be trained on (1e+06)")
    parser.add_argument("--deadline", metavar="2h", help="as 90m, 2h or 1d: what may take longer is left out")
    parser.add_argument("--max-workers", metavar="64", help="what needs more is left out")
    parser.add_argument("--min-accuracy", metavar="0.9", help="what ended below in the sweep is left out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"{name}={text}: must be a number above 0")
    return value


def _duration_s(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"([\d.]+)([smhd])", text)
    if match is None:
        raise UserError(f"--deadline={text}: must be a number with s, m, h or d, as 2h")
    return _number("--deadline", match[1]) * _UNITS_S[match[2]]


def recommend(folder: Path, goal: Goal, wanted: Wanted) -> Recommendation:
    """Choose among a sweep's cells.

    Raises:
        UserError: no such sweep, or nothing in it has a number, or the goal is energy and no cell has any.
    """
    loaded = load_cells(folder)
    return choose(loaded, build_report(loaded), goal, wanted)


def choose(loaded: Loaded, report: Report, goal: Goal, wanted: Wanted) -> Recommendation:
    """The same of a sweep that is read already, with its report. Raises UserError as `recommend`."""
    found, excluded = candidates(loaded.cells, wanted)
    if not found and not excluded:
        raise UserError(f"{loaded.folder}: no cell has a number yet; the sweep's command again runs what is missing")
    found, unknown = comparable(found, goal, loaded.folder)
    amount = AIMS[goal].amount
    found.sort(key=amount)
    best, runner_up = [*found[:2], None, None][:2]
    predicted = forecasts([*report.strong, *report.weak], wanted, loaded.cells)
    like = [one for one in found[1:] if best and _alike(best, one, goal)]
    sure = _probability_best(found, goal) if best else None
    front = on_front(found)
    return Recommendation(
        goal=goal,
        samples=wanted.samples,
        sentence=_sentence(best, runner_up, like, sure, goal, wanted) + scopes_differ(found) * (goal == "energy"),
        why=_why(best, report),
        best=_choice(best, front) if best else None,
        runner_up=_choice(runner_up, front) if runner_up else None,
        probability_best=sure,
        like_best=[one.label for one in like],
        measured=[_choice(one, front) for one in found],
        predicted=[_choice(one, set()) for one in sorted(predicted, key=lambda one: (amount(one), one.time_s))],
        excluded=[*excluded, *unknown],
    )


def _choice(one: Candidate, front: set[str]) -> Choice:
    time = one.time_estimate
    hours = one.workers / 3600
    worker_hours = Estimate(value=time.value * hours, low=time.low * hours, high=time.high * hours)
    price = one.price_per_worker_hour
    return Choice(
        label=one.label,
        cell_id=one.cell_id,
        workers=one.workers,
        time_s=time,
        worker_hours=worker_hours,
        cost=None
        if price is None
        else Estimate(value=worker_hours.value * price, low=worker_hours.low * price, high=worker_hours.high * price),
        energy_j=one.energy.estimate if one.energy else None,
        accuracy=one.accuracy,
        on_front=one.cell_id in front,
    )


def _alike(best: Candidate, other: Candidate, goal: Goal) -> bool:
    """Whether the 95 % interval of the ratio of the two holds 1."""
    ratio = estimate(1.0, AIMS[goal].draws(other) / AIMS[goal].draws(best))
    return ratio.low <= 1.0


def _probability_best(found: Sequence[Candidate], goal: Goal) -> float:
    table = np.stack([AIMS[goal].draws(one) for one in found])
    return float(np.mean(np.argmin(table, axis=0) == 0))


def _sentence(
    best: Candidate | None,
    runner_up: Candidate | None,
    like: Sequence[Candidate],
    sure: float | None,
    goal: Goal,
    wanted: Wanted,
) -> str:
    if best is None or sure is None:
        return "No measured configuration keeps all conditions; see what was left out, and why."
    time = best.time_estimate
    hours = best.time_s * best.workers / 3600
    paid = f", {best.price:.3g} {best.currency}" if best.price_per_worker_hour is not None else ""
    used = f", {energy_words(best.energy.joules)}" if best.energy else ""
    words = (
        f"Run {best.label}: {wanted.samples:.3g} samples take {duration(time.value)} "
        f"{between(time)}, {hours:.3g} worker-hours{paid}{used}."
    )
    if best.repeats < ENOUGH_REPEATS:
        words += f" {best.repeats} repeat{'s' * (best.repeats > 1)}, so intervals are too narrow: sweep.repeats=6."
    if runner_up is None:
        return f"{words} It is the only one left."
    if like:
        names = "; ".join(one.label for one in like[:3]) + ("; ..." if len(like) > 3 else "")
        return f"{words} The measurement cannot tell it from {names} ({sure:.0%} of the draws prefer it)."
    aim = AIMS[goal]
    by = aim.amount(runner_up) / aim.amount(best) - 1
    return f"{words} Sure to {min(sure, 0.999):.1%}; the runner-up, {runner_up.label}, {aim.verb} {by:.0%} more."


def _why(best: Candidate | None, report: Report) -> str:
    """What limits the best configuration, and how well its workers are used."""
    if best is None:
        return ""
    limits = [cell.bottleneck.sentence for cell in report.cells if cell.cell_id == best.cell_id and cell.bottleneck]
    used = [
        f"{point.efficiency.value:.0%} efficient against {series.base.workers} (base of {series.kind} scaling)."
        for series in [*report.strong, *report.weak]
        for point in series.points
        if point.cell_id == best.cell_id and point.efficiency and series.base and series.base.workers < point.workers
    ]
    return " ".join([*limits, *(f"Its {best.workers} workers are {words}" for words in used)])


def duration(seconds: float) -> str:
    """Seconds as people say them: `45.2 s`, `3.1 min`, `2.4 h`, `5 days`."""
    unit, size = _unit_of(seconds)
    return f"{seconds / size:.3g} {unit}"


def between(time: Estimate) -> str:
    """The interval of a duration, in the unit of its middle."""
    size = _unit_of(time.value)[1]
    return f"[{time.low / size:.3g}, {time.high / size:.3g}]"


def _unit_of(seconds: float) -> tuple[str, float]:
    for limit, unit, size in ((120.0, "s", 1.0), (7200.0, "min", 60.0), (172800.0, "h", 3600.0)):
        if seconds < limit:
            return unit, size
    return "days", 86400.0


def _show(result: Recommendation) -> None:
    from rich.table import Table
    from rich.text import Text

    console = command.console()
    console.print(Text(result.sentence, style="bold"))
    if result.why:
        console.print(Text(result.why))
    for title, choices in (("measured", result.measured), ("predicted by the scaling laws", result.predicted)):
        if not choices:
            continue
        table = Table(
            title, "time", "95 % interval", "worker-hours", box=None, header_style="bold", padding=(0, 2, 0, 0)
        )
        if any(choice.cost for choice in choices):
            table.add_column("cost", justify="right")
        if any(choice.energy_j for choice in choices):
            table.add_column("energy", justify="right")
        table.add_column("accuracy", justify="right")
        table.add_column("")
        for choice in choices[:20]:
            row = [duration(choice.time_s.value), between(choice.time_s)]
            row.append(f"{choice.worker_hours.value:.3g}")
            row += [f"{choice.cost.value:.3g}" if choice.cost else "-"] if any(c.cost for c in choices) else []
            if any(c.energy_j for c in choices):
                row.append(energy_words(choice.energy_j.value) if choice.energy_j else "-")
            row.append("-" if choice.accuracy is None else f"{choice.accuracy:.3f}")
            table.add_row(Text(choice.label), *map(Text, row), "on the front" if choice.on_front else "")
        console.print()
        console.print(table)
    for line in result.excluded:
        console.print(Text(f"left out: {line}", style="dim"))


if __name__ == "__main__":
    sys.exit(main())
