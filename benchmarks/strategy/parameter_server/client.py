"""A worker's side: its parameters as the servers keep them, and the optimiser whose steps they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.strategy.parameter_server.load import Counts
from benchmarks.strategy.parameter_server.parts import memory, shape_of, views
from benchmarks.strategy.parameter_server.wire import RATE_FACTOR, Address, Kind, Link, knock


class LostServerError(dist.DistError):
    """A server is gone, or has lost another worker: somebody else's failure."""


class FailedServerError(RuntimeError):
    """A server's own failure, in its words."""


class Part:
    """The parameters that one server keeps, as this worker holds them: views of one flat vector on its device.

    On a GPU the server's messages pass through pinned memory of the host; on a CPU they come to where the parameters
    are. Gradients are copied into a vector of their own, which takes as much memory on the device as they do.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self.parameters = parameters
        self.shapes = tuple(map(shape_of, parameters))
        numbers = sum(shape.numbers for shape in self.shapes)
        self.flat = parameters[0].detach().new_empty(numbers)
        self.gradients = torch.zeros_like(self.flat)
        self._gradients = views(self.gradients, self.shapes)
        for parameter, view in zip(parameters, views(self.flat, self.shapes), strict=True):
            assert parameter.dtype == self.flat.dtype, "all in one vector"
            view.copy_(parameter.detach())
            parameter.data = view
        self._sent, self._received = on_host(self.gradients), on_host(self.flat)
        self.outgoing, self.incoming = memory(self._sent), memory(self._received)

    @property
    def size_bytes(self) -> int:
        """Of the parameters, and of their gradients."""
        return self.flat.numel() * self.flat.element_size()

    def gather(self) -> None:
        """Put the gradients where they are sent from; a parameter that the step did not use has none, so zero."""
        found, places = [], []
        for parameter, place in zip(self.parameters, self._gradients, strict=True):
            if parameter.grad is None:
                place.zero_()
            else:
                found.append(parameter.grad)
                places.append(place)
        if found:
            torch._foreach_copy_(places, found)
        if self._sent is not self.gradients:
            self._sent.copy_(self.gradients, non_blocking=True)

    def scatter(self) -> None:
        """Take over the parameters that have come."""
        if self._received is not self.flat:
            self.flat.copy_(self._received, non_blocking=True)

    def keep_initial(self) -> memoryview:
        """The bytes of the parameters as they are now."""
        self._received.copy_(self.flat)
        return self.incoming


def on_host(vector: Tensor) -> Tensor:
    """Where a vector on the device meets the network: itself on a CPU, else as much pinned memory."""
    if vector.device.type == "cpu":
        return vector
    return torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)


class Client:
    """The connection to one server."""

    def __init__(self, server: int, address: Address, rank: int) -> None:
        """Raises LostServerError where it does not let this worker in."""
        self.name = f"parameter server {server} at {address.host}"
        try:
            self._link: Link = knock(address, rank)
        except OSError as error:
            raise self._lost(error) from error

    def send(self, kind: Kind, payload: bytes | memoryview = b"", number: int = 0) -> None:
        """Raises LostServerError."""
        try:
            self._link.send(kind, payload, number)
        except OSError as error:
            raise self._lost(error) from error

    def values_into(self, target: memoryview) -> None:
        """Receive parameters. Raises LostServerError, or FailedServerError with the server's reason."""
        size = self._expect(Kind.VALUES)
        assert size == len(target), "it keeps what this worker's part of the model is"
        try:
            self._link.receive_into(target)
        except OSError as error:
            raise self._lost(error) from error

    def done(self) -> None:
        """Wait for the server to have done as asked; raises as above."""
        self._expect(Kind.DONE)

    def counts(self) -> Counts:
        """What the server has done so far; raises as above."""
        self.send(Kind.COUNT)
        return msgspec.json.decode(self._text(self._expect(Kind.COUNTS)), type=Counts)

    def leave(self) -> None:
        """Say goodbye; a server that is gone does not mind."""
        try:
            self._link.send(Kind.BYE)
        except OSError:
            pass
        finally:
            self._link.close()

    def _expect(self, kind: Kind) -> int:
        """The size of the answer."""
        try:
            header = self._link.receive_header()
        except OSError as error:
            raise self._lost(error) from error
        if header.kind is Kind.LOST:
            raise LostServerError(f"{self.name}: {self._text(header.size_bytes).decode()}")
        if header.kind is Kind.FAILED:
            raise FailedServerError(f"{self.name}: {self._text(header.size_bytes).decode()}")
        assert header.kind is kind, f"{header.kind.name} instead of {kind.name}"
        return header.size_bytes

    def _text(self, size_bytes: int) -> bytes:
        try:
            return self._link.receive(size_bytes)
        except OSError as error:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> LostServerError:
        return LostServerError(f"{self.name} is lost: {error}")


