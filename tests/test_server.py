"""A server's rules, asked in this process: who is let in, who is held back and for how long, what ends the run."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.optimizer import optimizers
from benchmarks.strategy import Place
from benchmarks.strategy.parameter_server import client as client_module
from benchmarks.strategy.parameter_server.client import (
    Client,
    FailedServerError,
    LostServerError,
    Part,
    RemoteOptimizer,
    Servers,
)
from benchmarks.strategy.parameter_server.hosting import host_of, node_of, own_address
from benchmarks.strategy.parameter_server.load import Load
from benchmarks.strategy.parameter_server.parts import divide, memory, shape_of, views
from benchmarks.strategy.parameter_server.server import Server, Setup
from benchmarks.strategy.parameter_server.wire import Address, Kind, Link, knock, new_token

pytestmark = pytest.mark.alone

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=1.0)
SHAPE = shape_of(torch.zeros(3))


class Running:
    """A server in threads of this process, and workers that speak to it from others."""

    def __init__(
        self, mode: str, workers: int, staleness: int = 0, make: Callable[..., Optimizer] = SGD, come: int | None = None
    ) -> None:
        """Of the workers, `come` are there from the beginning: all of them unless it is given."""
        self.setup = Setup(
            mode=mode,
            staleness=staleness,
            workers=workers,
            threads=1,
            host="127.0.0.1",
            token=new_token(),
            shapes=(SHAPE,),
            dtype=torch.float32,
            make=make,
        )
        self.server = Server(self.setup)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self.listener.getsockname()[1], self.setup.token)
        self.thread = threading.Thread(target=self.server.run, args=(self.listener,))
        self.thread.start()
        self.workers = [self.worker(rank) for rank in range(workers if come is None else come)]
        self.workers[0].give(0)

    def worker(self, rank: int, values: Sequence[float] = (1.0, 2.0, 3.0)) -> Servers:
        part = Part([Parameter(torch.tensor(values))])
        return Servers([part], [Client(0, self.address, rank)], CPU)

    def end(self) -> None:
        for worker in self.workers:
            worker.leave()
        self.thread.join(5)
        assert not self.thread.is_alive(), "all workers have gone, so the server must, too"
        self.listener.close()


@contextmanager
def running(mode: str, workers: int, **more: Any) -> Iterator[Running]:
    one = Running(mode, workers, **more)
    try:
        yield one
    finally:
        one.end()


def push(worker: Servers, gradient: float, overflowed: bool = False) -> Tensor:
    """A step whose gradient is this number three times; returns the new parameters."""
    parameter = worker.parts[0].parameters[0]
    parameter.grad = torch.full((3,), gradient)
    worker.push(overflowed)
    return parameter.detach().clone()


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What they return, or the exception that they raise."""
    results: list[Any] = [None] * len(works)

    def take(index: int) -> None:
        try:
            results[index] = works[index]()
        except Exception as error:  # noqa: BLE001 - whatever it was
            results[index] = error

    threads = [threading.Thread(target=take, args=(index,)) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers)


def test_sync_takes_one_step_with_the_mean() -> None:
    with running("sync", 3) as one:
        got = in_threads(*(partial(push, worker, 3.0 * rank) for rank, worker in enumerate(one.workers)))
        assert all(torch.equal(each, values(-2.0, -1.0, 0.0)) for each in got), "1 - (0 + 3 + 6) / 3, and so on"
        [counts] = one.workers[0].counts()
    assert (counts.updates, counts.staleness, counts.largest_lead) == (1, {0: 3}, 0)
    assert (counts.received_bytes, counts.sent_bytes) == (3 * 12, 3 * 12)


def test_sync_does_not_depend_on_who_comes_first() -> None:
    """Sums of floats do: a mean taken as they come would differ in the last bit."""
    gradients = [1e8, 1.0, -1e8, 0.3]
    results = set()
    for order in ([0, 1, 2, 3], [0, 2, 1, 3], [3, 1, 0, 2]):
        with running("sync", 4) as one:
            arrive = [partial(_later, 0.05 * order.index(rank), one.workers[rank], gradients[rank]) for rank in order]
            results |= {tuple(each.tolist()) for each in in_threads(*arrive)}
    assert len(results) == 1


def _later(wait_s: float, worker: Servers, gradient: float) -> Tensor:
    time.sleep(wait_s)
    return push(worker, gradient)


