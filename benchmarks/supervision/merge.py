"""What each worker leaves for its supervisor, and how these parts become one window."""

from __future__ import annotations

import itertools
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.core import record
from benchmarks.core.energy import Energy, RankEnergy, merge_energy, of_whole_spans
from benchmarks.core.profile import RankProfile
from benchmarks.core.record import Check, Evaluation, Memory, RankSummary, Span, Status, Window, finite
from benchmarks.measuring.step_times import Communication, StepTimes

CANNOT_WRITE = os.EX_IOERR
"""A worker's exit code where its result could not be written."""


class Failure(msgspec.Struct, kw_only=True):
    """Why a worker stopped early, in its own words."""

    status: Status
    phase: str
    kind: str
    message: str


class RankResult(msgspec.Struct, kw_only=True):
    """One worker's result, written to `rank<r>.json` in the attempt's folder when the worker ends."""

    rank: int
    host: str
    device: str
    threads: int
    cores: list[int] | None = None
    phases: list[tuple[str, int]]
    """Each phase and when it began, in monotonic nanoseconds; the last entry is the end."""
    failure: Failure | None = None
    clock: str = "monotonic"
    spans: list[StepTimes] = []
    samples: list[int] = []
    losses: list[float | None] = []
    evaluations: list[Evaluation] = []
    checks: list[Check] = []
    peak_host_bytes: int = 0
    peak_device_bytes: int | None = None
    loaded_bytes_per_step: float | None = None
    communication: Communication | None = None
    model: record.ModelSize | None = None
    data: record.DataFacts | None = None
    strategy_facts: dict[str, Any] = {}
    stopped_after_epochs: int | None = None
    profile: RankProfile | None = None
    ceilings: dict[str, float] | None = None
    energy: RankEnergy | None = None
    environment: dict[str, Any] = {}

    def series(self, name: str) -> list[float]:
        """A series of `StepTimes` over all spans."""
        return [value for span in self.spans for value in (getattr(span, name) or [0.0] * len(span.step_s))]


def result_path(folder: Path, rank: int) -> Path:
    """Where a worker leaves its result."""
    return folder / f"rank{rank}.json"


def log_path(folder: Path, rank: int) -> Path:
    """Where a worker's standard output and error go."""
    return folder / f"rank{rank}.log"


def read_results(folder: Path, workers: int) -> list[RankResult]:
    """The results that are there, by rank."""
    paths = [result_path(folder, rank) for rank in range(workers)]
    return [msgspec.json.decode(path.read_bytes(), type=RankResult) for path in paths if path.exists()]


def steps_of_all(results: Sequence[RankResult]) -> list[RankResult]:
    """The ranks' results cut to the steps that all of them have finished; none where there is no such step.

    Ranks end at different steps when a run is cut short. A span that is cut takes the sum of the steps that are left.
    """
    if not results:
        return []
    by_span = list(zip(*(result.spans for result in results), strict=False))  # some have not begun the last one
    lengths = [min(len(span.step_s) for span in spans) for spans in by_span]
    is_whole = [
        max(len(span.step_s) for span in spans) == length for spans, length in zip(by_span, lengths, strict=True)
    ]
    lengths = [length for length in lengths if length]
    total = sum(lengths)
    return [
        msgspec.structs.replace(
            result,
            spans=[_cut(span, length) for span, length in zip(result.spans, lengths, strict=False)],
            samples=result.samples[:total],
            losses=result.losses[:total],
            evaluations=[evaluation for evaluation in result.evaluations if evaluation.after_steps <= total],
            energy=of_whole_spans(result.energy, is_whole[: len(lengths)]),
        )
        for result in results
        if total
    ]


def _cut(span: StepTimes, steps: int) -> StepTimes:
    if steps == len(span.step_s):
        return span
    return StepTimes(
        step_s=span.step_s[:steps],
        data_wait_s=span.data_wait_s[:steps],
        sync_wait_s=span.sync_wait_s[:steps] if span.sync_wait_s is not None else None,
        wall_time_s=sum(span.step_s[:steps]),
    )


def merge_window(results: Sequence[RankResult]) -> Window:
    """One window out of all ranks'.

    Times are the slowest rank's, step by step; samples are summed, and losses weighted by them.
    """
    samples = [sum(step) for step in zip(*(result.samples for result in results), strict=True)]
    step_time_s = _slowest([result.series("step_s") for result in results])
    return Window(
        clock="cuda_event" if results[0].clock == "cuda_event" else "monotonic",
        step_time_s=step_time_s,
        compute_time_s=_slowest([_compute_times(result) for result in results]),
        data_wait_s=_slowest([result.series("data_wait_s") for result in results]),
        exposed_comm_s=_exposed_comm_s(results, step_time_s, samples),
        samples=samples,
        loss=[_mean_loss(results, step, total) for step, total in enumerate(samples)],
        spans=_spans(results, samples),
    )


def merge_communication(results: Sequence[RankResult]) -> record.Communication | None:
    """What all ranks know; the slowest rank's times."""
    parts = [result.communication for result in results if result.communication]
    if len(parts) < len(results):
        return None
    first = parts[0]
    times = [part.allreduce_s for part in parts if part.allreduce_s is not None]
    allreduce_s = max(times) if times else None
    sent = 2 * (len(results) - 1) / len(results) * (first.allreduce_bytes or 0)
    return record.Communication(
        bytes_per_step=first.bytes_per_step,
        unsynchronised_step_s=_unsynchronised_step_s(parts),
        allreduce_bytes=first.allreduce_bytes,
        allreduce_s=allreduce_s,
        allreduce_gb_per_s=sent / allreduce_s / 1e9 if allreduce_s else None,
    )


