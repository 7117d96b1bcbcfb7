"""One worker's measurement: build, warm up, time, evaluate, check. Read this file first.

Everything that is measured happens in `timed_span`. Around it: the model is built from the seed, wrapped by the
strategy, warmed up on random data and then put back to its initial state, so that the window holds neither first-time
costs nor their effects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import sanity
from benchmarks.communication import Probe
from benchmarks.config import RunConfig
from benchmarks.data import Dataset, load
from benchmarks.data.batches import Batch, Loader, global_batch_sizes, share
from benchmarks.optimizer import optimizers
from benchmarks.partial import SoFar
from benchmarks.peaks import Peaks
from benchmarks.precision import precisions
from benchmarks.record import Check, Evaluation, finite
from benchmarks.restore import Snapshot
from benchmarks.slowdown import Slowdown, SlowedStep, slowdown_for
from benchmarks.step_times import Communication, StepTimes
from benchmarks.strategy import Place, Step, Strategy
from benchmarks.strategy.traffic import size_bytes
from benchmarks.timing import Clock, clock_for
from benchmarks.workload import ImageShape, build


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the measurement tells its surroundings where it is; all calls return at once."""

    phase: Callable[[str], None]
    beat: Callable[[int, int], None]
    so_far: SoFar = field(default_factory=SoFar)


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
    communication: Communication


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
    dataset = load(run.data, _input_size(run))
    loader = Loader(
        dataset.train,
        device=place.device,
        rank=place.rank,
        workers=place.workers,
        global_batch=run.global_batch,
        seed=run.seed,
    )

    report.phase("build")
    trainer = Trainer(run, place, strategy, dataset)

    report.phase("warmup")
    trainer.warm_up(loader)

    expected_samples = _expected_samples(run, place, len(dataset.train))
    spans: list[StepTimes] = []
    losses: list[Tensor] = []
    samples: list[int] = []
    evaluations: list[Evaluation] = []
    for steps, batches in _spans(run, loader):
        report.phase("window")
        clock = trainer.new_clock(steps)
        report.so_far.begin(clock, expected_samples[len(samples) : len(samples) + steps])
        strategy.align()
        span_losses, span_samples = timed_span(trainer.step, batches, clock, report.beat)
        spans.append(clock.times())
        report.so_far.end(spans[-1])
        losses += span_losses
        samples += span_samples
        if run.evaluate:
            report.phase("evaluation")
            evaluations.append(trainer.evaluate(dataset, after_steps=len(samples), beat=report.beat))
            report.so_far.evaluated(evaluations[-1])

    report.phase("checks")
    loss_values = torch.stack(losses).float().cpu().tolist()
    counted = sanity.expected_samples(sum(samples), sum(expected_samples))
    checks = [sanity.finite_loss(loss_values), counted, sanity.clocks_agree(spans), *trainer.checks()]
    memory = Peaks.now(place.device)

    report.phase("communication")  # last: its steps train on, without the other ranks
    communication = trainer.measure_communication(loader)
    return Measured(
        clock=clock.name,
        spans=spans,
        samples=samples,
        losses=loss_values,
        evaluations=evaluations,
        checks=checks,
        memory=memory,
        communication=communication,
    )


