"""What people read of a tuning sweep while it is planned and run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from benchmarks.core.variants import Option
from benchmarks.tuning.definition import Search
from benchmarks.tuning.rungs import epochs_not_trained
from benchmarks.tuning.search_space import Dimension
from benchmarks.tuning.trials import Study, Trial


def plan_text(search: Search, done: int) -> str:
    """What would be searched, and what it can take at most."""
    definition, left = search.definition, max(0, search.trials - done)
    runs = search.runs_of_trial
    lines = [f"sweep {search.sweep.name}: {search.sweep.question}"]
    lines += [f"  {dimension.key}: {dimension_text(dimension)}" for dimension in definition.space]
    aim = "the highest accuracy" if definition.maximises else "the lowest loss"
    count = f"{search.trials} trials ({left} to be made), {search.parallel} at a time"
    lines.append(f"{count}, by {definition.sampler}, for {aim}")
    lengths = ", ".join(map(str, definition.rungs))
    if len(definition.rungs) > 1:
        lines.append(f"a trial's runs have {lengths} {definition.unit}; the best 1 in {definition.reduction} go on")
    else:
        lines.append(f"a trial's runs have {lengths} {definition.unit}")
    lines.append(
        f"at most {left * runs} runs ({runs} for a trial); at most {left * search.worker_hours_limit:.2f} worker-hours "
        "(workers x run_limit_s)"
    )
    return "\n".join(lines)


def dimension_text(dimension: Dimension) -> str:
    """`0.001 to 1, logarithmic`."""
    if dimension.choices:
        return " or ".join(map(value_text, dimension.choices))
    how = ", logarithmic" if dimension.log else f", in steps of {dimension.step:g}" if dimension.step else ""
    return f"{dimension.low:g} to {dimension.high:g}{how}"


def trial_line(trial: Trial, study: Study, total: int) -> str:
    """A trial's end in one line."""
    outcome, definition = trial.outcome, study.definition
    assert outcome
    values = outcome.values
    if outcome.state == "complete":
        best = ", the best so far" if study.best and study.best.number == trial.number else ""
        said = f"{definition.metric} {values[max(values)]:.4f}{best}"
    elif outcome.state == "pruned":
        length = max(values)
        said = f"pruned after {length} of {definition.rungs[-1]} epochs, {definition.metric} {values[length]:.4f}"
    else:
        said = f"{outcome.state}: {outcome.reason}"
    return f"trial {trial.number + 1} of {total}  {params_text(trial.params)}  {said}"


def summary(study: Study) -> str:
    """The best trial, how all ended, and what pruning saved."""
    counts = Counter(trial.outcome.state for trial in study.trials if trial.outcome)
    lines = [f"{sum(counts.values())} trials: " + ", ".join(f"{count} {state}" for state, count in counts.items())]
    if (saved := epochs_saved(study)) is not None:
        lines.append(saved)
    best = study.best
    if best is None:
        lines.append("no trial has a value")
    else:
        lines.append(
            f"best: trial {best.number + 1}, {study.definition.metric} {best.value:.4f}: {params_text(best.params)}"
        )
    return "\n".join(lines)


def epochs_saved(study: Study) -> str | None:
    """What pruning saved, for people; None without pruning."""
    definition = study.definition
    if len(definition.rungs) < 2:
        return None
    # The trials of which pruning decided: those that failed say nothing of it.
    reached = [
        len(trial.outcome.values)
        for trial in study.trials
        if trial.outcome and trial.outcome.state in ("complete", "pruned")
    ]
    saved = epochs_not_trained(reached, definition.rungs) * definition.repeats
    full = len(reached) * definition.rungs[-1] * definition.repeats
    return f"pruning: {full - saved} epochs trained instead of {full}" + (f", {saved} saved" if saved >= 0 else "")


def counted(length: int, unit: str) -> str:
    """`1 epoch`, `3 epochs`."""
    return f"{length} {unit.removesuffix('s') if length == 1 else unit}"


def params_text(params: Mapping[str, Option]) -> str:
    """Settings as they can be typed again."""
    return " ".join(f"{key}={value_text(value)}" for key, value in params.items())


def value_text(value: Option) -> str:
    """A value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.12g}" if isinstance(value, float) else str(value)