class Servers:
    """All servers, as one: `parts` and `clients` by server."""

    def __init__(self, parts: Sequence[Part], clients: Sequence[Client], device: torch.device) -> None:
        self.parts, self.clients, self.device = parts, clients, device
        self.steps = 0
        """Pushed since the last reset."""
        self._rate_factor = 1.0

    def set_rate(self, factor: float) -> None:
        """What the servers multiply their rates with for this worker's gradients; they are told if it is new."""
        if factor == self._rate_factor:
            return
        self._rate_factor = factor
        for client in self.clients:
            client.send(Kind.RATE, RATE_FACTOR.pack(factor))

    def push(self, overflowed: bool) -> None:
        """Send all servers this worker's gradients, then wait for their parameters."""
        self.steps += 1
        kind = Kind.SKIP if overflowed else Kind.PUSH
        if not overflowed:
            for part in self.parts:
                part.gather()
        self._settle()
        for part, client in zip(self.parts, self.clients, strict=True):
            client.send(kind, b"" if overflowed else part.outgoing, self.steps)
        self._receive()

    def pull(self) -> None:
        """Get the newest parameters."""
        self._settle()
        for client in self.clients:
            client.send(Kind.PULL)
        self._receive()

    def give(self, server: int) -> None:
        """Send a server its initial parameters, which are this worker's."""
        self.clients[server].send(Kind.SET, self.parts[server].keep_initial())
        self.clients[server].done()

    def reset(self) -> None:
        """All servers begin anew."""
        for client in self.clients:
            client.send(Kind.RESET)
        for client in self.clients:
            client.done()

    def counts(self) -> list[Counts]:
        """What each has done so far."""
        return [client.counts() for client in self.clients]

    def leave(self) -> None:
        """No more steps."""
        for client in self.clients:
            client.leave()

    def _receive(self) -> None:
        for part, client in zip(self.parts, self.clients, strict=True):
            client.values_into(part.incoming)
        for part in self.parts:
            part.scatter()

    def _settle(self) -> None:
        """The host's memory is neither read nor written by the device any more."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


class RemoteOptimizer(Optimizer):
    """An optimiser of a worker: its step is `exchange`, which the servers take.

    `exchange` gets whether the gradients overflowed. A GradScaler leaves it to this optimiser to divide the gradients
    by the scale, and to skip an overflowed step: that step must be told to the servers, too.

    Its learning rate is 1, as a schedule's factor goes to the servers, which have the real one.
    """

    _step_supports_amp_scaling = True  # says that; `grad_scale` and `found_inf` are there during a scaler's step

    def __init__(self, parameters: Iterable[Parameter], exchange: Callable[[bool], None]) -> None:
        super().__init__(parameters, {"lr": 1.0})
        self.exchange = exchange

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Hand over the gradients, and take the new parameters."""
        assert closure is None, "the servers cannot compute a loss"
        scale: Tensor | None = getattr(self, "grad_scale", None)
        overflowed = bool(getattr(self, "found_inf", False))
        if scale is not None and not overflowed:
            gradients = [
                parameter.grad
                for group in self.param_groups
                for parameter in group["params"]
                if parameter.grad is not None
            ]
            torch._foreach_div_(gradients, scale)
        self.exchange(overflowed)
