"""Batches that change during training, and the gradient's noise scale against what it is by its definition."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.batch_schedule import batch_schedules
from benchmarks.batch_schedule.noise import measured_noise_scale, noise_scale
from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.core.record import Record
from benchmarks.core.variants import variant_file
from benchmarks.data import load
from benchmarks.data.batches import Batch
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun


def schedule(name: str, first: int, **options: Any) -> Any:
    defaults = variant_file("batch_schedule", name).defaults
    return batch_schedules.make(Variant(name=name, options={**defaults, **options}), first)


def never(_batches: int) -> float:
    raise AssertionError("not to be measured")


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({}, [64, 128, 256, 512, 512]),
        ({"factor": 3, "every": 2, "most": 5}, [64, 64, 192, 192, 320]),
        ({"most": 1}, [64] * 5),
    ],
)
def test_a_growing_batch_by_hand(options: dict[str, Any], batches: list[int]) -> None:
    growing = schedule("growing", 64, **options)
    assert [64] + [growing.after(epoch, never) for epoch in range(4)] == batches
    assert growing.possible(5) == sorted(set(batches))
    assert growing.possible(1) == [64]


@pytest.mark.parametrize(
    ("scale", "batch"),
    [(0.0, 10), (13.0, 10), (15.0, 20), (27.0, 20), (29.0, 40), (79.0, 80), (1e9, 80), (math.inf, 80)],
)
def test_a_batch_that_follows_the_noise_takes_the_nearest_power_of_two(scale: float, batch: int) -> None:
    """Between 10 and 20 the border is at their geometric mean, 14.1."""
    noise = schedule("noise", 10, most=9, measured_samples=59)
    assert noise.after(0, lambda batches: scale if batches == 5 else math.nan) == batch
    assert noise.possible(3) == [10, 20, 40, 80]
    assert noise.facts() == {"noise_scale_samples_by_epoch": [None if math.isinf(scale) else scale]}


def test_the_noise_scale_of_known_gradients() -> None:
    """|G|^2 = 3 and tr(S) = 60: a batch of b has the squared length 3 + 60 / b."""
    assert noise_scale(3 + 60 / 4, 3 + 60 / 40, 10, 4) == pytest.approx(20)
    assert noise_scale(3.0, 3.0, 10, 4) == 0.0
    assert noise_scale(60 / 4, 60 / 40, 10, 4) == math.inf or noise_scale(60 / 4, 60 / 40, 10, 4) > 1e12


class _Inputs(nn.Module):
    """Its loss is linear in its parameters: the gradient of a sample is the sample."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.unused = nn.Parameter(torch.ones(3))

    def loss(self, batch: Batch) -> Tensor:
        return (batch.inputs @ self.weight).mean()


def test_the_measurement_finds_a_known_noise_scale() -> None:
    """Samples of mean length 2 and 50 numbers of variance 0.64 each: tr(S) / |G|^2 = 50 x 0.64 / 4 = 8."""
    torch.manual_seed(0)
    mean = torch.zeros(50)
    mean[0] = 2.0
    batches = [Batch(mean + 0.8 * torch.randn(16, 50), torch.zeros(16), 1.0) for _ in range(200)]
    model = _Inputs(50)
    assert measured_noise_scale(model, model.loss, batches, workers=1) == pytest.approx(8.0, rel=0.05)


def test_the_measurement_agrees_with_the_covariance_of_all_samples_gradients() -> None:
    """A small network on digits: the gradients of single samples, one by one, over the whole data set."""
    torch.manual_seed(0)
    train = load(Variant(name="digits", options={"train_samples": 1437}), None).train
    inputs = train.inputs.float() / 127.5 - 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

    def gradient(chosen: Tensor) -> Tensor:
        loss = functional.cross_entropy(model(inputs[chosen]), train.targets[chosen])
        return torch.cat([value.flatten() for value in torch.autograd.grad(loss, list(model.parameters()))])

    each = torch.stack([gradient(torch.tensor([sample])) for sample in range(len(train))])
    expected = float(each.var(0).sum() / each.mean(0).square().sum())
    order = torch.randperm(len(train))[:1408].reshape(88, 16)
    batches = [Batch(inputs[chosen], train.targets[chosen], 1.0) for chosen in order]
    measured = measured_noise_scale(
        model, lambda batch: functional.cross_entropy(model(batch.inputs), batch.targets), batches, workers=1
    )
    assert measured == pytest.approx(expected, rel=0.15)


