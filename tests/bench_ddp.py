"""Two workers under our `ddp` against two under a hand-written DistributedDataParallel loop; for `make bench`."""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

from benchmarks.core.config import RunConfig
from benchmarks.data import load
from benchmarks.strategy import Place, strategies
from benchmarks.train import timed_span
from benchmarks.trainer import Trainer
from tests.conftest import base_mapping

CPU = torch.device("cpu")
WORKERS = 2


def ddp_ratios(workload: str, batch: int, steps: int, pairs: int) -> list[float]:
    """Throughput of ours over that of the bare loop, for pairs of spans made in turns; batch is a worker's."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_measure, (folder, workload, batch, steps, pairs), nprocs=WORKERS, start_method="forkserver")
        ratios: list[float] = json.loads((Path(folder) / "ratios").read_text())
    return ratios


def _measure(rank: int, folder: str, workload: str, batch: int, steps: int, pairs: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    settings = {"workload": workload, "strategy": "ddp", "workers": WORKERS, "batch_per_worker": batch}
    run = RunConfig.from_mapping(base_mapping(**settings, steps=steps))
    ours, bare = _ours_and_bare(run, rank)
    ratios = []
    for turn in range(-1, pairs):  # who goes first changes; the first pair warms up
        first, second = (ours, bare) if turn % 2 else (bare, ours)
        times = (_timed(first), _timed(second))
        ratios.append(times[1] / times[0] if turn % 2 else times[0] / times[1])
    if rank == 0:
        (Path(folder) / "ratios").write_text(json.dumps(ratios[1:]))
    dist.destroy_process_group()


def _timed(span: Callable[[], None]) -> float:
    dist.barrier()
    started = time.perf_counter()
    span()
    return time.perf_counter() - started


def _ours_and_bare(run: RunConfig, rank: int) -> tuple[Callable[[], None], Callable[[], None]]:
    torch.set_num_threads(1)
    place = Place(rank=rank, workers=WORKERS, device=CPU)
    size = run.workload.options.get("input_size")
    train = load(run.data, size if isinstance(size, int) else None)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(train.train, global_batch=run.global_batch, seed=run.seed)
    trainer = Trainer(run, place, strategy, train)
    model = DistributedDataParallel(copy.deepcopy(trainer.bare_model), gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer.warm_up(loader)
    steps, batch = run.steps or 0, run.batch_per_worker

    def ours() -> None:
        timed_span(trainer.step, loader.endless(), trainer.new_clock(steps), lambda _step, _steps: None)

    def bare() -> None:
        order = torch.randperm(len(train.train))
        per_epoch = len(order) // batch
        for step in range(steps):
            chosen = order[batch * (step % per_epoch) : batch * (step % per_epoch + 1)]
            loss = nn.functional.cross_entropy(model(train.train.inputs[chosen]), train.train.targets[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return ours, bare


def median_ratio(ratios: list[float]) -> tuple[float, str]:
    """The median, and how it is shown."""
    ratio = statistics.median(ratios)
    return ratio, f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