class Trainer:
    """The model, its optimiser and the step, for one worker."""

    def __init__(self, run: RunConfig, place: Place, strategy: Strategy, dataset: Dataset) -> None:
        torch.manual_seed(run.seed)  # the same model on every rank
        images = dataset.train.inputs.shape
        model = build(run.workload, ImageShape(channels=images[1], size=images[2], classes=dataset.classes))
        layout = torch.channels_last if run.channels_last else torch.contiguous_format
        model = nn.Sequential(ToFloat(layout), model).to(place.device).to(memory_format=layout)
        torch.manual_seed(run.seed + 1_000_003 * place.rank)  # but different dropout

        self.run, self.place, self.strategy = run, place, strategy
        self.bare_model = model
        self.precision = precisions.make(run.precision, place.device)
        if strategy.shards_gradients:
            self.precision.share_overflows()
        self.gradient_bytes = size_bytes(value for value in model.parameters() if value.requires_grad)
        self.model = strategy.wrap(model, self.precision)
        self._clock: Clock | None = None
        self._slowdown = _slowdown(run, place)
        self._marks_last_gradient = strategy.on_last_gradient(model, self._mark_last_gradient)
        self.optimizer = strategy.make_optimizer(partial(optimizers.make, run.optimizer), self.model)
        self.loss = nn.CrossEntropyLoss()
        plain = Step(
            model=torch.compile(self.model) if run.compile else self.model,  # type: ignore[arg-type]
            loss=self.loss,
            optimizer=self.optimizer,
            precision=self.precision,
            after_backward=self._mark_backward_done,
        )
        step = strategy.make_step(plain)
        self.step: Callable[[Batch], Tensor] = (
            SlowedStep(step=step, slowdown=self._slowdown) if self._slowdown else step
        )

    def new_clock(self, steps: int) -> Clock:
        """The clock of the next span, also for the moments that only the step knows."""
        self._clock = clock_for(self.place.device, steps)
        self._clock.marks_last_gradient = self._marks_last_gradient
        return self._clock

    def _mark_last_gradient(self) -> None:
        if self._slowdown:
            self._slowdown.stretch()
        if self._clock:
            self._clock.last_gradient()

    def _mark_backward_done(self) -> None:
        if self._slowdown:
            if not self._marks_last_gradient:
                self._slowdown.stretch()
            self._slowdown.mark()
        if self._clock:
            self._clock.backward_done()

    def warm_up(self, loader: Loader) -> None:
        """Take the steps that pay first-time costs (allocation, autotuning, compilation), then undo what they did.

        Every batch size of the window is warmed up: a short last batch would be compiled or tuned for inside the
        window.
        """
        initial = Snapshot(self.bare_model, self.optimizer)
        self.model.train()
        for size in self._batch_sizes(loader):
            batch = loader.for_warmup(size)
            for _ in range(self.run.warmup_steps):
                self.step(batch)
        initial.restore()
        self.strategy.forget()
        del initial
        if self.place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def measure_communication(self, loader: Loader) -> Communication:
        """What it costs, by as many steps as warm-up takes for each batch size; the model is of no use afterwards."""
        self._clock = None
        probe = Probe(self.place, self.strategy, self.step, self.run.warmup_steps)
        return probe.measure({size: loader.same(size) for size in self._batch_sizes(loader)}, self.gradient_bytes)

    def _batch_sizes(self, loader: Loader) -> list[int]:
        """Of all global batches of the window."""
        return sorted({self.run.global_batch, *(loader.epoch_sizes() if self.run.epochs else ())})

    @torch.inference_mode()
    def evaluate(self, dataset: Dataset, after_steps: int, beat: Callable[[int, int], None]) -> Evaluation:
        """Accuracy and mean loss over the whole test split, on every rank alike; its time is no part of the window."""
        self.bare_model.eval()
        clock = clock_for(self.place.device, 1)
        clock.start()
        chunk = max(self.run.batch_per_worker, 256)
        starts = range(0, len(dataset.test), chunk)
        correct, loss = torch.zeros((), device=self.place.device), torch.zeros((), device=self.place.device)
        for number, start in enumerate(starts):
            inputs = dataset.test.inputs[start : start + chunk].to(self.place.device)
            targets = dataset.test.targets[start : start + chunk].to(self.place.device)
            with self.precision.autocast():
                logits = self.bare_model(inputs)
                loss += self.loss(logits, targets) * len(targets)
            correct += (logits.argmax(1) == targets).sum()
            beat(number + 1, len(starts))
        accuracy, mean_loss = correct.item() / len(dataset.test), loss.item() / len(dataset.test)
        clock.stop()
        self.bare_model.train()
        return Evaluation(
            after_steps=after_steps,
            time_s=clock.wall_time_s,
            samples=len(dataset.test),
            accuracy=accuracy,
            loss=finite(mean_loss),
        )

    def checks(self) -> list[Check]:
        """What must hold of the trained model."""
        copies = self.strategy.copies(self.bare_model)
        return [sanity.replicas_equal(copies)] if copies else []


def _slowdown(run: RunConfig, place: Place) -> Slowdown | None:
    factor = run.slowdown.get(place.rank)
    return slowdown_for(place.device, factor) if factor else None


class ToFloat(nn.Module):
    """Bytes 0 to 255 to numbers from -1 to 1, in the model's memory format: the first layer of every image model."""

    def __init__(self, layout: torch.memory_format) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, size, size), uint8 to float32."""
        return images.to(torch.float32, memory_format=self.layout).div(127.5).sub(1.0)


def _expected_samples(run: RunConfig, place: Place, train_samples: int) -> list[int]:
    """Samples that this rank must process in each step of the window, from the configuration alone."""
    if run.steps:
        return [run.batch_per_worker] * run.steps
    shares = (
        share(size, place.rank, place.workers)
        for size in global_batch_sizes(train_samples, run.global_batch, run.workers)
    )
    return [int(part.stop - part.start) for part in shares] * (run.epochs or 0)


def _spans(run: RunConfig, loader: Loader) -> Iterator[tuple[int, Iterator[Batch]]]:
    """The window's spans, each a number of steps and the batches for them.

    A fixed number of steps is one span; with epochs, each epoch is one.
    """
    if run.steps:
        yield run.steps, loader.endless()
    for epoch in range(run.epochs or 0):
        yield len(loader.epoch_sizes()), loader.epoch(epoch)


def _input_size(run: RunConfig) -> int | None:
    size = run.workload.options.get("input_size")
    return size if isinstance(size, int) else None
