"""Comparing campaigns: no false alarms, real slow-downs found, and what differs besides the times is said first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from analysis.cells.campaign import Campaign, CampaignCell, read_campaign
from analysis.compare import compare, main
from analysis.statistics.permutation import enough, holm, shift
from tests import synthetic

Times = Callable[[int], Sequence[float]]


def campaign(rng: np.random.Generator, *, cells: int, repeats: int = 5, factor: float = 1.0) -> Campaign:
    """Cells of 0.1 s with 2 % noise, times a factor."""
    return Campaign(
        name="campaign",
        cells=[
            CampaignCell(
                cell_id=str(number),
                label=f"cell {number}",
                config={},
                step_times_s=list(0.1 * factor * np.exp(rng.normal(0, 0.02, repeats))),
            )
            for number in range(cells)
        ],
        origins={},
    )


@pytest.mark.parametrize("cells", [1, 6])
def test_identical_campaigns_hardly_ever_differ_and_slow_downs_are_found(cells: int) -> None:
    rng = np.random.default_rng(11)
    trials = 300 if cells == 1 else 60
    alike = found = regressions = 0
    for _ in range(trials):
        first = campaign(rng, cells=cells)
        same = compare(first, campaign(rng, cells=cells), tolerated=0.05)
        alike += same.verdict.startswith("no difference found")
        regressions += same.regression
        slower = compare(first, campaign(rng, cells=cells, factor=1.05))
        found += slower.verdict.startswith("B is slower")
    assert alike / trials >= 0.95 - 0.02  # the promise, less what chance may take of so many trials
    assert regressions == 0
    assert found / trials >= 0.9


def test_one_slow_cell_among_many_is_named() -> None:
    rng = np.random.default_rng(3)
    first, second = campaign(rng, cells=8, repeats=8), campaign(rng, cells=8, repeats=8)
    second.cells[5].step_times_s = [1.3 * time for time in second.cells[5].step_times_s]
    result = compare(first, second, tolerated=0.1)
    assert [cell.verdict for cell in result.cells].index("slower") == 5
    assert sum(cell.verdict == "slower" for cell in result.cells) == 1
    assert result.regression
    assert not compare(first, second, tolerated=0.4).regression


def test_the_permutation_test_by_hand() -> None:
    """Two against two: six share-outs; what was seen is the most extreme one, so p is 2 x 1/6, and no 95 % interval."""
    assert shift([([1.0, 2.0], [5.0, 7.0])], 0.95) is None
    found = shift([([1.0, 2.0], [5.0, 7.0])], 0.6)
    assert found
    assert found.value == 4.5
    assert found.p == pytest.approx(2 / 6)


def test_the_interval_holds_the_shifts_that_the_test_does_not_reject() -> None:
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=4), rng.normal(size=5) + 1
    found = shift([(first, second)], 0.9)
    assert found
    inside, outside = 1e-6, -1e-6
    for end, sign in ((found.low, 1), (found.high, -1)):
        assert brute_force_p(first, second - (end + sign * inside)) > 0.1
        assert brute_force_p(first, second - (end + sign * outside)) <= 0.1 + 1e-9


def brute_force_p(first: Any, second: Any) -> float:
    """All orders of all values, no combinatorics."""
    values = np.concatenate([first, second])
    seen = second.mean() - first.mean()
    orders = np.array(list(permutations(range(len(values)))))
    drawn = values[orders]
    differences = drawn[:, len(first) :].mean(axis=1) - drawn[:, : len(first)].mean(axis=1)
    return float(2 * min((differences >= seen - 1e-12).mean(), (differences <= seen + 1e-12).mean()))


def test_pooling_few_values_does_not_make_them_certain() -> None:
    """Two cells of one repeat have four share-outs, however many are drawn."""
    assert shift([([1.0], [1.0]), ([1.0], [1.0])], 0.95) is None
    assert shift([([1.0], [1.1])] * 8, 0.95) is not None  # 256 of them


def test_so_many_repeats_are_enough() -> None:
    assert enough(0.95) == 4


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def folder(path: Path, factor: float = 1.0, repeats: int = 6, **changes: Any) -> Path:
    rng = np.random.default_rng(int(1000 * factor) + repeats)
    records = []
    for workers in (1, 2):
        for repeat in range(repeats):
            of = synthetic.config(workers, repeat=repeat, **changes)
            records.append(synthetic.record(of, list(0.1 * factor * np.exp(rng.normal(0, 0.02, 4)))))
    synthetic.write(path, records)
    return path


def test_as_a_gate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder(tmp_path / "before")
    assert main([str(before), str(folder(tmp_path / "same", 1.001)), "--fail-above", "5%"]) == 0
    slower = folder(tmp_path / "slower", 1.2)
    assert main([str(before), str(slower), "--fail-above", "5%"]) == 1
    assert "B is slower: 1." in capsys.readouterr().out
    assert main([str(before), str(slower), "--fail-above", "0.5"]) == 0
    assert main([str(before), str(slower)]) == 0
    assert main([str(slower), str(before), "--fail-above", "5%"]) == 0


def test_a_pinned_file_is_as_good_as_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = folder(tmp_path / "before")
    assert main([str(before), "--pin", str(tmp_path / "reference.json")]) == 0
    pinned = read_campaign(tmp_path / "reference.json")
    assert replace(pinned, name="") == replace(read_campaign(before), name="")
    slower = folder(tmp_path / "slower", 1.2)
    assert main([str(tmp_path / "reference.json"), str(slower), "--fail-above", "5%"]) == 1


def test_what_else_differs_comes_first(tmp_path: Path) -> None:
    before = read_campaign(folder(tmp_path / "before"))
    after = read_campaign(folder(tmp_path / "after"))
    after.origins["torch versions"] = ["9.9"]
    after.cells[1].cell_id = "another"
    differences = compare(before, after).differences
    assert differences[0].startswith("torch versions:")
    assert differences[0].endswith("9.9 in B")
    assert [line.partition(":")[0] for line in differences[1:]] == ["only in A", "only in B"]


def test_campaigns_of_two_versions_are_matched_by_the_settings_that_both_know(tmp_path: Path) -> None:
    before = read_campaign(folder(tmp_path / "before"))
    after = read_campaign(folder(tmp_path / "after"))
    for cell in after.cells:
        cell.cell_id += "-new"
        cell.config["loader"] = "host"
    result = compare(before, after)
    assert [cell.label for cell in result.cells] == ["1 worker", "2 workers"]
    assert result.differences == ["loader: None in A, host in B"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "neither a sweep's folder nor a pinned file"),
        (["before"], "compare needs two campaigns"),
        (["before", "before", "--fail-above", "lots"], "--fail-above=lots: must be a share"),
        (["before", "other"], "no cell in common"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(Path("before"), repeats=1)
    folder(Path("other"), repeats=1, global_batch=128)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
