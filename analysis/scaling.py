"""Strong and weak scaling of a sweep: `python -m analysis.scaling [DIR]`.

Prints the tables and leaves them with the figures in the sweep's folder: Markdown, LaTeX, CSV, JSON, PNG, SVG. Works on
a sweep that is not finished, and says what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from analysis import command

if TYPE_CHECKING:
    from analysis.schema import Report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 2 for a mistake that the user can mend."""
    return command.carry_out(_parser(), arguments, _run)


def _parser() -> argparse.ArgumentParser:
    parser = command.sweep_parser("scaling", "Strong and weak scaling of a sweep: tables and figures.")
    command.add_file_options(parser)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    way.add_argument("--json-schema", action="store_true", help="print the JSON schema of --json and stop")
    way.add_argument(
        "--watch", action="store_true",
        help="stay while the sweep runs, and draw the tables again as records come; ends when no planned run is "
        "missing, and only then makes files and figures; Ctrl-C ends it at once and makes none",
    )  # fmt: skip
    return parser


def _run(options: argparse.Namespace) -> int:
    from analysis.exports.other_tools import exporters
    from analysis.figures.report import reader
    from analysis.schema import json_schema
    from analysis.watch import look, watch

    if options.json_schema:
        command.print_json(json_schema())
        return 0
    export = exporters(options.export)
    folder = command.chosen_sweep(options)
    with_figures = not options.no_figures
    if options.watch:
        loaded, report = watch(folder, command.console())
    else:
        loaded, report = look(folder, reader(with_figures=with_figures))
    command.tell_warnings(report.problems)
    out = command.chosen_out(options, folder)
    paths = command.write_all(out, all_files(report, with_figures=with_figures))
    paths += [one(loaded, report, out) for one in export]
    if options.json:
        command.print_json(report)
    else:
        print_tables(report, paths)
    return 0


def print_tables(report: Report, paths: Sequence[Path]) -> None:
    """All tables, and the files that were written."""
    from analysis.tables.formats import print_report

    console = command.console()
    print_report(report, console)
    command.print_paths(paths, console)


def all_files(
    report: Report, *, with_figures: bool, further: Callable[[str], dict[str, bytes]] = lambda _: {}
) -> dict[str, bytes]:
    """The figures, all tables in all formats, and further files: name to content.

    Args:
        report: Of the sweep.
        with_figures: Whether there are to be any.
        further: Makes more files from the text of `scaling.md`, while figures of a large sweep are drawn.
    """
    from analysis.figures.report import begun, figure_names

    if not with_figures:
        return _with_tables(report, [], further)
    drawn = begun(report)
    files = _with_tables(report, figure_names(report), further)
    return drawn() | files


def _with_tables(
    report: Report, figures: Sequence[str], further: Callable[[str], dict[str, bytes]]
) -> dict[str, bytes]:
    from analysis.exports.other_tools import extra_p
    from analysis.tables import formats

    markdown = formats.markdown(report, figures)
    files = {
        "scaling.md": markdown.encode(),
        "scaling.tex": formats.latex(report).encode(),
        "scaling.json": msgspec.json.format(msgspec.json.encode(report), indent=2),
        "strong.csv": formats.scaling_csv(report, report.strong).encode(),
        "weak.csv": formats.scaling_csv(report, report.weak).encode(),
        "cells.csv": formats.cells_csv(report).encode(),
    }
    if report.strong or report.weak:
        files["extra-p.jsonl"] = extra_p(report)
    if report.search:
        files["trials.csv"] = formats.trials_csv(report).encode()
    if report.study:
        files["study.csv"] = formats.study_csv(report).encode()
    return files | further(markdown)


if __name__ == "__main__":
    sys.exit(main())
