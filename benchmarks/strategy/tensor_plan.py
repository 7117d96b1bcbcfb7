"""How a model says where it can be cut by tensors, and the cutting, by torch's parallel styles.

A model that can be cut has a trunk, and in it regions. A region begins with linear layers that are cut by columns, so
that a worker has some of their outputs, and ends with one that is cut by rows, which takes these: in between, a worker
computes its share of heads or hidden units without the others (Shoeybi et al. 2019, arXiv 1909.08053, section 3). The
strategy asks a model for no more than the attributes below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn import Parameter

from benchmarks.core.errors import ImpossibleRunError


@runtime_checkable
class Region(Protocol):
    """A module that names its linear layers. Its forward pass takes one tensor and hands it to the first ones alone.

    And to those that it names as `replicated`, if it does: they have no parameters, hand no gradients back, and are
    computed by every worker for itself.
    """

    column_parallel: tuple[str, ...]
    row_parallel: tuple[str, ...]


@runtime_checkable
class Trunk(Protocol):
    """A module that takes and returns tokens, and but for its regions looks at each token by itself."""

    sequence_dim: int
    """Of its input and its output, along which the tokens lie."""


def trunks(model: nn.Module) -> Iterator[tuple[nn.Module, int]]:
    """The model's trunks with their dimension of tokens."""
    for module in model.modules():
        if isinstance(module, Trunk):
            yield module, module.sequence_dim


def regions(module: nn.Module) -> Iterator[tuple[nn.Module, Region]]:
    """All regions in a module, each as module and as region."""
    for part in module.modules():
        if isinstance(part, Region):
            yield part, part


def token_shape(model: nn.Module, sample: Tensor) -> tuple[int, int]:
    """Tokens and hidden size in the model's trunk; it takes the sample through the model.

    Raises ImpossibleRunError where the model names no trunk with regions.
    """
    cuttable = [(trunk, dim) for trunk, dim in trunks(model) if any(True for _ in regions(trunk))]
    if not cuttable:
        raise ImpossibleRunError("strategy=tensor_parallel: this workload's model names no layers that can be cut")
    trunk, dim = cuttable[0]
    shapes: list[tuple[int, int]] = []

    def note(_trunk: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes.append((inputs[0].shape[dim], inputs[0].shape[-1]))

    hook = trunk.register_forward_pre_hook(note)
    with torch.no_grad():
        model.eval()(sample)
    model.train()
    hook.remove()
    return shapes[0]


def cut(model: nn.Module, mesh: DeviceMesh, *, sequence: bool, dtype: torch.dtype) -> None:
    """Cut the regions' layers over the mesh; their parameters become DTensors, the others stay as they are.

    With `sequence`, a worker has a share of the tokens wherever it does not need all of them: in the trunk around its
    regions (Korthikanti et al. 2022, arXiv 2205.05198, section 4.2.2). With a short `dtype`, regions take their input
    in it, as autocast would a moment later, so that less is sent.

    Raises ImpossibleRunError where a layer cannot be shared equally.
    """
    for trunk, dim in trunks(model):
        around: Placement = Shard(dim) if sequence else Replicate()
        for module, region in regions(trunk):
            _cut_region(module, region, mesh, around, dtype)
        if sequence:
            style = PrepareModuleInputOutput(
                input_layouts=Replicate(),
                desired_input_layouts=around,
                use_local_input=True,
                output_layouts=around,
                desired_output_layouts=Replicate(),
            )
            parallelize_module(trunk, mesh, style)


def _cut_region(module: nn.Module, region: Region, mesh: DeviceMesh, around: Placement, dtype: torch.dtype) -> None:
    """The input is converted once for all first layers: their gradients are added up here, and their sum is sent."""
    dims = dict.fromkeys(region.column_parallel, 0) | dict.fromkeys(region.row_parallel, 1)
    for name, dim in dims.items():
        size = module.get_submodule(name).get_parameter("weight").shape[dim]
        if size % mesh.size():
            raise ImpossibleRunError(
                f"strategy.degree={mesh.size()}: cannot share the {size} {('outputs', 'inputs')[dim]} of the layer "
                f"{name} equally"
            )
    if dtype != torch.float32:
        module.register_forward_pre_hook(_converted_to(dtype))
    parallelize_module(module, mesh, PrepareModuleInput(input_layouts=around, desired_input_layouts=Replicate()))
    parallelize_module(
        module,
        mesh,
        {name: ColwiseParallel() for name in region.column_parallel}
        | {name: RowwiseParallel(output_layouts=around) for name in region.row_parallel}
        | {name: _as_it_is() for name in getattr(module, "replicated", ())},
    )


def _as_it_is() -> PrepareModuleInput:
    """A region's input as a plain tensor, which is whole on each worker."""
    return PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate(), use_local_output=True)


def _converted_to(dtype: torch.dtype) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _module, inputs: (inputs[0].to(dtype), *inputs[1:])


def partial_sums(model: nn.Module, *, sequence: bool) -> set[Parameter]:
    """The parameters that each worker holds whole, but whose gradients it has in part, for all workers to add up.

    Those in regions besides the layers that are cut, as they see some of the heads; and with `sequence`, those around
    the regions, as they see some of the tokens. To be asked before the model is cut.
    """
    found: set[Parameter] = set()
    for trunk, _ in trunks(model):
        inside: set[Parameter] = set()
        for module, region in regions(trunk):
            layers = [module.get_submodule(name) for name in (*region.column_parallel, *region.row_parallel)]
            inside |= set(module.parameters())
            found |= set(module.parameters()) - {parameter for layer in layers for parameter in layer.parameters()}
        if sequence:
            found |= set(trunk.parameters()) - inside
    return found


def is_cut(parameter: Parameter) -> bool:
    """Whether a worker holds a part of it only."""
    return isinstance(parameter, DTensor) and any(placement.is_shard() for placement in parameter.placements)


def local(value: Tensor) -> Tensor:
    """What this worker holds of a tensor, in the same memory."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value
