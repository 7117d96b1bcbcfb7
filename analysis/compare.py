"""Two campaigns held against each other, cell by cell: `python -m analysis.compare A B [--fail-above 5%]`.

A and B are sweeps' folders, or files that `--pin` has written. Differences in configuration and environment come first:
they may be the cause. Ratios are B's time over A's, above 1 is slower; what counts is their interval, not the eye.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from analysis import command
from analysis.cells.campaign import Campaign, CampaignCell, matched, pin, read_campaign
from analysis.statistics.bootstrap import LEVEL
from analysis.statistics.estimate import Estimate
from analysis.statistics.permutation import Shift, enough, holm, shift
from benchmarks.core.errors import UserError

EXIT_REGRESSION = 1
_BOTH = (1 - LEVEL) / 2
"""The chance of a false alarm that the test of all cells together and the tests of single cells may each have."""


class CellComparison(msgspec.Struct, kw_only=True):
    """One cell that both campaigns have."""

    label: str
    repeats: tuple[int, int]
    ratio: Estimate | None
    """B's time per step over A's, of geometric means; null with too few repeats."""
    p: float | None
    """Adjusted for the number of cells."""
    verdict: str


class Comparison(msgspec.Struct, kw_only=True):
    """What `--json` prints."""

    first: str
    second: str
    differences: list[str]
    """Of configuration and environment, and cells that one of them lacks."""
    cells: list[CellComparison]
    all_cells: Estimate | None
    """The ratio that all cells have in common."""
    verdict: str
    regression: bool
    """A real one, larger than what was to be tolerated."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 for a regression, 2 for a mistake that the user can mend."""
    return command.carry_out(_parser(), arguments, _run)


def _run(options: argparse.Namespace) -> int:
    first = read_campaign(options.first)
    if options.pin:
        sys.stdout.write(f"{pin(first, options.pin)}\n")
        return 0
    if options.second is None:
        raise UserError("compare needs two campaigns: python -m analysis.compare A B; or one and --pin FILE")
    result = compare(first, read_campaign(options.second), _share(options.fail_above))
    if options.json:
        command.print_json(result)
    else:
        _show(result)
    return EXIT_REGRESSION if result.regression and options.fail_above is not None else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.compare", description="Is campaign B slower than A?")
    parser.add_argument("first", type=Path, metavar="A", help="a sweep's folder, or a pinned file")
    parser.add_argument("second", type=Path, nargs="?", metavar="B", help="another one")
    parser.add_argument(
        "--fail-above", metavar="5%", help="exit with 1 where B is slower by more than this, for certain"
    )
    parser.add_argument("--pin", type=Path, metavar="FILE", help="write A's times into a file to compare with later")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _share(text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share < 10:
        raise UserError(f"--fail-above={text}: must be a share as 5% or 0.05")
    return share


def compare(first: Campaign, second: Campaign, tolerated: float = 0.0) -> Comparison:
    """Compare all cells that both have, singly and together.

    Args:
        first: the reference.
        second: what is judged.
        tolerated: a regression is one that is slower by more than this share, and for certain.

    Raises:
        UserError: they have no cell in common.
    """
    pairs = matched(first, second)
    if not pairs:
        raise UserError(
            f"{first.name} and {second.name}: no cell in common; campaigns to compare have the same settings"
        )
    logs = [(_logs(a), _logs(b)) for a, b in pairs]
    known = [index for index, (a, b) in enumerate(logs) if a and b]
    alone = {index: shift([logs[index]], LEVEL) for index in known}
    adjusted = dict(
        zip(
            (index for index in known if alone[index]),
            holm([found.p for index in known if (found := alone[index])]),
            strict=True,
        )
    )
    limit = _BOTH if len(known) > 1 else 1 - LEVEL
    cells = []
    for index, (a, b) in enumerate(pairs):
        found = alone.get(index)
        ratio = _ratio(found)
        repeats = (len(a.step_times_s), len(b.step_times_s))
        cells.append(
            CellComparison(
                label=b.label, repeats=repeats, ratio=ratio, p=adjusted.get(index),
                verdict=_verdict(ratio, adjusted.get(index), limit),
            )
        )  # fmt: skip
    together = shift([logs[index] for index in known], 1 - limit) if known else None
    everything = _ratio(together)
    slower = [cell for cell in cells if cell.verdict == "slower" and cell.ratio and cell.ratio.value > 1 + tolerated]
    return Comparison(
        first=first.name,
        second=second.name,
        differences=first.differences(second, pairs),
        cells=cells,
        all_cells=everything,
        verdict=_summary(everything, cells),
        regression=bool(slower) or (everything is not None and everything.low > 1 and everything.value > 1 + tolerated),
    )


def _ratio(found: Shift | None) -> Estimate | None:
    """A shift of logarithms as a ratio."""
    if found is None:
        return None
    return Estimate(value=math.exp(found.value), low=math.exp(found.low), high=math.exp(found.high))


def _logs(cell: CampaignCell) -> list[float]:
    return [math.log(time) for time in cell.step_times_s]


def _verdict(ratio: Estimate | None, p: float | None, limit: float) -> str:
    if ratio is None or p is None:
        return f"too few repeats: {enough(LEVEL)} of each tell"
    if p > limit:
        return "no difference found"
    return "slower" if ratio.value > 1 else "faster"


def _summary(everything: Estimate | None, cells: Sequence[CellComparison]) -> str:
    named = [cell.label for cell in cells if cell.verdict in ("slower", "faster")]
    if everything is None:
        return f"cannot tell: too few repeats ({enough(LEVEL)} of each campaign tell)"
    told = f"{everything.value:.3f} of A's time over all cells [{everything.low:.3f}, {everything.high:.3f}]"
    if everything.low > 1 or everything.high < 1:
        return f"B is {'slower' if everything.value > 1 else 'faster'}: {told}"
    if named:
        return f"no difference over all cells, but in {len(named)} of {len(cells)}: {'; '.join(named[:3])}"
    return f"no difference found: {told}"


def _show(result: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    console = command.console()
    console.print(Text(f"A: {result.first}\nB: {result.second}"))
    for line in result.differences:
        console.print(Text(f"differs: {line}", style="yellow"))
    table = Table("cell", "repeats", "B/A", "95 % interval", "", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for cell in result.cells:
        ratio = cell.ratio
        shown = (f"{ratio.value:.3f}", f"[{ratio.low:.3f}, {ratio.high:.3f}]") if ratio else ("-", "")
        table.add_row(Text(cell.label), f"{cell.repeats[0]}, {cell.repeats[1]}", shown[0], Text(shown[1]), cell.verdict)
    console.print(table)
    console.print(Text(result.verdict, style="bold"))


if __name__ == "__main__":
    sys.exit(main())
