"""Tensor parallelism: each layer is computed by several workers; with replicas, in a mesh of two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data import Split
from benchmarks.data.batches import Batch, Division, Feed, Loader
from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Step, Strategy, strategies
from benchmarks.strategy.buckets import GradientMean, sum_over
from benchmarks.strategy.fsdp import groups, padded_numbers, short_format_policy
from benchmarks.strategy.tensor_plan import cut, is_cut, local, partial_sums, regions, token_shape
from benchmarks.strategy.traffic import size_bytes, traffic_of


@strategies.register("tensor_parallel")
class TensorParallel(Strategy):
    """Megatron-LM's tensor parallelism (Shoeybi et al. 2019, arXiv 1909.08053, section 3), by torch's parallel styles.

    `degree` workers hold a replica of the model together, null is all of them: attention's heads and the MLP's hidden
    units are divided, all else is held whole by each. With `sequence`, norms and additions between are computed on a
    share of the tokens (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2), and activations are scattered and
    gathered instead of reduced: as many bytes, less memory. A replica is made of neighbours, ranks r x degree to
    r x degree + degree - 1, so it lies within a node where a node has room for it: its workers wait for each other
    several times in each layer, replicas once in a step.

    Replicas share each batch and average their gradients: with `data` ddp in buckets of `bucket_mb`, overlapping with
    the backward pass, and with fsdp by torch's fully_shard, which also divides what a worker has of the model over the
    replicas, in groups of `group_mb`.

    There is no step without communication to compare with, as a worker has no whole layers of its own; and it waits for
    others throughout the backward pass. So `exposed_comm_s` is unknown, and a rank's own time includes its waiting.
    """

    communicates = True
    shards_gradients = True

    def __init__(
        self, place: Place, *, degree: int | None, data: str, sequence: bool, bucket_mb: float, group_mb: float
    ) -> None:
        super().__init__(place)
        self.degree = int(degree or place.workers)
        self.replicas = place.workers // self.degree
        self.sequence = sequence
        self.shards_over_replicas = data == "fsdp"
        self.bucket_bytes, self.group_bytes = bucket_mb * 2**20, group_mb * 2**20
        self.division = Division(place.rank // self.degree, self.replicas)
        self.counts_samples = place.rank % self.degree == 0
        self.mean: GradientMean | None = None

    def make_loader(self, split: Split, /, *, global_batch: int, seed: int, feed: Feed | None = None) -> Loader:
        """The replica's batches, the same on all of its workers."""
        self.loader = super().make_loader(split, global_batch=global_batch, seed=seed, feed=feed)
        return self.loader

    def take_part(self, model: nn.Module, sample: Tensor, /) -> nn.Module:
        """The whole model, after a look at what flows through it; it is cut on its device.

        Raises ImpossibleRunError for a model that names no layers to cut, one with dropout, and, with `sequence`, one
        whose tokens cannot be shared equally.
        """
        self.tokens, self.hidden_size = token_shape(model, sample[:1])
        if self.sequence and self.tokens % self.degree:
            raise ImpossibleRunError(
                f"strategy.sequence=true: the model's {self.tokens} tokens cannot be shared equally by "
                f"degree={self.degree} workers"
            )
        if any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules()):
            raise ImpossibleRunError(
                "strategy=tensor_parallel: the model has dropout, of which each worker would draw its own"
            )
        return model

    def wrap(self, model: nn.Module, precision: Precision, /) -> nn.Module:
        """The same model, its parameters now cut; they and the buffers are those of rank 0."""
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        shape = (self.replicas, self.degree)
        self.mesh = init_device_mesh(self.place.device.type, shape, mesh_dim_names=("data", "tensor"))
        partial = partial_sums(model, sequence=self.sequence)
        self.partial = {name for name, parameter in model.named_parameters() if parameter in partial}
        cut(model, self.mesh["tensor"], sequence=self.sequence, dtype=precision.dtype)
        self.model, self.dtype, self.stream_dtype = model, precision.dtype, torch.float32
        self.cut = {name for name, parameter in model.named_parameters() if is_cut(parameter)}
        self.bytes_cut, self.bytes_whole = size_bytes(self._held(cut=True)), size_bytes(self._held(cut=False))
        if self.replicas > 1 and not self.shards_over_replicas:
            self.mean = GradientMean(list(model.parameters()), self.mesh.get_group("data"), self.bucket_bytes)
        if self.shards_over_replicas:
            self._shard_over_replicas(model, precision)
        self.summed = self._summed()
        return model

    def make_optimizer(self, make: Callable[[Iterable[Parameter]], Optimizer], _model: nn.Module, /) -> Optimizer:
        """The optimiser of what this worker holds.

        As plain tensors, in the parameters' memory: DTensors take much longer to update, and one group must not mix
        them with others. What fully_shard has sharded stays as it is, since it may move it.
        """
        parameters = list(self.model.parameters())
        if self.shards_over_replicas:
            return make(parameters)
        self.held = {
            parameter: Parameter(local(parameter)) if isinstance(parameter, DTensor) else parameter
            for parameter in parameters
        }
        return make(self.held.values())

    def make_step(self, step: Step, /) -> Step:
        """Gradients are completed between the backward pass and the update."""
        return step.made(CompletedStep, complete=self._complete)

    def bytes_per_step(self) -> int:
        """Activations, within a replica of D workers; and gradients, between R replicas.

        A replica's activations are A = its batch x tokens x hidden size numbers, and each region sends 4 (D-1)/D x A:
        it all-reduces its output in the forward pass, and its input's gradient in the backward pass. With `sequence`,
        these are an all-gather and a reduce-scatter each, which gloo makes an all-reduce of; and the trunk all-gathers
        its output and its input's gradient. Activations count in the format in which regions compute.

        After the backward pass the workers of a replica all-reduce the gradients of `_summed`. Between replicas, what a
        worker holds is all-reduced; or, with fsdp, gathered twice and reduce-scattered as in `Fsdp.bytes_per_step`.
        """
        inside, between = traffic_of(self.mesh.get_group("tensor")), traffic_of(self.mesh.get_group("data"))
        numbers = self.loader.global_batch / self.replicas * self.tokens * self.hidden_size
        regions_output = numbers * self.dtype.itemsize * sum(1 for _ in regions(self.model))
        if self.sequence:
            sent = 2 * (inside.all_gather(regions_output) + inside.reduce_scatter(regions_output))
            sent += 2 * inside.all_gather(numbers * self.stream_dtype.itemsize)
        else:
            sent = 2 * inside.all_reduce(regions_output)
        sent += inside.all_reduce(size_bytes(local(parameter) for _, parameter in self.summed))
        if self.shards_over_replicas:
            sent += 2 * between.all_gather(self.gathered_bytes) + between.reduce_scatter(self.numbers * 4)
        elif self.mean:
            sent += between.all_reduce(self.mean.size_bytes)
        return round(sent)

    @contextmanager
    def evaluating(self, _model: nn.Module, /) -> Iterator[None]:
        """Without gradients, but not in inference mode.

        There a linear layer is one operation to DTensors, and they would send its weights or inputs around in place of
        its outputs.
        """
        with torch.inference_mode(mode=False), torch.no_grad():
            yield

    def copies(self, _model: nn.Module, /) -> Copies:
        """What is held whole, on a replica's workers; and each worker's part of the rest, on all replicas.

        But with fsdp replicas hold different shards.
        """
        whole = self._held(cut=False)
        if self.shards_over_replicas:
            return Copies(tensors=whole, group=self.mesh.get_group("tensor"))
        others = [Copies(tensors=self._held(cut=True), group=self.mesh.get_group("data"))] if self.replicas > 1 else []
        return Copies(tensors=whole, others=others)

    def facts(self) -> dict[str, Any]:
        """The mesh, and what of the model is cut; bytes are of a replica's workers each, in fp32."""
        return {
            "mesh": {"data": self.replicas, "tensor": self.degree},
            "replicas": self.replicas,
            "degree": self.degree,
            "tokens": self.tokens,
            "cut_parameters": len(self.cut),
            "whole_parameters": sum(1 for _ in self.model.parameters()) - len(self.cut),
            "cut_bytes_per_worker": self.bytes_cut,
            "whole_bytes_per_worker": self.bytes_whole,
        }

    def _shard_over_replicas(self, model: nn.Module, precision: Precision) -> None:
        """As `fsdp` does, what this worker has of them; formats of activations are autocast's affair alone.

        The stem's position vectors come in the short format, and so do tokens all the way.
        """
        policy, kept_wide = short_format_policy(model, precision.dtype)
        policy = replace(policy, cast_forward_inputs=False)
        self.stream_dtype = policy.param_dtype or torch.float32
        self.numbers = self.gathered_bytes = 0
        for parameter in model.parameters():
            numbers = padded_numbers(local(parameter), self.replicas)
            short = policy.param_dtype is not None and parameter not in kept_wide
            self.numbers += numbers
            self.gathered_bytes += numbers * (precision.dtype if short else parameter.dtype).itemsize
        for module in [*groups(model, self.group_bytes), model]:
            fully_shard(module, mesh=self.mesh["data"], reshard_after_forward=True, mp_policy=policy)

    def _complete(self) -> None:
        """After the backward pass: every gradient is whole and averaged, and where the optimiser looks for it."""
        if not self.shards_over_replicas:
            means = self.mean.finish() if self.mean else {}
            for parameter, held in self.held.items():
                if parameter in means:
                    held.grad = means[parameter]
                elif held is not parameter and parameter.grad is not None:
                    held.grad, parameter.grad = local(parameter.grad), None
        gradients = []
        for name, parameter in self.summed:
            gradient = (parameter if self.shards_over_replicas else self.held[parameter]).grad
            if gradient is not None:
                gradients.append(local(gradient) if name in self.partial else local(gradient).div_(self.degree))
        if gradients:
            sum_over(self.mesh.get_group("tensor"), gradients)

    def _summed(self) -> list[tuple[str, Parameter]]:
        """The parameters whose gradients are summed within a replica after the backward pass.

        Partial sums; and with several replicas all that is held whole. Of that, a replica's workers have the same
        gradient already, but for rounding: each has averaged it in a group of its own, and NCCL is free to add up in
        another order there.
        """
        return [
            (name, parameter)
            for name, parameter in self.model.named_parameters()
            if name in self.partial or (self.replicas > 1 and name not in self.cut)
        ]

    def _held(self, *, cut: bool) -> list[Tensor]:
        """What this worker holds of the parameters that are cut over its replica, or of those that are not."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # an evaluation may leave them gathered
        return [local(parameter) for name, parameter in self.model.named_parameters() if (name in self.cut) == cut]


@dataclass(frozen=True, kw_only=True)
class CompletedStep(Step):
    """A step whose gradients need the other workers once more after the backward pass."""

    complete: Callable[[], None]

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss."""
        loss = self.backward(batch)
        self.complete()
        self.after_backward()
        self.update()
        return loss
