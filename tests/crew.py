"""Workers for tests of strategies: a few processes that take many cases, one after another, in one process group."""

from __future__ import annotations

import os
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any, Generic, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from benchmarks.core.config import RunConfig
from benchmarks.data import load
from benchmarks.data.batches import Batch, Loader
from benchmarks.measuring.step_times import Communication, StepTimes
from benchmarks.strategy import Place, Strategy, strategies
from benchmarks.supervision.agent import preload
from benchmarks.trainer import Trainer

Made = TypeVar("Made")
CPU = torch.device("cpu")
_SENT_OFFSET = 200  # of tcpi_bytes_sent in Linux's struct tcp_info


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run, how many steps of it to take, and how often a step waits in its communication, if it does."""

    run: RunConfig
    steps: int
    count_bytes: bool = False
    slow_hook_s: float = 0.0
    of_all_ranks: bool = False


@dataclass(kw_only=True)
class Outcome:
    """What rank 0 reports; state by rank."""

    parameters: dict[str, Tensor]
    state_bytes: list[int]
    losses: list[float]
    accuracy: float
    checks: list[bool]
    communication: Communication
    sent_bytes_per_step: float = 0.0
    step_time_s: float = 0.0
    error: str = ""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    by_rank: list[Outcome] = field(default_factory=list)
    """All ranks' reports, where the case asks for them."""


def take(case: Case, rank: int) -> Outcome:
    """Build, warm up, undo, take the steps with an evaluation halfway: what one worker of `case.run` does."""
    run = case.run
    torch.set_num_threads(1)
    place = Place(rank=rank, workers=run.workers, device=CPU, nodes=run.nodes)
    size = run.workload.options.get("input_size")
    dataset = load(run.data, size if isinstance(size, int) else None)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed)
    trainer = Trainer(run, place, strategy, dataset)
    if case.slow_hook_s:
        _slow_down(strategy, case.slow_hook_s)
    trainer.warm_up(loader)
    batches = _batches(run, loader)
    strategy.align()
    losses = [trainer.step(batch) for batch in islice(batches, case.steps // 2)]
    strategy.span_done(_span_of(len(losses), rank), [run.batch_per_worker] * len(losses))
    trainer.evaluate(dataset, after_steps=len(losses), beat=lambda _step, _steps: None)
    losses += [trainer.step(batch) for batch in islice(batches, case.steps - len(losses))]
    parameters = {name: _whole(value) for name, value in trainer.bare_model.named_parameters()}
    outcome = Outcome(
        parameters=parameters,
        buffers={name: value.clone() for name, value in trainer.bare_model.named_buffers()},
        state_bytes=_gathered(_state_bytes(trainer), run.workers),
        losses=[float(loss) for loss in losses],
        accuracy=trainer.evaluate(dataset, after_steps=0, beat=lambda _step, _steps: None).accuracy,
        checks=[check.passed for check in trainer.checks()],
        communication=trainer.measure_communication(loader),
        sent_bytes_per_step=_sent_per_step(trainer, loader) if case.count_bytes else 0.0,
        step_time_s=_step_time_s(trainer, loader) if case.slow_hook_s else 0.0,
        facts=strategy.facts(),
    )
    if case.of_all_ranks:
        outcome.by_rank = _outcomes(outcome, run.workers)
    strategy.close()
    return outcome


def _outcomes(own: Outcome, workers: int) -> list[Outcome]:
    outcomes: list[Any] = [None] * workers
    dist.all_gather_object(outcomes, own)
    return outcomes


def _span_of(steps: int, rank: int) -> StepTimes:
    """As if higher ranks were slower."""
    return StepTimes(
        step_s=[2.0 + rank] * steps, data_wait_s=[0.0] * steps, sync_wait_s=[1.0] * steps, wall_time_s=steps * 2.0
    )


class Crews(Generic[Made]):
    """What crews of workers have made: one of each size, started once; one that has failed is not started again."""

    def __init__(self, start: Callable[[int, Path], Made], folders: pytest.TempPathFactory) -> None:
        self._start, self._folders = start, folders
        self._made: dict[int, Made] = {}
        self._failed: set[int] = set()

    def __call__(self, workers: int) -> Made:
        assert workers not in self._failed, "this crew has failed: see the first test that needed it"
        if workers not in self._made:
            preload()  # whoever forks a crew first, all have torch from then on
            self._failed.add(workers)
            self._made[workers] = self._start(workers, self._folders.mktemp("crew") / str(workers))
            self._failed.remove(workers)
        return self._made[workers]


def take_together(cases: dict[str, Case], workers: int, folder: Path) -> dict[str, Outcome]:
    """All cases, on one crew of workers."""
    folder.mkdir()
    arguments = (cases, workers, str(folder / "rendezvous"), str(folder / "result"))
    start_processes(_work, arguments, nprocs=workers, start_method="forkserver")
    result: dict[str, Outcome] = torch.load(folder / "result", weights_only=False)
    return result


def _work(rank: int, cases: dict[str, Case], workers: int, rendezvous: str, result: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    outcomes = {}
    for name, case in cases.items():
        try:
            outcomes[name] = take(case, rank)
        except Exception:  # noqa: BLE001 - whatever it was
            print(f"{name}, rank {rank}:")
            traceback.print_exc()
            os._exit(1)  # the others wait for this worker, in the middle of a case
    if rank == 0:
        torch.save(outcomes, result)
    dist.destroy_process_group()


def _batches(run: RunConfig, loader: Loader) -> Iterator[Batch]:
    return chain.from_iterable(map(loader.epoch, range(run.epochs))) if run.epochs else loader.endless()


def _whole(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def _state_bytes(trainer: Trainer) -> int:
    """Of this rank's optimiser, in tensors that grow with the parameters."""
    tensors = (value for state in trainer.optimizer.state.values() for value in state.values())
    local = (value.to_local() if isinstance(value, DTensor) else value for value in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local if tensor.ndim > 0)


def _gathered(value: float, workers: int) -> list[int]:
    if workers == 1:
        return [int(value)]
    values = [torch.zeros(1, dtype=torch.int64) for _ in range(workers)]
    dist.all_gather(values, torch.tensor([int(value)]))
    return [int(one) for one in values]


def _sent_per_step(trainer: Trainer, loader: Loader) -> float:
    """As the operating system counts it, on all of this process's TCP connections; the mean over workers."""
    batches, steps = loader.endless(), 4
    trainer.step(next(batches))
    dist.barrier()
    before = _sent_bytes()
    for _ in range(steps):
        trainer.step(next(batches))
    sent = _gathered(_sent_bytes() - before, trainer.place.workers)
    return sum(sent) / len(sent) / steps


def _sent_bytes() -> int:
    total = 0
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):  # noqa: PTH115
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, _SENT_OFFSET)[0]
        except OSError:
            continue  # the folder's own descriptor, closed by now
    return total


def _slow_down(strategy: Any, seconds: float) -> None:
    """Every bucket's journey takes that much longer."""
    assert isinstance(strategy, Strategy)

    def hook(_state: object, bucket):  # type: ignore[no-untyped-def]
        time.sleep(seconds)
        flat = bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(flat, async_op=True).get_future().then(lambda future: future.value()[0])

    strategy.model.register_comm_hook(None, hook)  # type: ignore[attr-defined]


def _step_time_s(trainer: Trainer, loader: Loader) -> float:
    batches, times = loader.endless(), []
    for _ in range(10):
        started = time.perf_counter()
        trainer.step(next(batches))
        times.append(time.perf_counter() - started)
    return median(times)
