"""What cannot be true is marked, and only that; the number stays."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from analysis.runs import plausible
from analysis.runs.datasheets import datasheet
from analysis.runs.load import load_cells
from analysis.runs.plausible import ABOVE_CEILING, ABOVE_IDEAL, ABOVE_LINK, ABOVE_PEAK, NEGATIVE
from analysis.schema import Point, Report
from analysis.series import build_report
from analysis.tables.formats import cells_csv, markdown
from benchmarks.core.record import Communication, ModelSize, Record
from tests import synthetic

A100 = "NVIDIA A100-SXM4-80GB"


def on(device: str, workers: int = 4, repeat: int = 0, **changes: Any) -> Record:
    """Steps of 64 samples in 0.1 s."""
    of = synthetic.config(workers, repeat=repeat, precision={"name": changes.pop("precision", "bf16")})
    ranks = [msgspec.structs.replace(synthetic.rank_summary(rank, 0.08), device=device) for rank in range(workers)]
    return synthetic.record(of, ranks=ranks, **changes)


def counted(flops: float) -> ModelSize:
    return ModelSize(parameters=1, forward_flops_per_sample=1, step_flops_per_sample=int(flops))


def reduced(gb_per_s: float) -> Communication:
    return Communication(
        bytes_per_step=1, unsynchronised_step_s=None, allreduce_bytes=1, allreduce_s=1.0, allreduce_gb_per_s=gb_per_s
    )


def report_of(folder: Path, *records: Record) -> Report:
    synthetic.write(folder, records)
    return build_report(load_cells(folder))


def point_of(folder: Path, *records: Record) -> Point:
    (point,) = report_of(folder, *records).cells
    return point


@pytest.mark.parametrize(
    ("device", "precision", "tflops"),
    [
        (A100, "bf16", 312),
        (A100, "fp32", 19.5),
        ("NVIDIA A100-PCIE-40GB", "tf32", 156),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla V100S-PCIE-32GB", "fp32", 16.4),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA H200", "fp32", 66.9),
        ("Quadro RTX 8000", "fp16", 130.5),
    ],
)
def test_peaks_by_the_device_s_name(device: str, precision: str, tflops: float) -> None:
    sheet = datasheet(device)
    assert sheet
    assert sheet.tflops[precision] == tflops


@pytest.mark.parametrize(
    "device", ["cpu", "NVIDIA RTX A1000", "NVIDIA GH200 480GB", "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "GRID A100-10C", ""]
)
def test_what_is_not_known_has_no_peak(device: str) -> None:
    assert datasheet(device) is None


def test_a_dense_peak_is_no_sparse_one_and_a_volta_has_no_bfloat16() -> None:
    volta = datasheet("Tesla V100-SXM2-32GB")
    assert volta
    assert set(volta.tflops) == {"fp32", "fp16"}


def test_mfu_to_the_third_digit(tmp_path: Path) -> None:
    """640 samples/s of 0.78e12 operations on four A100: 499.2e12 per second of 4 x 312e12."""
    point = point_of(tmp_path, on(A100, model=counted(0.78e12)))
    assert point.mfu
    assert point.mfu.value == pytest.approx(0.400)
    assert point.doubts == []


def test_mfu_takes_the_window_s_wall_time_and_the_interval_of_the_throughput(tmp_path: Path) -> None:
    records = []
    for repeat, time in enumerate((0.1, 0.2, 0.4)):
        of = synthetic.config(4, repeat=repeat, precision={"name": "bf16"})
        ranks = [msgspec.structs.replace(synthetic.rank_summary(rank, 0.08), device=A100) for rank in range(4)]
        records.append(synthetic.record(of, [time] * 4, ranks=ranks, model=counted(0.78e12)))
    point = point_of(tmp_path, *records)
    assert point.mfu
    assert [point.mfu.low, point.mfu.value, point.mfu.high] == pytest.approx([0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    "record",
    [
        on(A100),
        on("cpu", model=counted(1e12)),
        on("Tesla V100-SXM2-32GB", model=counted(1e12)),
        on(A100, model=ModelSize(parameters=1, flops_unknown_because="no")),
    ],
    ids=["not counted", "cpu", "no such precision", "not countable"],
)
def test_mfu_is_null_where_a_part_is_unknown(tmp_path: Path, record: Record) -> None:
    assert point_of(tmp_path, record).mfu is None


def test_different_devices_have_no_common_peak(tmp_path: Path) -> None:
    record = on(A100, model=counted(1e12))
    record.ranks[1] = msgspec.structs.replace(record.ranks[1], device="NVIDIA H200")
    assert point_of(tmp_path, record).mfu is None


@pytest.mark.parametrize(("flops", "doubts"), [(1.94e12, []), (1.96e12, [ABOVE_PEAK])])
def test_more_operations_than_the_peak(tmp_path: Path, flops: float, doubts: list[str]) -> None:
    """1.95e12 operations for each of 640 samples/s are all that four A100 can do."""
    assert point_of(tmp_path, on(A100, model=counted(flops))).doubts == doubts


@pytest.mark.parametrize(("rate", "doubts"), [(1e12, []), (0.99e12, [ABOVE_CEILING])])
def test_more_operations_than_the_measured_ceiling(tmp_path: Path, rate: float, doubts: list[str]) -> None:
    """Four workers need 0.998e12 each; the ceiling of another precision says nothing."""
    ceilings: dict[str, float | None] = {"matmul_bf16_flops_per_s": rate, "matmul_fp32_flops_per_s": 1.0}
    point = point_of(tmp_path, on("cpu", model=counted(0.998e12 * 4 / 640), ceilings=ceilings))
    assert point.mfu_of_ceiling
    assert point.mfu_of_ceiling.value == pytest.approx(0.998e12 / rate)
    assert point.doubts == doubts


@pytest.mark.parametrize(
    ("device", "gb_per_s", "doubts"),
    [
        (A100, 299, []),
        (A100, 301, [ABOVE_LINK]),
        ("NVIDIA H100 80GB HBM3", 480, []),
        ("NVIDIA H100 80GB HBM3", 901, [ABOVE_LINK]),
        ("cpu", 1e6, []),
        ("Tesla V100-PCIE-16GB", 1e6, []),
    ],
)
def test_more_bandwidth_than_the_links(tmp_path: Path, device: str, gb_per_s: float, doubts: list[str]) -> None:
    """In-switch sums of Hopper's make 480 GB/s of 450 true; without NVLink no peak is known."""
    assert point_of(tmp_path, on(device, communication=reduced(gb_per_s))).doubts == doubts


