"""What a tuning sweep has found: the best trial, those near it, and what pruning saved."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from pathlib import Path

from analysis.study_schema import Search, TrialRow
from benchmarks.core.errors import UserError
from benchmarks.tuning.definition import Definition
from benchmarks.tuning.text import epochs_saved
from benchmarks.tuning.trials import Study, Trial, read_studies

_BEST = 3
_NEAREST = 5


def newest_search(folder: Path | None) -> Study | None:
    """The search of a sweep's folder that was last gone on with. Raises UserError where it cannot be read."""
    studies = read_studies(folder) if folder else []
    return studies[-1] if studies else None


def build_search(folder: Path, problems: list[str]) -> Search | None:
    """The newest search of a folder; None where there is none. One that cannot be read is named in `problems`."""
    try:
        studies = read_studies(folder)
    except UserError as error:
        problems.append(str(error))
        return None
    if not studies:
        return None
    study, definition = studies[-1], studies[-1].definition
    ranked = sorted(
        (trial for trial in study.trials if trial.value is not None),
        key=lambda trial: (-1 if definition.maximises else 1) * (trial.value or 0.0),
    )
    rows = {trial.number: _row(trial, definition, ranked[0] if ranked else None) for trial in study.trials}
    near = [row for row in rows.values() if row.distance is not None and row.number != ranked[0].number + 1]
    return Search(
        metric=definition.metric,
        unit=definition.unit,
        full_length=definition.rungs[-1],
        keys=[dimension.key for dimension in definition.space],
        states=dict(Counter(row.state for row in rows.values())),
        saved=epochs_saved(study),
        trials=list(rows.values()),
        best=[trial.number + 1 for trial in ranked[:_BEST]],
        nearest=[row.number for row in sorted(near, key=lambda row: row.distance or 0.0)[:_NEAREST]],
        earlier_studies=len(studies) - 1,
    )


def last_value(trial: Trial) -> tuple[int, float] | None:
    """Length and metric of a trial's longest run with a value."""
    return max(trial.outcome.values.items()) if trial.outcome and trial.outcome.values else None


def _row(trial: Trial, definition: Definition, best: Trial | None) -> TrialRow:
    last = last_value(trial)
    return TrialRow(
        number=trial.number + 1,
        state=trial.outcome.state if trial.outcome else "running",
        value=last[1] if last else None,
        length=last[0] if last else None,
        settings=trial.params,
        reason=trial.outcome.reason if trial.outcome else None,
        distance=distance(trial, best, definition) if best and last else None,
    )


def distance(trial: Trial, other: Trial, definition: Definition) -> float:
    """Between two settings, in the unit cube of the space as it was searched: a root mean square over dimensions.

    Two choices are 0 or 1 apart, and so is a setting that only one of them has.
    """
    squares = []
    for each in definition.space:
        one, two = trial.params.get(each.key), other.params.get(each.key)
        if one is None or two is None or each.choices:
            squares.append(float(one != two))
        else:
            squares.append((each.share(one) - each.share(two)) ** 2)
    return sqrt(sum(squares) / len(squares))
