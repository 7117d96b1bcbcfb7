"""Which of the searched settings matter: fANOVA, with an interval that shows how much the trials can tell.

Hutter, Hoos and Leyton-Brown, An Efficient Approach for Assessing Hyperparameter Importance, ICML 2014, section 4: a
random forest learns the metric from the settings; a setting's importance is the part of the forest's variance over the
whole space that it explains by itself. The parts are scaled to sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis.statistics.bootstrap import estimate
from analysis.statistics.estimate import Estimate
from benchmarks.core.variants import Scalar
from benchmarks.tuning.search_space import Dimension
from benchmarks.tuning.text import counted
from benchmarks.tuning.trials import Study, Trial

if TYPE_CHECKING:
    import optuna

FEWEST_TRIALS = 10
"""Below this a forest has learnt next to nothing, and no number is given."""
ENOUGH_TRIALS = 50
_TREES = 32
_RESAMPLES = 20


def importances(study: Study) -> tuple[dict[str, Estimate], list[str]]:
    """The importance of each setting that all trials have, the largest first, and what a reader must know of it.

    The metric is that after the shortest run, which every trial has that has any: those that were run at full length
    are a choice of the best, and would hide what matters most. Ranges are taken as they were searched, logarithmic ones
    by their logarithm. Value and interval are the median and the 95 % of a bootstrap over trials; where the interval is
    wide, more trials are needed.

    Returns:
        No numbers, and the reason, below `FEWEST_TRIALS` trials or where all have the same value.
    """
    length = study.definition.rungs[0]
    known = [trial for trial in study.trials if trial.outcome and length in trial.outcome.values]
    keys = [each for each in study.definition.space if all(each.key in trial.params for trial in known)]
    values = [trial.outcome.values[length] for trial in known if trial.outcome]
    if len(known) < FEWEST_TRIALS:
        return {}, [f"importance: {len(known)} trials have a value, at least {FEWEST_TRIALS} are needed"]
    if len(set(values)) == 1 or len(keys) < 2:
        return {}, ["importance: nothing to be told apart: all trials have the same value, or one setting is searched"]
    rng = np.random.default_rng(study.definition.seed)
    draws = []
    for number in range(_RESAMPLES):
        picked = rng.integers(len(known), size=len(known))
        if len({values[index] for index in picked}) > 1:
            draws.append(_fanova([known[i] for i in picked], [values[i] for i in picked], keys, seed=number))
    columns = {each.key: np.array([draw[each.key] for draw in draws]) for each in keys}
    found = {key: estimate(float(np.median(column)), column) for key, column in columns.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1].value)), _notes(study, known, keys)


def _notes(study: Study, known: Sequence[Trial], keys: Sequence[Dimension]) -> list[str]:
    definition = study.definition
    after = counted(definition.rungs[0], definition.unit)
    notes = [f"importance for {definition.metric} after {after}, {len(known)} trials"]
    if len(known) < ENOUGH_TRIALS:
        notes.append(f"importance: not reliable below {ENOUGH_TRIALS} trials")
    if left_out := [each.key for each in definition.space if each not in keys]:
        notes.append(f"importance: without {', '.join(left_out)}, not in all trials")
    if unfit := sum(trial.outcome is not None and not trial.outcome.values for trial in study.trials):
        notes.append(f"importance: without {unfit} trials that have no value")
    return notes


def _fanova(trials: Sequence[Trial], values: Sequence[float], keys: Sequence[Dimension], seed: int) -> dict[str, float]:
    """Parts of the variance, scaled to sum to 1."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study()
        study.add_trials([_frozen(trial, value, keys) for trial, value in zip(trials, values, strict=True)])
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
        return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
    finally:
        optuna.logging.set_verbosity(level)


def _frozen(trial: Trial, value: float, keys: Sequence[Dimension]) -> optuna.trial.FrozenTrial:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    params: dict[str, Scalar] = {}
    distributions: dict[str, optuna.distributions.BaseDistribution] = {}
    for each in keys:
        given = trial.params[each.key]
        assert not isinstance(given, list)
        if each.choices:
            params[each.key], distributions[each.key] = given, CategoricalDistribution(each.choices)
        else:
            params[each.key], distributions[each.key] = each.share(given), FloatDistribution(0.0, 1.0)
    return optuna.trial.create_trial(value=value, params=params, distributions=distributions)
