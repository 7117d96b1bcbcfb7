"""The table of what the hardware did at best in the same jobs, beside what training got of its links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from analysis.schema import Point, Report
from analysis.tables.columns import Entry, TextTable, plain
from analysis.wording import clean

_TELLING = ("node_type", "device", "nodes", "threads_per_worker", "pin_cores")
"""Settings that choose the hardware, besides the number of workers."""
_MATMUL = ("matmul_", "_flops_per_s")
_ALLREDUCE = ("allreduce_", "_gb_per_s")


def ceilings_table(report: Report) -> TextTable | None:
    """One row for each number of workers and kind of hardware, medians over its cells; None where nobody measured."""
    groups: dict[tuple[object, ...], list[Point]] = {}
    keys = [key for key in _TELLING if key in report.setting_keys]
    for point in report.cells:
        if point.ceilings:
            groups.setdefault((point.workers, *(point.settings[key] for key in keys)), []).append(point)
    if not groups:
        return None
    names = list(dict.fromkeys(name for group in groups.values() for point in group for name in point.ceilings))
    products = [rate for group in groups.values() for point in group for rate in _products(point)]
    flops = _Flops(unit="TFLOP/s", factor=1e-12) if max(products, default=0.0) >= 1e12 else _Flops()
    rows = [
        [
            *(Entry("-" if value is None else clean(value)) for value in place),
            *(plain(_median([point.ceilings.get(name) for point in group]), flops.of(name)) for name in names),
            plain(_median([point.allreduce_gb_per_s for point in group])),
        ]
        for place, group in sorted(groups.items(), key=lambda item: (item[0][0], repr(item[0])))
    ]
    return TextTable(
        name="ceilings",
        title="Upper bounds: what the hardware did at best in the same jobs, each worker beside all others",
        header=["workers", *map(clean, keys), *(_header(name, flops.unit) for name in names), "gradients [GB/s]"],
        rows=rows,
        notes=[
            f"{flops.unit}: a large matrix product on one worker; copy: read and written within a worker's memory; "
            "KiB, MiB: bus bandwidth of an all-reduce of a vector of this size. Each is the fastest of ten rounds. "
            "Gradients: the all-reduce of a vector of their size, but the median. MFU of ceiling: training's share of "
            "the product's rate."
        ],
    )


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


@dataclass(frozen=True, kw_only=True)
class _Flops:
    """In which unit products are shown: that of GPUs would show a CPU's as thousandths."""

    unit: str = "GFLOP/s"
    factor: float = 1e-9

    def of(self, name: str) -> float:
        return self.factor if name.startswith(_MATMUL[0]) else 1.0


def _products(point: Point) -> list[float]:
    return [rate for name, rate in point.ceilings.items() if name.startswith(_MATMUL[0])]


def _header(name: str, flops_unit: str) -> str:
    """`matmul_bf16_flops_per_s` -> `bf16 [TFLOP/s]`, `allreduce_1048576_gb_per_s` -> `1 MiB [GB/s]`."""
    if name.startswith(_MATMUL[0]):
        return f"{name.removeprefix(_MATMUL[0]).removesuffix(_MATMUL[1])} [{flops_unit}]"
    size = name.removeprefix(_ALLREDUCE[0]).removesuffix(_ALLREDUCE[1])
    if name.startswith(_ALLREDUCE[0]) and size.isdigit():
        number, unit = (int(size) >> 20, "MiB") if int(size) >= 2**20 else (int(size) >> 10, "KiB")
        return f"{number} {unit} [GB/s]"
    return f"{name.removesuffix('_gb_per_s')} [GB/s]"
