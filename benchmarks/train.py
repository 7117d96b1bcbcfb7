"""One worker's measurement: build, warm up, time, evaluate, check. Read this file first.

Everything that is measured happens in `timed_span`. Around it: the model is built from the seed, wrapped by the
strategy, warmed up on random data and then put back to its initial state, so that the window holds neither first-time
costs nor their effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.core.config import RunConfig
from benchmarks.core.energy import RankEnergy
from benchmarks.core.profile import RankProfile
from benchmarks.core.record import Check, DataFacts, Evaluation, ModelSize
from benchmarks.core.target import target_to_stop_at
from benchmarks.data import Dataset, load
from benchmarks.data.batches import Batch, Loader
from benchmarks.data.held_out import hold_out
from benchmarks.data.subset import subset, with_shuffled_labels
from benchmarks.loader import loaders
from benchmarks.measuring import sanity
from benchmarks.measuring.flops import model_size
from benchmarks.measuring.peaks import Peaks
from benchmarks.measuring.step_times import Communication, StepTimes
from benchmarks.measuring.timing import Clock
from benchmarks.meters import Meter
from benchmarks.mixing import held_out_share
from benchmarks.process.partial import SoFar
from benchmarks.strategy import Place, Strategy
from benchmarks.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class Report:
    """What surrounds the measurement: whom it tells where it is, which takes no time, and what meters its energy."""

    phase: Callable[[str], None]
    beat: Callable[[int, int], None]
    meter: Meter = field(default_factory=Meter)
    so_far: SoFar = field(default_factory=SoFar)
    folder: Path = Path()
    """The run's, where a profiled one leaves its trace."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One worker's raw results: a `StepTimes` for each span, one loss and one number of own samples for each step."""

    clock: str
    spans: list[StepTimes]
    samples: list[int]
    losses: list[float]
    evaluations: list[Evaluation]
    checks: list[Check]
    memory: Peaks
    loaded_bytes_per_step: float | None
    """Inputs and targets that this rank's loader has handed to a step, as a mean; None without a window."""
    communication: Communication | None
    model: ModelSize | None
    """Counted by rank 0."""
    data: DataFacts
    strategy_facts: dict[str, Any]
    stopped_after_epochs: int | None = None
    profile: RankProfile | None = None
    energy: RankEnergy | None = None
    ceilings: dict[str, float] | None = None


def timed_span(
    step: Callable[[Batch], Tensor], batches: Iterator[Batch], clock: Clock, beat: Callable[[int, int], None]
) -> tuple[list[Tensor], list[int]]:
    """The timed loop: nothing here waits for the device, reads a file or looks up a setting.

    Returns each step's loss, still on the device, and its number of samples on this rank.
    """
    losses: list[Tensor] = []
    samples: list[int] = []
    clock.start()
    for number in range(clock.steps):
        batch = next(batches)
        clock.batch_ready()
        losses.append(step(batch))
        samples.append(len(batch))
        clock.step_done()
        beat(number + 1, clock.steps)
    clock.stop()
    return losses, samples


def measure(run: RunConfig, place: Place, strategy: Strategy, report: Report) -> Measured:
    """Run one configuration on this worker; all workers of the run call it together."""
    report.phase("data")
    dataset = _dataset(run)
    feed = loaders.make(run.loader, dataset.train, place.device, run.augmentation)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed, feed=feed)

    report.phase("build")
    trainer = Trainer(run, place, strategy, dataset)

    report.phase("warmup")
    trainer.warm_up(loader)

    measured = (_profiled if run.profile else _timed)(trainer, loader, dataset, report)
    if run.ceilings:
        report.phase("ceilings")
        measured = replace(measured, ceilings=trainer.measure_ceilings())
    feed.close()
    return measured


def _timed(trainer: Trainer, loader: Loader, dataset: Dataset, report: Report) -> Measured:
    """The window, and afterwards what it takes to trust it."""
    window = _window(trainer, loader, dataset, report)

    report.phase("checks")
    losses = torch.stack(window.losses).float().cpu().tolist()
    counted = sanity.expected_samples(trainer.total(sum(window.samples)), window.global_samples)
    checks = [sanity.finite_loss(losses), counted, sanity.clocks_agree(window.spans), *trainer.checks()]
    memory = Peaks.now(trainer.place.device, loader.feed.helpers_bytes)
    model = _model_size(trainer, dataset)

    report.phase("communication")  # last: its steps train on, without the other ranks
    communication = trainer.measure_communication(loader)
    return Measured(
        clock=trainer.clock_name,
        spans=window.spans,
        samples=window.samples,
        losses=losses,
        evaluations=window.evaluations,
        checks=checks,
        memory=memory,
        loaded_bytes_per_step=loader.sample_bytes * window.loaded_samples / len(window.samples),
        communication=communication,
        model=model,
        data=dataset.facts(),
        strategy_facts=trainer.facts(),
        stopped_after_epochs=window.stopped_after_epochs,
        energy=report.meter.reading(),
    )


