"""Strong and weak scaling of a sweep: `python -m analysis.scaling [DIR]`.

Prints the tables and leaves them with the figures in the sweep's folder: Markdown, LaTeX, CSV, JSON, PNG, SVG. Works on
a sweep that is not finished, and says what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.errors import UserError

if TYPE_CHECKING:
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
        prog="python -m analysis.scaling", description="Strong and weak scaling of a sweep: tables and figures."
    )
    parser.add_argument(
        "dir", nargs="?", type=Path, metavar="DIR", help="a sweep's folder; default: the newest of all results"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="the folder of all results (results)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go; default: DIR/analysis")
    parser.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    parser.add_argument("--json-schema", action="store_true", help="print the JSON schema of --json and stop")
    parser.add_argument("--no-figures", action="store_true", help="make no figures (faster)")
    return parser


def _run(options: argparse.Namespace) -> int:
    from analysis.load import load_cells
    from analysis.schema import json_schema
    from analysis.series import build_report
    from benchmarks.folder import newest_sweep

    if options.json_schema:
        _print_json(json_schema())
        return 0
    folder = options.dir or newest_sweep(options.results)
    report = build_report(load_cells(folder))
    for problem in report.problems:
        sys.stderr.write(f"warning: {' '.join(problem.split())}\n")
    paths = write_files(report, options.out or folder / "analysis", with_figures=not options.no_figures)
    if options.json:
        _print_json(report)
    else:
        _print_tables(report, paths)
    return 0


def _print_json(value: object) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def _print_tables(report: Report, paths: Sequence[Path]) -> None:
    from rich.console import Console

    from analysis.columns import TERMINAL_WIDTH
    from analysis.tables import print_report

    console = Console(highlight=False, width=None if sys.stdout.isatty() else TERMINAL_WIDTH)
    print_report(report, console)
    console.print()
    for path in paths:
        console.print(str(path), markup=False, soft_wrap=True)


def write_files(report: Report, out: Path, *, with_figures: bool) -> list[Path]:
    """Write all formats, each file whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    from analysis import exports, tables
    from benchmarks.record import replace

    files: dict[str, bytes] = {}
    if with_figures:
        from analysis.drawing import study_figure
        from analysis.plots import figures

        files |= study_figure(report.study) if report.study else {}
        files |= figures(report) if report.study is None or report.study.with_scaling else {}
    shown = [name for name in files if name.endswith(".png")]
    files |= {
        "scaling.md": tables.markdown(report, shown).encode(),
        "scaling.tex": tables.latex(report).encode(),
        "scaling.json": msgspec.json.format(msgspec.json.encode(report), indent=2),
        "strong.csv": tables.scaling_csv(report, report.strong).encode(),
        "weak.csv": tables.scaling_csv(report, report.weak).encode(),
        "cells.csv": tables.cells_csv(report).encode(),
    }
    if report.strong or report.weak:
        files["extra-p.jsonl"] = exports.extra_p(report)
    if report.search:
        files["trials.csv"] = tables.trials_csv(report).encode()
    if report.study:
        files["study.csv"] = tables.study_csv(report).encode()
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [replace(out / name, content) for name, content in files.items()]
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder with --out") from error


if __name__ == "__main__":
    sys.exit(main())
