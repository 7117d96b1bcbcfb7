"""A crew that also makes whole measurements: what each worker of a run would leave, without starting a run for each."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks.core.config import RunConfig
from benchmarks.strategy import Place, strategies
from benchmarks.train import Measured, Report, measure
from tests.crew import CPU, Case, Outcome, take

Taken = Outcome | list[Measured]


def take_and_measure(works: dict[str, Case | RunConfig], workers: int, folder: Path) -> dict[str, Taken]:
    """Of a case, what rank 0 reports; of a run, what every rank measures."""
    folder.mkdir()
    arguments = (works, workers, str(folder))
    start_processes(_work, arguments, nprocs=workers, start_method="forkserver")
    by_rank = [torch.load(folder / f"rank{rank}", weights_only=False) for rank in range(workers)]
    return {
        name: [one[name] for one in by_rank] if isinstance(work, RunConfig) else by_rank[0][name]
        for name, work in works.items()
    }


def _work(rank: int, works: dict[str, Case | RunConfig], workers: int, folder: str) -> None:
    # what the agent tells its workers, as far as it is used
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    results: dict[str, Outcome | Measured] = {}
    for name, work in works.items():
        try:
            results[name] = _measured(work, rank) if isinstance(work, RunConfig) else take(work, rank)
        except Exception:  # noqa: BLE001 - whatever it was
            print(f"{name}, rank {rank}:")
            traceback.print_exc()
            os._exit(1)  # the others wait for this worker, in the middle of its work
    torch.save(results, f"{folder}/rank{rank}")
    dist.destroy_process_group()


def _measured(run: RunConfig, rank: int) -> Measured:
    torch.set_num_threads(1)
    place = Place(rank=rank, workers=run.workers, device=CPU, nodes=run.nodes)
    strategy = strategies.make(run.strategy, place)
    measured = measure(run, place, strategy, Report(phase=lambda _phase: None, beat=lambda _step, _steps: None))
    strategy.close()
    return measured
