"""Data parallelism with sharded parameters, gradients and optimiser state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Strategy, strategies
from benchmarks.strategy.traffic import traffic_of


@strategies.register("fsdp")
class Fsdp(Strategy):
    """torch's fully_shard (Zhao et al. 2023, arXiv 2304.11277; ZeRO stage 3, arXiv 1910.02054).

    Each rank holds 1/N of every parameter, its gradient and its optimiser state. Modules of `group_mb` and more are
    gathered as a group before their forward pass, dropped after it (with `reshard_after_forward`) and gathered again
    for the backward pass; gradients are reduce-scattered. With `hybrid`, parameters are sharded over the workers of a
    node and equal on all nodes (Zhao et al., section 3.2.2).

    There is no step without communication to compare with: a rank has no whole parameters of its own. So
    `exposed_comm_s` is unknown, and a rank's own time includes its waiting.
    """

    communicates = True
    shards_gradients = True

    def __init__(self, place: Place, *, group_mb: float, reshard_after_forward: bool, hybrid: bool) -> None:
        super().__init__(place)
        self.group_bytes = group_mb * 2**20
        self.reshard_after_forward = reshard_after_forward
        self.hybrid = hybrid
        self.numbers = self.gathered_bytes = 0

    def wrap(self, model: nn.Module, precision: Precision, /) -> nn.Module:
        """The same model, its parameters now sharded; they and the buffers are those of rank 0.

        In a short format, parameters are gathered in that format, and gradients still summed in that of the shards.
        """
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        shape = (self.place.nodes, self.place.workers // self.place.nodes) if self.hybrid else (self.place.workers,)
        names = ("replicate", "shard")[-len(shape) :]
        self.mesh = init_device_mesh(self.place.device.type, shape, mesh_dim_names=names)
        policy, kept_wide = short_format_policy(model, precision.dtype)
        for parameter in model.parameters():
            numbers = padded_numbers(parameter, shape[-1])
            short = policy.param_dtype is not None and parameter not in kept_wide
            self.numbers += numbers
            self.gathered_bytes += numbers * (precision.dtype if short else parameter.dtype).itemsize
        for module in [*groups(model, self.group_bytes), model]:
            fully_shard(module, mesh=self.mesh, reshard_after_forward=self.reshard_after_forward, mp_policy=policy)
        self.model = model
        return model

    def bytes_per_step(self) -> int:
        """For S workers that share the parameters: (S-1)/S x their bytes for each gathering, of which there are two.

        One without `reshard_after_forward`; parameters count in the format in which they are gathered. Then (S-1)/S x
        the gradients' bytes for the reduce-scatter, twice that with gloo; and with `hybrid`, an all-reduce of the
        gradients' shards over R nodes, 2 (R-1)/R x their bytes. Rows that fill up a shard are sent, too.
        """
        traffic = traffic_of(self.mesh.get_group("shard"))
        gatherings = 2 if self.reshard_after_forward else 1
        sent = gatherings * traffic.all_gather(self.gathered_bytes) + traffic.reduce_scatter(self.numbers * 4)
        if self.hybrid:
            nodes = traffic_of(self.mesh.get_group("replicate"))
            sent += nodes.all_reduce(self.numbers * 4 / self.mesh.size(-1))
        return round(sent)

    def copies(self, _model: nn.Module, /) -> Copies | None:
        """With `hybrid`, this rank's shards, on one worker of each node."""
        if not self.hybrid:
            return None
        shards = [parameter.to_local() for parameter in self._sharded()]
        return Copies(tensors=shards, group=self.mesh.get_group("replicate"))

    def _sharded(self) -> list[DTensor]:
        """The parameters as shards, also after an evaluation, which may leave them gathered."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return [parameter for parameter in self.model.parameters() if isinstance(parameter, DTensor)]


def short_format_policy(model: nn.Module, dtype: torch.dtype) -> tuple[MixedPrecisionPolicy, set[Parameter]]:
    """In which format parameters are gathered, and those that stay as they are.

    Batch norm's do, since they must match its running averages. torch before 2.15 cannot make an exception of them: it
    gathers all as they are, and autocast shortens them where they are used.
    """
    batch_norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept_wide = {parameter for module in batch_norms for parameter in module.parameters()}
    if dtype == torch.float32 or not hasattr(MixedPrecisionPolicy, "param_dtype_override_fn"):
        return MixedPrecisionPolicy(reduce_dtype=torch.float32), kept_wide
    policy = MixedPrecisionPolicy(
        param_dtype=dtype,
        reduce_dtype=torch.float32,
        param_dtype_override_fn=lambda parameter: parameter.dtype if parameter in kept_wide else None,
    )
    return policy, kept_wide


def groups(model: nn.Module, group_bytes: float) -> Iterator[nn.Module]:
    """Modules below the model, from the bottom up, whose parameters in no group yet amount to `group_bytes`.

    A parameter that several modules share is in a group with all of them, since a group replaces it by its shard where
    it knows of it only.
    """
    grouped: set[Parameter] = set()
    everywhere = _holders(model)
    for module in reversed([module for module in model.modules() if module is not model]):
        own = [parameter for parameter in module.parameters() if parameter not in grouped]
        size = sum(parameter.numel() * parameter.element_size() for parameter in own)
        has_forward = not isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if own and size >= group_bytes and has_forward and _holders(module).items() <= everywhere.items():
            grouped.update(own)
            yield module


def _holders(model: nn.Module) -> Counter[Parameter]:
    """In how many places each of a model's parameters stands."""
    return Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))


def padded_numbers(parameter: Tensor, shards: int) -> int:
    """Numbers in a parameter's shards, each of which has as many rows as the largest."""
    rows = parameter.shape[0]
    return -(-rows // shards) * shards * (parameter.numel() // rows)
