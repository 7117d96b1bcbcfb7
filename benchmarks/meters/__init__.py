"""A worker's energy meter: its counters read where a span begins and ends, and sampled by a thread in between.

Each worker samples its own GPU. NVML's calls go through ctypes, which lets go of the interpreter's lock, so that the
training thread shares it with a few dozen microseconds of Python in every tenth of a second, less than a thousandth of
the time. A process beside it would need a core of its own, which a node that is full of workers does not have, and
would have to be told where spans begin and end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from benchmarks.core.energy import CounterReading, PowerSeries, RankEnergy, Source
from benchmarks.meters.counter import Counter, CounterError, Sample

MOST_POINTS = 240
"""Of a series; when there are as many, every second one goes."""


class _Series:
    """Samples of bounded number, evenly spaced however long a run takes."""

    def __init__(self) -> None:
        self._points: list[tuple[float, Sample]] = []
        self._taken = 0
        self._every = 1

    def add(self, time_s: float, sample: Sample) -> None:
        if self._taken % self._every == 0:
            self._points.append((time_s, sample))
        self._taken += 1
        if len(self._points) == MOST_POINTS:
            del self._points[1::2]
            self._every *= 2

    def read(self) -> PowerSeries | None:
        if not self._points:
            return None
        columns = zip(*(sample for _, sample in self._points), strict=True)
        power_w, clock_mhz, celsius = ([_rounded(value, 1) for value in column] for column in columns)
        return PowerSeries(
            time_s=[round(time_s, 3) for time_s, _ in self._points],
            power_w=power_w,
            sm_clock_mhz=clock_mhz,
            temperature_c=celsius,
        )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


class _Track:
    """One counter with what it has counted so far."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.span_j: list[float | None] = []
        self.series = _Series()
        self.failed: str | None = None
        self._start_j: float | None = None

    def begin(self) -> None:
        self._start_j = self._joules()

    def end(self) -> None:
        end_j = self._joules()
        self.span_j.append(None if end_j is None or self._start_j is None else end_j - self._start_j)

    def sample(self, time_s: float) -> None:
        try:
            self.series.add(time_s, self.counter.sample())
        except CounterError:
            return  # where it matters, the reading at the span's end says so

    def _joules(self) -> float | None:
        try:
            return self.counter.joules()
        except CounterError as error:
            self.failed = self.failed or str(error)
            return None


class Meter:
    """The counters of one worker; without any, one that knows nothing and costs nothing."""

    def __init__(
        self,
        counters: Sequence[Counter] = (),
        rank: int = 0,
        host: str = "",
        unknown: Mapping[Source, str] | None = None,
    ) -> None:
        self._tracks = [_Track(counter) for counter in counters]
        self._rank, self._host, self._unknown = rank, host, dict(unknown or {})
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._sampler: threading.Thread | None = None
        self._before_s = self._began_s = 0.0
        """How long all earlier spans took, and when this one began."""

    def begin(self) -> None:
        """A span is about to begin."""
        for track in self._tracks:
            track.begin()
        self._began_s = time.monotonic()
        if self._tracks:
            self._over.clear()
            self._sampler = threading.Thread(target=self._sample, daemon=True, name="energy")
            self._sampler.start()

    def end(self) -> None:
        """The span is over: the device has nothing left to do."""
        self._over.set()
        with self._lock:
            self._before_s += time.monotonic() - self._began_s
            for track in self._tracks:
                track.end()
        if self._sampler:
            self._sampler.join()

    def reading(self) -> RankEnergy:
        """Of all spans that are over; to be called between spans."""
        failed = {track.counter.source: track.failed for track in self._tracks if track.failed}
        return RankEnergy(
            rank=self._rank,
            host=self._host,
            counters=list(map(self._read, self._tracks)),
            unknown=self._unknown | failed,
        )

    def _read(self, track: _Track) -> CounterReading:
        counter = track.counter
        return CounterReading(
            source=counter.source,
            name=counter.name,
            host=self._host,
            rank=self._rank,
            span_j=list(track.span_j),
            idle_w=_rounded(counter.idle_w, 1),
            series=track.series.read(),
        )

    def _sample(self) -> None:
        period_s = min(track.counter.period_s for track in self._tracks)
        while not self._over.wait(period_s):
            with self._lock:
                if self._over.is_set():
                    return
                for track in self._tracks:
                    track.sample(self._before_s + time.monotonic() - self._began_s)


def open_meter(rank: int, host: str, gpu: str | None, *, reads_host: bool) -> Meter:
    """The meter of a worker, before it uses its device; what cannot be read is unknown, with the reason.

    Args:
        rank: The worker's.
        host: The host's name.
        gpu: The PCI address of the worker's GPU; None where it has none.
        reads_host: Whether it is this worker that reads the host's counters.
    """
    from benchmarks.meters.nvml import GpuCounter
    from benchmarks.meters.rapl import package_counters

    wanted: list[tuple[Source, Callable[[], Sequence[Counter]]]] = []
    if gpu is not None:
        wanted.append(("nvml", lambda: [GpuCounter(gpu)]))
    if reads_host:
        wanted.append(("rapl", package_counters))
    counters: list[Counter] = []
    unknown: dict[Source, str] = {}
    for source, find in wanted:
        try:
            counters += find()
        except CounterError as error:
            unknown[source] = str(error)
    return Meter(counters, rank, host, unknown)
