"""The model, its optimiser and the step, for one worker: what `train.py` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.batch_schedule import batch_schedules
from benchmarks.batch_schedule.noise import measured_noise_scale
from benchmarks.compiling import Compilation
from benchmarks.core.config import RunConfig
from benchmarks.core.record import Check, Evaluation
from benchmarks.data import Dataset
from benchmarks.data.batches import Batch, Division, Loader
from benchmarks.lr_schedule import lr_schedules
from benchmarks.lr_schedule.rates import Rates, samples_of
from benchmarks.measuring import sanity
from benchmarks.measuring.ceilings import measure_ceilings
from benchmarks.measuring.communication import Probe
from benchmarks.measuring.evaluation import Evaluator
from benchmarks.measuring.slowdown import Slowdown, SlowedStep, slowdown_for
from benchmarks.measuring.step_times import Communication
from benchmarks.measuring.timing import Clock, clock_for
from benchmarks.mixing import Mixing, Setting, inserted, make_mixing
from benchmarks.model import build_model
from benchmarks.optimizer import TakeStep, WatchingOptimizer, optimizers
from benchmarks.precision import precisions
from benchmarks.restore import Snapshot
from benchmarks.strategy import Place, Step, Strategy
from benchmarks.strategy.traffic import size_bytes


class Trainer:
    """The model, its optimiser and the step, for one worker."""

    def __init__(self, run: RunConfig, place: Place, strategy: Strategy, dataset: Dataset) -> None:
        torch.manual_seed(run.seed)  # the same model on every rank
        layout = torch.channels_last if run.channels_last else torch.contiguous_format
        self.mixing = _mixing(run, strategy, dataset)
        model = inserted(build_model(run.workload, dataset, layout), self.mixing.layers())
        model = strategy.take_part(model, dataset.train.inputs[:8]).to(place.device).to(memory_format=layout)
        torch.manual_seed(run.seed + 1_000_003 * place.rank)  # but different dropout

        self.run, self.place, self.strategy = run, place, strategy
        self.bare_model = model
        self.precision = precisions.make(run.precision, place.device)
        if strategy.shards_gradients:
            self.precision.share_overflows()
        self.schedule = batch_schedules.make(run.batch_schedule, run.global_batch)
        self.gradient_bytes = size_bytes(value for value in model.parameters() if value.requires_grad)
        self.model = strategy.wrap(model, self.precision)
        self._clock: Clock | None = None
        self._slowdown = _slowdown(run, place)
        self._marks_last_gradient = strategy.on_last_gradient(model, self._mark_last_gradient)
        self.optimizer = strategy.make_optimizer(partial(optimizers.make, run.optimizer), self.model)
        self.loss = self.mixing.loss()
        self.mixing.built(model, self.precision)
        self.compilation = Compilation(run.compile, place.device)
        at_once = _evaluated_at_once(run, dataset)
        self._evaluator = Evaluator(model, strategy, self.precision, chunk=at_once, fuse=run.fuse_for_evaluation)
        plain = Step(
            model=self.compilation.apply(self.model),
            loss=self.loss,
            optimizer=self.optimizer,
            precision=self.precision,
            after_backward=self._mark_backward_done,
            before_forward=self.mixing.before_forward,
        )
        step: TakeStep = strategy.make_step(plain)
        if isinstance(self.optimizer, WatchingOptimizer):
            step = self.optimizer.watch(model, step, strategy)
        self._unscheduled = SlowedStep(step=step, slowdown=self._slowdown) if self._slowdown else step
        self.rates = Rates(
            self.optimizer,
            lr_schedules.make(run.lr_schedule),
            samples_of(run, len(dataset.train)),
            strategy.division,
        )
        self.step: TakeStep = self.rates.scheduled(self._unscheduled)

    @property
    def clock_name(self) -> str:
        """Of the clock that measures this worker's device."""
        return clock_for(self.place.device, 0).name

    def facts(self) -> dict[str, Any]:
        """What the strategy and the other parts decided and observed, for the record."""
        parts = (self.strategy, self.schedule, self.rates, self.mixing, self.compilation)
        return {name: fact for part in parts for name, fact in part.facts().items()}

    def counted(self, samples: Iterable[int]) -> list[int]:
        """Samples by step, or zeros where another rank counts them."""
        return [own if self.strategy.counts_samples else 0 for own in samples]

    def total(self, value: int) -> int:
        """The sum over all workers."""
        if not self.strategy.communicates:
            return value
        total = torch.tensor(value, device=self.place.device)
        dist.all_reduce(total)
        return int(total)

    def as_rank_0_says(self, verdict: bool) -> bool:
        """Rank 0's verdict on every rank that takes part in its training; all of them call this together."""
        if not self.strategy.communicates:
            return verdict
        said = torch.tensor(int(verdict), device=self.place.device)
        dist.broadcast(said, src=0)
        return bool(said)

    def new_clock(self, steps: int) -> Clock:
        """The clock of the next span, also for the moments that only the step knows."""
        return self.use_clock(clock_for(self.place.device, steps))

    def use_clock(self, clock: Clock) -> Clock:
        """From now on this clock, or what stands in its place, is told of those moments."""
        self._clock = clock
        self._clock.marks_last_gradient = self._marks_last_gradient
        return clock

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
                self._unscheduled(batch)
        initial.restore()
        self.strategy.forget()
        self.mixing.forget()
        self.compilation.warmed_up()
        del initial
        if self.place.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def measure_communication(self, loader: Loader) -> Communication:
        """What it costs, by as many steps as warm-up takes for each batch size; the model is of no use afterwards."""
        self._clock = None
        probe = Probe(self.place, self.strategy, self._unscheduled, self.run.warmup_steps)
        return probe.measure({size: loader.same(size) for size in self._batch_sizes(loader)}, self.gradient_bytes)

    def measure_ceilings(self) -> dict[str, float]:
        """What this device can do at best; the model takes no part in it."""
        return measure_ceilings(self.place, in_group=self.strategy.communicates)

    def _batch_sizes(self, loader: Loader) -> list[int]:
        """Of all global batches that the window may have."""
        sizes = {self.run.global_batch}
        for loader.global_batch in self.schedule.possible(self.run.epochs) if self.run.epochs else ():
            sizes |= {*loader.epoch_sizes()}
        loader.global_batch = self.run.global_batch
        return sorted(sizes)

    def noise_scale(self, loader: Loader, batches: int) -> float:
        """The gradient's noise scale at this moment, in samples, from the first global batches of the run's size."""
        place, run = self.place, self.run
        equal = loader.beside(Division(place.rank, place.workers), run.global_batch)
        with self.strategy.evaluating(self.bare_model):
            chosen = list(islice(equal.epoch(0), batches))
            return measured_noise_scale(self.bare_model, self._loss_of, chosen, place.workers)

    def _loss_of(self, batch: Batch) -> Tensor:
        with self.precision.autocast():
            loss: Tensor = self.loss(self.bare_model(batch.inputs), batch.targets)
        return loss

    def evaluate(self, dataset: Dataset, after_steps: int, beat: Callable[[int, int], None]) -> Evaluation:
        """Accuracy and mean loss over the whole test split, on every rank alike; its time is no part of the window."""
        return self._evaluator.evaluate(dataset.test, after_steps, beat)

    def checks(self) -> list[Check]:
        """What must hold of the trained model."""
        copies = self.strategy.copies(self.bare_model)
        equal = [sanity.replicas_equal(copies)] if copies else []
        return [*equal, *self.compilation.checks()]


def _evaluated_at_once(run: RunConfig, dataset: Dataset) -> int:
    """Samples: 256, or as many tokens; or as many as in training, for which there is room."""
    return max(run.batch_per_worker, 256 // dataset.test.targets_per_sample)


def _mixing(run: RunConfig, strategy: Strategy, dataset: Dataset) -> Mixing:
    setting = Setting(
        seed=run.seed,
        replica=strategy.division.replica,
        device=strategy.place.device,
        dataset=dataset,
        label_smoothing=run.label_smoothing,
    )
    return make_mixing(run.mixing, setting)


def _slowdown(run: RunConfig, place: Place) -> Slowdown | None:
    factor = run.slowdown.get(place.rank)
    return slowdown_for(place.device, factor) if factor else None
