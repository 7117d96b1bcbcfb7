"""Energy counters against fakes that know the answer: NVML's, the kernel's RAPL folder, and the meter around them."""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

import pytest

from benchmarks.meters import MOST_POINTS, Meter, open_meter
from benchmarks.meters.counter import Counter, CounterError, Sample
from benchmarks.meters.nvml import GpuCounter
from benchmarks.meters.rapl import FOLDER_VARIABLE, package_counters
from tests.fake_power import ADDRESS, FakeNvml, domain, install, set_energy


def counter_of(monkeypatch: pytest.MonkeyPatch, *energies_mj: int) -> GpuCounter:
    install(monkeypatch, FakeNvml([*energies_mj]))
    return GpuCounter(ADDRESS)


def test_a_gpu_counts_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = counter_of(monkeypatch, 1000, 1500, 9500)
    assert (counter.joules(), counter.joules()) == (1.5, 9.5)
    assert counter.sample() == Sample(power_w=300.0, sm_clock_mhz=1410, temperature_c=61)


def test_idle_power_is_the_least_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones are averages over what ran there before."""
    install(monkeypatch, FakeNvml([0])).powers_mw = [250_000, 90_000, 71_000]
    assert GpuCounter(ADDRESS).idle_w == 71.0


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        (
            "nvmlInit",
            "NVML Shared Library Not Found",
            "no energy counter: NVML, nvmlInit: NVML Shared Library Not Found",
        ),
        ("nvmlDeviceGetHandleByPciBusId", "Not Found", f"no energy counter: NVML, GPU {ADDRESS}: Not Found"),
        ("nvmlDeviceGetTotalEnergyConsumption", "Not Supported", "NVML, total energy: Not Supported"),
        ("nvmlDeviceGetTotalEnergyConsumption", "Function Not Found", "NVML, total energy: Function Not Found"),
    ],
)
def test_a_gpu_without_a_counter_says_why(monkeypatch: pytest.MonkeyPatch, name: str, error: str, said: str) -> None:
    install(monkeypatch, FakeNvml([0] * 9, {name: error}))
    reading = open_meter(3, "n1", ADDRESS, reads_host=False).reading()
    assert reading.counters == []
    assert said in reading.unknown["nvml"]


def test_a_part_of_a_gpu_has_no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml([0] * 9, mig=1))
    with pytest.raises(CounterError, match="a MIG device has none"):
        GpuCounter(ADDRESS)


def test_a_gpu_that_knows_no_mig_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml([0, 2000], {"nvmlDeviceGetMigMode": "Not Supported"}))
    assert GpuCounter(ADDRESS).joules() == 2.0


def test_what_a_gpu_does_not_tell_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature")
    install(monkeypatch, FakeNvml([0], dict.fromkeys(names, "Not Supported")))
    counter = GpuCounter(ADDRESS)
    assert counter.sample() == Sample(power_w=None, sm_clock_mhz=1410, temperature_c=None)
    assert counter.idle_w is None


def test_a_missing_package_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py is not installed" in open_meter(0, "n", ADDRESS, reads_host=False).reading().unknown["nvml"]


def test_a_counter_that_runs_backwards_spoils_its_span_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that is loaded again begins at 0."""
    meter = Meter([counter_of(monkeypatch, 0, 1000, 4000, 5000, 200, 300, 1300)])
    for _ in range(3):
        meter.begin()
        meter.end()
    reading = meter.reading()
    assert reading.counters[0].span_j == [3.0, None, 1.0]
    assert "ran backwards" in reading.unknown["nvml"]


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "powercap"))
    return tmp_path / "powercap"


def test_packages_alone_are_counted(powercap: Path) -> None:
    """Neither what is within them, nor the platform, nor the same package by another interface."""
    for number, name in [("0", "package-0"), ("1", "package-1"), ("2", "psys"), ("0:0", "core"), ("0:1", "dram")]:
        domain(powercap, number, name, 100)
    domain(powercap, "0:2", "package-7", 100)
    (powercap / "intel-rapl:0").rename(powercap / "intel-rapl-mmio:0")
    domain(powercap, "0", "package-0", 100)
    assert [counter.name for counter in package_counters()] == ["package-0", "package-1"]


def test_a_package_counts_on_after_its_range(powercap: Path) -> None:
    path = domain(powercap, "0", "package-0", 900_000, range_uj=1_000_000)
    (counter,) = package_counters()
    start_j = counter.joules()
    for raw_uj in (990_000, 40_000, 990_000, 40_000, 60_000):  # 1.16 ranges, in readings that see each end of one
        set_energy(path, raw_uj)
        now_j = counter.joules()
    assert now_j - start_j == pytest.approx(1.16)


