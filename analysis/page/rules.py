"""The twelve rules of Hoefler and Belli ("Scientific Benchmarking of Parallel Computing Systems", SC15).

In own words, with how a sweep keeps each: judged by its report, so that a sweep that does not is told so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from analysis.schema import Point, Report, Series
from analysis.statistics.bootstrap import DRAWS, ENOUGH_REPEATS

Verdict = Literal["met", "partly met", "not met", "does not apply"]
_ROUNDING = 1e-6
_TREND = 3
"""Points below which a line says nothing about what lies between them."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule and how the sweep keeps it."""

    number: int
    text: str
    verdict: Verdict
    evidence: str


Judged = tuple[Verdict, str]


def rules(report: Report) -> list[Rule]:
    """All twelve, in the paper's order."""
    found = []
    for place, (text, judge) in enumerate(_RULES, start=1):
        verdict, evidence = judge(report)
        found.append(Rule(number=place, text=text, verdict=verdict, evidence=evidence))
    return found


def _series(report: Report) -> list[Series]:
    return [*report.strong, *report.weak]


def _measured(report: Report) -> list[Point]:
    return [point for point in report.cells if point.repeats_ok]


def _of(count: int, total: int, what: str) -> str:
    return f"{count} of {total} {what}"


def _base(report: Report) -> Judged:
    series = _series(report)
    if not series:
        return "does not apply", "No speed-up is given: no two cells differ in the number of workers alone."
    based = [one for one in series if one.base]
    larger = [one for one in based if one.base and one.base.workers > 1]
    words = (
        f"{_of(len(based), len(series), 'series')} state their base with its time and its rate. The base is the same "
        "program on the series' fewest workers that gave a number, not the fastest serial program"
    )
    words += f"; in {len(larger)} series that is more than one worker." if larger else ", and is one worker."
    if not based:
        return "not met", "No series has a base yet: nothing of them is measured."
    return ("met" if len(based) == len(series) and not larger else "partly met"), words


def _subsets(report: Report) -> Judged:
    unexplained = [p for p in report.cells if p.failed and not p.reason]
    failed = sum(report.runs.failed.values())
    words = (
        f"Dropped cells: {len(report.dropped)}, failed runs: {failed}; each is listed with its reason. "
        f"{report.runs.missing} planned runs have no record yet."
    )
    if not report.runs.planned:
        return "partly met", f"What was planned is not known, since the sweep has no readable plan. {words}"
    if report.runs.missing or report.runs.unreadable or unexplained:
        return "not met", f"{words} {report.runs.unreadable} records cannot be read."
    return "met", words


def _costs_and_rates(report: Report) -> Judged:
    cells = [p for p in _measured(report) if p.step_time_s and p.throughput_samples_per_s]
    if not cells:
        return "does not apply", "Nothing is measured yet."
    kept = sum(
        abs(p.throughput_samples_per_s.value * p.step_time_s.value / p.global_batch - 1) < _ROUNDING
        for p in cells
        if p.step_time_s and p.throughput_samples_per_s
    )
    words = "times are summarised by their median, and the rate is the samples over that time, never a mean of rates."
    return ("met" if kept == len(cells) else "not met"), f"In {_of(kept, len(cells), 'cells')}, {words}"


def _ratios(report: Report) -> Judged:
    pairs = list(_ratio_pairs(report))
    if not pairs:
        return "does not apply", "There are no ratios."
    kept = sum(abs(said / made - 1) < _ROUNDING for said, made in pairs)
    words = "are made of two median times; no ratio is a mean of ratios."
    return ("met" if kept == len(pairs) else "not met"), f"{_of(kept, len(pairs), 'efficiencies')} {words}"


def _ratio_pairs(report: Report) -> Iterator[tuple[float, float]]:
    """Each efficiency as reported, and as it follows from the times."""
    for series in _series(report):
        for point in series.points:
            if series.base and point.efficiency and point.step_time_s:
                share = series.base.workers / point.workers if series.kind == "strong" else 1.0
                yield point.efficiency.value, series.base.step_time_s * share / point.step_time_s.value


def _repeats(report: Report) -> tuple[int, int] | None:
    counts = [point.repeats_ok for point in _measured(report)]
    return (min(counts), max(counts)) if counts else None


def _intervals(report: Report) -> Judged:
    repeats = _repeats(report)
    if repeats is None:
        return "does not apply", "Nothing is measured yet."
    least, most = repeats
    shown = str(least) if least == most else f"{least} to {most}"
    words = f"Times vary, so each has a 95 % interval ({DRAWS} bootstrap draws) from {shown} repeat{'s' * (most > 1)}"
    if least >= ENOUGH_REPEATS:
        return "met", f"{words}."
    if least > 1:
        covered = f"{1 - 2.0 ** (1 - least):.0%}"
        return "partly met", (
            f"{words}; with {least} an interval covers the true median in about {covered} of cases, "
            f"so {ENOUGH_REPEATS} are needed."
        )
    return "not met", f"{words}; with one repeat it holds only the noise between steps, not that between runs."


def _normality(report: Report) -> Judged:
    if not _measured(report):
        return "does not apply", "Nothing is measured yet."
    laws = sum(1 for one in _series(report) if one.fit and one.fit.model)
    words = "Medians and bootstrap intervals take no distribution for granted."
    if laws:
        return "partly met", (
            f"{words} The bands of {laws} fitted laws do: they take the logarithms of times as normal, unchecked."
        )
    return "met", words


