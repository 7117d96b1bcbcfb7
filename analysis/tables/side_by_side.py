"""The table that holds strategies against each other: what each takes for the same training."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.schema import Point, Report
from analysis.tables.amounts import amount_notes, amounts
from analysis.tables.columns import (
    BOTTLENECK,
    Entry,
    Marks,
    TextTable,
    bottleneck,
    bottleneck_notes,
    estimated,
    interval_notes,
    plain,
    repeats,
    status,
    value_of,
)
from analysis.wording import clean

_AXIS = "strategy"


def strategies_table(report: Report) -> TextTable | None:
    """All cells of a sweep over strategies, those of the same settings together; None where there is one strategy."""
    if _AXIS not in report.setting_keys:
        return None
    other_keys = [key for key in report.setting_keys if key.partition(".")[0] != _AXIS]
    points = sorted(report.cells, key=lambda point: _order(point, other_keys))
    spent = amounts(points, report.currency)
    marks = Marks()
    rows = [
        [
            *(Entry(clean(point.settings[key])) for key in other_keys),
            Entry(_name(point, points)),
            Entry(f"{point.workers}{marks.of(point)}"),
            Entry(str(point.global_batch)),
            Entry(repeats(point)),
            estimated(point.epoch_time_s),
            estimated(point.throughput_samples_per_s),
            plain(point.peak_memory_bytes, 1e-6),
            plain(point.bytes_per_step, 1e-6),
            plain(point.exposed_comm_s, 1e3),
            plain(point.accuracy),
            *(value_of(amount.of(point), amount.factor) for amount in spent),
            bottleneck(point.bottleneck),
            Entry(status(point)),
        ]
        for point in points
    ]
    header = [*map(clean, other_keys), _AXIS, "workers", "global batch", "n", "epoch [s]", "samples/s"]
    header += ["memory [MB]", "sent [MB]", "exposed [ms]", "accuracy"]
    header += [*(amount.header for amount in spent), BOTTLENECK, "status"]
    hidden = {"n", "exposed [ms]", "epoch [s]", *(amount.header for amount in spent[1:])}
    hidden |= {"global batch"} if _same_batch(points) else set()
    return TextTable(
        name="strategies",
        title="Strategies side by side; memory: the peak of the worker that takes most; sent: by a worker in a step",
        header=header,
        rows=rows,
        notes=[
            *marks.lines(),
            "Memory is the device's on GPUs; on CPUs it is the process's, with some hundred MB of program code.",
            *bottleneck_notes(points),
            *amount_notes(points, report.currency),
            *interval_notes(points),
        ],
        hidden_in_terminal=frozenset(hidden),
    )


def _order(point: Point, other_keys: Sequence[str]) -> tuple[object, ...]:
    others = tuple(str(point.settings[key]) for key in other_keys)
    return (others, point.global_batch, str(point.settings[_AXIS]), point.workers, repr(point.settings))


def _name(point: Point, points: Sequence[Point]) -> str:
    """The strategy, with the options in which the sweep has several of it."""
    same = [other for other in points if other.settings[_AXIS] == point.settings[_AXIS]]
    options = [
        f"{key.partition('.')[2]}={clean(value)}"
        for key, value in point.settings.items()
        if key.startswith(f"{_AXIS}.") and value is not None and len({repr(o.settings[key]) for o in same}) > 1
    ]
    return " ".join([clean(point.settings[_AXIS]), *options])


def _same_batch(points: Sequence[Point]) -> bool:
    return len({point.global_batch for point in points}) == 1