def test_the_power_of_a_package_is_that_since_its_last_reading(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 16.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    path = domain(powercap, "0", "package-0", 0)
    (counter,) = package_counters()
    for energy_uj, watts in ((200_000, 0.1), (400_000, 0.05)):
        set_energy(path, energy_uj)
        assert counter.sample().power_w == pytest.approx(watts)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: None, "powercap is not there"),
        (lambda folder: folder.mkdir(), "powercap has no package"),
        (lambda folder: domain(folder, "0", "psys", 1), "powercap has no package"),
        (
            lambda folder: (domain(folder, "0", "package-0", 1) / "energy_uj").unlink(),
            "energy_uj: not readable (No such",
        ),
        (
            lambda folder: (domain(folder, "0", "package-0", 1) / "energy_uj").write_text("x"),
            "energy_uj: no number ('x')",
        ),
    ],
)
def test_packages_that_cannot_be_read_say_why(powercap: Path, break_it, said: str) -> None:  # type: ignore[no-untyped-def]
    break_it(powercap)
    reading = open_meter(0, "n1", None, reads_host=True).reading()
    assert reading.counters == []
    assert said in reading.unknown["rapl"]


def test_one_package_of_two_is_not_enough(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel leaves them since 2020, for root alone."""
    domain(powercap, "0", "package-0", 1)
    secret = domain(powercap, "1", "package-1", 1) / "energy_uj"
    read_text = Path.read_text

    def refusing(path: Path, *arguments: str) -> str:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *arguments)

    monkeypatch.setattr(Path, "read_text", refusing)
    reading = open_meter(0, "n1", None, reads_host=True).reading()
    assert reading.counters == []
    assert reading.unknown == {"rapl": f"{secret}: not readable (Permission denied)"}


def test_workers_that_are_not_asked_read_no_host(powercap: Path) -> None:
    domain(powercap, "0", "package-0", 1)
    reading = open_meter(1, "n1", None, reads_host=False).reading()
    assert (reading.counters, reading.unknown) == ([], {})


class Stepping(Counter):
    """A counter that moves when it is told to."""

    source = "rapl"
    period_s = 0.002
    name = "package-0"

    def __init__(self) -> None:
        self.now_j = 0.0
        self.samples = 0

    def joules(self) -> float:
        return self.now_j

    def sample(self) -> Sample:
        self.samples += 1
        return Sample(power_w=float(self.samples))


def test_what_is_used_between_spans_is_not_counted() -> None:
    counter = Stepping()
    meter = Meter([counter], rank=2, host="n1")
    counter.now_j = 1e6
    for joules in (3.0, 5.0):
        meter.begin()
        counter.now_j += joules
        meter.end()
        counter.now_j += 1e6
    (reading,) = meter.reading().counters
    assert (reading.span_j, reading.rank, reading.host) == ([3.0, 5.0], 2, "n1")


def test_samples_are_taken_within_spans_only_at_the_time_of_the_window() -> None:
    counter = Stepping()
    meter = Meter([counter])
    inside_s = 0.0
    for _ in range(2):
        before, began_s = counter.samples, time.monotonic()
        meter.begin()
        while counter.samples < before + 4:
            time.sleep(0.001)
        meter.end()
        inside_s += time.monotonic() - began_s
        seen = counter.samples
        time.sleep(0.1)
        assert counter.samples == seen, "no thread is left between spans"
    (reading,) = meter.reading().counters
    assert reading.series is not None
    assert reading.series.time_s == sorted(reading.series.time_s)
    assert reading.series.time_s[-1] < inside_s + 0.001, "without the pauses"
    assert len(reading.series.power_w) == len(reading.series.time_s) >= 8


def test_a_long_series_is_thinned_out_evenly() -> None:
    counter = Stepping()
    meter = Meter([counter])
    track = meter._tracks[0]
    for index in range(10 * MOST_POINTS):
        track.sample(float(index))
    (reading,) = meter.reading().counters
    assert reading.series is not None
    times = reading.series.time_s
    assert MOST_POINTS // 2 <= len(times) < MOST_POINTS
    assert {later - earlier for earlier, later in itertools.pairwise(times)} == {16.0}
    assert reading.series.power_w == [time_s + 1 for time_s in times], "power stays beside its time"


def test_a_meter_without_counters_starts_no_thread() -> None:
    meter = Meter()
    meter.begin()
    assert meter._sampler is None
    meter.end()
    assert meter.reading().counters == []


def test_a_sampler_takes_less_than_a_thousandth_of_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time of a sample, the library's own aside, against the tenth of a second between two of them."""
    install(monkeypatch, FakeNvml([0] * 3))
    meter = Meter([GpuCounter(ADDRESS)])
    track, samples = meter._tracks[0], 500
    started_s = time.thread_time()
    for index in range(samples):
        track.sample(index / 10)
    assert (time.thread_time() - started_s) / samples < 0.001 * 0.1