def _comparison(report: Report) -> Judged:
    repeats = _repeats(report)
    if repeats is None or len(_measured(report)) < 2:
        return "does not apply", "There are no two measured cells to compare."
    words = (
        "Cells are told apart only where the interval of their ratio, which carries the noise of both, leaves out 1; "
        "else they are called alike."
    )
    if repeats[0] < 2:
        return "not met", f"{words} But cells with one repeat hide the noise between runs."
    return "met", words


def _centre(report: Report) -> Judged:
    cells = _measured(report)
    repeated = [point for point in cells if len(point.repeat_step_times_s) > 1]
    if not repeated:
        return "not met", "No cell has two repeats, so nothing can be said about how they spread."
    spread = max(max(p.repeat_step_times_s) / min(p.repeat_step_times_s) - 1 for p in repeated)
    words = (
        "The median over repeats of a window's mean step answers how long training takes, since slow steps are in it. "
        f"Repeats of a cell differ by {spread:.0%} at most; the slowest worker over the median one is shown as "
        "straggler. "
    )
    slow = [p.step_time_p95_s / p.step_time_s.value - 1 for p in cells if p.step_time_p95_s and p.step_time_s]
    if not slow:
        return "partly met", f"{words}No run has the 20 steps that percentiles of single steps need."
    words += f"Percentiles of single steps: the slowest twentieth takes {max(slow):.0%} longer at most (column p95)."
    if len(slow) < len(cells):
        return "partly met", f"{words} But {_of(len(cells) - len(slow), len(cells), 'cells')} have too few steps."
    return "met", words


def _setup(report: Report) -> Judged:
    known = {origin.fact for origin in report.origins if origin.value not in ("unknown", "none")}
    lacking = [fact for fact in ("commits", "torch versions", "hosts", "images") if fact not in known]
    changed = any(origin.value.endswith("with changes") for origin in report.origins)
    factors = [*report.setting_keys, "workers", "batch"]
    words = f"What was varied: {', '.join(factors)}; the levels are in the tables."
    if not _measured(report):
        return "does not apply", f"{words} Nothing is measured yet."
    defects = [f"no record says: {', '.join(lacking)}"] if lacking else []
    defects += ["a commit has changes that are in no commit"] if changed else []
    defects += [f"{len(report.mixed)} facts differ between runs"] if report.mixed else []
    if not defects:
        return "met", f"{words} Commit, torch, hosts and image are stated below."
    everything = {"commits", "torch versions"} <= set(lacking)
    return ("not met" if everything else "partly met"), f"{words} But {'; '.join(defects)}."


def _how_timed(report: Report) -> Judged:
    cells = _measured(report)
    if not cells:
        return "does not apply", "Nothing is measured yet."
    steps = [point.steps for point in cells]
    shown = str(min(steps)) if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}"
    return "met", (
        f"Each run times {shown} steps after a warm-up as one window between two device synchronisations; a step takes "
        "as long as on its slowest worker. A cell's number is the median of its repeats' window times per step."
    )


def _bounds(report: Report) -> Judged:
    series = [one for one in _series(report) if one.base]
    if not series:
        return "not met", "No series has a base, so no ideal can be drawn."
    points = [point for one in series for point in one.points if point.repeats_ok]
    bounded = [point for point in points if point.mfu or point.mfu_of_ceiling]
    above = [p for p in points if p.above_ideal]
    words = "The ideal, which follows from the base, stands in the charts of speed-up and efficiency. "
    words += (
        f"The hardware's bound, as MFU, is known of {_of(len(bounded), len(points), 'points')}."
        if bounded
        else "The hardware's bound is not known: ceilings=true measures it in the same jobs."
    )
    if above:
        words += f" {len(above)} points lie above the ideal by more than their interval: that wants an explanation."
    return ("met" if len(bounded) == len(points) else "partly met"), words


def _lines(report: Report) -> Judged:
    series = [one for one in _series(report) if one.base]
    if not series:
        return "does not apply", "No line is drawn: there is no series with a number."
    short = [one for one in series if sum(p.repeats_ok > 0 for p in one.points) < _TREND]
    laws = [one for one in series if one.fit and one.fit.model and one.fit.explained is not None]
    least = min((one.fit.explained or 0.0 for one in laws if one.fit), default=0.0)
    explained = f", which explains at least {least:.0%} of the variance" if laws else ""
    words = (
        f"Every point has its mark and its interval. {len(laws)} series have a fitted law as their line{explained}; "
        "other lines join the points of one series, for the eye."
    )
    if short:
        return "partly met", f"{words} {len(short)} series have fewer than {_TREND} points, too few for a trend."
    return "met", words


_RULES: tuple[tuple[str, Callable[[Report], Judged]], ...] = (
    ("Say what a speed-up refers to: which base, and how fast that is in absolute terms.", _base),
    ("Give a reason wherever only a part of the planned cases or of the machine is reported.", _subsets),
    ("Average costs, such as times, arithmetically; never average rates that way.", _costs_and_rates),
    ("Do not average ratios; make them from the summarised costs behind them.", _ratios),
    ("Say whether values vary from run to run; where they do, give confidence intervals.", _intervals),
    ("Take no normal distribution for granted without a check.", _normality),
    ("Compare values that vary by statistics, such as intervals.", _comparison),
    ("Ask whether the middle is the right summary; give percentiles where the worst case counts.", _centre),
    ("Document everything that was varied, and the whole set-up of hardware and software.", _setup),
    ("Say how parallel times are taken: measurement, synchronisation, summary over processes.", _how_timed),
    ("Show upper bounds where there are any.", _bounds),
    ("Show as much as a reader needs; join points by lines only where what lies between makes sense.", _lines),
)
