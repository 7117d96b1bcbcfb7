"""Numbers that were not made alike are told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.runs.load import load_cells
from analysis.series import build_report
from analysis.tables.columns import summary
from tests import synthetic

IMAGE, OTHER = "a" * 64, "b" * 64


def reported(tmp_path: Path, environments: list[dict[str, Any]], **changes: Any) -> list[str]:
    """Warnings about one cell for each environment, on 1, 2, ... workers."""
    records = [
        synthetic.record(synthetic.config(workers=number, global_batch=64), environment=environment, **changes)
        for number, environment in enumerate(environments, start=1)
    ]
    synthetic.write(tmp_path, records)
    return [line for line in summary(build_report(load_cells(tmp_path))) if line.startswith("Warning")]


def test_numbers_made_alike_need_no_words(tmp_path: Path) -> None:
    assert reported(tmp_path, [{"image_sha256": IMAGE, "commit": "c" * 40, "dirty": False}] * 3) == []


def test_each_fact_that_differs_is_named_with_its_rows(tmp_path: Path) -> None:
    inside = {"image_sha256": IMAGE, "commit": "c" * 40, "dirty": False, "driver": "1"}
    lines = reported(tmp_path, [inside, inside, inside | {"image_sha256": OTHER, "dirty": True}, {"driver": "1"}])
    cells = [synthetic.cell_id(synthetic.config(workers=number, global_batch=64)) for number in (3, 4)]
    assert lines == [
        f"Warning: mixed images: {IMAGE[:12]} in 2 runs; {OTHER[:12]} in 1 run ({cells[0]}); "
        f"none in 1 run ({cells[1]})",
        f"Warning: mixed commits: {'c' * 12} in 2 runs; {'c' * 12} with changes in 1 run ({cells[0]}); "
        f"unknown in 1 run ({cells[1]})",
    ]


def test_failed_runs_give_no_number_and_no_warning(tmp_path: Path) -> None:
    assert reported(tmp_path, [{"commit": "c" * 40}, {"commit": "d" * 40}], status="error") == []