def with_exposed(share: float, spread: float, repeat: int, warmup_steps: int = 20) -> Record:
    """80 steps that take this share more time than without communication, in truth; with noise on both sides."""
    rng = np.random.default_rng(repeat)
    steps = 0.1 * rng.lognormal(0, spread, 80)
    alone = float(np.median(0.1 * (1 - share) * rng.lognormal(0, spread, warmup_steps)))
    of = synthetic.config(2, repeat=repeat, warmup_steps=warmup_steps)
    record = synthetic.record(of, list(steps))
    assert record.window is not None
    record.window.exposed_comm_s = [float(step) - alone for step in steps]
    return record


def test_negative_communication_beyond_noise(tmp_path: Path) -> None:
    assert point_of(tmp_path / "a", *(with_exposed(-0.1, 0.05, repeat) for repeat in range(3))).doubts == [NEGATIVE]
    assert point_of(tmp_path / "b", *(with_exposed(0.1, 0.05, repeat) for repeat in range(3))).doubts == []
    assert point_of(tmp_path / "c", *(with_exposed(-0.1, 0.3, repeat) for repeat in range(3))).doubts == []
    assert point_of(tmp_path / "d", *(with_exposed(-0.01, 0.001, repeat) for repeat in range(3))).doubts == []


@pytest.mark.parametrize("warmup_steps", [1, 5, 20, 1000])
def test_noise_alone_is_hardly_ever_called_negative(warmup_steps: int) -> None:
    """One repeat of 500 cells without any communication: three standard errors below are rare."""
    from analysis.statistics.bootstrap import step_factors

    seen = 0
    for number in range(500):
        record = with_exposed(0.0, 0.1, number, warmup_steps)
        assert record.window is not None
        physics = plausible.physics_of(record, step_factors(record.window.step_time_s))
        seen += plausible.doubts([physics]) == [NEGATIVE]
    assert seen <= 5


def test_one_repeat_of_three_is_no_doubt_about_the_cell(tmp_path: Path) -> None:
    records = [on(A100, repeat=repeat, model=counted(flops)) for repeat, flops in enumerate((1e12, 1e12, 9e12))]
    assert point_of(tmp_path, *records).doubts == []


def test_doubts_are_footnotes_and_the_numbers_stay(tmp_path: Path) -> None:
    """The super-linear speed-up among them."""
    of = synthetic.config(1, precision={"name": "bf16"})
    base = synthetic.record(of, [0.5] * 4)
    report = report_of(tmp_path, base, on(A100, model=counted(9e12), notes=["oversubscribed"]))
    text = markdown(report, [])
    assert "4 †‡§" in text
    for mark, words in (("†", "oversubscribed"), ("‡", ABOVE_PEAK), ("§", ABOVE_IDEAL)):
        assert f"- {mark} {words.replace('`', '')}" in text.replace("\\`", "")
    row = next(row for row in csv.DictReader(io.StringIO(cells_csv(report))) if row["workers"] == "4")
    assert float(row["mfu"]) == pytest.approx(9 / 1.95)
    assert row["doubts"] == ABOVE_PEAK
    assert float(row["step_time_s"]) == pytest.approx(0.1)
