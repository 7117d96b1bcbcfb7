"""From a sweep's axes to cells to runs. Pure: no files but the variants' YAML, no clock, no Hydra.

A sweep spans the product of its `axes` and of its `zip` groups (axes that advance together). Each point becomes a cell;
`repeats` of it become runs. A point that cannot run, or that a `where` rule excludes, is dropped with its reason and
shown, never lost.

The axis `batch` is read by the sweep's `scaling` kinds: strong keeps it as the global batch while workers are added,
weak keeps it as the batch per worker. A cell that both kinds ask for is run once.
"""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from benchmarks.core import rules
from benchmarks.core.cluster import chosen_node_type, placed, threads_share
from benchmarks.core.config import RunConfig, flatten, one_line
from benchmarks.core.errors import ConfigError, ImpossibleRunError, unknown
from benchmarks.core.profile import repeats_of
from benchmarks.core.repeat_target import RepeatTarget
from benchmarks.core.telling import telling_keys
from benchmarks.core.variants import VARIANT_AXES, Option, variant_file

Settings = dict[str, Any]
"""Dotted keys with their values: options, or a mapping where the key takes one, as `slowdown` does."""

# What the batch axis means, by kind of scaling: which batch size stays fixed while workers are added.
FIXED_BATCH = {"strong": "global_batch", "weak": "batch_per_worker"}

# What decides where a run happens, besides the cluster.
_PLACE = ("workers", "nodes", "node_type", "device", "threads_per_worker")

_SERIES = re.compile(r"(-?\d+)\.\.(-?\d+)(?:([x+])(\d+))?")

FULL_SIZE = "full"


