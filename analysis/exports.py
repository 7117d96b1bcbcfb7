"""Measurements in the formats of other tools."""

from __future__ import annotations

import msgspec

from analysis.schema import Report


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
