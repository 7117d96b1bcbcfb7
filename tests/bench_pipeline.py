"""How many micro-batches are best, against theory; for `make bench`.

GPipe's step with S equal stages and m micro-batches takes (m + S - 1) (t/m + o), where t is a stage's time for the
whole batch and o what each micro-batch costs on top (Huang et al. 2019, arXiv 1811.06965, section 2.3). The fastest
step has m = sqrt((S - 1) t / o) micro-batches. t and o are measured in one process that runs a stage by itself.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from benchmarks.core.config import RunConfig
from tests.conftest import base_mapping
from tests.pipeline_crew import trainer_of

WORKERS = 2
GRID = (1, 2, 4, 8, 16, 32, 64)
BATCH, HIDDEN, LAYERS = 256, 512, 8
ROUNDS = 10


def curve() -> tuple[dict[int, float], float, float]:
    """Seconds of a step by the number of micro-batches; a stage's t and o, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        start_processes(_measure, (folder,), nprocs=WORKERS, start_method="forkserver")
        steps, stage_s, overhead_s = json.loads((Path(folder) / "times").read_text())
    return {int(count): seconds for count, seconds in steps.items()}, stage_s, overhead_s


def predicted_s(count: int, stage_s: float, overhead_s: float) -> float:
    """A step of `count` micro-batches, in theory."""
    return (count + WORKERS - 1) * (stage_s / count + overhead_s)


def bench_pipeline() -> list[tuple[str, str, str, str]]:
    """The rows for `make bench`."""
    steps, stage_s, overhead_s = curve()
    best = min(steps, key=lambda count: steps[count])
    predicted = min(GRID, key=lambda count: predicted_s(count, stage_s, overhead_s))
    near = abs(GRID.index(best) - GRID.index(predicted)) <= 1
    exact = math.sqrt((WORKERS - 1) * stage_s / overhead_s)
    gain = steps[1] / steps[best]
    in_theory = predicted_s(1, stage_s, overhead_s) / predicted_s(best, stage_s, overhead_s)
    return [
        (
            "gpipe, best number of micro-batches",
            f"{best} (theory {exact:.1f})",
            f"{predicted} +- 1 step",
            "reached" if near else "missed",
        ),
        (
            "gpipe, its step against one micro-batch's",
            f"{gain:.2f} x faster",
            f">= 0.85 x {in_theory:.2f}",
            "reached" if gain >= 0.85 * in_theory else "missed",
        ),
    ]


def _run(count: int) -> RunConfig:
    settings = {"workload": "mlp", "workload__hidden_size": HIDDEN, "workload__hidden_layers": LAYERS}
    pipeline = {"strategy": "pipeline", "strategy__schedule": "gpipe", "strategy__micro_batches": count}
    return RunConfig.from_mapping(base_mapping(**settings, **pipeline, workers=WORKERS, global_batch=BATCH))


def _measure(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    steps: dict[int, Callable[[], None]] = {}
    for count in GRID:
        trainer, loader, _ = trainer_of(_run(count), rank)
        batch = next(loader.endless())
        steps[count] = lambda trainer=trainer, batch=batch: trainer.step(batch)  # type: ignore[misc]
    times = _fastest(steps, dist.barrier)
    dist.barrier()
    if rank == 0:  # the other one sleeps until it is done
        alone = _fastest({count: _stage(count) for count in GRID}, lambda: None)
        overheads = [(alone[count] - alone[1]) / (count - 1) for count in GRID[1:]]
        (Path(folder) / "times").write_text(json.dumps([times, alone[1], max(1e-6, statistics.median(overheads))]))
    dist.barrier()
    dist.destroy_process_group()


def _stage(count: int) -> Callable[[], None]:
    """Half of the model's work over a batch in `count` micro-batches, without a neighbour."""
    layers = [module for _ in range(LAYERS // WORKERS) for module in (nn.Linear(HIDDEN, HIDDEN), nn.ReLU())]
    stage = nn.Sequential(*layers)
    inputs = torch.randn(BATCH, HIDDEN)

    def step() -> None:
        outputs: list[Tensor] = [stage(part.requires_grad_()) for part in inputs.clone().chunk(count)]
        for output in outputs:
            output.backward(torch.ones_like(output))
        stage.zero_grad(set_to_none=True)

    return step


def _fastest(steps: dict[int, Callable[[], None]], align: Callable[[], object]) -> dict[int, float]:
    """Of rounds in which each step has its turn: what else the machine does makes none faster."""
    times: dict[int, list[float]] = {count: [] for count in steps}
    for turn in range(1 + ROUNDS):
        for count, step in steps.items():
            align()
            started = time.perf_counter()
            step()
            align()
            if turn:
                times[count].append(time.perf_counter() - started)
    return {count: min(own) for count, own in times.items()}


if __name__ == "__main__":
    print(curve())
    for row in bench_pipeline():
        print(row)
