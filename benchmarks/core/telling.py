"""Which keys tell configurations apart: the columns of plans, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from benchmarks.core.config import NOT_CELL, NOT_IDENTITY, is_below
from benchmarks.core.variants import VARIANT_AXES, Option

# Keys whose value often follows from others'.
_SOURCES = {
    "nodes": ("workers", "node_type"),
    "threads_per_worker": ("node_type",),
    "device": ("node_type",),
}


def telling_keys(configs: Sequence[Mapping[str, Option]]) -> list[str]:
    """The dotted keys that tell configurations apart, as a table's columns; repeat, seed and the like aside.

    What follows from another key adds nothing and is left out: an option from its variant's name (every `ddp` has the
    same bucket size, `single` has none), the number of nodes from that of workers.
    """
    keys = dict.fromkeys(key for config in configs for key in config if is_part_of_cell(key))
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return [key for key in differing if not _follows(key, configs)]


@cache
def is_part_of_cell(key: str) -> bool:
    """Whether a dotted key says what is measured: not where, for how long at most, or how often."""
    return not is_below(key, NOT_IDENTITY + NOT_CELL)


def _follows(key: str, configs: Sequence[Mapping[str, Option]]) -> bool:
    """Whether a key's value is the same wherever those are the same from which it follows."""
    group, _, option = key.partition(".")
    sources = (group,) if option and group in VARIANT_AXES else _SOURCES.get(key)
    if sources is None:
        return False
    given = [tuple(repr(config.get(source)) for source in sources) for config in configs]
    return len({(at, repr(config.get(key))) for at, config in zip(given, configs, strict=True)}) == len(set(given))
