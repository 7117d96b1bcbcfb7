"""The table of what limits each cell, with the evidence in words."""

from __future__ import annotations

from analysis.cells.labels import cell_name
from analysis.schema import Report
from analysis.tables.columns import BOTTLENECK, Entry, TextTable, bottleneck, bottleneck_notes
from analysis.wording import clean_long


def diagnosis_table(report: Report) -> TextTable | None:
    """One row for each cell with a number; None where there is none."""
    points = [point for point in report.cells if point.bottleneck]
    if not points:
        return None
    rows = [
        [Entry(cell_name(point)), bottleneck(point.bottleneck), Entry(clean_long(point.bottleneck.sentence))]
        for point in points
        if point.bottleneck
    ]
    return TextTable(
        name="diagnosis",
        title="What limits each cell, and what removing it would save at most",
        header=["cell", BOTTLENECK, "in words"],
        rows=rows,
        notes=bottleneck_notes(points),
    )