def _profiled(trainer: Trainer, loader: Loader, dataset: Dataset, report: Report) -> Measured:
    """A few steps under the profiler in place of the window; first a few without it, to compare with."""
    from benchmarks.measuring import profiling  # here: all other runs start sooner without

    report.phase("profile")
    batches = loader.endless()
    clock = trainer.new_clock(profiling.PLAIN_STEPS)
    trainer.strategy.align()
    losses, _ = timed_span(trainer.step, islice(batches, clock.steps), clock, report.beat)
    plain_step_s = clock.wall_time_s / clock.steps
    seen = profiling.profiled_steps(trainer, batches, plain_step_s, report.folder, report.beat)

    report.phase("checks")
    finite = sanity.finite_loss(torch.stack([*losses, *seen.losses]).float().cpu().tolist())
    return Measured(
        clock=trainer.clock_name,
        spans=[],
        samples=[],
        losses=[],
        evaluations=[],
        checks=[finite, seen.check, *trainer.checks()],
        memory=Peaks.now(trainer.place.device, loader.feed.helpers_bytes),
        loaded_bytes_per_step=None,
        communication=None,
        model=_model_size(trainer, dataset),
        data=dataset.facts(),
        strategy_facts=trainer.facts(),
        profile=seen.profile,
    )


def _model_size(trainer: Trainer, dataset: Dataset) -> ModelSize | None:
    return model_size(trainer.run.workload, dataset) if trainer.place.rank == 0 else None


@dataclass(kw_only=True)
class _Window:
    """The timed spans of one worker, and the evaluations between them."""

    spans: list[StepTimes] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    loaded_samples: int = 0
    """Of this rank, whoever counts them."""
    global_samples: int = 0
    """Of all workers, by the sizes of the global batches alone."""
    evaluations: list[Evaluation] = field(default_factory=list)
    stopped_after_epochs: int | None = None
    """None where all epochs were trained without reaching a target to stop at."""


def _window(trainer: Trainer, loader: Loader, dataset: Dataset, report: Report) -> _Window:
    run, strategy = trainer.run, trainer.strategy
    window, target = _Window(), target_to_stop_at(run)
    spans = 1 if run.steps else (run.epochs or 0) // loader.epochs_in_span
    for span in range(spans):
        report.phase("window")
        sizes, batches = _span(run, loader, span)
        clock = trainer.new_clock(len(sizes))
        report.so_far.begin(clock, trainer.counted(loader.division.samples(size) for size in sizes))
        strategy.align()  # nobody's meter counts how it waits for others' evaluation
        report.meter.begin()
        strategy.align()  # and no step is late for a slow meter
        losses, samples = timed_span(trainer.step, batches, clock, report.beat)
        report.meter.end()
        window.spans.append(clock.times())
        report.so_far.end(window.spans[-1], report.meter.reading())
        window.losses += losses
        window.samples += trainer.counted(samples)
        window.loaded_samples += sum(samples)
        window.global_samples += sum(sizes)
        strategy.span_done(window.spans[-1], samples)
        if run.evaluate:
            report.phase("evaluation")
            window.evaluations.append(trainer.evaluate(dataset, after_steps=len(window.samples), beat=report.beat))
            report.so_far.evaluated(window.evaluations[-1])
        if target and trainer.as_rank_0_says(target.reached_by(window.evaluations[-1])):
            window.stopped_after_epochs = (span + 1) * loader.epochs_in_span
            break
        if span + 1 < spans:
            loader.global_batch = trainer.schedule.after(span, partial(_noise_scale, trainer, loader, report))
    return window


def _noise_scale(trainer: Trainer, loader: Loader, report: Report, batches: int) -> float:
    report.phase("batch_schedule")
    return trainer.noise_scale(loader, batches)


def _span(run: RunConfig, loader: Loader, span: int) -> tuple[list[int], Iterator[Batch]]:
    """One span of the window: the sizes of its global batches, and this rank's shares of them.

    A fixed number of steps is one span; with epochs, each epoch is one.
    """
    if run.steps:
        return [run.global_batch] * run.steps, loader.endless(run.steps)
    return loader.epoch_sizes(), loader.epoch(span)


def _dataset(run: RunConfig) -> Dataset:
    """The run's data set: all of it or a part, its training labels true or not."""
    whole = load(run.data, _input_size(run))
    dataset = subset(whole, run.samples_kept(len(whole.train)))
    dataset = with_shuffled_labels(dataset) if run.shuffle_labels else dataset
    return hold_out(dataset, held_out_share(run.mixing), run.seed)


def _input_size(run: RunConfig) -> int | None:
    size = run.workload.options.get("input_size")
    return size if isinstance(size, int) else None
