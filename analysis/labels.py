"""How cells are told apart in figures and tables, in as few words as do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from analysis.columns import clean
from benchmarks.sweep import telling_keys
from benchmarks.variants import VARIANT_AXES, Option

_BATCH_SIZES = ("batch_per_worker", "global_batch")
_WORDS = {
    **{"workers": "workers", "global_batch": "global batch", "batch_per_worker": "batch per worker"},
    "loader.workers": "loader processes",
}


def telling(configs: Sequence[Mapping[str, Option]], without: Iterable[str] = ()) -> list[str]:
    """The keys whose values tell configurations apart, less `without` and batch sizes that follow from other keys."""
    left_out = set(without)
    keys = [key for key in telling_keys(configs) if key not in left_out]
    for size in _BATCH_SIZES:
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
    return ", ".join(words) or "all"


def _word(key: str, value: Option) -> str:
    shown = {True: "true", False: "false"}.get(value, value) if isinstance(value, bool) else value
    if key in VARIANT_AXES:
        return clean(shown)
    if key == "workers":
        return f"{value} worker{'' if value == 1 else 's'}"
    if key in _WORDS:
        return f"{_WORDS[key]} {value}"
    return clean(f"{key.rpartition('.')[2]}={shown}")


def axis_label(key: str) -> str:
    """A setting's name at a figure's axis; settings count something, or are plain numbers."""
    units = {
        "workers": "workers",
        "global_batch": "global batch [samples]",
        "batch_per_worker": "batch per worker [samples]",
        "loader.workers": "loader processes",
    }
    return units.get(key, f"{key.rpartition('.')[2].replace('_', ' ')} [{_unit(key)}]")


def _unit(key: str) -> str:
    name = key.rpartition(".")[2]
    if name.endswith("_s"):
        return "s"
    if "micro_batch_size" in name:
        return "samples"
    return "number"