def test_the_measurement_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    called: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(called.append)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    batches = [
        Batch(torch.randn(6, 4, generator=torch.Generator().manual_seed(n)), torch.zeros(6), 1.0) for n in (1, 2)
    ]
    measured_noise_scale(model, lambda batch: model(batch.inputs).square().mean(), batches, workers=1)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not called
    assert all(parameter.grad is None for parameter in model.parameters())


def run_of(make_run: MakeRun, folder: Path, **settings: Any) -> Record:
    keys = {"workers": 2, "global_batch": 64, "steps": None, "epochs": 4, "workload__hidden_size": 64} | settings
    record = supervise(make_run(**keys), folder)
    assert record is not None
    assert record.status == "ok", record.reason
    return record


def batches_of(record: Record) -> list[int]:
    """The first batch of each epoch."""
    assert record.window is not None
    firsts = [sum(span.steps for span in record.window.spans[:epoch]) for epoch in range(len(record.window.spans))]
    assert sum(record.window.samples) == sum(span.samples for span in record.window.spans)
    return [record.window.samples[first] for first in firsts]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "dbs"])
def test_a_run_whose_batch_grows(make_run: MakeRun, tmp_path: Path, strategy: str) -> None:
    record = run_of(make_run, tmp_path, strategy=strategy, batch_schedule="growing", batch_schedule__most=4)
    assert batches_of(record) == [64, 128, 256, 256]
    assert record.window is not None
    assert [span.samples for span in record.window.spans] == [1437] * 4
    if strategy == "ddp":
        assert record.communication is not None
        assert record.communication.unsynchronised_step_s is not None
        assert record.communication.unsynchronised_step_s.keys() == {29, 64, 128, 157, 256} | set(record.window.samples)


def test_a_run_whose_batch_follows_the_noise(make_run: MakeRun, tmp_path: Path) -> None:
    """Both see the same model after the first epoch, and measure it with the same samples in 128 parts or in 64."""
    small: dict[str, Any] = {"batch_schedule": "noise", "global_batch": 16, "optimizer__lr": 0.02}
    together = run_of(make_run, tmp_path / "two", **small)
    alone = run_of(make_run, tmp_path / "one", strategy="single", workers=1, **small)
    scales = together.strategy_facts["noise_scale_samples_by_epoch"]
    assert len(scales) == 3
    for first, scale, batch in zip([16] * 3, scales, batches_of(together)[1:], strict=True):
        assert batch / first == pytest.approx(min(max(scale / first, 1), 8), rel=0.42)
    assert alone.strategy_facts["noise_scale_samples_by_epoch"][0] == pytest.approx(scales[0], rel=0.1)
    assert together.ledger["batch_schedule"] > 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"batch_schedule": "growing", "steps": 5, "epochs": None}, "takes epochs, not steps"),
        ({"batch_schedule": "growing", "batch_schedule__factor": 1}, "a smaller factor is no growth"),
        ({"batch_schedule": "growing", "global_batch": 256}, "must be there in the data set"),
        ({"batch_schedule": "noise", "strategy": "fsdp"}, "holds the whole model"),
        ({"batch_schedule": "noise", "precision": "fp16"}, "half precision"),
        ({"batch_schedule": "noise", "batch_schedule__measured_samples": 127}, "between two batches"),
    ],
)
def test_what_cannot_be_is_refused(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(**{"workers": 2, "global_batch": 64, "steps": None, "epochs": 2} | settings)