class Size(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a smaller size of a sweep changes; see `at_size`."""

    axes: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    zip: list[dict[str, Any]] | None = None
    where: list[str] | None = None
    repeats: Annotated[int, msgspec.Meta(ge=1)] | None = None
    tune: dict[str, Any] = {}


class Sweep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of `conf/sweep/`, with the command line's overrides applied."""

    name: str
    question: str = ""
    figure: list[dict[str, Any]] = []
    """The panels of its figure, each with the name of its `kind`; empty: the scaling figures."""
    sizes: dict[str, Size] = {}
    """Sizes other than `full`, which the rest of the file describes."""
    scaling: list[Literal["strong", "weak"]] = []
    axes: dict[str, Any] = {}
    zip: list[dict[str, Any]] = []
    where: list[str] = []
    fixed: dict[str, Any] = {}
    repeats: Annotated[int, msgspec.Meta(ge=1)] = 1
    shuffle_seed: int | None = None
    tune: dict[str, Any] = {}
    """What is searched instead of enumerated; see `benchmarks/tuning/definition.py`."""


class PlannedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run and the settings (dotted key to value) that tell it from the base configuration."""

    config: RunConfig
    settings: Settings
    place: int = 0
    """In the order of the sweep's file, before runs are shuffled."""


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the grid that is not run. Its settings are those of the axes."""

    settings: Settings
    reason: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of a sweep, in the order in which they are made, and what was dropped."""

    sweep: Sweep
    runs: list[PlannedRun]
    dropped: list[Dropped]
    repeat_target: RepeatTarget | None = None
    """What repeats are added for; None: all cells have the sweep's number."""

    @property
    def worker_hours_limit(self) -> float:
        """The most that the runs can take: workers x time limit, summed."""
        return sum(run.config.workers * run.config.run_limit_s for run in self.runs) / 3600


class NothingToRunError(ConfigError):
    """All points of a sweep are dropped."""

    def __init__(self, text: str, dropped: list[Dropped]) -> None:
        super().__init__(text)
        self.dropped = dropped


def read_sweep(mapping: Mapping[str, Any]) -> Sweep:
    """Validate a sweep's definition. Raises ConfigError with one line."""
    for key in mapping.keys() - set(Sweep.__struct_fields__):
        raise unknown("key of sweep", key, Sweep.__struct_fields__)
    for kind in mapping.get("scaling") or ():
        if kind not in FIXED_BATCH:
            raise unknown("sweep.scaling", kind, FIXED_BATCH)
    try:
        return msgspec.convert(mapping, Sweep)
    except msgspec.ValidationError as error:
        raise one_line(error, mapping, prefix="sweep.") from error


def at_size(sweep: Sweep, size: str) -> Sweep:
    """The sweep in one of its sizes, under a name of its own: results of two sizes lie in different folders.

    A size's axes and fixed values take the place of those with the same key; an axis that is null is left out. Its zip
    groups, rules and repeats replace all of the sweep's; of the section `tune`, what it names.

    Raises:
        ConfigError: the sweep has no such size.
    """
    if size == FULL_SIZE:
        return sweep
    if size not in sweep.sizes:
        raise unknown(f"size of sweep={sweep.name}:", size, (FULL_SIZE, *sweep.sizes))
    smaller = sweep.sizes[size]
    changed = override(sweep, dict(smaller.axes) | dict(smaller.fixed))
    fixed = {key: value for key, value in changed.axes.items() if key in smaller.fixed}
    replaced = {key: value for key in ("zip", "where", "repeats") if (value := getattr(smaller, key)) is not None}
    return msgspec.structs.replace(
        changed,
        name=f"{sweep.name}-{size}",
        axes={key: value for key, value in changed.axes.items() if key not in fixed and value is not None},
        fixed=changed.fixed | fixed,
        tune=changed.tune | smaller.tune,
        **replaced,
    )


def expand(values: Any) -> list[Option]:
    """The values of an axis: a list, one value, or a series.

    `1..8x2` is geometric (1, 2, 4, 8), `1..7+2` arithmetic (1, 3, 5, 7), `1..4` counts; the end is included where it
    is hit.
    """
    if isinstance(values, (list, tuple)):
        return [item for value in values for item in expand(value)] if values else _empty_axis()
    match = _SERIES.fullmatch(values) if isinstance(values, str) else None
    if match is None:
        return [values]
    first, last, by = int(match[1]), int(match[2]), int(match[4] or 1)
    grows = (match[3] == "x" and by > 1 and first > 0) or (match[3] != "x" and by > 0)
    if not grows or last < first:
        raise ConfigError(f"series {values}: must grow, as 1..8x2 (1, 2, 4, 8) or 1..7+2 (1, 3, 5, 7)")
    if match[3] != "x":
        return list(range(first, last + 1, by))
    return list(itertools.takewhile(lambda value: value <= last, (first * by**i for i in itertools.count())))


def _empty_axis() -> list[Option]:
    raise ConfigError("an axis without values: give at least one value, or leave the axis out")


def override(sweep: Sweep, settings: Mapping[str, Any]) -> Sweep:
    """The sweep with axes from the command line, which replace the sweep's own of the same name or are added to them.

    `global_batch` and `batch_per_worker` take the place of `batch`. An axis that is overridden leaves its zip group.
    """
    replaced = set(settings)
    if replaced & set(FIXED_BATCH.values()):
        replaced.add("batch")
    return msgspec.structs.replace(
        sweep,
        axes={key: values for key, values in sweep.axes.items() if key not in replaced} | dict(settings),
        zip=[kept for group in sweep.zip if (kept := {k: v for k, v in group.items() if k not in replaced})],
        fixed={key: value for key, value in sweep.fixed.items() if key not in replaced},
    )


def plan(sweep: Sweep, base: Mapping[str, Any]) -> Plan:
    """Enumerate a sweep over a base configuration (a composed mapping, variants as mappings with their names).

    Raises:
        ConfigError: an axis or a value that exists in no cell, or nothing left to run.
    """
    points = list(_points(sweep))
    _check_axes(points, base)
    shared = _shared_threads(points, base)
    runs: dict[str, PlannedRun] = {}
    dropped: dict[str, Dropped] = {}
    # Most points of a sweep over strategies with options of their own differ in options that they do not have.
    different = {repr(settings): settings for settings in (_applicable(point, base) for point in points)}
    for settings in different.values():
        reason, repeats = _repeats(settings, sweep, base, shared)
        if reason:
            shown = flatten({key: value for key, value in settings.items() if key not in sweep.fixed})
            dropped.setdefault(repr(shown), Dropped(settings=shown, reason=reason))
        for run in repeats:
            runs.setdefault(run.config.run_id, run)
    if not runs:
        reasons = sorted({drop.reason for drop in dropped.values()})
        raise NothingToRunError(
            f"sweep={sweep.name}: nothing to run, all {len(dropped)} cells are dropped: {'; '.join(reasons[:3])}",
            list(dropped.values()),
        )
    ordered = [msgspec.structs.replace(run, place=place) for place, run in enumerate(runs.values())]
    if sweep.shuffle_seed is not None:
        random.Random(sweep.shuffle_seed).shuffle(ordered)
    return Plan(sweep=sweep, runs=ordered, dropped=list(dropped.values()))


def _points(sweep: Sweep) -> Iterator[Settings]:
    """The product of all axes and zip groups, once for each kind of scaling."""
    fixed = [[{key: value}] for key, value in sweep.fixed.items()]
    axes = [[{key: value} for value in expand(values)] for key, values in sweep.axes.items()]
    for combination in itertools.product(*fixed, *axes, *map(_zipped, sweep.zip)):
        settings: Settings = {key: value for part in combination for key, value in part.items()}
        if "batch" not in settings:
            yield settings
            continue
        batch = settings.pop("batch")
        if not sweep.scaling:
            raise ConfigError("axis batch: needs sweep.scaling (strong, weak); or use batch_per_worker or global_batch")
        for kind in sweep.scaling:
            yield {**settings, FIXED_BATCH[kind]: batch}


def _zipped(group: Mapping[str, Any]) -> list[Settings]:
    columns = {key: expand(values) for key, values in group.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"zip {lengths}: axes that advance together need the same number of values")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _check_axes(points: Sequence[Settings], base: Mapping[str, Any]) -> None:
    """Every axis must exist in at least one point; an option of one strategy may be absent from another."""
    for axis in VARIANT_AXES:
        for name in {str(point[axis]) for point in points if axis in point}:
            variant_file(axis, name)
    for key in {key for point in points for key in point}:
        options: Iterable[str] = base
        group, _, option = key.partition(".")
        if option and group in VARIANT_AXES:
            options = {f"{group}.{o}" for point in points for o in _defaults(group, point, base)}
        if key not in options:
            raise unknown("axis", key, options if option else [*base, "batch"])


def _defaults(axis: str, settings: Settings, base: Mapping[str, Any]) -> Mapping[str, Option]:
    return variant_file(axis, str(settings.get(axis, base[axis]["name"]))).defaults


def _shared_threads(points: Sequence[Settings], base: Mapping[str, Any]) -> dict[str | None, int]:
    """Threads of a worker on each kind of node, in all its cells: its share where there are most workers.

    A worker must be the same resource at every worker count, or adding workers would only cut the same cores into
    smaller shares and no speed-up could be seen.
    """
    shared: dict[str | None, int] = {}
    for point in points:
        place = placed({key: point.get(key, base[key]) for key in _PLACE} | {"cluster": base["cluster"]})
        if (share := threads_share(place)) is not None:
            shared[place["node_type"]] = min(share, shared.get(place["node_type"], share))
    return shared


def _repeats(
    settings: Settings, sweep: Sweep, base: Mapping[str, Any], shared_threads: Mapping[str | None, int]
) -> tuple[str | None, list[PlannedRun]]:
    """All repeats of one point; or the reason why there are none."""
    if settings.get("threads_per_worker", base.get("threads_per_worker")) is None:
        node_type = chosen_node_type({**base, **settings})
        if node_type in shared_threads:
            settings = settings | {"threads_per_worker": shared_threads[node_type]}
    runs = []
    for repeat, more in repeats_of(sweep.repeats, settings.get("profile", base["profile"])):
        own = {**settings, "seed": int(settings.get("seed", base["seed"])) + repeat, "repeat": repeat, **more}
        try:
            config = RunConfig.from_mapping(apply(base, own) | {"sweep": sweep.name})
        except ImpossibleRunError as error:
            return str(error), []
        values = config.flat()
        for rule in sweep.where:
            if not rules.holds(rule, values):
                return f"excluded by where: {rule}", []
        own |= {key: getattr(config, key) for key in ("global_batch", "batch_per_worker", "nodes")}
        runs.append(PlannedRun(config=config, settings=own))
    return None, runs


def _applicable(settings: Settings, base: Mapping[str, Any]) -> Settings:
    """The settings without options that the point's variants do not have."""
    options = {axis: _defaults(axis, settings, base) for axis in VARIANT_AXES}
    keys = {key: key.partition(".") for key in settings}
    return {
        key: settings[key]
        for key, (group, _, option) in keys.items()
        if not (option and group in VARIANT_AXES) or option in options[group]
    }


def apply(base: Mapping[str, Any], settings: Mapping[str, Option]) -> dict[str, Any]:
    """The base configuration with dotted settings: a variant's name replaces the variant, then its options are set.

    A batch size in the settings makes the base's other one null, so that the two cannot contradict each other.
    """
    merged = copy.deepcopy(dict(base))
    if settings.keys() & set(FIXED_BATCH.values()):
        merged |= dict.fromkeys(FIXED_BATCH.values())
    for key, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        group, _, option = key.partition(".")
        if option:
            merged[group][option] = value
        elif key in VARIANT_AXES:
            merged[key] = {"name": value, **variant_file(key, str(value)).defaults}
        else:
            merged[key] = value
    return merged


def shown_keys(plan: Plan) -> list[str]:
    """The columns of a plan: what differs between cells; for a single cell, what it is."""
    return telling_keys([run.config.flat() for run in plan.runs]) or ["workload", "strategy", "workers", "global_batch"]
