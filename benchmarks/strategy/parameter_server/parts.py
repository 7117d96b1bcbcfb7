"""A model's parameters divided over servers, each part one flat vector: what travels is one piece of memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.strategy.traffic import size_bytes


class Shape(NamedTuple):
    """How a tensor lies in its stretch of a flat vector, which it fills without gaps in any memory format."""

    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many it holds."""
        return math.prod(self.size)


def shape_of(tensor: Tensor) -> Shape:
    """The shape in its present memory format."""
    return Shape(tuple(tensor.size()), tuple(tensor.stride()))


def views(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Tensors of these shapes, one after the other in the memory of `flat`."""
    found, first = [], flat.storage_offset()
    for shape in shapes:
        found.append(flat.as_strided(shape.size, shape.stride, first))
        first += shape.numbers
    return found


def divide(parameters: Sequence[Parameter], servers: int) -> list[list[Parameter]]:
    """The parameters that each server keeps, in the model's order.

    Whole tensors, so that any optimiser can be asked to update them. The largest is given away first, always to the
    server with the fewest bytes (longest processing time first, Graham 1969, SIAM J. Appl. Math. 17).

    Raises:
        ImpossibleRunError: there are fewer tensors than servers.
    """
    if servers > len(parameters):
        raise ImpossibleRunError(
            f"strategy.servers={servers}: the model has {len(parameters)} tensors to train, a server keeps whole ones"
        )
    server_of: dict[Parameter, int] = {}
    loads = [0] * servers
    for parameter in sorted(parameters, key=lambda each: -size_bytes([each])):
        server = loads.index(min(loads))
        server_of[parameter] = server
        loads[server] += size_bytes([parameter])
    return [[each for each in parameters if server_of[each] == server] for server in range(servers)]


def memory(flat: Tensor) -> memoryview:
    """The bytes of a vector on the host, to read and to write, without a copy."""
    numbers: Any = flat.detach().view(torch.uint8).numpy()
    return memoryview(numbers)
