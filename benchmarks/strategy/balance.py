"""Where to cut a chain of layers, so that the slowest of its parts is as fast as can be."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.strategy.layers import Layer

_LEAST_REPEATS, _MOST_REPEATS, _ENOUGH_S = 3, 15, 0.1


def partition(costs: Sequence[float], parts: int) -> list[slice]:
    """The division of a chain into consecutive non-empty parts whose most expensive one is cheapest.

    Exact, by dynamic programming over how many layers the first parts hold: O(parts x layers^2) steps. Of several best
    divisions, the one whose later parts hold more layers.

    Raises:
        ValueError: fewer layers than parts.
    """
    layers = len(costs)
    if not 1 <= parts <= layers:
        raise ValueError(f"{layers} layers cannot be divided into {parts} parts")
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    best = [0.0] + [float("inf")] * layers  # of the first `end` layers in `part` parts
    cuts: list[list[int]] = []
    for part in range(1, parts + 1):
        longer, cut = [float("inf")] * (layers + 1), [0] * (layers + 1)
        for end in range(part, layers - (parts - part) + 1):
            for start in range(part - 1, end):
                slowest = max(best[start], sums[end] - sums[start])
                if slowest < longer[end]:
                    longer[end], cut[end] = slowest, start
        best = longer
        cuts.append(cut)
    found, end = [], layers
    for cut in reversed(cuts):
        found.append(slice(cut[end], end))
        end = cut[end]
    return found[::-1]


def measured_costs_s(layers: Sequence[Layer], samples: Tensor, device: torch.device) -> list[float]:
    """Seconds of each layer's forward and backward pass over `samples`, on the device: its fastest, after a warm-up.

    What else a machine does only adds to a time, so the least of several is the layer's own. In single precision, with
    copies of the layers, so that no running average moves.
    """
    costs = []
    values = samples.to(device)
    for layer in layers:
        chain = nn.Sequential(*[copy.deepcopy(module) for _, module in layer.modules]).to(device)
        if values.is_floating_point():
            values.requires_grad_()
        costs.append(_cost_s(chain, values))
        with torch.no_grad():
            values = chain(values).detach()
    return costs


def _cost_s(chain: nn.Module, inputs: Tensor) -> float:
    times: list[float] = []
    _pass_time_s(chain, inputs)
    while len(times) < _LEAST_REPEATS or (len(times) < _MOST_REPEATS and sum(times) < _ENOUGH_S):
        times.append(_pass_time_s(chain, inputs))
    return min(times)


def _pass_time_s(chain: nn.Module, inputs: Tensor) -> float:
    _settle(inputs.device)
    started = time.perf_counter()
    outputs = chain(inputs)
    outputs.backward(torch.ones_like(outputs))
    _settle(inputs.device)
    elapsed_s = time.perf_counter() - started
    inputs.grad = None
    chain.zero_grad(set_to_none=True)
    return elapsed_s


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
