"""The table of a study: all cells with the measures that its figure shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from analysis.schema import Report
from analysis.study_schema import Study
from analysis.tables.columns import TERMINAL_WIDTH, Entry, TextTable, estimated
from analysis.wording import clean, clean_long

_MEASURE_WIDTH = 16
"""Of a column in a terminal: a number with its interval."""


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
    hidden = _no_room_for(study)
    return TextTable(
        name="study",
        title=clean_long(report.question) or "The study",
        header=[*map(clean, study.label_keys), "n", *study.measures.values(), "status"],
        rows=rows,
        failures=[f"{clean(', '.join(row.label))}: {clean(row.reason)}" if row.reason else "" for row in study.rows],
        notes=[*map(clean_long, dict.fromkeys(notes)), *_explained(study, hidden)],
        hidden_in_terminal=frozenset(hidden),
    )


def _no_room_for(study: Study) -> list[str]:
    """The last measures, where all of them would be too wide for a terminal."""
    room = (
        TERMINAL_WIDTH
        - len("n  status  ")
        - sum(
            2 + max([len(key), *(len(row.label[at]) for row in study.rows)]) for at, key in enumerate(study.label_keys)
        )
    )
    return list(study.measures.values())[max(1, room // _MEASURE_WIDTH) :]


def _explained(study: Study, hidden: Sequence[str]) -> Iterator[str]:
    if "peak_memory_mb" in study.measures:
        yield "Memory is the device's on GPUs; on CPUs it is the process's, with some hundred MB of program code."
    if hidden:
        yield f"Too wide for a terminal, and in the files: {', '.join(hidden)}."
    yield "n: repeats. Medians over repeats; [ ]: 95 % interval by bootstrap over repeats, and over steps for times."
