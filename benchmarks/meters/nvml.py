"""What a GPU has used, by NVIDIA's management library (NVML), which comes with the driver; from Volta on.

The counter is the board's own, memory included. Power is an average over the last second on most GPUs since Ampere.
NVML numbers GPUs in its own order and knows nothing of CUDA_VISIBLE_DEVICES, so a GPU is found by its PCI address.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.meters.counter import Counter, CounterError, Sample

IDLE_S = 0.5
"""How long an unused GPU is watched for its idle power."""


class GpuCounter(Counter):
    """The counter of one GPU, by its PCI address; its idle power is measured here, so nothing may run on it yet.

    Raises:
        CounterError: no library, no such GPU, or one without a counter of its own.
    """

    source = "nvml"
    period_s = 0.1

    def __init__(self, address: str) -> None:
        self.name = address
        try:
            import pynvml
        except ImportError as error:
            raise CounterError("no energy counter: the package nvidia-ml-py is not installed") from error
        self._nvml: Any = pynvml
        self._ask("nvmlInit", pynvml.nvmlInit)
        self._device = self._ask(f"GPU {address}", pynvml.nvmlDeviceGetHandleByPciBusId, address.encode())
        if self._is_shared():
            raise CounterError("no energy counter: a MIG device has none; its GPU's counts all of its instances")
        self._last_j = 0.0
        self.joules()
        self.idle_w = self._idle_w()

    def joules(self) -> float:
        now_j: float = self._ask("total energy", self._nvml.nvmlDeviceGetTotalEnergyConsumption, self._device) / 1e3
        if now_j < self._last_j:
            self._last_j = now_j
            raise CounterError("the energy counter ran backwards: the driver was reloaded, or the GPU reset")
        self._last_j = now_j
        return now_j

    def sample(self) -> Sample:
        nvml, device = self._nvml, self._device
        power_mw = self._told(nvml.nvmlDeviceGetPowerUsage, device)
        return Sample(
            power_w=None if power_mw is None else power_mw / 1e3,
            sm_clock_mhz=self._told(nvml.nvmlDeviceGetClockInfo, device, nvml.NVML_CLOCK_SM),
            temperature_c=self._told(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
        )

    def _is_shared(self) -> bool:
        mode = self._told(self._nvml.nvmlDeviceGetMigMode, self._device)  # not told by GPUs that have no such mode
        return mode is not None and mode[0] == self._nvml.NVML_DEVICE_MIG_ENABLE

    def _idle_w(self) -> float | None:
        """The least of some readings: the first ones may still average over what ran here before."""
        readings = []
        for _ in range(max(1, round(IDLE_S / self.period_s))):
            time.sleep(self.period_s)
            readings.append(self.sample().power_w)
        return min((power_w for power_w in readings if power_w is not None), default=None)

    def _ask(self, what: str, function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            raise CounterError(f"no energy counter: NVML, {what}: {error}") from error

    def _told(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What the GPU says; None where it does not."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None
