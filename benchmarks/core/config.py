"""The configuration of one run: a frozen, typed object, validated at the door.

Hydra composes YAML into a plain mapping; `RunConfig.from_mapping` is the only way from there into the program. Each
variant is described by its YAML file alone (`variants.py`), so this module knows no strategy, model or data set by
name, and neither Hydra nor torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

import msgspec

from benchmarks.core import rules
from benchmarks.core.cluster import Cluster, NonNegative, Positive, placed
from benchmarks.core.errors import ConfigError, ImpossibleRunError, unknown
from benchmarks.core.key_needs import NEEDS
from benchmarks.core.target import TargetMetric, check_target
from benchmarks.core.variants import CONF_DIR, TRAITS, VARIANT_AXES, Option, names_on, variant_file

_MSGSPEC_NAMES = {
    **{"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"},
    **{"array": "a list", "object": "a mapping"},
}
type_names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}

Factor = Annotated[float, msgspec.Meta(ge=1)]
PositiveNumber = Annotated[float, msgspec.Meta(gt=0)]
CompileMode = Literal["none", "default", "reduce-overhead", "max-autotune", "cudagraphs"]
_CHOICES = {
    "device": ("auto", "cpu", "cuda"),
    "compile": get_args(CompileMode),
    "target_metric": get_args(TargetMetric),
}

# What says where and with whose money a run happens, not what is measured: no part of a run's identity.
NOT_IDENTITY = (
    *("sweep", "cluster", "data.root", "data.download"),
    *("memory_gb_per_worker", "run_limit_s", "hang_limit_s"),
    "ceilings",  # after the window, which they leave as it is
)
NOT_CELL = ("seed", "repeat", "profile")


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """One chosen entry of an axis, for example the strategy `ddp` with its options."""

    name: str
    options: Mapping[str, Option]


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """Everything that defines one run. Both batch sizes are filled in, whichever was given."""

    sweep: str
    cluster: Cluster
    workload: Variant
    data: Variant
    augmentation: Variant
    mixing: Variant
    loader: Variant
    strategy: Variant
    batch_schedule: Variant
    optimizer: Variant
    lr_schedule: Variant
    precision: Variant
    device: Literal["cpu", "cuda"]
    workers: Positive
    nodes: Positive
    node_type: str | None
    threads_per_worker: Positive
    memory_gb_per_worker: PositiveNumber | None
    batch_per_worker: Positive
    global_batch: Positive
    channels_last: bool
    compile: CompileMode
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    steps: Positive | None
    epochs: Positive | None
    warmup_steps: NonNegative
    evaluate: bool
    data_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)]
    shuffle_labels: bool
    fuse_for_evaluation: bool
    pin_cores: bool
    target_metric: TargetMetric
    target_value: float | None
    stop_at_target: bool
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
    repeat: NonNegative
    profile: bool
    """Take a few steps under a profiler in place of the window; see `benchmarks/measuring/profiling.py`."""
    slowdown: dict[int, Factor] = {}
    """Ranks that are made slower, by which factor; see `benchmarks/measuring/slowdown.py`."""
    ceilings: bool = False
    """Measure what the device can do at best, after the window; see `benchmarks/measuring/ceilings.py`."""
    run_limit_s: PositiveNumber
    hang_limit_s: PositiveNumber

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Validate a composed configuration.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range.
            ImpossibleRunError: a combination that cannot run; the text says why.
        """
        values = dict(mapping)
        for key in values.keys() - set(cls.__struct_fields__):
            raise unknown("configuration key", key, cls.__struct_fields__)
        for axis in VARIANT_AXES:
            values[axis] = _variant(axis, values.get(axis))
        values.update(_batches(values))
        values["slowdown"] = _slowdown(values.get("slowdown"))
        values = placed(values)
        try:
            run = msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise one_line(error, values) from error
        run._check_possible()
        return run

    def _check_possible(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ConfigError(f"steps={self.steps}, epochs={self.epochs}: give one of them and set the other to null")
        check_target(self)
        values = self.flat()
        train_samples = values.get("data.train_samples")
        if isinstance(train_samples, int):
            kept = values["data.train_samples"] = self.samples_kept(train_samples)
            if self.global_batch > kept:
                part = f", data_fraction={self.data_fraction:g} keeps {kept}" if kept < train_samples else ""
                raise ImpossibleRunError(
                    f"global_batch={self.global_batch}: larger than the data set "
                    f"({self.data.name} has {train_samples} training samples{part})"
                )
        self._check_places()
        values |= self._traits(values)
        for key, needs in NEEDS.items():
            for rule, reason in needs.items():
                if not rules.holds(rule, values):
                    raise ImpossibleRunError(f"{key}={values[key]} needs {rule}: {reason}")
        for axis in VARIANT_AXES:
            name = getattr(self, axis).name
            for rule, reason in variant_file(axis, name).needs.items():
                if not rules.holds(rule, values):
                    raise ImpossibleRunError(f"{axis}={name} needs {rule}: {reason}")

    def _traits(self, values: Mapping[str, Option]) -> dict[str, Any]:
        """What rules may ask besides the configuration's own keys; unknown is None."""
        return {
            f"{axis}.{trait}": rules.value(str(expressions[trait]), values) if trait in expressions else None
            for axis, names in TRAITS.items()
            for expressions in [variant_file(axis, getattr(self, axis).name).traits]
            for trait in names
        }

    def _check_places(self) -> None:
        """The workers and where they are."""
        missing = next((rank for rank in self.slowdown if rank >= self.workers), None)
        if missing is not None:
            raise ImpossibleRunError(f"slowdown={self.slowdown}: there is no rank {missing} of workers={self.workers}")
        if self.workers % self.nodes:
            raise ImpossibleRunError(f"workers={self.workers}: cannot be spread equally over nodes={self.nodes}")
        most = self.cluster.max_nodes
        if most is not None and self.nodes > most:
            raise ImpossibleRunError(
                f"nodes={self.nodes}: more than the {most} of cluster={self.cluster.name}"
                + (f", node_type={self.node_type}" if self.node_type else "")
            )
        gpus = self.cluster.gpus_per_node
        if self.device == "cuda" and gpus is not None and self.workers_per_node > gpus:
            raise ImpossibleRunError(
                f"workers={self.workers}: more than the {gpus * self.nodes} GPUs of cluster={self.cluster.name}, "
                f"nodes={self.nodes}; each worker needs its own"
            )

    def samples_kept(self, samples: int) -> int:
        """Of so many training samples, those that are trained on: the nearest whole number, halves up."""
        return int(samples * self.data_fraction + 0.5)

    def as_dict(self) -> dict[str, Any]:
        """The canonical configuration: complete, plain, variants as `{"name": ..., option: value, ...}`."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        for axis in VARIANT_AXES:
            plain[axis] = {"name": plain[axis]["name"], **plain[axis]["options"]}
        return plain

    def flat(self) -> dict[str, Option]:
        """The canonical configuration with dotted keys; a variant's own key holds its name."""
        return flatten(self.as_dict())

    @property
    def workers_per_node(self) -> int:
        """Workers on each node; nodes share them equally."""
        return self.workers // self.nodes

    @property
    def oversubscribed(self) -> bool:
        """More CPU threads, loader processes among them, than the node has cores: allowed, but it is a crowd."""
        cores = self.cluster.cores_per_node
        loading = self.loader.options.get("workers", 0)
        of_worker = self.threads_per_worker + (loading if isinstance(loading, int) else 0)
        return cores is not None and self.device == "cpu" and self.workers_per_node * of_worker > cores

    @cached_property
    def cell_id(self) -> str:
        """The same for all repeats of one cell."""
        return self._id(NOT_IDENTITY + NOT_CELL)

    @cached_property
    def run_id(self) -> str:
        """A readable prefix and a hash of the canonical configuration, safe as a file name.

        Example: `lenet-ddp-w2-b64-fp32-r0-1f3a9c2b7d40`.
        """
        if self.profile:
            return self._id(NOT_IDENTITY, "-profile")
        return self._id((*NOT_IDENTITY, "profile"), f"-r{self.repeat}")

    def _id(self, left_out: tuple[str, ...], suffix: str = "") -> str:
        kept = {key: value for key, value in self.flat().items() if not is_below(key, left_out)}
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
        words = (
            self.workload.name,
            self.strategy.name,
            f"w{self.workers}",
            f"b{self.global_batch}",
            self.precision.name,
        )
        prefix = re.sub(r"[^A-Za-z0-9_.-]", "_", "-".join(words))[:80]
        return f"{prefix}{suffix}-{digest}"


def _variant(axis: str, given: object) -> Variant:
    if not isinstance(given, Mapping):
        raise ConfigError(f"{axis}={given}: must be one of {', '.join(names_on(axis))}")
    file = variant_file(axis, str(given.get("name")))
    options = {key: value for key, value in given.items() if key not in ("name", "needs", "traits")}
    for key, value in options.items():
        if key not in file.defaults:
            raise unknown(f"key of {axis}={file.name}", key, file.defaults)
        _check_type(f"{axis}.{key}", value, file.defaults[key])
    return Variant(name=file.name, options={**file.defaults, **options})


def _check_type(key: str, value: object, default: Option) -> None:
    """A value has its default's type; a default of null takes any value, and a number may be whole."""
    wanted = type(default)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: must be finite")
    fits = default is None or type(value) is wanted or (wanted is float and type(value) is int)
    if not fits:
        raise ConfigError(f"{key}={value}: must be {type_names[wanted]}")


def _batches(values: Mapping[str, Any]) -> dict[str, int]:
    """Fill in whichever of the two batch sizes is null: global batch = batch per worker x workers."""
    workers, per_worker, total = values.get("workers"), values.get("batch_per_worker"), values.get("global_batch")
    for key in ("workers", "batch_per_worker", "global_batch"):
        value = values.get(key)
        if value is not None and (type(value) is not int or value < 1):
            raise ConfigError(f"{key}={value}: must be a whole number from 1")
    if not isinstance(workers, int):
        raise ConfigError("workers=null: must be a whole number from 1")
    if per_worker is None:
        if total is None:
            raise ConfigError("batch_per_worker=null, global_batch=null: give one of them")
        if total % workers:
            raise ImpossibleRunError(f"global_batch={total}: cannot be shared equally by workers={workers}")
        return {"batch_per_worker": total // workers, "global_batch": total}
    if total is not None and total != per_worker * workers:
        raise ConfigError(
            f"global_batch={total}: must be batch_per_worker x workers = {per_worker} x {workers}; "
            "set one of them to null"
        )
    return {"batch_per_worker": per_worker, "global_batch": per_worker * workers}


def _slowdown(given: object) -> dict[int, float]:
    """Factors by rank; from JSON, ranks come as text. A factor of 1 changes nothing and is left out."""
    wanted = "must be factors from 1 by rank, as {0: 2.0}, or {}"
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"slowdown={given}: {wanted}")
    factors = {}
    for rank, factor in (given or {}).items():
        number = type(factor) in (int, float) and math.isfinite(factor) and factor >= 1
        if not number or not re.fullmatch(r"\d+", str(rank)):
            raise ConfigError(f"slowdown={given}: {wanted}")
        factors[int(rank)] = float(factor)
    return {rank: factor for rank, factor in sorted(factors.items()) if factor > 1}


def one_line(error: msgspec.ValidationError, values: Mapping[str, Any], prefix: str = "") -> ConfigError:
    """msgspec's error with the key and the value that it speaks of, in the project's words."""
    text, _, path = str(error).partition(" - at `$.")
    key = path.rstrip("`")
    if match := re.search(r"unknown field `(.*?)`", text):
        fields = (*get_type_hints(Cluster), "node_types", "slurm", "container") if key.startswith("cluster") else ()
        return unknown(f"key of {key}", match.group(1), fields)
    if match := re.search(r"missing required field `(.*?)`", text):
        return ConfigError(f"{match.group(1)}: must be given")
    found: Any = values
    for part in re.split(r"[.\[]", key):
        found = found.get(part) if isinstance(found, Mapping) else found
    if choices := _CHOICES.get(key.rpartition(".")[2]):
        return unknown(key, found, choices)
    wanted = text.removeprefix("Expected ").split(", got")[0].replace("`", "")
    for name, words in _MSGSPEC_NAMES.items():
        wanted = re.sub(rf"\b{name}\b", words, wanted)
    return ConfigError(f"{prefix}{key}={found}: must be {wanted.replace(' | ', ' or ')}")


def is_below(key: str, keys: Iterable[str]) -> bool:
    """Whether a dotted key is one of these, or an option of one."""
    return any(key == other or key.startswith(f"{other}.") for other in keys)


def flatten(tree: Mapping[str, Any]) -> dict[str, Option]:
    """Nested mappings as dotted keys; `strategy.name` becomes `strategy`, the way people type it."""

    def walk(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Option]]:
        for key, value in node.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            elif key == "name" and prefix:
                yield prefix.rstrip("."), value
            else:
                yield f"{prefix}{key}", value

    return dict(walk(tree, ""))


def known_keys(like: str) -> list[str]:
    """The keys that `like` could have meant: options, if it names an axis (`optimizer.lrr`), else the top level's."""
    axis, _, option = like.partition(".")
    if option and axis in VARIANT_AXES:
        options = {key for name in names_on(axis) for key in variant_file(axis, name).defaults}
        return [f"{axis}.{key}" for key in options]
    top = msgspec.yaml.decode((CONF_DIR / "config.yaml").read_bytes(), type=dict[str, Any])
    groups = [key for default in top["defaults"] if isinstance(default, dict) for key in default]
    return [key for key in [*top, *groups] if key not in ("defaults", "hydra") and not key.startswith("override ")]
