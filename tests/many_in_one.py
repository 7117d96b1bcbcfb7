"""What several workers do, as plain loops in one process: references for strategies that let them drift apart."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.core.config import RunConfig
from benchmarks.data import Dataset, load
from benchmarks.optimizer import optimizers
from benchmarks.precision import precisions
from benchmarks.strategy import Place
from benchmarks.strategy.single import Single
from benchmarks.trainer import Trainer

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Share:
    """What one worker trains on in a step: the samples' numbers, and the factor of their mean loss."""

    samples: Tensor
    weight: float


def order(run: RunConfig, samples: int, epoch: int) -> Tensor:
    return torch.randperm(samples, generator=torch.Generator().manual_seed(run.seed * 1_000_003 + epoch))


def shares_of_batches(run: RunConfig, samples: int) -> Iterator[list[Share]]:
    """Each global batch in consecutive parts, one for each worker; a part's weight is its size over the mean size."""
    for epoch in range(run.epochs or 0):
        for batch in order(run, samples, epoch).split(run.global_batch):
            bounds = [len(batch) * worker // run.workers for worker in range(run.workers + 1)]
            parts = [batch[bounds[worker] : bounds[worker + 1]] for worker in range(run.workers)]
            yield [Share(part, len(part) * run.workers / len(batch)) for part in parts]


def shares_of_epochs(run: RunConfig, samples: int) -> Iterator[list[Share]]:
    """A whole epoch for each worker, in batches of its own."""
    for first in range(0, run.epochs or 0, run.workers):
        orders = [order(run, samples, first + worker).split(run.batch_per_worker) for worker in range(run.workers)]
        for batches in zip(*orders, strict=True):
            yield [Share(batch, 1.0) for batch in batches]


class Worker:
    """A model, which may be another worker's too, with an optimiser and a loss scale of its own."""

    def __init__(self, run: RunConfig, model: nn.Module, dataset: Dataset) -> None:
        self.model, self.dataset = model, dataset
        self.optimizer: Optimizer = optimizers.make(run.optimizer, list(model.parameters()))
        self.precision = precisions.make(run.precision, CPU)

    def step(self, share: Share) -> None:
        train = self.dataset.train
        with self.precision.autocast():
            logits = self.model(train.inputs[share.samples])
            loss = nn.functional.cross_entropy(logits, train.targets[share.samples])
        self.optimizer.zero_grad()
        self.precision.scale(loss * share.weight).backward()
        self.precision.step(self.optimizer)


def built(run: RunConfig) -> tuple[nn.Module, Dataset]:
    """The untrained model of a run, and its data."""
    size = run.workload.options.get("input_size")
    dataset = load(run.data, size if isinstance(size, int) else None)
    place = Place(rank=0, workers=1, device=CPU)
    return Trainer(run, place, Single(place), dataset).bare_model, dataset


def workers_on_one_model(run: RunConfig) -> list[Worker]:
    model, dataset = built(run)
    return [Worker(run, model, dataset) for _ in range(run.workers)]


def workers_on_copies(run: RunConfig) -> list[Worker]:
    model, dataset = built(run)
    return [Worker(run, deepcopy(model), dataset) for _ in range(run.workers)]


@torch.inference_mode()
def accuracy(model: nn.Module, dataset: Dataset) -> float:
    model.eval()
    right = model(dataset.test.inputs).argmax(1) == dataset.test.targets
    model.train()
    return float(right.float().mean())