def test_async_takes_a_step_for_each_and_counts_what_it_lacked() -> None:
    with running("async", 2) as one:
        fast, slow = one.workers
        assert torch.equal(push(fast, 1.0), values(0.0, 1.0, 2.0))
        assert torch.equal(push(fast, 1.0), values(-1.0, 0.0, 1.0))
        assert torch.equal(push(slow, 0.5), values(-1.5, -0.5, 0.5)), "on top of what it has not seen"
        assert torch.equal(push(fast, 1.0), values(-2.5, -1.5, -0.5))
        [counts] = fast.counts()
    assert counts.updates == 4
    assert counts.staleness == {0: 2, 1: 1, 2: 1}, "the slow one lacked two, then the fast one lacked the slow one's"
    assert counts.largest_lead == 2, "when it was let go to begin its third step, the other had made none"


class Log:
    """The order in which a server took steps and let workers go, written while it holds its lock."""

    def __init__(self, server: Server) -> None:
        self.events: list[tuple[str, int, int]] = []
        discipline = server.discipline
        apply, answer = discipline._apply, discipline._answer

        def applied(rank: int) -> None:
            self.events.append(("step", rank, discipline.clocks[rank]))
            apply(rank)

        def answered(rank: int) -> Tensor:
            self.events.append(("go", rank, discipline.clocks[rank]))
            return answer(rank)

        discipline._apply, discipline._answer = applied, answered  # type: ignore[method-assign]

    def leads(self, rank: int, other: int) -> list[int]:
        """At each moment that `rank` was let go."""
        clocks = {rank: 0, other: 0}
        leads = []
        for what, who, clock in self.events:
            clocks[who] = clock
            if what == "go" and who == rank:
                leads.append(clock - clocks[other])
        return leads


@pytest.mark.parametrize("staleness", [0, 1, 2, 3])
def test_a_fast_worker_is_held_at_the_bound(staleness: int) -> None:
    """The other one begins when this one can do no more, and then needs 5 ms for each of its steps."""
    steps = 12
    with running("bounded", 2, staleness=staleness) as one:
        log = Log(one.server)
        fast, slow = one.workers

        def begin_late() -> None:
            while one.server.discipline.clocks[0] <= staleness:
                time.sleep(0.001)
            time.sleep(0.05)
            assert ("go", 0, staleness + 1) not in log.events, "it is held"
            for _ in range(steps):
                _later(0.005, slow, 0.1)

        assert in_threads(lambda: [push(fast, 0.1) for _ in range(steps)], begin_late)[1] is None
        [counts] = fast.counts()
    leads = log.leads(0, 1)
    assert len(leads) == steps
    assert max(leads) == staleness, "the bound is reached, and never passed"
    for step in range(staleness + 1, steps + 1):
        assert log.events.index(("step", 1, step - staleness)) < log.events.index(("go", 0, step))
    assert counts.largest_lead == staleness
    assert counts.updates == 2 * steps


@pytest.mark.parametrize("mode", ["sync", "async", "bounded"])
def test_parameters_under_way_do_not_change(mode: str) -> None:
    """They are sent without a lock, while other workers' gradients come."""
    with running(mode, 2, staleness=2) as one:
        one.server.store.inbox.fill_(1.0)
        rules = one.server.discipline
        in_threads(lambda: rules.push(1, 1), lambda: rules.push(0, 1))
        under_way = rules.pull(0)
        before = under_way.clone()
        other = threading.Thread(target=rules.push, args=(1, 2))
        other.start()
        time.sleep(0.05)
        assert torch.equal(under_way, before)
        rules.push(0, 2)
        other.join(5)
        assert not torch.equal(rules.pull(0), before)


def test_async_holds_nobody() -> None:
    steps = 12
    with running("async", 2) as one:
        fast, slow = one.workers
        for _ in range(steps):
            push(fast, 0.1)  # the other has made no step yet
        push(slow, 0.1)
        [counts] = slow.counts()
    assert counts.largest_lead == steps
    assert counts.staleness == {0: steps, steps: 1}


