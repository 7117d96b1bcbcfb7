"""Starting servers: which worker hosts which, and at which address."""

from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.process import BaseProcess

from benchmarks.process import fork_server
from benchmarks.strategy import Place
from benchmarks.strategy.parameter_server.server import Setup, serve
from benchmarks.strategy.parameter_server.wire import Address

_START_LIMIT_S = 120.0
_END_LIMIT_S = 10.0
_EXIT_CODE_LIMIT_S = 0.5


def node_of(server: int, place: Place) -> int:
    """Servers go round the nodes."""
    return server % place.nodes


def host_of(server: int, place: Place) -> int:
    """The rank that starts a server: the first of its node."""
    return node_of(server, place) * (place.workers // place.nodes)


def prepare() -> None:
    """Begin to import torch in the process that servers are forked from, while this worker goes on."""
    fork_server.prepare(serve.__module__)


def own_address(place: Place) -> str:
    """The address at which this node's servers can be reached by all workers.

    On several nodes, the one that this node uses itself to reach the first: the network that the workers met on.
    """
    if place.nodes == 1:
        return "127.0.0.1"
    family, kind, protocol, _, first = socket.getaddrinfo(
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM
    )[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(first)  # sends nothing
        return str(probe.getsockname()[0])


class HostedServer:
    """A server process of this worker's."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("forkserver")
        self._port, port = context.Pipe(duplex=False)
        self.setup = setup
        self.process: BaseProcess = context.Process(target=serve, args=(setup, port), daemon=True)
        self.process.start()
        port.close()

    def address(self) -> Address:
        """Where it listens. Raises RuntimeError if it ends before it does."""
        try:
            if self._port.poll(_START_LIMIT_S):
                return Address(self.setup.host, self._port.recv(), self.setup.token)
        except EOFError:
            pass
        raise RuntimeError(f"a parameter server did not start: {self.ending()}")

    def ending(self) -> str:
        """How the process ended, if it did."""
        self.process.join(_EXIT_CODE_LIMIT_S)
        code = self.process.exitcode
        return "it is still alive" if code is None else f"its process ended with code {code}"

    def end(self) -> None:
        """It ends by itself when all workers have said goodbye, and is ended if it does not."""
        self.process.join(_END_LIMIT_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._port.close()
