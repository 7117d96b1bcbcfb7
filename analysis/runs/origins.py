"""What must be the same behind all numbers of a table, or be told: the image, the code, the driver, torch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from analysis.runs.load import Cell

_NAMED_CELLS = 3


class Origin(msgspec.Struct, kw_only=True):
    """One value of one fact that numbers were made with."""

    fact: Annotated[str, Meta(description="`images`, `commits`, `driver versions`, `torch versions` or `hosts`.")]
    value: Annotated[str, Meta(description="`none` where there is none, `unknown` where no record says it.")]
    runs: Annotated[int, Meta(description="Runs with a number that were made with it.")]


def origin_of(environment: Mapping[str, Any]) -> dict[str, str]:
    """The facts of one record, as short texts; `none` where there is none, `unknown` where the record does not say."""
    commit = environment.get("commit")
    return {
        "images": str(environment.get("image_sha256") or "none")[:12],
        "commits": f"{commit[:12]}{' with changes' if environment.get('dirty') else ''}" if commit else "unknown",
        "driver versions": str(environment.get("driver") or "none"),
        "torch versions": str((environment.get("packages") or {}).get("torch") or "unknown"),
    }


def mixed(cells: Iterable[Cell]) -> list[str]:
    """A line for each fact in which the numbers differ: its values, how many runs have each, and in which cells.

    Cells are named for all values but the most frequent one.
    """
    runs: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        for run in cell.runs:
            for fact, value in run.origin.items() if run.measured else ():
                runs[fact][value].append(cell.cell_id)
    return [f"mixed {fact}: {_counted(values)}" for fact, values in runs.items() if len(values) > 1]


def origins(cells: Iterable[Cell]) -> list[Origin]:
    """Every value of every fact behind the numbers, with how many runs have it; a run may have several hosts."""
    runs: dict[str, Counter[str]] = {}
    for cell in cells:
        for run in cell.runs:
            if run.measured:
                for fact, value in run.origin.items():
                    runs.setdefault(fact, Counter())[value] += 1
                runs.setdefault("hosts", Counter()).update(run.hosts)
    return [
        Origin(fact=fact, value=value, runs=count)
        for fact, values in runs.items()
        for value, count in sorted(values.items(), key=lambda item: (-item[1], item[0]))
    ]


def _counted(values: Mapping[str, list[str]]) -> str:
    ordered = sorted(values.items(), key=lambda item: (-len(item[1]), item[0]))
    parts = [f"{value} in {len(found)} run{'s' * (len(found) > 1)}" for value, found in ordered]
    for index, (_, found) in enumerate(ordered[1:], start=1):
        names = list(dict.fromkeys(found))
        more = ", ..." if len(names) > _NAMED_CELLS else ""
        parts[index] += f" ({', '.join(names[:_NAMED_CELLS])}{more})"
    return "; ".join(parts)