@pytest.mark.parametrize("mode", ["sync", "bounded"])
def test_a_broken_bound_ends_the_run_for_all(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The assertion itself, where holding back has failed."""
    with running(mode, 2) as one:
        monkeypatch.setattr(one.server.discipline._changed, "wait_for", lambda _held: True)
        fast, slow = one.workers
        with pytest.raises(FailedServerError, match="BrokenBoundError: worker 0 leads the slowest by 1 steps"):
            push(fast, 1.0)
        with pytest.raises(FailedServerError, match="worker 0 leads the slowest"):
            push(slow, 1.0)


def test_a_worker_that_comes_back_too_far_ahead_ends_the_run() -> None:
    with running("bounded", 2, staleness=1) as one:
        push(one.workers[0], 1.0)
        one.server.discipline.clocks = [3, 1]
        one.workers[0].steps = 3
        with pytest.raises(FailedServerError, match="worker 0 leads the slowest by 2 steps, and the bound is 1"):
            push(one.workers[0], 1.0)


def test_a_step_that_is_lost_or_taken_twice_ends_the_run() -> None:
    with running("async", 1) as one:
        push(one.workers[0], 1.0)
        one.workers[0].steps += 1
        with pytest.raises(FailedServerError, match="worker 0 pushed step 3 after its step 1"):
            push(one.workers[0], 1.0)


def test_a_lost_worker_ends_the_wait_of_the_others_at_once() -> None:
    with running("sync", 2) as one:
        waiting, lost = one.workers

        def leave_without_a_word() -> None:
            time.sleep(0.2)
            lost.clients[0]._link.connection.shutdown(socket.SHUT_RDWR)

        started = time.monotonic()
        error, _ = in_threads(partial(push, waiting, 1.0), leave_without_a_word)
        assert isinstance(error, LostServerError), error
        assert "lost worker 1: connection closed by peer" in str(error)
        assert time.monotonic() - started < 2.0


def test_an_error_of_the_optimiser_reaches_the_workers() -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise ZeroDivisionError("broken on purpose")

    with (
        running("async", 1, make=partial(Broken, lr=1.0)) as one,
        pytest.raises(FailedServerError, match=r"parameter server 0 .* ZeroDivisionError: broken on purpose"),
    ):
        push(one.workers[0], 1.0)


def test_strangers_are_not_let_in() -> None:
    """Not before the workers have come, either: neither a stranger nor a rank that is not expected."""
    with running("sync", 2, come=1) as one:
        silent = socket.create_connection((one.address.host, one.address.port))
        wrong = one.address._replace(token=bytes(32))
        for address, rank in ((wrong, 1), (one.address, 0), (one.address, 2)):
            with pytest.raises(OSError, match=r"closed by peer|reset"):
                knock(address, rank)
        with pytest.raises(LostServerError, match=r"parameter server 0 at 127\.0\.0\.1 is lost"):
            Client(0, wrong, 1)
        one.workers.append(one.worker(1))
        got = in_threads(*(partial(push, worker, 1.0) for worker in one.workers))
        assert torch.equal(got[0], values(0.0, 1.0, 2.0)), "none of which has disturbed the workers"
        silent.close()


def test_a_message_of_another_size_is_refused() -> None:
    with running("async", 1) as one:
        link: Link = one.workers[0].clients[0]._link
        link.send(Kind.PUSH, b"12345678", 1)
        with pytest.raises(FailedServerError, match="PUSH of 8 bytes; this server keeps 12"):
            one.workers[0].clients[0].done()


@pytest.mark.parametrize(
    ("make", "second"), [(SGD, -1.0), (partial(torch.optim.SGD, lr=1.0, momentum=0.5), -1.5)], ids=["sgd", "momentum"]
)
def test_a_reset_forgets_steps_and_the_optimisers_state(make: Any, second: float) -> None:
    with running("async", 1, make=make) as one:
        [worker] = one.workers
        first = push(worker, 1.0)
        assert push(worker, 1.0)[0] == second
        worker.reset()
        worker.steps = 0
        [counts] = worker.counts()
        assert (counts.updates, counts.staleness, counts.largest_lead) == (0, {}, 0)
        assert torch.equal(push(worker, 1.0), first)


@pytest.mark.parametrize("mode", ["sync", "async", "bounded"])
def test_an_overflowed_step_counts_and_changes_nothing(mode: str) -> None:
    with running(mode, 2, staleness=0) as one:
        before = in_threads(*(partial(push, worker, 1.0) for worker in one.workers))[0]
        after = in_threads(*(partial(push, worker, float("inf"), overflowed=True) for worker in one.workers))
        assert all(torch.isfinite(each).all() for each in after)
        if mode == "sync":
            assert torch.equal(after[0], before)
        in_threads(*(partial(push, worker, 1.0) for worker in one.workers))
        [counts] = one.workers[0].counts()
    assert counts.updates == (2 if mode == "sync" else 4)


def test_an_overflow_that_only_some_know_of_is_an_error_of_sync() -> None:
    with running("sync", 2) as one:
        got = in_threads(partial(push, one.workers[0], 1.0), partial(push, one.workers[1], 1.0, overflowed=True))
        assert all(isinstance(each, FailedServerError) and "some workers only" in str(each) for each in got)


def test_a_scaler_leaves_unscaling_and_skipping_to_the_remote_optimiser() -> None:
    weight = Parameter(torch.ones(2))
    seen: list[tuple[bool, list[float]]] = []

    def exchange(overflowed: bool) -> None:
        assert weight.grad is not None
        seen.append((overflowed, weight.grad.tolist()))

    optimizer = RemoteOptimizer([weight], exchange)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for factor in (0.5, float("inf"), 0.5):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [overflowed for overflowed, _ in seen] == [False, True, False]
    assert seen[0][1] == seen[2][1] == [0.5, 0.5]
    assert scaler.get_scale() == 4.0, "halved, once"


def test_parameters_that_pass_through_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a GPU, whose messages are in pinned memory of the host."""
    monkeypatch.setattr(client_module, "on_host", torch.zeros_like)
    with running("async", 1) as one:
        assert one.workers[0].parts[0]._sent is not one.workers[0].parts[0].gradients
        assert torch.equal(push(one.workers[0], 1.0), values(0.0, 1.0, 2.0))
        one.workers[0].pull()
        assert torch.equal(one.workers[0].parts[0].parameters[0], values(0.0, 1.0, 2.0))


def test_gradients_lie_as_their_parameters_do() -> None:
    """In any memory format; a parameter that the step did not use has a gradient of zeros."""
    first = Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    second = Parameter(torch.randn(5))
    wanted = [first.detach().clone(), second.detach().clone()]
    part = Part([first, second])
    assert torch.equal(first, wanted[0])
    assert first.is_contiguous(memory_format=torch.channels_last)
    second.grad = torch.ones(5)
    first.grad = torch.randn(2, 3, 4, 4)
    for gradient in (first.grad.clone(), torch.zeros(2, 3, 4, 4)):
        part.gather()
        arrived = torch.frombuffer(bytearray(part.outgoing), dtype=torch.float32)
        assert torch.equal(views(arrived, part.shapes)[0], gradient)
        assert torch.equal(views(arrived, part.shapes)[1], torch.ones(5))
        first.grad = None


def test_tensors_are_divided_whole_and_evenly() -> None:
    sizes = [10, 50, 10, 30, 20, 40]
    parameters = [Parameter(torch.zeros(size)) for size in sizes]
    parts = divide(parameters, 2)
    assert [sum(each.numel() for each in part) for part in parts] == [80, 80]
    assert sorted(id(each) for part in parts for each in part) == sorted(map(id, parameters))
    for part in parts:
        order = [next(index for index, each in enumerate(parameters) if each is one) for one in part]
        assert order == sorted(order), "in the model's order"
    with pytest.raises(ImpossibleRunError, match=r"strategy.servers=7: the model has 6 tensors"):
        divide(parameters, 7)


def test_servers_go_round_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(rank=0, workers=6, nodes=2, device=CPU)
    assert [node_of(server, place) for server in range(4)] == [0, 1, 0, 1]
    assert [host_of(server, place) for server in range(4)] == [0, 3, 0, 3]
    assert own_address(Place(rank=0, workers=2, device=CPU)) == "127.0.0.1"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert own_address(place) == "127.0.0.1"


def test_time_in_which_two_are_served_counts_once() -> None:
    load = Load()

    def work() -> None:
        with load.busy():
            time.sleep(0.1)

    started = time.monotonic()
    in_threads(work, work, work)
    elapsed = time.monotonic() - started
    time.sleep(0.05)
    assert 0.09 < load.busy_s <= elapsed < 0.25


def test_a_registry_is_found_again_where_it_is_unpickled() -> None:
    """So that an optimiser of the user's own can be made in a server's process."""
    make = pickle.loads(pickle.dumps(partial(optimizers.make, Variant(name="adam", options={}))))
    assert make.func.__self__ is optimizers
    assert make.args[0].name == "adam"


def test_a_vector_and_its_bytes_are_one_memory() -> None:
    flat = torch.zeros(3)
    memory(flat)[:4] = torch.tensor([2.0]).numpy().tobytes()
    assert flat.tolist() == [2.0, 0.0, 0.0]
