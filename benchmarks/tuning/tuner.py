"""The loop of a tuning sweep: ask for trials, have their runs made, judge them, tell, until there are enough.

Nothing but the journal of trials and the runs' records is remembered, so this may be killed anywhere: whoever calls it
again finds the trials that were under way, and their runs by what is in them, and goes on. Trials are asked for in
fixed groups of `parallel`, and told when their whole group has ended, in order; so it does not matter which of them
ends first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import OWN_FAULT, Record
from benchmarks.core.sweep import Dropped, NothingToRunError, Plan
from benchmarks.tuning.definition import Metric, Search
from benchmarks.tuning.rungs import promoted
from benchmarks.tuning.trials import Journal, Outcome, Study, Trial

Make = Callable[[Plan], None]
"""Makes what is missing of a plan, and returns when nothing of it is under way any more."""
Say = Callable[[Trial, Study], None]
"""Is told of each trial that has ended."""

TUNING_LOCK = "tuning.lock"


class StoppedError(UserError):
    """Runs of this group were cancelled: somebody wants the search to stop."""

    exit_code = 1


class Tuner:
    """One study, gone on with in a sweep's folder. The caller holds its `TUNING_LOCK`."""

    def __init__(self, search: Search, folder: SweepFolder, max_attempts: int, make: Make) -> None:
        self.search, self.folder, self.max_attempts = search, folder, max_attempts
        self._make = make
        self._journal = Journal(folder.path, search)

    def run(self, say: Say) -> Study:
        """Go on until there are as many trials as wanted; returns all of them.

        Raises:
            StoppedError: runs were cancelled.
        """
        for batch in self._batches():
            ended = self._ended(batch)
            for number in sorted(ended):
                self._journal.tell(number, ended[number])
                study = self.study()
                say(study.trials[number], study)
        return self.study()

    def study(self) -> Study:
        """All trials up to now."""
        return Study(definition=self.search.definition, trials=self._journal.trials())

    def _batches(self) -> Iterator[list[Trial]]:
        """Groups of trials that have not ended: those under way first, then new ones."""
        size = self.search.parallel
        while True:
            trials = self._journal.trials()
            ended = {trial.number for trial in trials if trial.outcome}
            first = next(number for number in range(len(trials) + 1) if number not in ended)
            if first >= self.search.trials:
                return
            # A group that was cut off is filled up to where it would have ended, no further.
            end = min((first // size + 1) * size, self.search.trials)
            yield [self._journal.ask(number) for number in range(first, end) if number not in ended]

    def _ended(self, batch: Sequence[Trial]) -> dict[int, Outcome]:
        """Run a group on all rungs; how each of its trials ended."""
        definition = self.search.definition
        before = self._rivals(batch[0].number)
        ended: dict[int, Outcome] = {}
        values: dict[int, dict[int, float]] = {trial.number: {} for trial in batch}
        going_on = list(batch)
        for length in definition.rungs:
            runs = self._runs(going_on, length, ended)
            for number, ids in runs.items():
                result = self._result(ids, definition.metric, values[number])
                if isinstance(result, Outcome):
                    ended[number] = result
                else:
                    values[number][length] = result
            known = [outcome.values[length] for outcome in before if length in outcome.values]
            known += [own[length] for own in values.values() if length in own]
            for number, ids in runs.items():
                if number in ended:
                    continue
                if length == definition.rungs[-1]:
                    ended[number] = Outcome(state="complete", values=values[number], runs=ids)
                elif not promoted(values[number][length], known, definition.reduction, definition.maximises):
                    ended[number] = Outcome(state="pruned", values=values[number], runs=ids)
            going_on = [trial for trial in going_on if trial.number not in ended]
        return ended

    def _rivals(self, number: int) -> list[Outcome]:
        """The trials that have ended and that those of a trial's group are compared with.

        A group that has room for it is halved by itself. Against all trials, a few good ones that were pruned early
        could keep every later one from going on.
        """
        size = self.search.parallel
        first = number // size * size if size >= self.search.definition.reduction else 0
        return [trial.outcome for trial in self._journal.trials() if trial.outcome and trial.number >= first]

    def _runs(self, trials: Sequence[Trial], length: int, ended: dict[int, Outcome]) -> dict[int, list[str]]:
        """Have the runs of one rung made; their ids by trial. A trial that cannot run has ended."""
        definition = self.search.definition
        plans: dict[int, Plan] = {}
        for trial in trials:
            try:
                plans[trial.number] = self.search.plan(trial.params, length)
            except NothingToRunError as error:
                ended[trial.number] = Outcome(state="unfit", reason=error.dropped[0].reason)
        # Discrete settings may be asked for twice; their runs are the same, and made once.
        place = definition.rungs.index(length)
        runs = {
            run.config.run_id: msgspec.structs.replace(run, place=number * len(definition.rungs) + place)
            for number, each in plans.items()
            for run in each.runs
        }
        if runs:
            whole = Plan(sweep=self.search.sweep, runs=list(runs.values()), dropped=self._dropped(trials, ended))
            if self.folder.remaining(whole, self.max_attempts):
                self._make(whole)
            if missing := self.folder.remaining(whole, self.max_attempts):
                raise StoppedError(
                    f"{self.folder.path}: {len(missing)} of {len(runs)} runs under way were cancelled; "
                    "the same command goes on with these trials"
                )
        return {number: [run.config.run_id for run in each.runs] for number, each in plans.items()}

    def _dropped(self, trials: Sequence[Trial], ended: Mapping[int, Outcome]) -> list[Dropped]:
        """Of this study, for the sweep's manifest: the trials that could not be run."""
        now = [msgspec.structs.replace(trial, outcome=ended.get(trial.number)) for trial in trials]
        found = [trial for trial in [*self._journal.trials(), *now] if trial.outcome and not trial.outcome.runs]
        return [Dropped(settings=trial.params, reason=trial.outcome.reason or "") for trial in found if trial.outcome]

    def _result(self, run_ids: Sequence[str], metric: Metric, earlier: Mapping[int, float]) -> float | Outcome:
        """The median over a trial's repeats; or how the trial ended, where one of them has no value."""
        found: list[float] = []
        for run_id in run_ids:
            record = self.folder.record(run_id)
            value = metric_of(record, metric) if record else None
            if value is None:
                own_fault = record is not None and (record.status == "ok" or record.status in OWN_FAULT)
                return Outcome(
                    state="unfit" if own_fault else "failed",
                    values=dict(earlier),
                    reason=_why(record, metric),
                    runs=list(run_ids),
                )
            found.append(value)
        return median(found)


def metric_of(record: Record, metric: Metric) -> float | None:
    """Of the last evaluation; None where the run did not end well or the loss was not finite."""
    if record.status != "ok" or not record.evaluation:
        return None
    last = record.evaluation[-1]
    return last.accuracy if metric == "accuracy" else last.loss


def _why(record: Record | None, metric: Metric) -> str:
    if record is None:
        return "its record cannot be read"
    if record.status == "ok":
        return f"its {metric} is not finite"
    return f"{record.status}: {record.reason.message}" if record.reason else record.status
