"""The table of the heaviest operators of all profiled cells."""

from __future__ import annotations

from analysis.cells.profiles import counted, slowed, traces
from analysis.schema import Report
from analysis.tables.columns import Entry, TextTable, plain
from analysis.wording import clean, number

_MOST_OPERATORS = 10
_NAMED_TRACES = 2


def profile_table(report: Report) -> TextTable | None:
    """The operators of each cell's rank 0, heaviest first; None where nothing was profiled."""
    if not report.profiles:
        return None
    rows, sections = [], []
    for row in report.profiles:
        shown = row.ranks[0].operators[:_MOST_OPERATORS]
        rows += [
            [
                Entry(clean(row.label)),
                Entry(clean(operator.name)),
                Entry(number(operator.calls_per_step)),
                plain(operator.self_time_s, 1e3),
                Entry(f"{100 * operator.share:.1f}"),
            ]
            for operator in shown
        ]
        files = traces(row)
        more = f" and {len(files) - _NAMED_TRACES} more" if len(files) > _NAMED_TRACES else ""
        named = f"trace: {', '.join(files[:_NAMED_TRACES])}{more}"
        sections.append((f"{clean(row.label)}: {counted(row)}; {slowed(row)}; {named}", len(shown)))
    return TextTable(
        name="profile",
        title="Profile: the heaviest operators of rank 0, in a step",
        header=["cell", "operator", "calls", "self time [ms]", "share [%]"],
        rows=rows,
        sections=sections,
        notes=[
            "Self time: without that of the operators that one calls; of the device where that is a GPU, else of the "
            "main thread. Share: of all operators. The profiler makes steps slower, so no other table has these.",
            "Traces lie below the sweep's folder; https://ui.perfetto.dev opens them.",
        ],
        hidden_in_terminal=frozenset({"cell"}),
    )
