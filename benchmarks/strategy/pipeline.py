"""Model parallelism over layers: each worker of a replica holds some of them, and samples pass from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data import Split
from benchmarks.data.batches import Batch, Division, Feed, Loader
from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Step, Strategy, strategies
from benchmarks.strategy.balance import measured_costs_s, partition
from benchmarks.strategy.buckets import GradientAverage
from benchmarks.strategy.layers import Boundary, Layer, Part, Slice, layers_of
from benchmarks.strategy.schedules import BatchLoss, MicroBatches, Plan, unwrapped
from benchmarks.strategy.traffic import size_bytes, traffic_of


@strategies.register("pipeline")
class Pipeline(Strategy):
    """Pipeline parallelism with torch.distributed.pipelining; with fewer `stages` than workers, times data parallelism.

    `stages` workers hold one replica of the model together. They are neighbours, ranks r with the same r // stages, so
    that activations stay within a node where a replica fits into one; gradients are averaged over the ranks that hold
    the same layers, one of each replica. A replica takes its share of a batch in micro-batches, and while one worker
    computes one of them, its neighbours compute others. The first worker idles while the last is busy with the first
    micro-batch, and so on: for S equal stages and m micro-batches, (S-1)/m of the ideal time is added with gpipe and
    1f1b (Huang et al. 2019, section 2.3), less with several stages on each worker (`stages_per_worker`).

    The step is that of the undivided batch: the gradient of its mean loss, also where micro-batches do not divide it
    (see `MicroBatches.fill`). But batch norm normalises each micro-batch by itself, with the samples that fill it up,
    and its running averages see one micro-batch after another; so a model with batch norm trains as it would if the
    gradients of m small batches were accumulated. For an evaluation, replicas take over the averages of the first one.

    The exposed communication is unknown: a stage has nothing to compute without its neighbours. A rank's own time
    includes its waiting for them.
    """

    communicates = True
    shards_gradients = True  # an overflow may be in one stage only, and all must skip the step

    def __init__(
        self,
        place: Place,
        *,
        schedule: str,
        stages: int | None,
        stages_per_worker: int,
        micro_batches: int | None,
        micro_batch_size: int | None,
        balance: str,
    ) -> None:
        super().__init__(place)
        self.workers = int(stages or place.workers)  # of one replica
        self.replica, self.worker = divmod(place.rank, self.workers)
        self.replicas = place.workers // self.workers
        self.division = Division(self.replica, self.replicas)
        self.balance = balance
        self.plan = Plan(
            schedule=schedule,
            workers=self.workers,
            stages_per_worker=stages_per_worker,
            micro_batches=micro_batches,
            micro_batch_size=micro_batch_size,
            full_samples=1,  # until the loader is made
        )
        self.own_stages = self.plan.stages_of(self.worker)
        self.counts_samples = self._holds(self.plan.stages - 1)
        self.group: dist.ProcessGroup | None = None
        """This replica's workers; None is all workers."""
        self.twins: dist.ProcessGroup | None = None
        """The workers that hold the same layers, by replica; None where there is one replica."""
        self.slices: dict[int, Slice] = {}
        self.boundaries: list[Boundary] = []
        """What each stage is sent, and what the last one makes."""
        self._schedules: dict[MicroBatches, Any] = {}

    def make_loader(self, split: Split, /, *, global_batch: int, seed: int, feed: Feed | None = None) -> Loader:
        """This replica's batches: its first worker needs the images, its last the classes."""
        self.plan = replace(self.plan, full_samples=self.division.samples(global_batch))
        return super().make_loader(split, global_batch=global_batch, seed=seed, feed=feed)

    def take_part(self, model: nn.Module, sample: Tensor, /) -> nn.Module:
        """The layers of this worker's stages.

        Raises:
            ImpossibleRunError: the model has fewer layers than there are stages.
        """
        self._form_groups()
        layers = layers_of(model)
        if len(layers) < self.plan.stages:
            raise ImpossibleRunError(
                f"strategy.stages={self.workers} x stages_per_worker={self.plan.stages_per_worker}: more than the "
                f"{len(layers)} layers that the model can be cut into; it is cut where it is an nn.Sequential, "
                "torchvision's ResNet, or has a method layers_in_order()"
            )
        self.costs = self._costs(layers, sample)
        cuts = partition(self.costs, self.plan.stages)
        self.stage_names = [[layer.name for layer in layers[cut]] for cut in cuts]
        self.stage_costs = [sum(self.costs[cut]) for cut in cuts]
        self.layers = {stage: layers[cuts[stage]] for stage in self.own_stages}
        self.gradient_bytes = size_bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
        self.sample = sample[:2]
        return Part(layer for stage in self.own_stages for layer in self.layers[stage])

    def wrap(self, model: nn.Module, precision: Precision, /) -> nn.Module:
        """The same part; its values are those of the first replica."""
        self.precision = precision
        self._take_from_first_replica([*model.parameters(), *model.buffers()])
        self.slices = {stage: Slice(self.layers[stage], precision) for stage in self.own_stages}
        self._probe()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.average = GradientAverage(trained, self.twins) if self.twins else None
        return model

    def make_step(self, step: Step, /) -> Step:
        """A schedule takes the forward and backward passes."""
        assert isinstance(step.loss, nn.CrossEntropyLoss)
        self.loss = BatchLoss(self.precision, self.place.device, label_smoothing=step.loss.label_smoothing)
        self.precision.scale(torch.zeros((), device=self.place.device))  # stages without a loss have a scale, too
        return step.made(PipelinedStep, run=self._run)

    def _run(self, batch: Batch) -> Tensor:
        """Gradients of the global batch; returns the mean loss of this replica's share, or 0 where it is not known."""
        micro_batches = self.plan.cut(len(batch))
        if micro_batches not in self._schedules:
            self._schedules[micro_batches] = self._schedule(micro_batches)
        first, last = self._holds(0), self._holds(self.plan.stages - 1)
        filled = micro_batches.fill(batch) if first or last else batch
        self.loss.begin(batch)
        with unwrapped():
            self._schedules[micro_batches].step(
                *([filled.inputs] if first else []), **({"target": filled.targets} if last else {})
            )
        if self.average:
            self.average()
        return self.loss.mean()

    def _schedule(self, micro_batches: MicroBatches) -> Any:
        """torch's, for micro-batches of one size.

        It is told all shapes: to find them out by itself it would run the model, and move batch norm's averages.
        """

        def like(boundary: Boundary) -> Tensor:
            tensor = boundary.buffer(micro_batches.size, "meta")
            return tensor.requires_grad_() if tensor.is_floating_point() else tensor

        stages = [
            PipelineStage(
                self.slices[stage],
                stage,
                self.plan.stages,
                self.place.device,
                input_args=like(self.boundaries[stage]),
                output_args=like(self.boundaries[stage + 1]),
                group=self.group,
            )
            for stage in self.own_stages
        ]
        return self.plan.make(stages, micro_batches.count, self.loss)

    def evaluating(self, model: nn.Module, /) -> AbstractContextManager[None]:
        """Batch norm's averages are those of the first replica, as DistributedDataParallel has them."""
        self._take_from_first_replica(list(model.buffers()))
        return nullcontext()

    def predict(self, _model: nn.Module, inputs: Tensor, /) -> Tensor:
        """Logits of the whole model, passed through the stages in turn and then to all workers of the replica."""
        values, last = inputs, self.plan.stages - 1
        for stage in self.own_stages:
            if stage > 0 and not self._holds(stage - 1):
                values = self.boundaries[stage].buffer(len(inputs), self.place.device)
                dist.recv(values, group=self.group, group_src=self.plan.owner(stage - 1))
            values = self.slices[stage](values)
            if stage < last and not self._holds(stage + 1):
                dist.send(values, group=self.group, group_dst=self.plan.owner(stage + 1))
        logits = values if self._holds(last) else self.boundaries[-1].buffer(len(inputs), self.place.device)
        dist.broadcast(logits, group=self.group, group_src=self.plan.owner(last))
        return logits

    def bytes_per_step(self) -> int:
        """A mean over workers, for full batches.

        Between two stages on different workers, m micro-batches of activations forward and as many bytes of gradients
        backward; samples that fill up a batch are sent, too. With R replicas of S workers, 2 (R-1)/R x the gradients'
        bytes of a worker for the all-reduce: all workers of a replica have those of the whole model, so 1/S of it.
        """
        micro_batches = self.plan.cut(self.plan.full_samples)
        crossed = [
            self.boundaries[stage]
            for stage in range(1, self.plan.stages)
            if self.plan.owner(stage - 1) != self.plan.owner(stage)
        ]
        sent: float = sum(2 * micro_batches.count * boundary.size_bytes(micro_batches.size) for boundary in crossed)
        if self.twins:
            sent += traffic_of(self.twins).all_reduce(self.gradient_bytes)
        return round(sent / self.workers)

    def copies(self, model: nn.Module, /) -> Copies | None:
        """This part's parameters, on one worker of each replica."""
        return Copies(tensors=list(model.parameters()), group=self.twins) if self.twins else None

    def facts(self) -> dict[str, Any]:
        """Which layers are where, what they cost (seconds for a micro-batch, or layers), and the micro-batches."""
        micro_batches = self.plan.cut(self.plan.full_samples)
        cost = "forward_backward_s" if self.balance == "measured" else "layers_held"
        return {
            "replicas": self.replicas,
            "micro_batches": micro_batches.count,
            "micro_batch_size": micro_batches.size,
            "stages": [
                {"worker": self.plan.owner(stage), "layers": names, cost: self.stage_costs[stage]}
                for stage, names in enumerate(self.stage_names)
            ],
        }

    def _holds(self, stage: int) -> bool:
        return self.plan.owner(stage) == self.worker

    def _form_groups(self) -> None:
        """All workers form all groups, in the same order: torch wants it so."""
        if self.replicas == 1:
            return
        for replica in range(self.replicas):
            group = dist.new_group([replica * self.workers + worker for worker in range(self.workers)])
            if replica == self.replica and isinstance(group, dist.ProcessGroup):
                self.group = group
        for worker in range(self.workers):
            group = dist.new_group([replica * self.workers + worker for replica in range(self.replicas)])
            if worker == self.worker and isinstance(group, dist.ProcessGroup):
                self.twins = group

    def _costs(self, layers: Sequence[Layer], sample: Tensor) -> list[float]:
        """One for each layer. All ranks must cut alike, so rank 0 measures for them."""
        if self.balance == "layers":
            return [1.0] * len(layers)
        costs = torch.zeros(len(layers), dtype=torch.float64)
        if self.place.rank == 0:
            size = self.plan.cut(self.plan.full_samples).size
            like_a_micro_batch = sample[torch.arange(size) % len(sample)]
            costs = torch.tensor(measured_costs_s(layers, like_a_micro_batch, self.place.device), dtype=torch.float64)
        costs = costs.to(self.place.device)
        dist.broadcast(costs, 0)
        known: list[float] = costs.tolist()
        return known

    def _take_from_first_replica(self, tensors: Sequence[Tensor]) -> None:
        if self.twins:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), group=self.twins, group_src=0)

    def _probe(self) -> None:
        """Find out what passes between stages, with a few samples; every worker learns all of it."""
        values = self.sample.to(self.place.device)
        before = Boundary(shape=tuple(values.shape[1:]), dtype=values.dtype, channels_last=False)
        self.boundaries = [before]
        for stage in range(self.plan.stages):
            found: list[Boundary | None] = [None]
            if self._holds(stage):
                values, found[0] = self.slices[stage].probe(values, before)
            owner = self.plan.owner(stage)
            dist.broadcast_object_list(found, group=self.group, group_src=owner, device=self.place.device)
            assert found[0] is not None
            before = found[0]
            self.boundaries.append(before)
            if not self._holds(stage):
                values = before.buffer(len(self.sample), self.place.device)
            dist.broadcast(values, group=self.group, group_src=owner)


@strategies.register("model_parallel")
class ModelParallel(Pipeline):
    """The layers on several workers and a replica's share of the batch as one: always one worker of a replica computes.

    It makes room for a model and no speed; it is what a pipeline is compared with. Batch norm sees the whole share.
    """

    def __init__(self, place: Place, *, stages: int | None, balance: str) -> None:
        super().__init__(
            place,
            schedule="gpipe",
            stages=stages,
            stages_per_worker=1,
            micro_batches=1,
            micro_batch_size=None,
            balance=balance,
        )


@dataclass(frozen=True, kw_only=True)
class PipelinedStep(Step):
    """A step whose forward and backward passes are taken in turns by all stages."""

    run: Callable[[Batch], Tensor]

    def backward(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss; returns it on the worker that has the last stage, and 0 on others."""
        return self.run(batch)
