"""The table of a study: all cells with the measures that its figure shows."""

from __future__ import annotations

from analysis.columns import Entry, TextTable, clean, clean_long, estimated
from analysis.schema import Report


def study_table(report: Report) -> TextTable | None:
    """One row for each cell; None where the sweep's file describes no figure."""
    study = report.study
    if study is None:
        return None
    rows = [
        [
            *map(Entry, row.label),
            Entry(str(row.n)),
            *(estimated(row.values[name]) for name in study.measures),
            Entry(clean(f"{row.status}: {row.reason}" if row.reason else row.status)),
        ]
        for row in study.rows
    ]
    notes = [f"{panel.title}: {note}" if panel.title else note for panel in study.panels for note in panel.notes]
    return TextTable(
        name="study",
        title=clean_long(report.question) or "The study",
        header=[*map(clean, study.label_keys), "n", *study.measures.values(), "status"],
        rows=rows,
        failures=[f"{clean(', '.join(row.label))}: {clean(row.reason)}" if row.reason else "" for row in study.rows],
        notes=[
            *map(clean_long, notes),
            *(
                ["Memory is the device's on GPUs; on CPUs it is the process's, with some hundred MB of program code."]
                if "peak_memory_mb" in study.measures
                else []
            ),
            "n: repeats. Medians over repeats; [ ]: 95 % interval by bootstrap over repeats, and over steps for times.",
        ],
    )
