"""The server process: it takes gradients from all workers and sends parameters back, a thread for each worker."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import msgspec
import torch

# torch imports it at an optimiser's first step, which takes seconds: here it is paid before the first worker waits
import torch._dynamo
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.strategy.parameter_server.discipline import DISCIPLINES, EndedError
from benchmarks.strategy.parameter_server.load import Load
from benchmarks.strategy.parameter_server.parts import Shape, memory
from benchmarks.strategy.parameter_server.store import Store
from benchmarks.strategy.parameter_server.wire import RATE_FACTOR, Header, Kind, Link, hear_out, let_in

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a server is told when it starts."""

    mode: str
    staleness: int
    workers: int
    threads: int
    """For its tensor operations."""
    host: str
    """The address to listen at."""
    token: bytes
    shapes: tuple[Shape, ...]
    dtype: torch.dtype
    make: Callable[[Iterable[Parameter]], Optimizer]
    """The optimiser of its parameters."""


def serve(setup: Setup, port: Connection) -> None:
    """A server's whole life; it sends its port as soon as it listens."""
    _be_a_good_child()
    torch.set_num_threads(setup.threads)
    server = Server(setup)
    with socket.create_server((setup.host, 0), family=_family(setup.host)) as listener:
        port.send(listener.getsockname()[1])
        port.close()
        server.run(listener)


def _be_a_good_child() -> None:
    """It ends with the worker that started it, and with the process that forked it; it has no use for a GPU."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_outlive_no_worker, daemon=True, name="outlive-no-worker").start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def _outlive_no_worker() -> None:
    worker = multiprocessing.parent_process()
    if worker is not None:
        worker.join()  # sleeps on a pipe that the worker's end closes
        os.kill(os.getpid(), signal.SIGKILL)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Server:
    """One part of the model, and the conversations with all workers about it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.load = Load()
        self.store = Store(setup.shapes, setup.dtype, setup.workers, setup.make)
        self.discipline = DISCIPLINES[setup.mode](self.store, setup.workers, setup.staleness, self.load)
        self._inboxes = [memory(row) for row in self.store.inbox]
        self._lock = threading.Lock()
        self._here: set[int] = set()
        self._gone: set[int] = set()
        self._over = threading.Event()
        self._handlers: dict[Kind, Callable[[Link, int, Header], None]] = {
            Kind.PUSH: self._push,
            Kind.SKIP: self._skip,
            Kind.PULL: self._pull,
            Kind.SET: self._set,
            Kind.RESET: self._reset,
            Kind.COUNT: self._count,
            Kind.RATE: self._rate,
        }

    def run(self, listener: socket.socket) -> None:
        """Until all workers have come and gone."""
        threading.Thread(target=self._accept, args=(listener,), daemon=True, name="accept").start()
        self._over.wait()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed: the server is over
            threading.Thread(target=self._admit, args=(connection,), daemon=True, name="worker").start()

    def _admit(self, connection: socket.socket) -> None:
        """In a thread of its own, so that a stranger who says nothing keeps nobody waiting."""
        with connection:
            try:
                rank = hear_out(connection, self.setup.token)
                if rank is None or not self._comes(rank):
                    return
                link = let_in(connection)
            except OSError:
                return
            try:
                self._converse(link, rank)
            finally:
                self._goes(rank)

    def _comes(self, rank: int) -> bool:
        """Whether the worker may come in: each of them once."""
        with self._lock:
            expected = rank < self.setup.workers and rank not in self._here
            if expected:
                self._here.add(rank)
            return expected

    def _goes(self, rank: int) -> None:
        with self._lock:
            self._gone.add(rank)
            if len(self._gone) == self.setup.workers:
                self._over.set()

    def _converse(self, link: Link, rank: int) -> None:
        """Answer one worker until it says goodbye; what goes wrong ends the run for all workers, with the reason."""
        try:
            while (header := link.receive_header()).kind is not Kind.BYE:
                self._handlers[header.kind](link, rank, header)
        except OSError as error:
            self.discipline.end(Kind.LOST, f"lost worker {rank}: {error}")
        except EndedError as ended:
            _tell(link, ended.kind, str(ended))
        except Exception as error:  # noqa: BLE001 - whatever it was, the workers must hear of it
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            self.discipline.end(Kind.FAILED, text)
            _tell(link, Kind.FAILED, text)

    def _push(self, link: Link, rank: int, header: Header) -> None:
        self._receive(link, header, self._inboxes[rank])
        self.load.received(header.size_bytes)
        self._send(link, self.discipline.push(rank, header.number))

    def _skip(self, link: Link, rank: int, header: Header) -> None:
        self._send(link, self.discipline.push(rank, header.number, overflowed=True))

    def _pull(self, link: Link, rank: int, _header: Header) -> None:
        self._send(link, self.discipline.pull(rank))

    def _set(self, link: Link, _rank: int, header: Header) -> None:
        self._receive(link, header, memory(self.store.flat))
        self.store.begin()
        link.send(Kind.DONE)

    def _reset(self, link: Link, _rank: int, _header: Header) -> None:
        self.discipline.reset()
        link.send(Kind.DONE)

    def _count(self, link: Link, _rank: int, _header: Header) -> None:
        now = self.load.counts(
            updates=self.discipline.updates,
            staleness=dict(self.discipline.staleness),
            largest_lead=self.discipline.largest_lead,
        )
        link.send(Kind.COUNTS, msgspec.json.encode(now))

    def _rate(self, link: Link, rank: int, header: Header) -> None:
        [factor] = RATE_FACTOR.unpack(link.receive(header.size_bytes))
        self.discipline.set_rate(rank, factor)

    def _receive(self, link: Link, header: Header, target: memoryview) -> None:
        if header.size_bytes != len(target):
            raise ValueError(f"{header.kind.name} of {header.size_bytes} bytes; this server keeps {len(target)}")
        with self.load.busy():
            link.receive_into(target)

    def _send(self, link: Link, values: Tensor) -> None:
        payload = memory(values)
        self.load.sent(len(payload))  # before: who has got them may ask for the count at once
        with self.load.busy():
            link.send(Kind.VALUES, payload)


def _tell(link: Link, kind: Kind, text: str) -> None:
    try:
        link.send(kind, text.encode())
    except OSError:
        return  # nobody is there to hear it
