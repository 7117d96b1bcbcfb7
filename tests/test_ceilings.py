"""What the device can do at best: measured on request, after the window, and held against the training."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from analysis.runs.load import load_cells
from analysis.series import build_report
from analysis.tables.ceilings import ceilings_table
from analysis.wording import number
from benchmarks.measuring import ceilings
from benchmarks.strategy import Place
from benchmarks.supervision.merge import RankResult, merge_ceilings
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun

PRODUCTS = [f"matmul_{precision}_flops_per_s" for precision in ("fp32", "bf16", "fp16")]


def test_two_workers_measure_theirs(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(workers=2, strategy="ddp", steps=3, evaluate=False, ceilings=True)
    record = supervise(run, tmp_path / run.run_id)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.ceilings is not None
    sizes = [2**16, 2**20, 2**24, 2**26]
    names = [*PRODUCTS, "copy_gb_per_s", *(f"allreduce_{size}_gb_per_s" for size in sizes)]
    assert list(record.ceilings) == names
    rates = {name: rate for name, rate in record.ceilings.items() if rate is not None}
    # No core does less than 0.1 or more than 1,000 GFLOP/s, and no memory moves 1 TB/s for one core.
    assert 1e8 < rates["matmul_fp32_flops_per_s"] < 1e12
    assert 0.1 < rates["copy_gb_per_s"] < 1000
    assert all(0.001 < rates[name] < 100 for name in names[4:])
    phases = list(record.ledger)
    assert phases.index("ceilings") == phases.index("communication") + 1
    report = build_report(load_cells(tmp_path))
    (cell,) = report.cells
    assert cell.mfu is None, "no datasheet"
    assert cell.mfu_of_ceiling
    assert 0 < cell.mfu_of_ceiling.value < 1
    table = ceilings_table(report)
    assert table is not None
    (row,) = table.rows
    shown = dict(zip(table.header, (entry.text for entry in row), strict=True))
    assert shown["workers"] == "2"
    assert shown["fp32 [GFLOP/s]"] == number(rates["matmul_fp32_flops_per_s"] / 1e9)
    assert shown["64 KiB [GB/s]"] == number(rates["allreduce_65536_gb_per_s"])
    assert shown["64 MiB [GB/s]"] == number(rates["allreduce_67108864_gb_per_s"])
    assert record.communication is not None
    assert shown["gradients [GB/s]"] == number(record.communication.allreduce_gb_per_s or 0)


def test_rates_of_rounds_of_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product has 2 n^3 operations; a copy reads and writes; of a vector 3 of 4 parts are sent twice."""
    multiplied: list[torch.dtype] = []

    def fastest_s(_place: Place, operation: Callable[[], torch.Tensor], _in_group: bool) -> float:
        if len(multiplied) < len(PRODUCTS):
            multiplied.append(operation().dtype)
        return 1.0

    monkeypatch.setattr(ceilings, "_fastest_s", fastest_s)
    monkeypatch.setattr(ceilings, "_matrix_size", lambda _device, dtype: 1024 if dtype == torch.float32 else 256)
    place = Place(rank=0, workers=4, nodes=1, device=torch.device("cpu"))
    found = ceilings.measure_ceilings(place, in_group=True)
    assert found == {
        **dict.fromkeys(PRODUCTS, 2 * 256**3),
        "matmul_fp32_flops_per_s": 2 * 1024**3,
        "copy_gb_per_s": 2 * 2**26 / 1e9,
        **{f"allreduce_{size}_gb_per_s": 1.5 * size / 1e9 for size in (2**16, 2**20, 2**24, 2**26)},
    }
    assert multiplied == [torch.float32, torch.bfloat16, torch.float16]


def test_a_format_that_the_hardware_imitates_is_measured_in_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that takes a millisecond at 64 would take half a second at 512: 256 is the last below a quarter."""
    now = 0.0

    def product(_device: torch.device, _dtype: torch.dtype, size: int) -> Callable[[], None]:
        def multiply() -> None:
            nonlocal now
            now += 1e-3 * (size / 64) ** 3

        return multiply

    monkeypatch.setattr(ceilings, "_product", product)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert ceilings._matrix_size(torch.device("cpu"), torch.bfloat16) == 256
    monkeypatch.setattr(ceilings, "_PRODUCT_S", 1e9)
    assert ceilings._matrix_size(torch.device("cpu"), torch.bfloat16) == 1024


def test_whether_products_are_tf32_is_as_before_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fp32 ceiling must not be TF32's, and a run that trains in TF32 goes on in it."""
    seen: list[bool] = []

    def fastest_s(*_: object) -> float:
        seen.append(tf32_allowed())
        return 1.0

    monkeypatch.setattr(ceilings, "_fastest_s", fastest_s)
    monkeypatch.setitem(ceilings.PRODUCTS, "cpu", ceilings.PRODUCTS["cuda"])
    monkeypatch.setattr(ceilings, "_matrix_size", lambda _device, _dtype: 2)
    before = tf32_allowed()
    torch.backends.cuda.matmul.allow_tf32 = True  # no attribute that monkeypatch could put back
    try:
        ceilings.measure_ceilings(Place(rank=0, workers=1, nodes=1, device=torch.device("cpu")), in_group=False)
        assert tf32_allowed()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert dict(zip(ceilings.PRODUCTS["cuda"], seen, strict=False)) == {
        "fp32": False,
        "bf16": False,
        "fp16": False,
        "tf32": True,
    }


def tf32_allowed() -> bool:
    return bool(torch.backends.cuda.matmul.allow_tf32)


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
    assert list(record.ceilings) == [*PRODUCTS, "copy_gb_per_s"]


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
