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

from analysis import command
from analysis.advice.answers import Answer, Choice, answer, choice
from analysis.advice.candidates import Candidate, Wanted, candidates, forecasts
from analysis.advice.goals import AIMS, Goal, comparable
from analysis.runs.load import Loaded, load_cells
from analysis.schema import Report
from analysis.series import build_report
from analysis.wording import between, duration, energy_words
from benchmarks.core.errors import UserError

DEFAULT_SAMPLES = 1_000_000.0
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Recommendation(msgspec.Struct, kw_only=True):
    """What `--json` prints."""

    goal: Goal
    samples: float
    answers: list[Answer]
    """One for each task, a model with its data, of those that have a measured configuration; one at least."""
    measured: list[Choice]
    """Of all tasks; by the goal, the best first."""
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
    tasks: dict[str, list[Candidate]] = {}
    for one in found:
        tasks.setdefault(one.task, []).append(one)
    answers = [answer(group, report, goal, wanted) for group in tasks.values() or [[]]]
    predicted = forecasts([*report.strong, *report.weak], wanted, loaded.cells)
    return Recommendation(
        goal=goal,
        samples=wanted.samples,
        answers=answers,
        measured=sorted((one for each in answers for one in each.measured), key=lambda one: _rank(one, goal)),
        predicted=[choice(one, set()) for one in sorted(predicted, key=lambda one: (amount(one), one.time_s))],
        excluded=[*excluded, *unknown],
    )


def _rank(one: Choice, goal: Goal) -> float:
    amounts = {"time": one.time_s, "cost": one.cost or one.worker_hours, "energy": one.energy_j or one.time_s}
    return amounts[goal].value


def _show(result: Recommendation) -> None:
    from rich.table import Table
    from rich.text import Text

    console = command.console()
    for one in result.answers:
        console.print(Text(one.sentence, style="bold"))
        if one.why:
            console.print(Text(one.why))
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
        for shown in choices[:20]:
            row = [duration(shown.time_s.value), between(shown.time_s)]
            row.append(f"{shown.worker_hours.value:.3g}")
            row += [f"{shown.cost.value:.3g}" if shown.cost else "-"] if any(c.cost for c in choices) else []
            if any(c.energy_j for c in choices):
                row.append(energy_words(shown.energy_j.value) if shown.energy_j else "-")
            row.append("-" if shown.accuracy is None else f"{shown.accuracy:.3f}")
            table.add_row(Text(shown.label), *map(Text, row), "on the front" if shown.on_front else "")
        console.print()
        console.print(table)
    for line in result.excluded:
        console.print(Text(f"left out: {line}", style="dim"))


if __name__ == "__main__":
    sys.exit(main())
