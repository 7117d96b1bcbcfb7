"""One page of a sweep: `python -m analysis.report [DIR]`.

Prints the tables as `analysis.scaling` does and leaves the page beside them: `report.html`, a single file that needs no
network, with the recommendation first, tables that sort and filter, charts, laws, provenance and what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis import command
from benchmarks.core.errors import UserError

if TYPE_CHECKING:
    from analysis.advice.goals import Goal
    from analysis.recommend import Recommendation
    from analysis.runs.load import Loaded
    from analysis.schema import Report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake that the user can mend."""
    return command.carry_out(_parser(), arguments, _run)


def _parser() -> argparse.ArgumentParser:
    parser = command.sweep_parser("report", "One page of a sweep: the answer, tables, charts, provenance.")
    command.add_file_options(parser)
    parser.add_argument(
        "--goal", choices=("time", "cost", "energy"), default="time", help="what the answer makes small (time)"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    from analysis.exports.other_tools import exporters
    from analysis.figures.report import reader
    from analysis.scaling import all_files, print_tables
    from analysis.watch import look

    export = exporters(options.export)
    folder = command.chosen_sweep(options)
    with_figures = not options.no_figures
    loaded, report = look(folder, reader(with_figures=with_figures))

    def further(scaling: str) -> dict[str, bytes]:
        return page_files(report, advise(loaded, report, options.goal), scaling)

    files = all_files(report, with_figures=with_figures, further=further)
    command.tell_warnings(report.problems)
    out = command.chosen_out(options, folder)
    paths = command.write_all(out, files)
    print_tables(report, [*(one(loaded, report, out) for one in export), *paths])
    return 0


def advise(loaded: Loaded, report: Report, goal: Goal = "time") -> Recommendation | None:
    """What to run; None where nothing has a number yet."""
    from analysis.advice.candidates import Wanted
    from analysis.recommend import DEFAULT_SAMPLES, choose

    if not any(point.repeats_ok for point in report.cells):
        return None
    return choose(loaded, report, goal, Wanted(samples=DEFAULT_SAMPLES))


def page_files(report: Report, advice: Recommendation | None, scaling: str) -> dict[str, bytes]:
    """The page and its numbers, name to content; the page last, so that its path ends what is printed.

    Args:
        report: Of the sweep.
        advice: What to run.
        scaling: The text of `scaling.md`, which is a part of `report.md`.
    """
    from analysis.exports import results
    from analysis.exports.parquet import results_parquet
    from analysis.page.assemble import page

    files = {
        "report.md": results.report_markdown(report, advice, scaling).encode(),
        "results.csv": results.results_csv(report).encode(),
        "dictionary.csv": results.dictionary_csv(report).encode(),
    }
    try:
        files["results.parquet"] = results_parquet(report)
    except UserError as error:
        command.tell_warnings([f"left out: {error}"])
    return files | {"report.html": page(report, advice).encode()}


if __name__ == "__main__":
    sys.exit(main())
