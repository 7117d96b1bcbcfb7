"""The table of what is odd about the numbers, in words."""

from __future__ import annotations

from analysis.cells.labels import cell_name
from analysis.runs.oddities import FALSE_ALARMS, FALSE_ALARMS_OF_CELLS
from analysis.schema import Report
from analysis.tables.columns import Entry, TextTable
from analysis.wording import clean_long


def oddities_table(report: Report) -> TextTable | None:
    """One row for each oddity, those of the whole sweep first; None where nothing is odd."""
    rows = [[Entry("all runs"), Entry(odd.kind), Entry(clean_long(odd.words))] for odd in report.oddities]
    rows += [
        [Entry(cell_name(point)), Entry(odd.kind), Entry(clean_long(odd.words))]
        for point in report.cells
        for odd in point.oddities
    ]
    if not rows:
        return None
    return TextTable(
        name="oddities",
        title="Odd about the numbers: to be looked at before they are believed",
        header=["cell", "what", "in words"],
        rows=rows,
        notes=[
            f"By chance alone, each kind is seen in about {FALSE_ALARMS:.1%} of runs with independent steps, and "
            f"{FALSE_ALARMS_OF_CELLS:.0%} of cells for what is compared over repeats. Differences below 5 % (drift: "
            "2 %) are not shown. A clock's fall is a reading, and no test."
        ],
    )
