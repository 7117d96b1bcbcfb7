"""Whether sweeps' figures can be drawn, before anything runs: `python -m analysis.study_check NAME ...`.

A sweep may run for hours; a misspelt measure must be told before, not after. The core, which runs sweeps, knows nothing
of figures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from analysis.study import check_figure
from benchmarks.errors import UserError
from benchmarks.sweep_files import sweep_named


def main(names: Sequence[str] | None = None) -> int:
    """The command line; the exit code is 2 where a figure cannot be drawn, or a sweep's file is not sound."""
    try:
        wrong = [
            f"sweep={name}: {problem}"
            for name in (sys.argv[1:] if names is None else names)
            for problem in check_figure(sweep_named(name).figure)
        ]
    except UserError as error:
        wrong = [" ".join(str(error).split())]
    for line in wrong:
        sys.stderr.write(f"error: {line}\n")
    return UserError.exit_code if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
