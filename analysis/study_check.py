"""Whether sweeps' figures can be drawn, before anything runs: `python -m analysis.study_check NAME ...`.

A sweep may run for hours; a misspelt measure must be told before, not after. The core, which runs sweeps, knows nothing
of figures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from analysis import command
from analysis.study.build import check_figure
from benchmarks.core.errors import UserError
from benchmarks.core.sweep_files import sweep_named


def main(names: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 where a figure cannot be drawn, or a sweep's file is not sound."""
    parser = argparse.ArgumentParser(prog="python -m analysis.study_check", description="Can sweeps' figures be drawn?")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a sweep of conf/sweep/")
    return command.carry_out(parser, names, _check)


def _check(options: argparse.Namespace) -> int:
    wrong = [f"sweep={name}: {problem}" for name in options.names for problem in check_figure(sweep_named(name).figure)]
    command.tell_errors(wrong)
    return UserError.exit_code if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
