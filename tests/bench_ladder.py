"""What each trick of speed brings, alone and added up, against training as most people write it; for `make bench`.

ResNet-18 on images of 32 pixels, batch 128, one worker. All variants take their steps in turns in one process, and each
turn gives a ratio to the baseline of the same turn, so that a machine that is busy with other things, or throttles,
does so to all of them. A CPU that imitates bfloat16 has no rung of it, and no bound for the top.
`.venv/bin/python -m tests.bench_ladder` shows this ladder alone; with `plain`, the plain loop alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, chain, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.core.config import RunConfig
from benchmarks.data import load
from benchmarks.strategy import Place, strategies
from benchmarks.supervision.hardware import count_cores, has_bf16
from benchmarks.train import Measured, Report, measure
from benchmarks.workload import ImageShape, build
from tests.conftest import base_mapping

Row = tuple[str, str, str, str]
CPU = torch.device("cpu")
QUIET = Report(phase=lambda _phase: None, beat=lambda _step, _steps: None)
TURNS, STEPS, BATCH = 5, 1, 128
BASELINE: dict[str, Any] = {
    **{"workload": "resnet18", "data": "synthetic", "data__train_samples": 1024, "strategy": "single"},
    **{"batch_per_worker": BATCH, "steps": STEPS, "warmup_steps": 1, "evaluate": False, "threads_per_worker": 1},
}
RUNGS: dict[str, dict[str, Any]] = {
    "channels_last": {"channels_last": True},
    "resident": {"loader": "resident"},
    "fused": {"optimizer__implementation": "fused"},
    "threads": {"threads_per_worker": count_cores()},
    **({"bf16": {"precision": "bf16"}} if has_bf16() else {}),
    "compile": {"compile": "default"},
}
"""In the order in which they are added up."""
WANTED = 4.5 if has_bf16() else None
EVALUATED: dict[str, dict[str, Any]] = {"fp32": {}, "fp32, channels_last": {"channels_last": True}}


def measured(**settings: Any) -> Measured:
    """What the suite measures of the baseline with these settings."""
    run = RunConfig.from_mapping(base_mapping(**{**BASELINE, **settings}))
    torch.set_num_threads(run.threads_per_worker)
    place = Place(rank=0, workers=1, device=CPU)
    return measure(run, place, strategies.make(run.strategy, place), QUIET)


def step_s(**settings: Any) -> float:
    """Seconds of a step; the median of a turn's."""
    return statistics.median(time_s for span in measured(**settings).spans for time_s in span.step_s)


def plain_steps() -> Iterator[float]:
    """Seconds of each step of the usual loop, the median of as many as a turn has."""
    run = RunConfig.from_mapping(base_mapping(**BASELINE))
    train = load(run.data, 32).train
    torch.manual_seed(1)
    model = build(run.workload, ImageShape(channels=3, size=32, classes=10)).to(CPU)
    images = train.inputs.float().div(127.5).sub(1.0)
    loader = DataLoader(TensorDataset(images, train.targets), batch_size=BATCH, shuffle=True, drop_last=True)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches: Iterator[tuple[Tensor, Tensor]] = chain.from_iterable(repeat(loader))
    while True:
        torch.set_num_threads(1)
        times = []
        for step in range(1 + STEPS):  # the first one warms up, as the suite's does
            started = time.perf_counter()
            inputs, targets = next(batches)
            inputs, targets = inputs.to(CPU), targets.to(CPU)
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            _running_loss = loss.item()
            if step:
                times.append(time.perf_counter() - started)
        yield statistics.median(times)


def tricks() -> dict[str, Callable[[], float]]:
    """A step's seconds with each rung alone, then with one rung after the other."""
    added = list(accumulate(RUNGS.values(), lambda below, rung: below | rung))
    return {
        **{f"{name} alone": lambda rung=rung: step_s(**rung) for name, rung in RUNGS.items()},  # type: ignore[misc]
        **{
            f"up to {name}": lambda rungs=rungs: step_s(**rungs)  # type: ignore[misc]
            for name, rungs in list(zip(RUNGS, added, strict=True))[1:]
        },
    }


def over_baseline(variants: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Throughput of each variant over the baseline's, one ratio for each turn.

    Each variant stands between two baselines, so that a load that comes or goes is in both; the order changes from turn
    to turn. What compiles has compiled in its first turn, and warms up in each.
    """
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(TURNS):
        before, order = step_s(), list(variants)
        for name in order if turn % 2 else reversed(order):
            seconds = variants[name]()
            after = step_s()
            ratios[name].append((before + after) / 2 / seconds)
            before = after
    return ratios


def folding() -> dict[str, list[float]]:
    """Evaluation time as it is over that with batch norms folded, one ratio for each turn."""
    ratios: dict[str, list[float]] = {}
    settings = {"evaluate": True, "data__test_samples": 256, "batch_per_worker": 16, "steps": 1, "warmup_steps": 0}
    for name, rung in EVALUATED.items():
        for turn in range(TURNS):
            order = (False, True) if turn % 2 else (True, False)
            runs = {fuse: measured(**settings, **rung, fuse_for_evaluation=fuse) for fuse in order}
            times = {fuse: run.evaluations[-1].time_s for fuse, run in runs.items()}
            ratios.setdefault(name, []).append(times[False] / times[True])
    return ratios


def bench_plain() -> Row:
    """The suite's baseline against the plain loop."""
    plain = plain_steps()
    [ratios] = over_baseline({"plain loop": lambda: next(plain)}).values()
    return _row("suite / plain loop, resnet18, batch 128", [1 / ratio for ratio in ratios], 0.95)


def bench_ladder() -> list[Row]:
    """Rows: the suite's baseline against the plain loop, all rungs, and evaluation."""
    rows = [bench_plain()]
    ratios = over_baseline(tricks())
    *below, top = ratios
    rows += [_row(f"ladder: {name}", ratios[name]) for name in below]
    rows.append(_row(f"ladder: {top}, the top", ratios[top], WANTED))
    return rows + [_row(f"evaluation, folded / plain, {name}", of) for name, of in folding().items()]


def _row(what: str, ratios: list[float], least: float | None = None) -> Row:
    ratio = statistics.median(ratios)
    spread = f"{ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    if least is None:
        return what, spread, "", ""
    return what, spread, f">= {least}", "reached" if ratio >= least else "missed"


if __name__ == "__main__":
    for line in [bench_plain()] if sys.argv[1:] == ["plain"] else bench_ladder():
        print("{:<46}{:<28}{:<12}{}".format(*line))
