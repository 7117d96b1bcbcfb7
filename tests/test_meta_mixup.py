"""Lambda learned on held-out samples: its gradient, where it goes where that is known, and what it must leave alone."""

from __future__ import annotations

import math
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data import Dataset, Split
from benchmarks.data.batches import Batch
from benchmarks.mixing import Setting, make_mixing
from benchmarks.mixing.meta_mixup import MetaMixup
from benchmarks.precision import precisions
from benchmarks.strategy import Place, strategies
from benchmarks.train import Report, measure
from tests.conftest import MakeRun
from tests.test_mixing import make, parameters_of, trainer_of

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"policy": "one", "start": 0.8, "lr": 0.01, "every": 1, "virtual_lr": 0.05}


def meta_mixup(train: Split, held_out: Split, classes: int, **options: Any) -> MetaMixup:
    """A mixing by itself, as a trainer makes it."""
    dataset = Dataset(train=train, test=train, classes=classes, held_out=held_out)
    setting = Setting(seed=1, replica=0, device=CPU, dataset=dataset, label_smoothing=0.0)
    mixing = make_mixing(Variant(name="meta_mixup", options={**OPTIONS, "held_out": 0.1, **options}), setting)
    assert isinstance(mixing, MetaMixup)
    return mixing


def built(mixing: MetaMixup, model: nn.Module) -> nn.Module:
    """The model behind the layer that mixes, in the hands of the mixing."""
    whole = nn.Sequential(*mixing.layers(), model)
    mixing.built(whole, precisions.make(Variant(name="fp32", options={}), CPU))
    return whole


