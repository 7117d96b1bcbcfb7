"""What the device can do at best: measured on request, after the window, and held against the training."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from analysis.load import load_cells
from analysis.series import build_report
from benchmarks import ceilings
from benchmarks.merge import RankResult, merge_ceilings
from benchmarks.strategy import Place
from benchmarks.supervisor import supervise
from tests.conftest import MakeRun


def test_two_workers_measure_theirs(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(workers=2, strategy="ddp", steps=3, evaluate=False, ceilings=True)
    record = supervise(run, tmp_path / run.run_id)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.ceilings is not None
    sizes = [2**16, 2**20, 2**24, 2**26]
    names = ["matmul_fp32_flops_per_s", "copy_gb_per_s", *(f"allreduce_{size}_gb_per_s" for size in sizes)]
    assert list(record.ceilings) == names
    rates = {name: rate for name, rate in record.ceilings.items() if rate is not None}
    # No core does less than 0.1 or more than 1,000 GFLOP/s, and no memory moves 1 TB/s for one core.
    assert 1e8 < rates["matmul_fp32_flops_per_s"] < 1e12
    assert 0.1 < rates["copy_gb_per_s"] < 1000
    assert all(0.001 < rates[name] < 100 for name in names[2:])
    phases = list(record.ledger)
    assert phases.index("ceilings") == phases.index("communication") + 1
    (cell,) = build_report(load_cells(tmp_path)).cells
    assert cell.mfu is None, "no datasheet"
    assert cell.mfu_of_ceiling
    assert 0 < cell.mfu_of_ceiling.value < 1


def test_rates_of_rounds_of_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product has 2 n^3 operations; a copy reads and writes; of a vector 3 of 4 parts are sent twice."""
    multiplied: list[torch.dtype] = []

    def fastest_s(_place: Place, operation: Callable[[], torch.Tensor], _in_group: bool) -> float:
        if not multiplied:
            multiplied.append(operation().dtype)
        return 1.0

    monkeypatch.setattr(ceilings, "_fastest_s", fastest_s)
    place = Place(rank=0, workers=4, nodes=1, device=torch.device("cpu"))
    found = ceilings.measure_ceilings(place, "bf16", torch.bfloat16, in_group=True)
    assert found == {
        "matmul_bf16_flops_per_s": 2 * 1024**3,
        "copy_gb_per_s": 2 * 2**26 / 1e9,
        **{f"allreduce_{size}_gb_per_s": 1.5 * size / 1e9 for size in (2**16, 2**20, 2**24, 2**26)},
    }
    assert multiplied == [torch.bfloat16]


def test_the_fastest_of_settled_rounds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round does not, however fast; each round's time is the operation's alone."""
    now, costs = 0.0, [0.1, *(float(cost) for cost in (3, 8, 7, 9, 9, 9, 9, 9, 9, 9))]
    done: list[float] = []

    def operation() -> None:
        nonlocal now
        done.append(costs[len(done)])
        now += done[-1]

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    place = Place(rank=0, workers=1, nodes=1, device=torch.device("cpu"))
    assert ceilings._fastest_s(place, operation, in_group=False) == 3.0
    assert len(done) == 11


def test_one_worker_without_a_group(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(make_run(strategy="single", precision="bf16", steps=2, evaluate=False, ceilings=True), tmp_path)
    assert record is not None
    assert record.ceilings is not None
    assert list(record.ceilings) == ["matmul_bf16_flops_per_s", "copy_gb_per_s"]


def test_off_they_are_null_and_never_part_of_a_runs_identity(make_run: MakeRun, tmp_path: Path) -> None:
    plain, asked = (
        make_run(strategy="single", steps=2, evaluate=False, ceilings=ceilings) for ceilings in (False, True)
    )
    assert plain.run_id == asked.run_id
    record = supervise(plain, tmp_path)
    assert record is not None
    assert record.ceilings is None
    assert "ceilings" not in record.ledger


def test_means_over_ranks() -> None:
    ranks = [
        RankResult(rank=rank, host="a", device="cpu", threads=1, phases=[], ceilings={"copy_gb_per_s": rate})
        for rank, rate in enumerate((1.0, 3.0))
    ]
    assert merge_ceilings(ranks) == {"copy_gb_per_s": 2.0}
    assert merge_ceilings([RankResult(rank=0, host="a", device="cpu", threads=1, phases=[])]) is None
