"""How cells are told apart in figures and tables, in as few words as do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from analysis.schema import Point
from analysis.wording import clean
from benchmarks.core.telling import telling_keys
from benchmarks.core.variants import VARIANT_AXES, Option

_BATCH_SIZES = ("batch_per_worker", "global_batch")
_WORDS = {
    **{"workers": "workers", "global_batch": "global batch", "batch_per_worker": "batch per worker"},
    "loader.workers": "loader processes",
}
_SLOWDOWN = "slowdown"


def telling(configs: Sequence[Mapping[str, Option]], without: Iterable[str] = ()) -> list[str]:
    """The keys whose values tell configurations apart, less `without` and the batch size that follows from other keys.

    Where each of the two batch sizes follows from the other, the one with more values does: the other was held fixed.
    """
    left_out = set(without)
    keys = [key for key in telling_keys(configs) if key not in left_out]
    for size in sorted(_BATCH_SIZES, key=lambda size: -len({repr(config.get(size)) for config in configs})):
        others = [key for key in keys if key != size] + sorted(left_out)
        if size in keys and _follows(size, others, configs):
            keys.remove(size)
    return keys


def _follows(key: str, others: Sequence[str], configs: Sequence[Mapping[str, Option]]) -> bool:
    known: dict[tuple[str, ...], str] = {}
    for config in configs:
        given = tuple(repr(config.get(other)) for other in others)
        if known.setdefault(given, repr(config.get(key))) != repr(config.get(key)):
            return False
    return True


def label(config: Mapping[str, Option], keys: Sequence[str]) -> str:
    """A cell's values of these keys as words: `ddp, 2 workers, hook=fp16`."""
    words = [_word(key, config.get(key)) for key in keys if config.get(key) is not None]
    slowed = [key for key in keys if key.startswith(f"{_SLOWDOWN}.")]
    if slowed and all(config.get(key) is None for key in slowed):
        words.append("none slowed")
    return ", ".join(words) or "all"


def cell_name(point: Point) -> str:
    """A point of the report by its settings, workers and batch."""
    config = point.settings | {"workers": point.workers, "global_batch": point.global_batch}
    return label(config, list(config))


def plain_value(value: Option) -> str:
    """A setting's value as the sweep's file has it; a dash where a cell has no such setting."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value is None else clean(value)


def _word(key: str, value: Option) -> str:
    shown = plain_value(value)
    group, _, option = key.rpartition(".")
    if key in VARIANT_AXES:
        return clean(shown)
    if key == "workers":
        return f"{value} worker{'' if value == 1 else 's'}"
    if key in _WORDS:
        return f"{_WORDS[key]} {value}"
    if group == _SLOWDOWN:
        return clean(f"rank {option} slowed {value:g}x" if isinstance(value, (int, float)) else f"{key}={value}")
    return clean(f"{option}={shown}")


def axis_label(key: str) -> str:
    """A setting's name at a figure's axis; settings count something, or are plain numbers."""
    units = {
        "workers": "workers",
        "global_batch": "global batch [samples]",
        "batch_per_worker": "batch per worker [samples]",
        "loader.workers": "loader processes",
    }
    group, _, option = key.rpartition(".")
    name = f"{group} {option}" if option in units or option in VARIANT_AXES else option
    return units.get(key, f"{name.strip().removesuffix('_s').removesuffix('_mb').replace('_', ' ')} [{_unit(option)}]")


def _unit(name: str) -> str:
    if name.endswith("_s"):
        return "s"
    if name.endswith("_mb"):
        return "MB"
    if name in ("micro_batch_size", "train_samples", "measured_samples"):
        return "samples"
    return "number"
