"""What loading costs a step, by loader: the same model, batches and process, in turns."""

from __future__ import annotations

from statistics import median

import torch

from benchmarks.core.config import RunConfig
from benchmarks.data import load
from benchmarks.loader import loaders
from benchmarks.strategy import Place, strategies
from benchmarks.supervision.agent import preload
from benchmarks.train import timed_span
from benchmarks.trainer import Trainer
from tests.conftest import base_mapping

TURNS = 5
LOADERS = ("host", "processes", "resident")
MOST = 0.01


def waiting_share(workload: str, augmentation: str, batch: int, steps: int) -> dict[str, list[float]]:
    """By loader, the share of its steps' time that each turn waited for data."""
    shares: dict[str, list[float]] = {name: [] for name in LOADERS}
    settings = {"workload": workload, "strategy": "single", "batch_per_worker": batch, "steps": steps}
    runs = {
        name: RunConfig.from_mapping(
            base_mapping(**settings, data="synthetic", loader=name, augmentation=augmentation, warmup_steps=1)
        )
        for name in LOADERS
    }
    torch.set_num_threads(1)
    place = Place(rank=0, workers=1, device=torch.device("cpu"))
    run = runs["host"]
    dataset = load(run.data, 32)
    strategy = strategies.make(run.strategy, place)
    trainer = Trainer(run, place, strategy, dataset)
    feeds = {
        name: loaders.make(run.loader, dataset.train, place.device, run.augmentation) for name, run in runs.items()
    }
    made = {
        name: strategy.make_loader(dataset.train, global_batch=batch, seed=run.seed, feed=feed)
        for name, feed in feeds.items()
    }
    for loader in made.values():
        trainer.warm_up(loader)
    for _ in range(TURNS):
        for name, loader in made.items():
            clock = trainer.new_clock(steps)
            timed_span(trainer.step, loader.endless(steps), clock, lambda _step, _steps: None)
            times = clock.times()
            shares[name].append(sum(times.data_wait_s) / sum(times.step_s))
    for feed in feeds.values():
        feed.close()
    return shares


def bench_loader() -> list[tuple[str, str, str, str]]:
    """The share of a step that is waiting for data; the resident loader's must be small."""
    preload()
    rows = []
    for workload, augmentation, batch, steps in (("lenet", "none", 128, 30), ("resnet18", "crop_flip", 32, 4)):
        for name, turns in waiting_share(workload, augmentation, batch, steps).items():
            share = median(turns)
            spread = f"{share:.2%} ({min(turns):.2%} to {max(turns):.2%})"
            bound, reached = ("< 1 %", share < MOST) if name == "resident" else ("", True)
            verdict = ("reached" if reached else "missed") if bound else ""
            rows.append((f"waiting / step, {workload}, {augmentation}, {name}", spread, bound, verdict))
    return rows
