"""The table of a search: the best trials, and those whose settings are nearest to the best."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.schema import Report
from analysis.study_schema import Search, TrialRow
from analysis.tables.columns import Entry, TextTable
from analysis.wording import clean, clean_long, number


def search_table(report: Report) -> TextTable | None:
    """The best trials and those nearest to the best; None where nothing was searched."""
    search = report.search
    if search is None:
        return None
    rows = {row.number: row for row in search.trials}
    sections = [("the best trials", search.best), ("nearest to the best trial", search.nearest)]
    shown = [rows[each] for _, numbers in sections for each in numbers]
    said = [note for panel in report.study.panels for note in panel.notes] if report.study else []
    return TextTable(
        name="search",
        title="Best trials",
        header=["trial", *map(clean, search.keys), search.metric, search.unit, "distance"],
        rows=[_entries(row, search.keys) for row in shown],
        sections=[(heading, len(numbers)) for heading, numbers in sections],
        notes=[clean_long(note) for note in [*_notes(search, shown), *said]],
    )


def _entries(row: TrialRow, keys: Sequence[str]) -> list[Entry]:
    settings = [Entry(clean(row.settings[key]) if key in row.settings else "-") for key in keys]
    value = Entry("-" if row.value is None else f"{row.value:.4f}")
    away = Entry("-" if row.distance is None else number(row.distance))
    return [Entry(str(row.number)), *settings, value, Entry(str(row.length or "-")), away]


def _notes(search: Search, shown: Sequence[TrialRow]) -> list[str]:
    states = ", ".join(f"{count} {state}" for state, count in search.states.items())
    notes = [f"{len(search.trials)} trials: {states}"]
    if not shown:
        notes.append("no trial has a value at full length yet")
    if search.saved:
        notes.append(search.saved)
    if any(row.length != search.full_length for row in shown):
        notes.append(f"below {search.full_length} {search.unit}: pruned, its {search.metric} is that of a shorter run")
    if search.best:
        notes.append("chosen by the test data, so the best value is optimistic: run it again with other seeds")
    notes.append("distance: of settings, from 0 to 1; where near ones are as good, the best value is no lucky one")
    if search.earlier_studies:
        notes.append(f"{search.earlier_studies} earlier searches of another definition are in this folder, too")
    return notes
