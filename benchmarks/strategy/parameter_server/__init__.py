"""Data parallelism through servers that keep the parameters and take the optimiser's steps."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.data.batches import Batch
from benchmarks.measuring.step_times import StepTimes
from benchmarks.precision import Precision
from benchmarks.strategy import Copies, Place, Step, Strategy, SyncSwitch, strategies
from benchmarks.strategy.parameter_server.client import Client, LostServerError, Part, RemoteOptimizer, Servers
from benchmarks.strategy.parameter_server.hosting import HostedServer, host_of, node_of, own_address, prepare
from benchmarks.strategy.parameter_server.load import Counts
from benchmarks.strategy.parameter_server.parts import divide
from benchmarks.strategy.parameter_server.server import Setup
from benchmarks.strategy.parameter_server.wire import new_token


@strategies.register("parameter_server")
class ParameterServer(Strategy):
    """Workers compute gradients, servers keep parameters and optimiser (Li et al. 2014, OSDI, section 3).

    In each step a worker pushes the gradients of its share of the batch, and goes on with the parameters that it gets
    back. With `sync`, a server waits for all workers and takes one step with the mean of their gradients, as data
    parallelism does. With `async`, each worker's gradients are a step of their own, with the whole learning rate, as
    they come (Dean et al. 2012, NIPS, section 4.1): N workers make N updates of the model for each global batch; a
    smaller share's gradient weighs less, as in a mean. With `bounded`, the same, but a worker is held back while it is
    more than `staleness` steps ahead of the slowest (Ho et al. 2013, NIPS): 0 is lockstep. The server asserts the bound
    at every step; a broken one fails the run.

    A server is no worker. It is a process of its own, started by the first worker of a node, on that node's CPU and in
    its host memory; `servers` of them divide the model's tensors among themselves and go round the nodes. It takes
    cores from the node's allocation, beside the workers, and no GPU. Worker-hours do not count it; the record says how
    busy it was. One worker is allowed: it shows what the way to the server costs when nobody else is on it.

    Batch norm's running averages are each worker's own, and its evaluation uses them with the servers' newest
    parameters: the record's is rank 0's, as everywhere. In half precision, `sync` skips a step on all workers where it
    overflows on one; otherwise each worker has a loss scale of its own, and skips its own.
    """

    communicates = True

    def __init__(self, place: Place, *, mode: str, staleness: int, servers: int, server_threads: int) -> None:
        super().__init__(place)
        self.mode, self.staleness = mode, staleness
        self.servers, self.server_threads = servers, server_threads
        self.shards_gradients = mode == "sync"  # one overflow is everybody's, as there is one step for all
        self.sync = SyncSwitch()
        self._before_push: Callable[[], None] = lambda: None
        self._hosted: dict[int, HostedServer] = {}
        self._spans: list[tuple[list[Counts], list[Counts]]] = []
        if place.rank in {host_of(server, place) for server in range(servers)}:
            prepare()

    def wrap(self, model: nn.Module, _precision: Precision, /) -> nn.Module:
        """The same model, its parameters in one vector for each server; they and the buffers are those of rank 0."""
        parts = divide([parameter for parameter in model.parameters() if parameter.requires_grad], self.servers)
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), 0)
        self.parts = [Part(part) for part in parts]
        return model

    def on_last_gradient(self, _model: nn.Module, call: Callable[[], None], /) -> bool:
        """Gradients are pushed when all are there; what follows until the new parameters have come is waiting."""
        self._before_push = call
        return True

    def make_optimizer(self, make: Callable[[Iterable[Parameter]], Optimizer], model: nn.Module, /) -> Optimizer:
        """Starts the servers, which make the optimiser; this worker's hands them its gradients."""
        for server in range(self.servers):
            if host_of(server, self.place) == self.place.rank:
                self._hosted[server] = HostedServer(self._setup(server, make))
        own = {server: hosted.address() for server, hosted in self._hosted.items()}
        found: list[Any] = [None] * self.place.workers
        dist.all_gather_object(found, (socket.gethostname(), own))
        self._host_names = [name for name, _ in found]
        addresses = {server: address for _, part in found for server, address in part.items()}
        clients = [Client(server, addresses[server], self.place.rank) for server in range(self.servers)]
        self.remote = Servers(self.parts, clients, self.place.device)
        for server in own:
            self.remote.give(server)
        dist.barrier()
        self.remote.pull()
        self.optimizer = RemoteOptimizer(model.parameters(), self._exchange)
        return self.optimizer

    def _setup(self, server: int, make: Callable[[Iterable[Parameter]], Optimizer]) -> Setup:
        return Setup(
            mode=self.mode,
            staleness=self.staleness,
            workers=self.place.workers,
            threads=self.server_threads,
            host=own_address(self.place),
            token=new_token(),
            shapes=self.parts[server].shapes,
            dtype=self.parts[server].flat.dtype,
            make=make,
        )

    def _exchange(self, overflowed: bool) -> None:
        self._before_push()
        if not self.sync.on:
            return
        try:
            self.remote.set_rate(self.optimizer.param_groups[0]["lr"])
            self.remote.push(overflowed)
        except LostServerError as error:
            raise LostServerError(f"{error}{self._deaths()}") from error

    def _deaths(self) -> str:
        """Which of the servers that this worker hosts are dead, and how."""
        ends = {server: hosted.ending() for server, hosted in self._hosted.items()}
        dead = [f"server {server}: {ending}" for server, ending in ends.items() if "ended" in ending]
        return f" ({'; '.join(dead)})" if dead else ""

    def make_step(self, step: Step, /) -> Step:
        """The update is the servers', and waiting for it comes before the mark."""
        return step.made(ServedStep)

    def without_sync(self) -> AbstractContextManager[None]:
        """Nothing is pushed, nothing comes back: forward and backward pass alone, since the update is the servers'."""
        return self.sync.off()

    def bytes_per_step(self) -> int:
        """The bytes of a worker's gradients, once, whatever the number of servers.

        The parameters that come back are sent by servers, which are no workers: N x the same for each step of all N
        workers. The facts in the record say what each server received and sent. Headers, 13 bytes for each message,
        are not counted, nor is a learning rate that changes, 21 bytes for each server.
        """
        return sum(part.size_bytes for part in self.parts)

    def forget(self) -> None:
        """The servers go back to the initial parameters, and their optimisers to the beginning."""
        dist.barrier()
        if self.place.rank == 0:
            self.remote.reset()
        self.remote.steps = 0
        dist.barrier()
        self.remote.pull()

    def align(self) -> None:
        """As for all; and rank 0 notes what the servers have done until now, when nobody asks them for anything."""
        super().align()
        if self.place.rank == 0:
            self._begin = self.remote.counts()
        super().align()

    def span_done(self, _times: StepTimes, _samples: Sequence[int], /) -> None:
        """All workers are through; rank 0 notes what the servers have done for it."""
        dist.barrier()
        if self.place.rank == 0:
            self._spans.append((self._begin, self.remote.counts()))

    @contextmanager
    def evaluating(self, _model: nn.Module, /) -> Iterator[None]:
        """All workers are through with their steps, and have the parameters that come of all of them."""
        self._pull_together()
        yield

    def _pull_together(self) -> None:
        dist.barrier()
        self.remote.pull()
        dist.barrier()  # nobody pushes before all have the same

    def copies(self, model: nn.Module, /) -> Copies:
        """All parameters, on all workers: with `sync` after the last step, else after all have got the newest."""
        if self.mode != "sync":
            self._pull_together()
        return Copies(tensors=list(model.parameters()))

    def facts(self) -> dict[str, Any]:
        """How stale gradients were, and what each server did in the spans of the window; of rank 0 only."""
        if not self._spans:
            return {}
        last = [counts for _, end in self._spans[-1:] for counts in end]
        return {
            "staleness": _staleness(last),
            "largest_lead": max(counts.largest_lead for counts in last),
            "servers": [self._server_facts(server) for server in range(self.servers)],
        }

    def _server_facts(self, server: int) -> dict[str, Any]:
        spans = [(begin[server], end[server]) for begin, end in self._spans]

        def spent(name: str) -> float:
            return float(sum(getattr(end, name) - getattr(begin, name) for begin, end in spans))

        rank = host_of(server, self.place)
        return {
            "server": server,
            "hosted_by_rank": rank,
            "node": node_of(server, self.place),
            "host": self._host_names[rank],
            "tensors": len(self.parts[server].parameters),
            "parameter_bytes": self.parts[server].size_bytes,
            "updates": int(spent("updates")),
            "received_bytes": int(spent("received_bytes")),
            "sent_bytes": int(spent("sent_bytes")),
            "window_s": spent("clock_s"),
            "busy_s": spent("busy_s"),
            "busy_fraction": spent("busy_s") / spent("clock_s"),
            "update_s": spent("update_s"),
            "cpu_s": spent("cpu_s"),
            "peak_host_bytes": spans[-1][1].peak_host_bytes,
        }

    def close(self) -> None:
        """Say goodbye to all servers, and wait for the end of those that this worker started."""
        self.remote.leave()
        for hosted in self._hosted.values():
            hosted.end()


def _staleness(servers: Sequence[Counts]) -> dict[str, Any]:
    """Of all servers' updates together: how many others the parameters lacked that the gradients were computed with."""
    counts: Counter[int] = Counter()
    for one in servers:
        counts.update(one.staleness)
    total = sum(counts.values())
    mean = sum(staleness * count for staleness, count in counts.items()) / total if total else None
    return {"max": max(counts, default=None), "mean": mean, "counts": {str(key): counts[key] for key in sorted(counts)}}


@dataclass(frozen=True, kw_only=True)
class ServedStep(Step):
    """A step whose update is made elsewhere.

    Its backward pass counts as done when the new parameters are there: pushing, the servers' work and waiting for other
    workers lie between the last gradient and then.
    """

    def __call__(self, batch: Batch) -> Tensor:
        """Train on a batch; returns its mean loss."""
        loss = self.backward(batch)
        self.update()
        self.after_backward()
        return loss
