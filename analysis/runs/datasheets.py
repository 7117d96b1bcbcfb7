"""What makers state of their devices: the most operations per second, and the most that leaves a GPU over NVLink.

Peaks are dense: without the factor of two that datasheets give for matrices with zeros in known places.

Sources, all NVIDIA's: "V100 Tensor Core GPU" (January 2020), "A100 Tensor Core GPU" (2022), "H100 Tensor Core GPU"
(2024), "H200 Tensor Core GPU" (2024), "Quadro RTX 8000" (2019). Hopper's state peaks
with sparsity (NVL: 835 for TF32, 1671 for fp16; PCIe: 756 and 1513), which are halved here; those of its SXM boards are
the unrounded ones of "NVIDIA H100 Tensor Core GPU Architecture" (2022), table 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Datasheet:
    """One device."""

    tflops: Mapping[str, float]
    """1e12 operations per second by precision, as `conf/precision` names them; only what its hardware has."""
    allreduce_gb_per_s: float | None
    """The most that an all-reduce's bus bandwidth can be, in 1e9 bytes per second; None where it has no NVLink."""


def _of(fp32: float, fp16: float, tf32: float | None, sent_gb_per_s: float | None) -> Datasheet:
    """TF32 and bfloat16 came together; bfloat16 is as fast as fp16."""
    newer = {"tf32": tf32, "bf16": fp16} if tf32 is not None else {}
    return Datasheet(tflops={"fp32": fp32, "fp16": fp16, **newer}, allreduce_gb_per_s=sent_gb_per_s)


# Each GPU sends half of NVLink's stated total. From Hopper on, an NVSwitch can add up what passes through it, so that a
# GPU sends its vector once and not up to twice: the bus bandwidth, which counts 2 (N-1)/N of it, can be twice as high.
_SHEETS: tuple[tuple[frozenset[str], Datasheet], ...] = (
    (frozenset({"h200", "nvl"}), _of(60.0, 835.5, 417.5, 450.0)),
    (frozenset({"h200"}), _of(66.9, 989.4, 494.7, 900.0)),
    (frozenset({"h100", "nvl"}), _of(60.0, 835.5, 417.5, 300.0)),
    (frozenset({"h100", "pcie"}), _of(51.0, 756.0, 378.0, 300.0)),
    (frozenset({"h100"}), _of(66.9, 989.4, 494.7, 900.0)),
    (frozenset({"a100"}), _of(19.5, 312.0, 156.0, 300.0)),
    (frozenset({"v100s"}), _of(16.4, 130.0, None, None)),
    (frozenset({"v100", "pcie"}), _of(14.0, 112.0, None, None)),
    (frozenset({"v100"}), _of(15.7, 125.0, None, 150.0)),
    (frozenset({"rtx", "8000"}), _of(16.3, 130.5, None, 50.0)),
)
"""By words of a device's name; the first entry whose words are all in it counts."""
_SHARED = frozenset({"mig", "grid"})
"""Words of a part of a GPU, of which the datasheet says nothing."""


def datasheet(device: str) -> Datasheet | None:
    """What is stated of a device by its name, as CUDA tells it: `NVIDIA A100-SXM4-80GB`; None where it is not known."""
    words = set(re.findall(r"[a-z0-9]+", device.lower()))
    if words & _SHARED:
        return None
    return next((sheet for needed, sheet in _SHEETS if needed <= words), None)
