"""A model as a chain of layers between which it can be cut, and the parts that are made of them.

A layer is what is not cut: some modules that run one after another, at least one of which has parameters to train, so
that each part has something to learn. Modules without any, such as activations, stay with the layer before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.precision import Precision

Named = tuple[str, nn.Module]


@runtime_checkable
class Layered(Protocol):
    """A model that says itself where it can be cut."""

    def layers_in_order(self) -> Iterable[Named]:
        """Modules whose composition is the model's forward pass, with their names in it, as `encoder.0`."""
        ...


@dataclass(frozen=True)
class Layer:
    """Modules that are not cut apart, with their full names in the model."""

    modules: tuple[Named, ...]

    @property
    def name(self) -> str:
        """The first one's with parameters to train."""
        return next((name for name, module in self.modules if _trains(module)), self.modules[0][0])

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of all its modules."""
        for _, module in self.modules:
            yield from module.parameters()


def layers_of(model: nn.Module) -> list[Layer]:
    """A model's layers, in the order in which samples pass through them.

    It looks into nn.Sequential, torchvision's ResNet (stem, each block, and the head with its pooling) and models with
    a method `layers_in_order`; all else is one layer, as nothing is known of what lies in it.

    Raises:
        ImpossibleRunError: two layers share a parameter, so that they cannot be on different workers.
    """
    layers: list[Layer] = []
    collected: list[Named] = []
    for piece in _pieces("", model):
        if _any_trains(piece) and _any_trains(collected):
            layers.append(Layer(tuple(collected)))
            collected = []
        collected += piece
    layers.append(Layer(tuple(collected)))
    _refuse_shared_parameters(layers)
    return layers


def _pieces(name: str, module: nn.Module) -> Iterator[list[Named]]:
    """What the module is composed of, as lists of modules that stay together."""
    if type(module).forward is nn.Sequential.forward:
        for child, inner in _children(module):
            yield from _pieces(_below(name, child), inner)
    elif isinstance(module, Layered):
        for child, inner in module.layers_in_order():
            yield from _pieces(_below(name, child), inner)
    elif _is_resnet(module):
        for piece in _pieces_of_resnet(module):
            yield [(_below(name, child), inner) for child, inner in piece]
    else:
        yield [(name, module)]


def _children(module: nn.Module) -> Iterator[Named]:
    """Also a child that stands in several places, which `named_children` tells of once."""
    for name, child in module._modules.items():
        if child is not None:
            yield name, child


def _below(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _is_resnet(module: nn.Module) -> bool:
    if type(module).__module__ != "torchvision.models.resnet":
        return False
    from torchvision.models import ResNet  # slow to import, but whoever made the model has paid for it

    return type(module) is ResNet  # a subclass may do otherwise


def _pieces_of_resnet(model: nn.Module) -> Iterator[list[Named]]:
    """As in its forward pass; flattening has no module of its own there."""
    yield [(name, model.get_submodule(name)) for name in ("conv1", "bn1", "relu", "maxpool")]
    for group in ("layer1", "layer2", "layer3", "layer4"):
        for child, block in _children(model.get_submodule(group)):
            yield [(f"{group}.{child}", block)]
    yield [("avgpool", model.get_submodule("avgpool")), ("flatten", nn.Flatten()), ("fc", model.get_submodule("fc"))]


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _any_trains(modules: Iterable[Named]) -> bool:
    return any(_trains(module) for _, module in modules)


def _refuse_shared_parameters(layers: Sequence[Layer]) -> None:
    owners: dict[nn.Parameter, Layer] = {}
    for layer in layers:
        for parameter in layer.parameters():
            owner = owners.setdefault(parameter, layer)
            if owner is not layer:
                raise ImpossibleRunError(
                    f"the model's layers {owner.name} and {layer.name} share a parameter: "
                    "they would need it on two workers, and a pipeline keeps each on one"
                )


class Part(nn.Module):
    """Some layers of a model under the names that they have in it; they run as slices, see `Slice`."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        for layer in layers:
            for name, module in layer.modules:
                *rooms, last = name.split(".")
                _room(self, rooms).add_module(last, module)


def _room(part: nn.Module, names: Sequence[str]) -> nn.Module:
    """The module that stands where the model had one, made if need be."""
    for name in names:
        inner = getattr(part, name, None)
        if inner is None:
            inner = nn.Module()
            part.add_module(name, inner)
        part = inner
    return part


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """What passes from one slice to the next."""

    shape: tuple[int, ...]
    """Of one sample, as it is sent."""
    dtype: torch.dtype
    channels_last: bool
    """Whether images (batch, channels, height, width) lie with their channels last: then they are sent so, as
    (batch, height, width, channels), since only contiguous tensors can be."""

    def size_bytes(self, samples: int) -> int:
        """Of that many samples."""
        return samples * int(torch.Size(self.shape).numel()) * self.dtype.itemsize

    def buffer(self, samples: int, device: torch.device | str) -> Tensor:
        """A tensor to receive that many samples in."""
        return torch.empty((samples, *self.shape), dtype=self.dtype, device=device)


class Slice(nn.Module):
    """Consecutive layers as a stage of a pipeline runs them, in the run's precision."""

    def __init__(self, layers: Sequence[Layer], precision: Precision) -> None:
        super().__init__()
        self.chain = nn.ModuleList(module for layer in layers for _, module in layer.modules)
        self.precision = precision
        self.before: Boundary | None = None
        self.after: Boundary | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """From the slice before to the slice after, both in the form in which they are sent.

        Each slice has an autocast of its own: the schedule's backward passes lie between forward passes, and must
        be in none.
        """
        if inputs.requires_grad:
            inputs.register_hook(torch.Tensor.contiguous)  # so that it can be sent
        return self._sent(self._run(inputs))

    def _run(self, values: Tensor) -> Tensor:
        if self.before and self.before.channels_last:
            values = values.permute(0, 3, 1, 2)
        with self.precision.autocast():
            for module in self.chain:
                values = module(values)
        return values

    def _sent(self, values: Tensor) -> Tensor:
        if self.after and self.after.channels_last:
            values = values.permute(0, 2, 3, 1)
        if values._is_view():  # such as a flattened one: torch's schedules detach outputs in place, which a view cannot
            return values.clone(memory_format=torch.contiguous_format)
        return values.contiguous()

    @torch.no_grad()
    def probe(self, inputs: Tensor, before: Boundary | None) -> tuple[Tensor, Boundary]:
        """Outputs for a few samples, and their form, which is that of any number. No running average moves."""
        self.before = before
        training = {module: module.training for module in self.modules()}
        self.eval()
        values = self._run(inputs)
        for module, was in training.items():
            module.training = was
        last = torch.channels_last
        channels_last = values.ndim == 4 and values.is_contiguous(memory_format=last) and not values.is_contiguous()
        self.after = Boundary(shape=(), dtype=values.dtype, channels_last=channels_last)
        outputs = self._sent(values)
        self.after = replace(self.after, shape=tuple(outputs.shape[1:]))
        return outputs, self.after