def _unsynchronised_step_s(parts: Sequence[Communication]) -> dict[int, float] | None:
    by_rank = [part.unsynchronised_step_s for part in parts]
    known = [times for times in by_rank if times is not None]
    if len(known) < len(by_rank):
        return None
    return {size: max(times[size] for times in known) for size in known[0]}


def _exposed_comm_s(
    results: Sequence[RankResult], step_time_s: Sequence[float], samples: Sequence[int]
) -> list[float] | None:
    """Each step's time less that of its batch without synchronisation.

    Below zero where the noise is larger than what is measured: cutting it off would make the median too large.
    """
    communication = merge_communication(results)
    if communication is None or communication.unsynchronised_step_s is None:
        return None
    without = communication.unsynchronised_step_s
    return [time - without[size] for time, size in zip(step_time_s, samples, strict=True)]


def _slowest(series: Sequence[Sequence[float]]) -> list[float]:
    return [max(step) for step in zip(*series, strict=True)]


def _compute_times(result: RankResult) -> list[float]:
    series = (result.series("step_s"), result.series("data_wait_s"), result.series("sync_wait_s"))
    return [max(0.0, step - data - sync) for step, data, sync in zip(*series, strict=True)]


def _mean_loss(results: Sequence[RankResult], step: int, total: int) -> float | None:
    losses = [result.losses[step] for result in results]
    if any(loss is None for loss in losses):
        return None
    return finite(
        sum((loss or 0.0) * result.samples[step] for loss, result in zip(losses, results, strict=True)) / total
    )


def _spans(results: Sequence[RankResult], samples: Sequence[int]) -> list[Span]:
    spans: list[Span] = []
    first = 0
    for index, span in enumerate(results[0].spans):
        steps = len(span.step_s)
        waits = [result.spans[index].sync_wait_s for result in results]
        spans.append(
            Span(
                steps=steps,
                samples=sum(samples[first : first + steps]),
                wall_time_s=max(result.spans[index].wall_time_s for result in results),
                samples_by_rank=[sum(result.samples[first : first + steps]) for result in results],
                sync_wait_s_by_rank=None if None in waits else [sum(wait or ()) for wait in waits],
            )
        )
        first += steps
    return spans


def summarise(result: RankResult) -> RankSummary:
    """A worker's medians over its steps."""
    steps, syncs = result.series("step_s"), result.series("sync_wait_s")
    marked = all(span.sync_wait_s is not None for span in result.spans)
    return RankSummary(
        rank=result.rank,
        host=result.host,
        device=result.device,
        threads=result.threads,
        cores=result.cores,
        step_time_s=statistics.median(steps),
        own_time_s=statistics.median(step - sync for step, sync in zip(steps, syncs, strict=True)),
        data_wait_s=statistics.median(result.series("data_wait_s")),
        sync_wait_s=statistics.median(syncs) if marked else None,
        peak_host_bytes=result.peak_host_bytes,
        peak_device_bytes=result.peak_device_bytes,
        loaded_bytes_per_step=result.loaded_bytes_per_step,
    )


def merge_memory(results: Sequence[RankResult]) -> Memory:
    """The largest peaks over ranks."""
    device = [result.peak_device_bytes for result in results if result.peak_device_bytes is not None]
    return Memory(
        peak_host_bytes=max(result.peak_host_bytes for result in results),
        peak_device_bytes=max(device) if device else None,
    )


def energy_of(results: Sequence[RankResult], device: str) -> Energy | None:
    """The energy of a window that these ranks have measured, on devices of this kind: `cuda` or `cpu`."""
    return merge_energy([result.energy for result in results], "nvml" if device == "cuda" else "rapl")


def merge_ceilings(results: Sequence[RankResult]) -> dict[str, float | None] | None:
    """Means over ranks: devices that differ together do what their ceilings add up to. None where nobody measured."""
    known = [result.ceilings for result in results if result.ceilings]
    return {name: statistics.fmean(one[name] for one in known) for name in known[0]} if known else None


def merge_checks(results: Sequence[RankResult]) -> list[Check]:
    """Each check once: the first rank that failed it, or rank 0's."""
    merged = {check.name: check for check in results[0].checks}
    for result in results[1:]:
        for check in result.checks:
            if not check.passed and merged.get(check.name, check).passed:
                merged[check.name] = Check(name=check.name, passed=False, detail=f"rank {result.rank}: {check.detail}")
    return list(merged.values())


def ledger(result: RankResult | None, started_ns: int, ended_ns: int) -> dict[str, float]:
    """Seconds by phase, from the supervisor's start to its end.

    The phases in between are one worker's; `start` and `teardown` are what lies before and after.
    """
    phases = [("start", started_ns), *(result.phases if result else []), ("teardown", ended_ns)]
    if result:
        phases[-2] = ("teardown", phases[-2][1])
    seconds: dict[str, float] = {}
    for (name, begin), (_, end) in itertools.pairwise(phases):
        seconds[name] = seconds.get(name, 0.0) + (end - begin) / 1e9
    return seconds
