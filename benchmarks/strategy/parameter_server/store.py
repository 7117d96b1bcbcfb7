"""What a server keeps: parameters, their optimiser, and a place for each worker's gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.restore import Snapshot
from benchmarks.strategy.parameter_server.parts import Shape, views


class Store:
    """In host memory: for P bytes of parameters and N workers, (2 N + 3) P at most, and the optimiser's state.

    P for the parameters, P for their initial values, N P for arriving gradients, P for their mean in sync mode, and
    N P for parameters under way otherwise.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        dtype: torch.dtype,
        workers: int,
        make: Callable[[Iterable[Parameter]], Optimizer],
    ) -> None:
        numbers = sum(shape.numbers for shape in shapes)
        self.flat = torch.zeros(numbers, dtype=dtype)
        self.inbox = torch.zeros(workers, numbers, dtype=dtype)
        # untouched memory is none: only one of the two is ever written to
        self._outbox = torch.zeros(workers, numbers, dtype=dtype)
        self._mean = torch.zeros(numbers, dtype=dtype)
        self._parameters = [Parameter(view) for view in views(self.flat, shapes)]
        self._gradients = [views(row, shapes) for row in self.inbox]
        self._mean_gradients = views(self._mean, shapes)
        self._make = make
        self.rate_factors = [1.0] * workers
        """What the optimiser's learning rates are multiplied with, for each worker's gradients."""

    def begin(self) -> None:
        """The parameters have their initial values."""
        self._optimizer = self._make(self._parameters)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._initial = Snapshot(nn.ParameterList(self._parameters), self._optimizer)

    def restore(self) -> None:
        """Parameters and optimiser as they were at the beginning."""
        self._initial.restore()

    def update_from(self, rank: int) -> None:
        """One step of the optimiser with one worker's gradients."""
        self._step(self._gradients[rank], self.rate_factors[rank])

    def update_from_all(self) -> None:
        """One step with the mean of all workers' gradients; by rank, so that it never depends on who came first."""
        torch.mean(self.inbox, 0, out=self._mean)
        self._step(self._mean_gradients, self.rate_factors[0])  # all workers are at the same part of the run

    def copy_for(self, rank: int) -> Tensor:
        """The parameters as they are now, for sending while others update them."""
        return self._outbox[rank].copy_(self.flat)

    def _step(self, gradients: Sequence[Tensor], rate_factor: float) -> None:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * rate_factor
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        self._optimizer.step()
