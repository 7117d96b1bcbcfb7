"""The trials of tuning sweeps, as Optuna keeps them: the only place that asks and tells it.

Optuna's journal is a file of the sweep's folder: one line for each change, flushed to the disk before the next. It
needs no server and, unlike SQLite, no working locks of a file system that machines share (NFS).

Settings are asked for by a sampler that is made anew for each trial, seeded by the study's seed and the trial's number.
So what a trial gets depends on the trials before it and on nothing else, and a study that was interrupted anywhere goes
on as if it had not been.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.variants import Option, Scalar
from benchmarks.tuning.definition import Definition, Search
from benchmarks.tuning.search_space import Dimension

if TYPE_CHECKING:
    import optuna

JOURNAL_NAME = "tuning.jsonl"

_OUTCOME, _DEFINITION = "outcome", "definition"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a trial ended."""

    state: Literal["complete", "pruned", "unfit", "failed"]
    """Unfit: its own setting is at fault, it diverged, ran out of memory or cannot run at all; a worse one cannot be.
    Failed: a machine or a program was, so it says nothing of the setting."""
    values: dict[int, float] = {}
    """The metric by the runs' length, a median over repeats."""
    reason: str | None = None
    runs: list[str] = []
    """The ids of its runs, the longest last."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One setting of the searched keys."""

    number: int
    params: dict[str, Option]
    outcome: Outcome | None
    """None while it runs."""

    @property
    def value(self) -> float | None:
        """What it is judged by; None where it was not run at its full length."""
        if self.outcome is None or self.outcome.state != "complete":
            return None
        return self.outcome.values[max(self.outcome.values)]


class Study(msgspec.Struct, frozen=True, kw_only=True):
    """A definition and its trials, in order."""

    definition: Definition
    trials: list[Trial]

    @property
    def best(self) -> Trial | None:
        """The complete trial of the best value; of equal ones the first."""
        complete = [(trial.value, trial) for trial in self.trials if trial.value is not None]
        sign = -1 if self.definition.maximises else 1
        return min(complete, key=lambda pair: (sign * pair[0], pair[1].number))[1] if complete else None


class Journal:
    """The trials of one study, to be added to. The caller holds the tuning sweep for itself."""

    def __init__(self, folder: Path, search: Search) -> None:
        import optuna

        self._search = search
        self._path = folder / JOURNAL_NAME
        _mend(self._path)
        definition = search.definition
        with _quietly():
            self._storage = _storage(self._path)
            self._study = optuna.create_study(
                study_name=definition.name,
                storage=self._storage,
                direction="maximize" if definition.maximises else "minimize",
                load_if_exists=True,
            )
        if _DEFINITION not in self._study.user_attrs:
            self._study.set_user_attr(_DEFINITION, msgspec.to_builtins(definition, str_keys=True))

    def trials(self) -> list[Trial]:
        """All of them, by number."""
        definition = self._search.definition
        return [_trial(frozen, definition) for frozen in self._study.get_trials(deepcopy=False)]

    def ask(self, number: int) -> Trial:
        """The trial of this number: a new one, or one that was asked for and has not ended.

        A trial that a crash has left with some of its settings gets the others as it would have got them.
        """
        import optuna

        with _quietly():
            self._study.sampler = _sampler(self._search.definition, number)
            if number < len(self._study.get_trials(deepcopy=False)):
                trial = optuna.trial.Trial(self._study, self._id(number))
            else:
                trial = self._study.ask()
            assert trial.number == number
            known = trial.params
            # Names of variants come first: they decide which options there are.
            for dimension in self._search.definition.space:
                if dimension in self._search.dimensions(trial.params):
                    if dimension.key in known and dimension.key not in trial.relative_params:
                        self._draw_again(number, dimension)
                    _suggest(trial, dimension)
        return Trial(number=number, params=_settings(trial.params, self._search.definition), outcome=None)

    def _draw_again(self, number: int, dimension: Dimension) -> None:
        """Take what the sampler drew for a value that is known already, so that the next ones are what follows it."""
        frozen = self._study.get_trials(deepcopy=False)[number]
        self._study.sampler.sample_independent(self._study, frozen, dimension.key, distribution(dimension))

    def tell(self, number: int, outcome: Outcome) -> None:
        """End a trial.

        Where the setting is at fault, Optuna is told that it was pruned before its first value: TPE ranks it below all
        others and keeps away, and no number has to be made up for it. Failures of machines are told as such; samplers
        do not look at them.
        """
        from optuna.trial import TrialState

        trial_id = self._id(number)
        self._storage.set_trial_user_attr(trial_id, _OUTCOME, msgspec.to_builtins(outcome, str_keys=True))
        with _quietly():
            if outcome.state == "complete":
                self._study.tell(number, outcome.values[max(outcome.values)])
            elif outcome.state == "failed":
                self._study.tell(number, state=TrialState.FAIL)
            else:
                if outcome.state == "pruned":
                    for length, value in sorted(outcome.values.items()):
                        self._storage.set_trial_intermediate_value(trial_id, length, value)
                self._study.tell(number, state=TrialState.PRUNED)

    def _id(self, number: int) -> int:
        study_id = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)


