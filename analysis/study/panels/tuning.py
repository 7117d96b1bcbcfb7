"""Panels of a tuning sweep: its history, and which settings matter."""

from __future__ import annotations

from analysis.statistics.estimate import Estimate
from analysis.study.importance import importances
from analysis.study.panels import Subject, panel_kind
from analysis.study.search import last_value, newest_search
from analysis.study_schema import Panel, PanelPoint, PanelSeries
from benchmarks.core.errors import ConfigError, UserError
from benchmarks.tuning.text import counted
from benchmarks.tuning.trials import Study, Trial


@panel_kind("history", lambda _options: ["accuracy", "loss"])
def history(subject: Subject) -> Panel:
    """The value of each trial after its longest run, in order, and the best at full length until then."""
    study = _study(subject)
    if study is None:
        return _empty("history", subject)
    definition = study.definition
    groups: dict[str, list[PanelPoint]] = {counted(each, definition.unit): [] for each in reversed(definition.rungs)}
    best: float | None = None
    for trial in study.trials:
        if (last := last_value(trial)) is None:
            continue
        length, value = last
        is_best = trial.value is not None and (best is None or (value > best if definition.maximises else value < best))
        best = value if is_best else best
        name = counted(length, definition.unit)
        point = PanelPoint(
            x=float(trial.number + 1),
            y=Estimate(value=value, low=value, high=value),
            n=definition.repeats,
            on_front=is_best,
        )
        groups[name].append(point)
    full = counted(definition.rungs[-1], definition.unit)  # the first, and filled, also while there is none
    ended = [trial for trial in study.trials if trial.outcome and not trial.outcome.values]
    return Panel(
        kind="history",
        mark="history",
        title=subject.title,
        x_label="trials",
        y_label=f"test {definition.metric} [{'fraction' if definition.maximises else 'nats'}]",
        series=[PanelSeries(label=name, points=points) for name, points in groups.items() if points or name == full],
        missing=[_missing(trial) for trial in ended],
        x_of_missing=[float(trial.number + 1) for trial in ended],
    )


@panel_kind("importance", lambda _options: [])
def importance(subject: Subject) -> Panel:
    """How much of the metric's variance over the space each setting explains."""
    study = _study(subject)
    if study is None:
        return _empty("importance", subject)
    found, notes = importances(study)
    points = [PanelPoint(x=key, y=value, n=1) for key, value in found.items()]
    return Panel(
        kind="importance",
        mark="bars",
        title=subject.title,
        x_label="",
        y_label="importance [fraction of the variance]",
        series=[PanelSeries(label="importance", points=points)],
        notes=notes,
    )


def _empty(kind: str, subject: Subject) -> Panel:
    return Panel(kind=kind, mark="bars", title=subject.title, x_label="", y_label="", series=[])


def _study(subject: Subject) -> Study | None:
    """The folder's search; None where there is no folder yet, only a figure to be checked."""
    if subject.folder is None:
        return None
    try:
        study = newest_search(subject.folder)
    except UserError as error:
        raise ConfigError(str(error)) from error
    if study is None:
        raise ConfigError("this kind of panel shows a search, and there is none; the sweep's file needs a section tune")
    return study


def _missing(trial: Trial) -> str:
    assert trial.outcome
    return f"trial {trial.number + 1}: {trial.outcome.state}, {trial.outcome.reason or 'no value'}"
