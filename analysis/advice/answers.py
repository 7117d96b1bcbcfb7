"""One answer: of all configurations that train the same model on the same data the best, how sure that is, and why."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from analysis.advice.candidates import Candidate, Wanted, on_front
from analysis.advice.goals import AIMS, Goal, scopes_differ
from analysis.schema import Report
from analysis.statistics.bootstrap import ENOUGH_REPEATS, estimate
from analysis.statistics.estimate import Estimate
from analysis.wording import between, duration, energy_words


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


class Answer(msgspec.Struct, kw_only=True):
    """The recommendation for one task: a model and its data, of which another is no substitute."""

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


def answer(found: Sequence[Candidate], report: Report, goal: Goal, wanted: Wanted) -> Answer:
    """The best of candidates for one task, in any order; there may be none."""
    ordered = sorted(found, key=AIMS[goal].amount)
    best, runner_up = [*ordered[:2], None, None][:2]
    like = [one for one in ordered[1:] if best and _alike(best, one, goal)]
    sure = _probability_best(ordered, goal) if best else None
    front = on_front(ordered)
    return Answer(
        sentence=_sentence(best, runner_up, like, sure, goal, wanted)
        + _cheapest(ordered, goal)
        + scopes_differ(ordered) * (goal == "energy"),
        why=_why(best, report),
        best=choice(best, front) if best else None,
        runner_up=choice(runner_up, front) if runner_up else None,
        probability_best=sure,
        like_best=[one.label for one in like],
        measured=[choice(one, front) for one in ordered],
    )


def choice(one: Candidate, front: set[str]) -> Choice:
    """A candidate with all that it takes; `front` has the ids of those on the front."""
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
    words = [
        f"{_SUPERLATIVES[goal]}: run {best.label}. {wanted.samples:.3g} samples take {duration(time.value)} "
        f"{between(time)}, {hours:.3g} worker-hours{paid}{used}."
    ]
    words.append(_rivals(best, runner_up, like, sure, goal))
    if best.repeats == 1:
        words.append("With one repeat nothing is known of how runs differ: a first look and no decision.")
    elif best.repeats < ENOUGH_REPEATS:
        words.append(f"{best.repeats} repeats are few: the intervals may well be too narrow.")
    if best.repeats < ENOUGH_REPEATS:
        words.append(f"Surer with the same command and sweep.repeats={ENOUGH_REPEATS}.")
    return " ".join(words)


_SUPERLATIVES: dict[Goal, str] = {"time": "Fastest", "cost": "Cheapest", "energy": "Least energy"}


def _rivals(best: Candidate, runner_up: Candidate | None, like: Sequence[Candidate], sure: float, goal: Goal) -> str:
    """How the best one stands against the others."""
    if runner_up is None:
        return "It is the only one left."
    if like:
        names = "; ".join(one.label for one in like[:3]) + ("; ..." if len(like) > 3 else "")
        return (
            f"The measurement cannot tell it from these: {names}. It was best in {sure:.0%} of the bootstrap's draws."
        )
    aim = AIMS[goal]
    by = aim.amount(runner_up) / aim.amount(best) - 1
    surety = f"Sure to {min(sure, 0.999):.1%}; the" if best.repeats >= ENOUGH_REPEATS else "The"
    return f"{surety} runner-up, {runner_up.label}, {aim.verb} {by:.0%} more."


def _cheapest(ordered: Sequence[Candidate], goal: Goal) -> str:
    """What the fastest one's price is, if another is cheaper; nothing where the goal is another."""
    if goal != "time" or not ordered:
        return ""
    best, cheapest = ordered[0], min(ordered, key=AIMS["cost"].amount)
    longer, less = cheapest.time_s / best.time_s - 1, 1 - cheapest.price / best.price
    if cheapest is best or less < _WORTH_SAYING:
        return ""
    unit = "money" if best.price_per_worker_hour is not None else "worker-hours"
    return f" Cheapest: {cheapest.label} takes {longer:.0%} longer and {less:.0%} less in {unit}."


_WORTH_SAYING = 0.05


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