def read_studies(folder: Path) -> list[Study]:
    """The studies of a sweep's folder, the one that was last gone on with at the end. Writes nothing.

    Raises:
        UserError: the journal cannot be read.
    """
    path = folder / JOURNAL_NAME
    if not path.is_file():
        return []
    try:
        with _quietly():
            studies = _storage(path).get_all_studies()
            found = [(study, _storage(path).get_all_trials(study._study_id, deepcopy=False)) for study in studies]
        read = []
        for study, trials in found:
            if _DEFINITION in study.user_attrs:
                definition = msgspec.convert(study.user_attrs[_DEFINITION], Definition)
                last = max((str(frozen.datetime_start) for frozen in trials), default="")
                read.append((last, Study(definition=definition, trials=[_trial(each, definition) for each in trials])))
    except (OSError, ValueError, KeyError) as error:  # msgspec's and JSON's errors are ValueErrors
        raise UserError(f"{path}: not a readable journal of trials ({' '.join(str(error).split())})") from error
    return [study for _, study in sorted(read, key=lambda pair: pair[0])]


def distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """A dimension in Optuna's words."""
    from optuna import distributions

    if dimension.choices:
        return distributions.CategoricalDistribution(dimension.choices)
    if dimension.whole:
        return distributions.IntDistribution(
            int(dimension.low), int(dimension.high), log=dimension.log, step=int(dimension.step or 1)
        )
    return distributions.FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def _suggest(trial: optuna.Trial, dimension: Dimension) -> Scalar:
    key, low, high, log, step = dimension.key, dimension.low, dimension.high, dimension.log, dimension.step
    if dimension.choices:
        return trial.suggest_categorical(key, dimension.choices)
    if dimension.whole:
        return trial.suggest_int(key, int(low), int(high), step=int(step or 1), log=log)
    return trial.suggest_float(key, low, high, step=step, log=log)


def _sampler(definition: Definition, number: int) -> optuna.samplers.BaseSampler:
    import numpy as np
    from optuna import samplers

    seed = int(np.random.SeedSequence([definition.seed, number]).generate_state(1)[0])
    if definition.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    # Trials beside this one count as bad (`constant_liar`), so that those asked for together differ.
    return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _trial(frozen: optuna.trial.FrozenTrial, definition: Definition) -> Trial:
    outcome = None
    if frozen.state.is_finished():
        outcome = msgspec.convert(frozen.user_attrs[_OUTCOME], Outcome, strict=False)
    return Trial(number=frozen.number, params=_settings(frozen.params, definition), outcome=outcome)


def _settings(drawn: Mapping[str, Scalar], definition: Definition) -> dict[str, Option]:
    """What a trial is run with, in the order of the space."""
    return {each.key: each.rounded(drawn[each.key]) for each in definition.space if each.key in drawn}


def _storage(path: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def _mend(path: Path) -> None:
    """Undo what a crash of the last writer may have left: half a line, which Optuna would add to, and its lock."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)


@contextmanager
def _quietly() -> Iterator[None]:
    """Within: Optuna neither logs nor warns of what is experimental in some of its versions."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
