"""Measurements in the formats of other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from analysis.runs.load import Loaded
from analysis.schema import Report
from benchmarks.core.errors import UserError

Exporter = Callable[[Loaded, Report, Path], Path]
"""Writes a sweep into a folder, and returns what it has made there."""


def extra_p(report: Report) -> bytes:
    """The JSON Lines format of Extra-P, which fits laws of its own (its docs/file-formats.md): one line for each point.

    The parameter is the number of workers, the call path sweep, kind of scaling and series, the value a list with the
    seconds per step of each repeat.
    """
    lines = [
        {
            "params": {"workers": point.workers},
            "callpath": "->".join([report.sweep, series.kind, series.label.replace("->", " ")]),
            "metric": "step_time_s",
            "value": point.repeat_step_times_s,
        }
        for series in [*report.strong, *report.weak]
        for point in series.points
        if point.repeat_step_times_s
    ]
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def exporters(names: Sequence[str]) -> list[Exporter]:
    """Those of `--export`, each once. Raises UserError where a package that one needs cannot be imported."""
    return [_EXPORTERS[name]() for name in dict.fromkeys(names)]


def _tensorboard() -> Exporter:
    try:
        from analysis.exports.event_files import export
    except ImportError as error:
        raise UserError(f"--export tensorboard needs the package tensorboard ({error}): pip install tensorboard") from (
            error
        )
    return export


_EXPORTERS: Mapping[str, Callable[[], Exporter]] = {"tensorboard": _tensorboard}
