"""What the command lines of this room share: options, errors told in one line, and how results are printed and written.

Imports little: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from benchmarks.core.errors import UserError, told

if TYPE_CHECKING:
    from rich.console import Console

EXPORTS = ("tensorboard",)
"""What `--export` takes; `analysis/exports/other_tools.py` has them."""
_INTERRUPTED = 130
_OBJECTS_BETWEEN_COLLECTIONS = 200_000


def carry_out(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    act: Callable[[argparse.Namespace], int],
) -> int:
    """Parse and act; returns the exit code: that of `act`, 1 where a helper died, 2 for a mistake, 130 for Ctrl-C."""
    options = parser.parse_args(arguments)
    # Thousands of records are millions of objects that stay: to look through them again and again takes a fifth of the
    # time.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    try:
        return act(options)
    except (UserError, OSError) as error:
        line, code = told(error)
        tell_errors([line])
        return code
    except (BrokenExecutor, KeyboardInterrupt) as end:
        from analysis.helpers import end_helpers

        end_helpers()
        if isinstance(end, KeyboardInterrupt):
            return _INTERRUPTED
        tell_errors(["a process that helped was killed, perhaps for want of memory: on one core (taskset) none helps"])
        return 1


def tell_errors(lines: Iterable[str]) -> None:
    """On the error stream, a line each."""
    _tell("error", lines)


def tell_warnings(lines: Iterable[str]) -> None:
    """The same for what does not stop a command."""
    _tell("warning", lines)


def _tell(kind: str, lines: Iterable[str]) -> None:
    sys.stderr.writelines(f"{kind}: {' '.join(line.split())}\n" for line in lines)


def sweep_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The options of a command about one sweep: `python -m analysis.NAME [DIR] [--results FOLDER]`."""
    parser = argparse.ArgumentParser(prog=f"python -m analysis.{name}", description=description)
    parser.add_argument(
        "dir", nargs="?", type=Path, metavar="DIR", help="a sweep's folder; default: the newest of all results"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="FOLDER", help="the folder of all results (results)"
    )
    return parser


def add_file_options(parser: argparse.ArgumentParser) -> None:
    """Where files go and which ones are made."""
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where the files go; default: DIR/analysis")
    parser.add_argument("--no-figures", action="store_true", help="make no PNG and SVG figures (faster)")
    parser.add_argument(
        "--export", action="append", default=[], choices=EXPORTS,
        help="make files for another tool as well: tensorboard writes event files of every run, which "
        "`tensorboard --logdir` shows (needs the package tensorboard)",
    )  # fmt: skip


def chosen_sweep(options: argparse.Namespace) -> Path:
    """The folder that was named, or the newest sweep's. Raises UserError where there is none."""
    from benchmarks.core.folder import newest_sweep

    folder: Path = options.dir or newest_sweep(options.results)
    return folder


def chosen_out(options: argparse.Namespace, folder: Path) -> Path:
    """Where the files of this sweep go."""
    out: Path = options.out or folder / "analysis"
    return out


def console() -> Console:
    """For tables: as wide as the terminal, or as tables are at most."""
    from rich.console import Console

    from analysis.tables.columns import TERMINAL_WIDTH

    return Console(highlight=False, width=None if sys.stdout.isatty() else TERMINAL_WIDTH)


def print_json(value: object) -> None:
    """Any result, indented."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


def print_paths(paths: Iterable[Path], console: Console) -> None:
    """The files that were written, a line each and never broken."""
    console.print()
    for path in paths:
        console.print(str(path), markup=False, soft_wrap=True)


def write_all(out: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write files into a folder, each whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    from benchmarks.core.record import replace

    try:
        out.mkdir(parents=True, exist_ok=True)
        return [replace(out / name, content) for name, content in files.items()]
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); name another folder with --out") from error
