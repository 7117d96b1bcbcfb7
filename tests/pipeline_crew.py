"""What one step of a pipeline's worker does, looked at closely; and how long its steps take."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from benchmarks.core.config import RunConfig
from benchmarks.data import Dataset, load
from benchmarks.data.batches import Loader
from benchmarks.strategy import Place, strategies
from benchmarks.trainer import Trainer

CPU = torch.device("cpu")


@dataclass(kw_only=True)
class Seen:
    """Of one rank."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    """For each batch, by parameter."""
    losses: list[float] = field(default_factory=list)
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """After all batches."""
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    evaluated_buffers: dict[str, Tensor] = field(default_factory=dict)
    """After the evaluation that made the logits."""
    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    scale: float = 0.0
    step_s: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def trainer_of(run: RunConfig, rank: int) -> tuple[Trainer, Loader, Dataset]:
    """A worker before its first step."""
    torch.set_num_threads(1)
    size = run.workload.options.get("input_size")
    dataset = load(run.data, size if isinstance(size, int) else None)
    place = Place(rank=rank, workers=run.workers, device=CPU, nodes=run.nodes)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed)
    return Trainer(run, place, strategy, dataset), loader, dataset


def look(run: RunConfig, rank: int) -> Seen:
    """Gradients of a full batch and of the epoch's short last one, then the logits of 50 test images."""
    trainer, loader, dataset = trainer_of(run, rank)
    trainer.model.train()
    seen = Seen()
    for size in (run.global_batch, loader.epoch_sizes()[-1]):
        seen.losses.append(float(trainer.step.backward(next(loader.same(size)))))  # type: ignore[attr-defined]
        seen.gradients.append(
            {
                name: value.grad.clone()
                for name, value in trainer.bare_model.named_parameters()
                if value.grad is not None
            }
        )
        trainer.optimizer.zero_grad(set_to_none=True)
    seen.buffers = _copied(trainer.bare_model.named_buffers())
    trainer.bare_model.eval()
    with torch.inference_mode(), trainer.strategy.evaluating(trainer.bare_model), trainer.precision.autocast():
        seen.logits = trainer.strategy.predict(trainer.bare_model, dataset.test.inputs[:50]).clone()
    seen.evaluated_buffers = _copied(trainer.bare_model.named_buffers())
    return seen


def overflow(run: RunConfig, rank: int) -> Seen:
    """A step in which one gradient on the last rank is infinite."""
    trainer, loader, _ = trainer_of(run, rank)
    trainer.model.train()
    if rank == run.workers - 1:
        first = next(trainer.bare_model.parameters())
        first.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    seen = Seen(before=_copied(trainer.bare_model.named_parameters()))
    trainer.step(next(loader.endless()))
    seen.after = _copied(trainer.bare_model.named_parameters())
    seen.scale = trainer.precision.scaler.get_scale()  # type: ignore[attr-defined]
    return seen


def timed(run: RunConfig, rank: int, *, enough_s: float) -> Seen:
    """The time of a step that sleeps: the shortest, since whatever else the machine does only adds to it.

    Steps are taken until one is as short as `enough_s`, but no more than twelve.
    """
    trainer, loader, _ = trainer_of(run, rank)
    seen = Seen(facts=trainer.strategy.facts(), step_s=float("inf"))
    batches = islice(loader.endless(), 12)
    while seen.step_s > enough_s and (batch := next(batches, None)) is not None:
        trainer.strategy.align()
        started = time.perf_counter()
        trainer.step(batch)
        step_s = torch.tensor(time.perf_counter() - started)
        dist.all_reduce(step_s, op=dist.ReduceOp.MAX)  # the step is over when it is on the slowest rank
        seen.step_s = min(seen.step_s, float(step_s))
    return seen


Act = Callable[[RunConfig, int], Seen]


def act_together(acts: dict[str, tuple[Act, RunConfig]], workers: int, folder: Path) -> dict[str, list[Seen]]:
    """What all ranks have seen, act by act."""
    folder.mkdir()
    arguments = (acts, workers, str(folder / "rendezvous"), str(folder / "result"))
    start_processes(_work, arguments, nprocs=workers, start_method="forkserver")
    result: dict[str, list[Seen]] = torch.load(folder / "result", weights_only=False)
    return result


def _work(rank: int, acts: dict[str, tuple[Act, RunConfig]], workers: int, rendezvous: str, result: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    seen: dict[str, list[Any]] = {}
    for name, (act, run) in acts.items():
        seen[name] = [None] * workers
        try:
            dist.all_gather_object(seen[name], act(run, rank))
        except Exception:  # noqa: BLE001 - whatever it was
            print(f"{name}, rank {rank}:")
            traceback.print_exc()
            os._exit(1)  # the others wait for this worker
    if rank == 0:
        torch.save(seen, result)
    dist.destroy_process_group()


def _copied(named: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in named}
