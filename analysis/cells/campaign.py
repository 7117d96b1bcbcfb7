"""A campaign: the cells of a sweep with the times of their repeats, from its folder or from a pinned file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from analysis.cells.labels import label, telling
from analysis.runs.load import load_cells
from analysis.wording import clean
from benchmarks.core.errors import UserError
from benchmarks.core.record import replace
from benchmarks.core.telling import is_part_of_cell
from benchmarks.core.variants import Option

SCHEMA_VERSION = 1


class CampaignCell(msgspec.Struct, kw_only=True):
    """One cell."""

    cell_id: str
    label: str
    config: dict[str, Option]
    """Flat, what is measured only."""
    step_times_s: list[float]
    """Of each repeat that gives numbers."""


class Campaign(msgspec.Struct, kw_only=True):
    """What is compared; also the pinned file."""

    schema_version: int = SCHEMA_VERSION
    name: str
    cells: list[CampaignCell]
    origins: dict[str, list[str]]
    """Images, commits, driver and torch versions behind the numbers."""

    def differences(self, other: Campaign, pairs: Sequence[tuple[CampaignCell, CampaignCell]]) -> list[str]:
        """In what the campaigns differ besides their times, one line each."""
        lines = [
            f"{fact}: {', '.join(values)} in A, {', '.join(other.origins.get(fact, []))} in B"
            for fact, values in self.origins.items()
            if values != other.origins.get(fact)
        ]
        changed: dict[str, None] = {}
        for a, b in pairs:
            for key in sorted({*a.config, *b.config}):
                if repr(a.config.get(key)) != repr(b.config.get(key)):
                    changed[f"{key}: {clean(a.config.get(key))} in A, {clean(b.config.get(key))} in B"] = None
        lines += changed
        for one, paired, name in (
            (self, {a.cell_id for a, _ in pairs}, "A"),
            (other, {b.cell_id for _, b in pairs}, "B"),
        ):
            lines += [f"only in {name}: {cell.label}" for cell in one.cells if cell.cell_id not in paired]
        return lines


def read_campaign(path: Path) -> Campaign:
    """Read a sweep's folder or a pinned file. Raises UserError where it is neither."""
    if path.is_dir():
        return _of_folder(path)
    try:
        campaign = msgspec.json.decode(path.read_bytes(), type=Campaign)
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{path}: neither a sweep's folder nor a pinned file ({error})") from error
    if campaign.schema_version != SCHEMA_VERSION:
        raise UserError(
            f"{path}: schema version {campaign.schema_version}, this program reads version {SCHEMA_VERSION}"
        )
    return campaign


def _of_folder(folder: Path) -> Campaign:
    loaded = load_cells(folder)
    keys = telling([cell.config for cell in loaded.cells])
    origins: dict[str, set[str]] = {}
    for cell in loaded.cells:
        for run in cell.runs:
            for fact, value in run.origin.items() if run.measured else ():
                origins.setdefault(fact, set()).add(value)
    return Campaign(
        name=str(folder),
        cells=[
            CampaignCell(
                cell_id=cell.cell_id,
                label=label(cell.config, keys),
                config={key: value for key, value in cell.config.items() if is_part_of_cell(key)},
                step_times_s=[run.measured.step_time_s for run in cell.runs if run.measured],
            )
            for cell in sorted(loaded.cells, key=lambda cell: cell.place)
        ],
        origins={fact: sorted(values) for fact, values in sorted(origins.items())},
    )


def pin(campaign: Campaign, path: Path) -> Path:
    """Write a campaign into a file, whole or not at all."""
    return replace(path, msgspec.json.format(msgspec.json.encode(campaign), indent=1))


def matched(first: Campaign, second: Campaign) -> list[tuple[CampaignCell, CampaignCell]]:
    """The cells that both have: of the same identity, else alike in all settings that both know and told apart by them.

    The second case is that of two versions of the program, of which one knows settings that the other does not.
    """
    by_id = {cell.cell_id: cell for cell in first.cells}
    pairs = [(by_id[cell.cell_id], cell) for cell in second.cells if cell.cell_id in by_id]
    if pairs:
        return pairs
    if not first.cells or not second.cells:
        return []
    shared = set.intersection(*({*cell.config} for cell in [*first.cells, *second.cells]))
    keyed = [{_identity(cell, shared): cell for cell in one.cells} for one in (first, second)]
    if any(len(found) < len(one.cells) for found, one in zip(keyed, (first, second), strict=True)):
        return []
    return [(keyed[0][key], cell) for key, cell in keyed[1].items() if key in keyed[0]]


def _identity(cell: CampaignCell, keys: set[str]) -> tuple[str, ...]:
    return tuple(repr(cell.config[key]) for key in sorted(keys))
