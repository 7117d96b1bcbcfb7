"""A few training steps under torch's profiler, on one worker."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from benchmarks.core.profile import RankProfile, TensorCount, trace_name
from benchmarks.core.record import Check, replace
from benchmarks.data.batches import Batch
from benchmarks.measuring import trace
from benchmarks.measuring.timing import MonotonicClock
from benchmarks.trainer import Trainer

PLAIN_STEPS = 5
_WARMUP_STEPS = 2
"""The profiler's own first-time costs, such as loading CUPTI, fall into steps that are thrown away."""
_STEPS = 3
_MOST_OPERATORS = 20
_MOST_TRACE_EVENTS = 200_000
"""Of one file: about 50 MB, or 3 MB as it is compressed. Perfetto opens ten times as much."""


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """What the profiled steps left."""

    profile: RankProfile
    losses: list[Tensor]
    """One for each step, on the device."""
    check: Check


def profiled_steps(
    trainer: Trainer, batches: Iterator[Batch], plain_step_s: float, folder: Path, beat: Callable[[int, int], None]
) -> Profiled:
    """Take some steps under the profiler; all ranks take them together.

    Args:
        trainer: Warmed up.
        batches: At least `_WARMUP_STEPS` + `_STEPS` of them.
        plain_step_s: How long a step takes without the profiler.
        folder: The run's, where the trace is left.
        beat: Called after each step.

    Raises:
        OSError: the trace could not be written.
    """
    on_gpu = trainer.place.device.type == "cuda"
    watch = _Watch(trainer.bare_model.parameters(), marks=not on_gpu)
    trainer.use_clock(watch)
    with tempfile.TemporaryDirectory(prefix="scalebench-") as scratch:
        path = Path(scratch) / "trace.json"
        losses = _steps(trainer, batches, path, beat)
        found: dict[str, Any] = json.loads(path.read_bytes())
    events = trace.events_of(found)
    window = trace.window_of(events)
    name, left_out = trace_name(trainer.place.rank), 0
    if name:
        shown, left_out = trace.bounded(found, _MOST_TRACE_EVENTS)
        replace(folder / name, gzip.compress(json.dumps(shown).encode(), compresslevel=6, mtime=0))
    split, operators = (
        (trace.split_on_device, trace.operators_on_device) if on_gpu else (trace.split_on_host, trace.operators_on_host)
    )
    table = operators(events, window, _MOST_OPERATORS)
    return Profiled(
        profile=RankProfile(
            rank=trainer.place.rank,
            steps=window.steps,
            plain_step_s=plain_step_s,
            split=split(events, window),
            operators=table,
            parameters=counted(trainer.bare_model.parameters()),
            gradients=watch.gradients,
            trace=name,
            trace_events_left_out=left_out,
        ),
        losses=losses,
        check=_saw_the_steps(window.steps, bool(table), on_gpu),
    )


def _saw_the_steps(steps: int, any_operator: bool, on_gpu: bool) -> Check:
    """Where the driver forbids its counters, a GPU's profile holds no kernel, and would call the step idle."""
    detail = f"{steps} of {_STEPS} steps" + ("" if any_operator else f", no {'kernel' if on_gpu else 'operator'}")
    return Check(name="profiled_steps", passed=steps == _STEPS and any_operator, detail=detail)


def _steps(trainer: Trainer, batches: Iterator[Batch], path: Path, beat: Callable[[int, int], None]) -> list[Tensor]:
    """Losses of all steps; the trace of the last `_STEPS` goes to `path`."""
    on_gpu = trainer.place.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    losses: list[Tensor] = []
    total = _WARMUP_STEPS + _STEPS
    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=_WARMUP_STEPS, active=_STEPS, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    ) as profiler:
        for number in range(1, total + 1):
            with record_function("next batch"):
                batch = next(batches)
            losses.append(trainer.step(batch))
            if on_gpu and number in (_WARMUP_STEPS, total):
                # The host runs ahead: so the device begins the profiled steps idle, and ends them within the last.
                torch.cuda.synchronize()
            profiler.step()
            beat(number, total)
    return losses


class _Watch(MonotonicClock):
    """In place of a clock: it measures nothing, but sees the moments between a step's parts."""

    def __init__(self, parameters: Iterable[Tensor], *, marks: bool) -> None:
        super().__init__(_WARMUP_STEPS + _STEPS)
        self.parameters = [value for value in parameters if value.requires_grad]
        self._gradients: dict[int, TensorCount] = {}
        self._marks = marks
        self._waiting: record_function | None = None
        # Some strategies drop their gradients before the backward pass counts as done: they are counted as they come.
        self._hooks = [
            value.register_post_accumulate_grad_hook(partial(self._count, number))
            for number, value in enumerate(self.parameters)
        ]

    @property
    def gradients(self) -> TensorCount:
        """Those of the first backward pass."""
        found = self._gradients.values()
        return TensorCount(
            tensors=sum(one.tensors for one in found),
            elements=sum(one.elements for one in found),
            bytes=sum(one.bytes for one in found),
        )

    def _count(self, number: int, parameter: Tensor) -> None:
        # Where a strategy has moved it on already, as into a bucket: it was of the parameter's shape and format.
        self._gradients[number] = counted([parameter if parameter.grad is None else parameter.grad])

    def last_gradient(self) -> None:
        """The wait for other ranks begins.

        Some strategies send through sockets of their own, which the profiler does not know. On a CPU, the backward pass
        is the main thread's, so that a range may begin in it and end after it; on a GPU, NCCL's kernels say it all.
        """
        if self._marks and self._waiting is None:
            self._waiting = record_function(trace.SYNCHRONISING)
            self._waiting.__enter__()

    def backward_done(self) -> None:
        """The wait is over; and the first backward pass has been counted."""
        if self._waiting:
            self._waiting.__exit__(None, None, None)
            self._waiting = None
        while self._hooks:
            self._hooks.pop().remove()


def counted(tensors: Iterable[Tensor]) -> TensorCount:
    """Tensors of this rank; of a sharded one, this rank's part."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return TensorCount(
        tensors=len(local),
        elements=sum(tensor.numel() for tensor in local),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in local),
    )
