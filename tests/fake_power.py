"""Energy counters without hardware: stand-ins for NVML's Python module and for the kernel's folder of RAPL counters."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ADDRESS = "0000:17:00.0"


class NVMLError(Exception):
    """As NVML's."""


class FakeNvml(ModuleType):
    """One GPU. `refused` names functions that raise; each reading of the energy takes the next of `energies_mj`."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_TEMPERATURE_GPU, NVML_DEVICE_MIG_ENABLE = 1, 0, 1

    def __init__(self, energies_mj: list[int], refused: dict[str, str] | None = None, mig: int = 0) -> None:
        super().__init__("pynvml")
        self._energies_mj, self._refused, self._mig = iter(energies_mj), refused or {}, mig
        self.powers_mw = [300_000]

    def _refuse(self, name: str) -> None:
        if name in self._refused:
            raise NVMLError(self._refused[name])

    def nvmlInit(self) -> None:  # noqa: N802
        self._refuse("nvmlInit")

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> str:  # noqa: N802
        self._refuse("nvmlDeviceGetHandleByPciBusId")
        assert address == ADDRESS.encode(), "a GPU is found by its address, never by its number"
        return "handle"

    def nvmlDeviceGetMigMode(self, _device: str) -> list[int]:  # noqa: N802
        self._refuse("nvmlDeviceGetMigMode")
        return [self._mig, 0]

    def nvmlDeviceGetTotalEnergyConsumption(self, _device: str) -> int:  # noqa: N802
        self._refuse("nvmlDeviceGetTotalEnergyConsumption")
        return next(self._energies_mj)

    def nvmlDeviceGetPowerUsage(self, _device: str) -> int:  # noqa: N802
        self._refuse("nvmlDeviceGetPowerUsage")
        return self.powers_mw.pop(0) if len(self.powers_mw) > 1 else self.powers_mw[0]

    def nvmlDeviceGetClockInfo(self, _device: str, kind: int) -> int:  # noqa: N802
        self._refuse("nvmlDeviceGetClockInfo")
        assert kind == self.NVML_CLOCK_SM
        return 1410

    def nvmlDeviceGetTemperature(self, _device: str, sensor: int) -> int:  # noqa: N802
        self._refuse("nvmlDeviceGetTemperature")
        assert sensor == self.NVML_TEMPERATURE_GPU
        return 61


def install(monkeypatch: pytest.MonkeyPatch, nvml: FakeNvml) -> FakeNvml:
    """In place of the true module; and nobody waits for an idle GPU."""
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("benchmarks.meters.nvml.GpuCounter.period_s", 0.001)
    monkeypatch.setattr("benchmarks.meters.nvml.IDLE_S", 0.003)
    return nvml


def domain(folder: Path, number: str, name: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    """One RAPL domain, as the kernel shows it."""
    path = folder / f"intel-rapl:{number}"
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    set_energy(path, energy_uj)
    return path


def set_energy(path: Path, energy_uj: int) -> None:
    """At once, so that no reader sees a part of the number."""
    temporary = path / "new"
    temporary.write_text(f"{energy_uj}\n")
    temporary.replace(path / "energy_uj")


@contextmanager
def burning(path: Path, watts: float, range_uj: int) -> Iterator[None]:
    """Within: a domain's counter follows the clock at this power, and begins again after its range."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.001):
            set_energy(path, int(time.monotonic() * watts * 1e6) % range_uj)

    thread = threading.Thread(target=follow, daemon=True)
    set_energy(path, int(time.monotonic() * watts * 1e6) % range_uj)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
