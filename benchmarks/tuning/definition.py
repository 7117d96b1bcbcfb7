"""What a tuning sweep searches: its section `tune`, checked, and the plan of each trial. Pure: no files, no Optuna.

A trial is one setting of the searched keys. Its runs are ordinary runs, planned by `benchmarks.core.sweep`. Rungs
(`benchmarks/tuning/rungs.py`) make several runs of a trial, short ones first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec

from benchmarks.core.config import is_below, one_line
from benchmarks.core.errors import ConfigError, unknown
from benchmarks.core.sweep import NothingToRunError, Plan, Settings, Sweep, expand, override, plan
from benchmarks.core.telling import is_part_of_cell
from benchmarks.core.variants import VARIANT_AXES, Option, variant_file
from benchmarks.tuning.rungs import Pruning, rungs
from benchmarks.tuning.search_space import Dimension, Interval, read_dimension

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
Metric = Literal["accuracy", "loss"]
Sampler = Literal["tpe", "random"]

# Where and for how long a run is made is no setting of the training; seeds differ between repeats.
_NOT_SEARCHED = (
    *("workers", "nodes", "node_type", "device", "threads_per_worker", "slowdown", "batch"),
    *("steps", "epochs", "warmup_steps", "evaluate"),
)
_CORNERS = (0.0, 0.5, 1.0)


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The section `tune` of a sweep."""

    space: dict[str, Any]
    trials: PositiveInt
    """In all, over however many commands."""
    parallel: PositiveInt = 1
    """Trials that are asked for together and run at the same time, where there is room."""
    metric: Metric = "accuracy"
    """Of the last evaluation: the highest accuracy, or the lowest loss."""
    sampler: Sampler = "tpe"
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0
    pruning: Pruning | None = None


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """All that makes the values of two trials comparable and their order reproducible. Another one is another study."""

    space: list[Dimension]
    metric: Metric
    sampler: Sampler
    seed: int
    unit: Literal["epochs", "steps"]
    rungs: list[int]
    """How long a trial's runs are, in `unit`, in order; the last is the full length."""
    reduction: int
    repeats: int
    base: dict[str, Option]
    """The settings that are the same in all trials."""

    @property
    def maximises(self) -> bool:
        """Whether more is better."""
        return self.metric == "accuracy"

    @property
    def name(self) -> str:
        """Readable, and the same for the same definition only."""
        digest = hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:12]
        return f"{self.metric}-{self.sampler}-{digest}"


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """A tuning sweep, ready to be run."""

    sweep: Sweep
    base: Mapping[str, Any]
    """The composed configuration."""
    definition: Definition
    trials: int
    parallel: int
    example: Plan
    """Of a trial in the middle of the space."""

    def dimensions(self, params: Mapping[str, Option]) -> list[Dimension]:
        """Those that exist with the variants in `params`: an option of one optimiser may be absent from another."""
        return _applying(self.definition.space, params, self.sweep, self.base)

    def plan(self, params: Mapping[str, Option], length: int) -> Plan:
        """The runs of a trial, one for each repeat, of one rung's length.

        Raises:
            NothingToRunError: the setting cannot run; its reason says why.
        """
        return _plan(self.sweep, self.base, {**params, self.definition.unit: length})

    @property
    def runs_of_trial(self) -> int:
        """The most: one for each rung and repeat."""
        return len(self.definition.rungs) * self.definition.repeats

    @property
    def worker_hours_limit(self) -> float:
        """The most that one trial can take: all its runs at their time limit."""
        return self.example.worker_hours_limit * len(self.definition.rungs)


