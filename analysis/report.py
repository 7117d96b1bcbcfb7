"""One page of a sweep: `python -m analysis.report [DIR]`.

Prints the tables as `analysis.scaling` does and leaves the page beside them: `report.html`, a single file that needs no
network, with the recommendation first, tables that sort and filter, charts, laws, provenance and what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import UserError

if TYPE_CHECKING:
    from analysis.goals import Goal
    from analysis.load import Loaded
    from analysis.recommend import Recommendation
    from analysis.schema import Report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake that the user can mend."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description="One page of a sweep: the answer, tables, charts, provenance."
    )
    parser.add_argument("dir", nargs="?", type=Path, metavar="DIR", help="a sweep's folder; default: the newest")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="the folder of all results (results)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go; default: DIR/analysis")
    parser.add_argument(
        "--goal", choices=("time", "cost", "energy"), default="time", help="what the answer makes small (time)"
    )
    parser.add_argument("--no-figures", action="store_true", help="no PNG and SVG figures beside the page (faster)")
    return parser


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from analysis.columns import TERMINAL_WIDTH
    from analysis.load import load_cells
    from analysis.scaling import write_files
    from analysis.series import build_report
    from analysis.tables import print_report
    from benchmarks.folder import newest_sweep

    folder = options.dir or newest_sweep(options.results)
    loaded = load_cells(folder)
    report = build_report(loaded)
    advice = advise(loaded, report, options.goal)
    for problem in report.problems:
        sys.stderr.write(f"warning: {' '.join(problem.split())}\n")
    out = options.out or folder / "analysis"
    paths = write_files(report, out, with_figures=not options.no_figures)
    paths += write_page(report, advice, out)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else TERMINAL_WIDTH)
    print_report(report, console)
    console.print()
    for path in paths:
        console.print(str(path), markup=False, soft_wrap=True)
    return 0


def advise(loaded: Loaded, report: Report, goal: Goal = "time") -> Recommendation | None:
    """What to run; None where nothing has a number yet."""
    from analysis.candidates import Wanted
    from analysis.recommend import DEFAULT_SAMPLES, choose

    if not any(point.repeats_ok for point in report.cells):
        return None
    return choose(loaded, report, goal, Wanted(samples=DEFAULT_SAMPLES))


def write_page(report: Report, advice: Recommendation | None, out: Path) -> list[Path]:
    """Write the page and its numbers; the page last, so that its path ends what is printed.

    Raises:
        UserError: the folder cannot be written.
    """
    from analysis import results
    from analysis.page.assemble import page
    from benchmarks.record import replace

    files = {
        "report.md": results.report_markdown(report, advice),
        "results.csv": results.results_csv(report),
        "dictionary.csv": results.dictionary_csv(report),
        "report.html": page(report, advice),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [replace(out / name, text.encode()) for name, text in files.items()]
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder with --out") from error


if __name__ == "__main__":
    sys.exit(main())