def small_conv_net() -> nn.Module:
    """With batch norm, and layers whose second derivative is not zero."""
    torch.manual_seed(3)
    layers = (nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    return nn.Sequential(*layers).double()


def random_split(samples: int) -> Split:
    return Split(inputs=torch.randn(samples, 1, 6, 6, dtype=torch.float64), targets=torch.arange(samples) % 3)


# The gradient


@pytest.mark.parametrize("policy", ["one", "classes"])
def test_lambdas_gradient_is_that_of_finite_differences(policy: str) -> None:
    """In double precision, by each number that is learned; it passes through the virtual step."""
    torch.manual_seed(0)
    train, held_out = random_split(8), random_split(7)
    mixing = meta_mixup(train, held_out, classes=3, policy=policy, virtual_lr=0.7)
    logits = mixing.policy.logits
    logits.data = (logits.data + torch.randn(logits.shape)).double()
    built(mixing, small_conv_net())
    batch, partners = Batch(train.inputs, train.targets, 1.0), torch.randperm(8)

    def loss() -> Tensor:
        return mixing.loss_after_virtual_step(batch, partners, held_out)

    [gradient] = torch.autograd.grad(loss(), [logits])
    assert float(gradient.abs().max()) > 1e-5
    for place in range(logits.numel()):
        values = []
        for sign in (1, -1):
            logits.data.view(-1)[place] += sign * 1e-4
            values.append(loss().item())
            logits.data.view(-1)[place] -= sign * 1e-4
        slope = (values[0] - values[1]) / 2e-4
        assert gradient.flatten()[place].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


# A case with a known answer: a line through 0, begun at slope 0, with one sample of each class, mixed with each other.


class Slope(nn.Module):
    """Logits 0 and w x; and a parameter that it does not use, as some models have one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        scaled = self.w * values[:, 0]
        return torch.stack([torch.zeros_like(scaled), scaled], 1)


def case(held_out_targets: list[int], **options: Any) -> tuple[MetaMixup, Batch, Split]:
    """Samples at 1 and -1, of classes 1 and 0; the held-out ones are at the same places."""
    places = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    train = Split(inputs=places, targets=torch.tensor([1, 0]))
    held_out = Split(inputs=places, targets=torch.tensor(held_out_targets))
    mixing = meta_mixup(train, held_out, classes=2, **options)
    built(mixing, Slope())
    return mixing, Batch(train.inputs, train.targets, 1.0), held_out


def test_the_loss_after_the_virtual_step_and_its_gradient_by_hand() -> None:
    """The mixed samples are at +-(2 l - 1), their targets l and 1 - l, so the slope's gradient is -(2 l - 1)^2 / 2.

    After a step of length r, the slope is r (2 l - 1)^2 / 2 and the held-out loss log(1 + exp(-slope)).
    """
    mixing, batch, held_out = case([1, 0], start=0.8, virtual_lr=0.5)
    loss = mixing.loss_after_virtual_step(batch, torch.tensor([1, 0]), held_out)
    slope = 0.5 * 0.6**2 / 2
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-slope)), rel=1e-6)
    [gradient] = torch.autograd.grad(loss, [mixing.policy.logits])
    by_lambda = -1 / (1 + math.exp(slope)) * 0.5 * 2 * 0.6
    assert gradient.item() == pytest.approx(by_lambda * 0.8 * 0.2, rel=1e-5)


@pytest.mark.parametrize(("held_out_targets", "direction"), [([1, 0], 1), ([0, 1], -1)])
def test_lambda_goes_where_the_held_out_loss_is_lower(held_out_targets: list[int], direction: int) -> None:
    """Up, to samples as they are, where training teaches what holds; down where it teaches what is wrong.

    Adam's first step is as long as its rate, in lambda's logit.
    """
    mixing, batch, held_out = case(held_out_targets, lr=0.25)
    partners = torch.tensor([1, 0])
    losses, logits = [], [mixing.policy.logits.item()]
    for _ in range(5):  # not yet to 1/2, where the held-out loss is largest or smallest
        loss = mixing.loss_after_virtual_step(batch, partners, held_out)
        losses.append(loss.item())
        mixing.policy.descend(loss)
        logits.append(mixing.policy.logits.item())
    assert logits[1] - logits[0] == pytest.approx(direction * 0.25, rel=1e-4)
    assert all((after - before) * direction > 0 for before, after in pairwise(logits))
    assert all(after < before for before, after in pairwise(losses))


# The policy


def test_each_pair_of_classes_has_a_lambda_of_its_own() -> None:
    train = Split(inputs=torch.zeros(3, 1), targets=torch.tensor([2, 0, 1]))
    mixing = meta_mixup(train, train, classes=3, policy="classes")
    mixing.policy.logits.data = torch.arange(9.0).view(3, 3)
    lambdas = mixing.policy.lambdas(train.targets, torch.tensor([1, 2, 2]))
    own_then_partner = [6.0, 1.0, 4.0]  # (2, 0), (0, 1), (1, 1)
    assert torch.allclose(lambdas, torch.tensor(own_then_partner).sigmoid())


@pytest.mark.parametrize("every", [1, 3])
def test_it_is_updated_every_so_many_steps_and_the_step_is_taken_with_it(every: int) -> None:
    trainer, loader, _ = trainer_of(make(mixing="meta_mixup", global_batch=100, **{"mixing.every": every}))
    mixing = trainer.mixing
    assert isinstance(mixing, MetaMixup)
    seen = [0.8]
    for batch in islice(loader.epoch(0), 7):
        mixing.before_forward(batch)
        assert mixing.blend.pairs is not None
        partners, lambdas = mixing.blend.pairs
        assert not lambdas.requires_grad
        assert sorted(partners.tolist()) == list(range(100))
        assert torch.equal(lambdas, mixing.policy.logits.detach().sigmoid().expand(1, 100)[0])
        seen.append(round(float(lambdas[0]), 7))
    changed = [after != before for before, after in pairwise(seen)]
    assert changed == [step % every == 0 for step in range(7)]


def test_the_held_out_batch_is_of_held_out_samples_only() -> None:
    train = Split(inputs=torch.zeros(30, 1), targets=torch.arange(30) % 3)
    held_out = Split(inputs=torch.arange(1.0, 13.0)[:, None], targets=torch.arange(12) % 3)
    mixing = meta_mixup(train, held_out, classes=3)
    drawn = [mixing._held_out_batch(8).inputs.flatten().tolist() for _ in range(20)]
    assert all(len(set(batch)) == 8 for batch in drawn)
    assert set().union(*drawn) == set(range(1, 13))
    assert len(mixing._held_out_batch(64)) == 12


# What must be left alone


def test_the_virtual_step_leaves_the_model_as_it_was() -> None:
    """Parameters, batch norm's averages and counts; no gradient is accumulated, no hook called."""
    torch.manual_seed(0)
    train, held_out = random_split(9), random_split(6)
    mixing = meta_mixup(train, held_out, classes=3)
    model = built(mixing, small_conv_net())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    called: list[Any] = []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(called.append)
    for module in model.modules():
        module.register_forward_hook(lambda *seen: called.append(seen))
    mixing.before_forward(Batch(train.inputs, train.targets, 1.0))
    assert float(mixing.policy.logits.detach().sigmoid()) != pytest.approx(0.8, abs=1e-6), "lambda has moved"
    after = model.state_dict()
    assert "1.1.running_mean" in after
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not called
    model(train.inputs)
    assert not torch.equal(after["1.1.running_mean"], before["1.1.running_mean"]), "a real pass does move them"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention_can_be_passed_twice(precision: str) -> None:
    """Its fused kernels have no second derivative."""
    vit = {"workload": "vit", "workload.hidden_size": 32, "workload.depth": 1, "global_batch": 32}
    trainer, loader, _ = trainer_of(make(mixing="meta_mixup", precision=precision, **vit))
    assert isinstance(trainer.mixing, MetaMixup)
    losses = [float(trainer.step(batch)) for batch in islice(loader.epoch(0), 2)]
    assert all(map(math.isfinite, losses))
    gradient = trainer.mixing.policy.logits.grad
    assert gradient is not None
    assert float(gradient.abs()) > 0


def test_it_learns_on_digits() -> None:
    trainer, loader, dataset = trainer_of(make(mixing="meta_mixup", global_batch=64, optimizer__lr=0.05))
    untrained = parameters_of(trainer)
    for epoch in range(3):
        for batch in loader.epoch(epoch):
            trainer.step(batch)
    assert not torch.allclose(parameters_of(trainer), untrained, atol=1e-2)
    assert trainer.evaluate(dataset, 0, lambda _step, _steps: None).accuracy > 0.85


# The record, and what cannot be


def test_the_record_says_what_was_held_out_and_where_lambda_went() -> None:
    settings = {"mixing.held_out": 0.25, "mixing.policy": "classes", "global_batch": 128, "epochs": 2}
    run = make(mixing="meta_mixup", **settings)
    place = Place(rank=0, workers=1, device=CPU)
    strategy = strategies.make(run.strategy, place)
    measured = measure(run, place, strategy, Report(phase=lambda _phase: None, beat=lambda _step, _steps: None))
    facts = measured.strategy_facts["mixing"]
    assert (facts["train_samples"], facts["held_out_samples"]) == (1437 - 359, 359)
    assert sum(measured.samples) == 2 * (1437 - 359)
    assert all(check.passed for check in measured.checks)
    assert facts["lambda_start"] == 0.8
    assert facts["lambda_min"] < facts["lambda_mean"] < facts["lambda_max"]


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mixing__held_out": 0.0}, "some of the training samples are held out"),
        ({"mixing__held_out": 1.0}, "some of the training samples are held out"),
        ({"mixing__held_out": 0.001}, "batch norm needs two held-out samples"),
        ({"mixing__held_out": 0.5, "global_batch": 800}, "must be there in what is not held out"),
        ({"mixing__policy": "pairs"}, "these are the policies there are"),
        ({"mixing__start": 0.5}, "lambda has no gradient on average"),
        ({"mixing__start": 1.0}, "at 1 nothing is mixed"),
        ({"mixing__lr": 0.0}, "a step needs a length"),
        ({"mixing__every": 0}, "it is a number of steps"),
        ({"mixing__virtual_lr": 0.0}, "does not depend on lambda"),
        ({"strategy": "ddp", "workers": 2}, "which only a worker alone has"),
        ({"precision": "fp16"}, "vanish in half precision"),
        ({"steps": None, "epochs": 2, "batch_schedule": "noise"}, "samples that are not mixed"),
        (
            {"steps": None, "epochs": 2, "batch_schedule": "growing", "global_batch": 170},
            "the largest batch must be there in what is not held out",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(**{"strategy": "single", "mixing": "meta_mixup", **settings})