def read_search(sweep: Sweep, axes: Mapping[str, Any], base: Mapping[str, Any]) -> Search:
    """Check a tuning sweep before anything starts.

    Args:
        sweep: Its definition, with a section `tune`.
        axes: What the command line sets: one value fixes a key, several are choices, an `Interval` is a range.
        base: The composed configuration.

    Raises:
        ConfigError: one line, which names key and value.
    """
    tuning = _read(sweep.tune)
    searched = {key: values for key, values in axes.items() if isinstance(values, Interval) or len(expand(values)) > 1}
    fixed = {key: values for key, values in axes.items() if key not in searched}
    space = {key: given for key, given in tuning.space.items() if key not in axes}
    space |= {key: _as_given(values) for key, values in searched.items()}
    sweep = override(sweep, fixed)
    names = [key for key in space if key in VARIANT_AXES]
    ordered = {key: space[key] for key in [*names, *(key for key in space if key not in names)]}
    dimensions: list[Dimension] = []
    for key, given in ordered.items():
        dimensions.append(read_dimension(key, given, _default(key, dimensions, sweep, base)))
    _check_single(sweep, space)
    if not dimensions:
        raise ConfigError("sweep.tune.space={}: nothing is left to be searched; name at least one key with its range")
    example = _check_corners(dimensions, sweep, base)
    definition = _definition(tuning, dimensions, sweep, example)
    return Search(
        sweep=sweep,
        base=base,
        definition=definition,
        trials=tuning.trials,
        parallel=tuning.parallel,
        example=example,
    )


def _read(section: Mapping[str, Any]) -> Tuning:
    for key in section.keys() - set(Tuning.__struct_fields__):
        raise unknown("key of sweep.tune", key, Tuning.__struct_fields__)
    for key, allowed in (("metric", Metric), ("sampler", Sampler)):
        if key in section and section[key] not in get_args(allowed):
            raise unknown(f"sweep.tune.{key}", section[key], get_args(allowed))
    pruning = section.get("pruning")
    for key in set(pruning if isinstance(pruning, Mapping) else ()) - set(Pruning.__struct_fields__):
        raise unknown("key of sweep.tune.pruning", key, Pruning.__struct_fields__)
    try:
        return msgspec.convert(section, Tuning)
    except msgspec.ValidationError as error:
        raise one_line(error, section, prefix="sweep.tune.") from error


def _as_given(values: Any) -> dict[str, Any]:
    if isinstance(values, Interval):
        return {"low": values.low, "high": values.high, "log": values.log}
    return {"choices": expand(values)}


def _check_single(sweep: Sweep, space: Mapping[str, Any]) -> None:
    """Everything that is not searched has one value."""
    zipped = {key: values for group in sweep.zip for key, values in group.items()}
    for key, values in {**sweep.axes, **zipped}.items():
        if len(expand(values)) > 1:
            raise ConfigError(
                f"axis {key}={values}: a tuning sweep has one value of what it does not search; "
                f"search it as sweep.tune.space: {{{key}: {{choices: [...]}}}}"
            )
    for key in space:
        if key in sweep.axes or key in zipped or key in sweep.fixed:
            raise ConfigError(f"sweep.tune.space.{key}: the sweep sets this key, too; take it out of one of the places")


def _chosen(axis: str, dimensions: Sequence[Dimension], sweep: Sweep, base: Mapping[str, Any]) -> list[str]:
    """The names of an axis's entries that trials may have."""
    searched = next((dimension for dimension in dimensions if dimension.key == axis), None)
    if searched:
        return [str(name) for name in searched.choices]
    return [str(_fixed(sweep).get(axis, base[axis]["name"]))]


def _fixed(sweep: Sweep) -> dict[str, Option]:
    """What the sweep itself sets; each of its axes has one value."""
    groups = [sweep.axes, *sweep.zip]
    return {**sweep.fixed, **{key: expand(values)[0] for group in groups for key, values in group.items()}}


