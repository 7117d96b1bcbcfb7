"""What a machine offers, read from what the kernel says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.supervision.hardware import counted_here, has_bf16

ZEN3 = "processor\t: 0\nflags\t\t: fpu sse2 avx avx2 fma f16c vaes\n\nprocessor\t: 1\nflags\t\t: avx512_bf16\n"
SKYLAKE = "flags\t\t: avx2 avx512f avx512dq avx512bw avx512vl\n"
KNIGHTS_LANDING = "flags\t\t: avx2 avx512f avx512er avx512pf avx512cd\n"
GRACE = "Features\t: fp asimd sve bf16 i8mm\n"
ALTRA = "Features\t: fp asimd fphp asimdhp\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [(ZEN3, False), (SKYLAKE, True), (KNIGHTS_LANDING, False), (GRACE, True), (ALTRA, False), ("processor: 0\n", None)],
)
def test_bfloat16_by_the_flags_of_the_first_core(cpuinfo: str, expected: bool | None, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert has_bf16(tmp_path / "cpuinfo") is expected


def test_where_nobody_says_it_is_unknown(tmp_path: Path) -> None:
    assert has_bf16(tmp_path / "none") is None


def test_a_clusters_file_may_say_it_and_else_it_is_looked_up() -> None:
    here = {"name": "local", "cores_per_node": 2, "gpus_per_node": 0}
    assert counted_here({**here, "cpu_bf16": True})["cpu_bf16"] is True
    assert counted_here({**here, "cpu_bf16": None})["cpu_bf16"] is has_bf16()
    # The file of a cluster with Slurm says it of its nodes, and not of this machine.
    of_nodes = {**here, "device": "cpu", "cpu_bf16": not has_bf16(), "slurm": {"partition": "cpu"}}
    assert counted_here(of_nodes)["cpu_bf16"] is has_bf16()