def _default(key: str, dimensions: Sequence[Dimension], sweep: Sweep, base: Mapping[str, Any]) -> Option:
    """The value whose type fixes that of a searched key. Raises ConfigError where no trial has such a key."""
    where = "key of sweep.tune.space"
    if key in _NOT_SEARCHED or not is_part_of_cell(key):
        raise ConfigError(
            f"sweep.tune.space.{key}: says where, for how long or how often a run is made; set it instead"
        )
    if is_below(key, ("data", "data_fraction")):
        raise ConfigError(f"sweep.tune.space.{key}: values on different data cannot be compared; set it instead")
    axis, _, option = key.partition(".")
    if option and axis in VARIANT_AXES:
        names = _chosen(axis, dimensions, sweep, base)
        defaults = {f"{axis}.{o}": value for name in names for o, value in variant_file(axis, name).defaults.items()}
        if key not in defaults:
            raise unknown(where, key, defaults)
        return defaults[key]
    top = [each for each in base if each not in _NOT_SEARCHED and is_part_of_cell(each)]
    if key not in top:
        raise unknown(where, key, top)
    return None if key in VARIANT_AXES else base[key]


def _applying(
    dimensions: Sequence[Dimension], params: Mapping[str, Option], sweep: Sweep, base: Mapping[str, Any]
) -> list[Dimension]:
    fixed = _fixed(sweep)

    def applies(key: str) -> bool:
        axis, _, option = key.partition(".")
        if not (option and axis in VARIANT_AXES):
            return True
        name = params.get(axis, fixed.get(axis, base[axis]["name"]))
        return option in variant_file(axis, str(name)).defaults

    return [dimension for dimension in dimensions if applies(dimension.key)]


def _plan(sweep: Sweep, base: Mapping[str, Any], settings: Settings) -> Plan:
    return plan(override(sweep, {key: [value] for key, value in settings.items()}), base)


def _check_corners(dimensions: Sequence[Dimension], sweep: Sweep, base: Mapping[str, Any]) -> Plan:
    """Try the ends of each dimension while the others are at their first, middle and last value.

    Returns the plan of a point that can run. Raises ConfigError where a value is wrong, or runs with none of the three.
    """

    def tried(settings: Mapping[str, Option]) -> Plan | str:
        here = {each.key: settings[each.key] for each in _applying(dimensions, settings, sweep, base)}
        try:
            return _plan(sweep, base, here)
        except NothingToRunError as error:
            return error.dropped[0].reason

    corners = [{each.key: each.at(share) for each in dimensions} for share in _CORNERS]
    found: list[Plan] = []
    for dimension in dimensions:
        for value in dimension.choices or [dimension.at(0.0), dimension.at(1.0)]:
            results = [tried({**corner, dimension.key: value}) for corner in corners]
            plans = [result for result in results if isinstance(result, Plan)]
            if not plans:
                raise ConfigError(f"sweep.tune.space.{dimension.key}: {value} cannot run: {results[1]}")
            found += plans
    middle = tried(corners[1])
    return middle if isinstance(middle, Plan) else found[0]


def _definition(tuning: Tuning, dimensions: list[Dimension], sweep: Sweep, example: Plan) -> Definition:
    run = example.runs[0].config
    if not run.evaluate:
        raise ConfigError(
            f"evaluate=false: sweep.tune.metric={tuning.metric} is measured by evaluation; set it to true"
        )
    if tuning.pruning and not run.epochs:
        raise ConfigError(
            f"sweep.tune.pruning: runs of steps={run.steps} cannot be shortened by epochs; set epochs, and steps=null"
        )
    full = run.epochs or run.steps or 0
    if tuning.pruning and tuning.pruning.first_epochs >= full:
        raise ConfigError(
            f"sweep.tune.pruning.first_epochs={tuning.pruning.first_epochs}: must be below epochs={full}; "
            "or leave pruning out"
        )
    varying = [*(dimension.key for dimension in dimensions), "epochs", "steps"]
    flat = run.flat()
    if "batch_per_worker" in varying or "global_batch" in varying:
        varying += ["batch_per_worker", "global_batch"]
    return Definition(
        space=dimensions,
        metric=tuning.metric,
        sampler=tuning.sampler,
        seed=tuning.seed,
        unit="epochs" if run.epochs else "steps",
        rungs=rungs(tuning.pruning, full),
        reduction=tuning.pruning.reduction if tuning.pruning else 1,
        repeats=sweep.repeats,
        base={key: flat[key] for key in sorted(flat) if is_part_of_cell(key) and not is_below(key, varying)},
    )
