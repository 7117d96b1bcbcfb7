"""Mixup and label smoothing: losses by hand, what is drawn and mixed, and many workers against one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional

from benchmarks.core.config import RunConfig, Variant
from benchmarks.core.errors import ConfigError, ImpossibleRunError
from benchmarks.data import Dataset, Split, load
from benchmarks.data.batches import Batch, Loader
from benchmarks.data.held_out import hold_out
from benchmarks.loss import Loss
from benchmarks.mixing import held_out_share
from benchmarks.mixing.blend import Blend, Draws, MixedLoss, _chosen
from benchmarks.mixing.mixup import Mixup
from benchmarks.precision import precisions
from benchmarks.strategy import Place, strategies
from benchmarks.strategy.schedules import IGNORED, BatchLoss
from benchmarks.trainer import Trainer
from tests.conftest import MakeRun, base_mapping
from tests.crew import Case, Crews, Outcome, take, take_together

CPU = torch.device("cpu")
STEPS = 6
# 1437 samples make five batches of 284 and one of 17, which two workers share as 8 and 9.
GLOBAL_BATCH = 284


def make(**settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {"workload": "mlp", "workload.hidden_size": 64, "mixing": "mixup", "strategy": "single"}
    defaults |= {"warmup_steps": 1, "global_batch": GLOBAL_BATCH, "steps": None, "epochs": 1, "run_limit_s": 60}
    defaults |= {} if "optimizer" in settings else {"optimizer.lr": 0.05}
    return RunConfig.from_mapping(
        base_mapping(**{key.replace(".", "__"): value for key, value in {**defaults, **settings}.items()})
    )


def trainer_of(run: RunConfig) -> tuple[Trainer, Loader, Dataset]:
    torch.set_num_threads(1)
    place = Place(rank=0, workers=1, device=CPU)
    dataset = hold_out(load(run.data, None), held_out_share(run.mixing), run.seed)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed)
    return Trainer(run, place, strategy, dataset), loader, dataset


def parameters_of(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.bare_model.parameters()])


# Losses


def test_label_smoothing_by_hand() -> None:
    """Of three classes, 0.3 is spread: the own class has 0.7 + 0.1 of the target, the others 0.1 each."""
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    normaliser = math.log(math.exp(2) + 1 + math.exp(-1))
    by_hand = 0.8 * (normaliser - 2) + 0.1 * normaliser + 0.1 * (normaliser + 1)
    assert float(Loss(label_smoothing=0.3)(logits, torch.tensor([0]))) == pytest.approx(by_hand, rel=1e-6)


def test_the_loss_of_mixed_samples_by_hand() -> None:
    """Two samples, each the other's partner, with lambdas of their own: -log of a half for one, of a quarter..."""
    blend = Blend()
    blend.pairs = torch.tensor([1, 0]), torch.tensor([0.75, 0.5])
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]])  # probabilities (1/4, 3/4) and (1/2, 1/2)
    first = 0.75 * math.log(4) + 0.25 * math.log(4 / 3)
    loss = MixedLoss(blend, label_smoothing=0.0)(logits, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx((first + math.log(2)) / 2, rel=1e-6)
    assert blend.pairs is None, "the next forward pass has no pairs yet"


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_the_loss_to_mixed_targets(smoothing: float) -> None:
    """Torch's own cross-entropy to distributions over classes, the gradient included."""
    torch.manual_seed(0)
    logits, targets = torch.randn(16, 5, requires_grad=True), torch.randint(5, (16,))
    blend, partners, weights = Blend(), torch.randperm(16), torch.rand(16)
    blend.pairs = partners, weights
    loss = MixedLoss(blend, label_smoothing=smoothing)(logits, targets)
    one_hot = functional.one_hot(targets, 5).float()
    mixed = weights[:, None] * one_hot + (1 - weights[:, None]) * one_hot[partners]
    wanted = functional.cross_entropy(logits, mixed, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    [ours], [theirs] = torch.autograd.grad(loss, logits), torch.autograd.grad(wanted, logits)
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_a_pipelines_loss_is_smoothed_too_and_what_fills_it_up_does_not_count() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(5, 10, requires_grad=True), torch.randint(10, (5,))
    loss = BatchLoss(precisions.make(Variant(name="fp32", options={}), CPU), CPU, label_smoothing=0.3)
    loss.begin(Batch(torch.empty(5), targets, 1.0))
    filled = torch.cat([targets, torch.tensor([IGNORED])])
    total = loss(logits[:3], filled[:3]) + loss(torch.cat([logits[3:], logits[:1]]), filled[3:])
    wanted = functional.cross_entropy(logits, targets, label_smoothing=0.3)
    assert loss.mean().item() == pytest.approx(wanted.item(), rel=1e-6)
    [ours], [theirs] = torch.autograd.grad(total, logits), torch.autograd.grad(wanted, logits)
    assert torch.allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("mixing", ["none", "mixup"])
def test_training_is_smoothed_and_evaluation_is_not(mixing: str) -> None:
    trainer, loader, dataset = trainer_of(make(mixing=mixing, label_smoothing=0.5))
    trainer.step(next(loader.epoch(0)))
    evaluation = trainer.evaluate(dataset, 1, lambda _step, _steps: None)
    with torch.no_grad():
        logits = trainer.bare_model.eval()(dataset.test.inputs)
    wanted = functional.cross_entropy(logits, dataset.test.targets)
    assert evaluation.loss == pytest.approx(float(wanted), rel=1e-5)
    assert evaluation.accuracy == pytest.approx((logits.argmax(-1) == dataset.test.targets).float().mean().item())


def test_the_steps_loss_is_torchs_smoothed_one() -> None:
    trainer, loader, _ = trainer_of(make(mixing="none", label_smoothing=0.25))
    batch = next(loader.epoch(0))
    wanted = functional.cross_entropy(trainer.bare_model(batch.inputs), batch.targets, label_smoothing=0.25)
    assert float(trainer.step(batch)) == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize(("value", "wanted"), [(1.0, "< 1"), (-0.1, ">= 0"), ("some", "number"), (float("nan"), "")])
def test_a_wrong_smoothing_is_one_line(value: Any, wanted: str) -> None:
    with pytest.raises(ConfigError, match=rf"^label_smoothing={value}: must be .*{wanted}") as caught:
        make(mixing="none", label_smoothing=value)
    assert "\n" not in str(caught.value)


# What is drawn


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_lambda_is_beta_distributed(alpha: float, per: str) -> None:
    """Its mean is 1/2, its variance 1 / (4 (2 alpha + 1)), and the fourth central moment is 3/16 / ((2a+1)(2a+3))."""
    draws = Draws(1, 0, CPU)
    if per == "sample":
        lambdas = draws.lambdas(alpha, 100_000)
    else:
        lambdas = torch.cat([draws.one_lambda(alpha, 1) for _ in range(20_000)])
    assert lambdas.dtype == torch.float32
    centred = lambdas.double() - 0.5
    assert float(centred.mean()) == pytest.approx(0, abs=0.02)
    assert float(centred.square().mean()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    fourth = 3 / 16 / ((2 * alpha + 1) * (2 * alpha + 3))
    assert float(centred.pow(4).mean()) == pytest.approx(fourth, rel=0.06)


def test_partners_are_permutations_that_follow_from_seed_and_replica() -> None:
    one, same, other_seed, other_replica = Draws(1, 0, CPU), Draws(1, 0, CPU), Draws(2, 0, CPU), Draws(1, 1, CPU)
    drawn = [one.partners(50) for _ in range(3)]
    assert all(sorted(partners.tolist()) == list(range(50)) for partners in drawn)
    assert drawn[0].tolist() != drawn[1].tolist() != drawn[2].tolist()
    assert [same.partners(50).tolist() for _ in range(3)] == [partners.tolist() for partners in drawn]
    assert other_seed.partners(50).tolist() != drawn[0].tolist() != other_replica.partners(50).tolist()
    one.lambdas(1.0, 7)
    one.restart()
    assert one.partners(50).tolist() == drawn[0].tolist()


def test_a_batchs_lambda_is_the_same_on_all_replicas_and_a_samples_is_not() -> None:
    first, second = Draws(1, 0, CPU), Draws(1, 1, CPU)
    one, other = first.one_lambda(1.0, 4), second.one_lambda(1.0, 5)
    assert len(set(one.tolist() + other.tolist())) == 1
    assert first.one_lambda(1.0, 1) != one[0]
    assert not set(first.lambdas(1.0, 9).tolist()) & set(second.lambdas(1.0, 9).tolist())


def test_on_a_gpu_what_is_drawn_is_copied_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """From other memory, the copy would wait for the device. Torch's meta device stands in for one."""
    pinned: list[int] = []
    sent: list[dict[str, Any]] = []
    to = Tensor.to

    def pin_memory(self: Tensor) -> Tensor:
        pinned.append(self.data_ptr())
        return self

    def send(self: Tensor, device: torch.device, **how: Any) -> Tensor:
        sent.append(how)
        return to(self, device, **how)

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", send)
    draws = Draws(1, 0, torch.device("meta"))
    for made in (draws.partners(8), draws.lambdas(1.0, 8), draws.one_lambda(1.0, 8), draws.held_out(4, 8)):
        assert made.device.type == "meta"
    assert len(pinned) == 4
    assert sent == [{"non_blocking": True}] * 4


# What is mixed


def test_samples_are_mixed_with_their_partners() -> None:
    blend = Blend()
    blend.pairs = torch.tensor([2, 0, 1]), torch.tensor([0.75, 0.5, 1.0])
    values = torch.tensor([[[4.0, 0.0]], [[8.0, 2.0]], [[0.0, 4.0]]])
    assert blend(values).tolist() == [[[3.0, 1.0]], [[6.0, 1.0]], [[0.0, 4.0]]]
    blend.pairs = None
    assert blend(values) is values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mixed_samples_keep_their_format(dtype: torch.dtype) -> None:
    blend = Blend()
    blend.pairs = torch.tensor([1, 0]), torch.tensor([0.5, 0.5])
    mixed = blend(torch.rand(2, 3, 4, 4).to(dtype, memory_format=torch.channels_last))
    assert mixed.dtype == dtype
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    partners = _chosen(torch.rand(4, 3, 4, 4).to(dtype, memory_format=torch.channels_last), torch.tensor([3, 1]))
    assert partners.is_contiguous(memory_format=torch.channels_last), "two formats are mixed twice as slowly"


def test_partners_are_the_ones_that_were_chosen_whatever_the_format() -> None:
    images, numbers = torch.rand(4, 3, 2, 5), torch.tensor([3, 1])
    for memory_format in (torch.channels_last, torch.contiguous_format):
        assert torch.equal(_chosen(images.to(memory_format=memory_format), numbers), images[numbers])


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_the_step_is_that_on_mixed_pixels_and_mixed_targets(per: str) -> None:
    """Against a plain loop, with the pairs drawn anew from the same seed; after a warm-up that must leave no trace."""
    run = make(**{"mixing.per": per, "mixing.alpha": 0.5}, label_smoothing=0.1)
    trainer, loader, _ = trainer_of(run)
    trainer.warm_up(loader)
    model, _, _ = trainer_of(make(mixing="none"))
    chain, optimizer = model.bare_model[1], model.optimizer  # type: ignore[index]
    draws = Draws(run.seed, 0, CPU)
    for batch in islice(loader.epoch(0), 4):
        partners = draws.partners(len(batch))
        weights = draws.one_lambda(0.5, len(batch)) if per == "batch" else draws.lambdas(0.5, len(batch))
        pixels, by_sample = batch.inputs.float() / 127.5 - 1, weights.view(-1, 1, 1, 1)
        one_hot = functional.one_hot(batch.targets, 10).float()
        targets = weights[:, None] * one_hot + (1 - weights[:, None]) * one_hot[partners]
        logits = chain(by_sample * pixels + (1 - by_sample) * pixels[partners])
        loss = functional.cross_entropy(logits, targets, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert float(trainer.step(batch)) == pytest.approx(loss.item(), rel=1e-5)
    assert torch.allclose(parameters_of(trainer), parameters_of(model), atol=1e-5)
    assert not torch.allclose(parameters_of(trainer), parameters_of(trainer_of(run)[0]), atol=1e-2), "it has trained"


@pytest.mark.parametrize("mixing", [{}, {"mixing": "meta_mixup"}, {"mixing": "meta_mixup", "mixing.every": 4}])
def test_warm_up_is_undone(mixing: dict[str, Any]) -> None:
    """The same steps follow, bit by bit, as without one."""
    ends = []
    for warmup_steps in (0, 3):
        trainer, loader, _ = trainer_of(make(global_batch=100, warmup_steps=warmup_steps, **mixing))
        trainer.warm_up(loader)
        losses = [float(trainer.step(batch)) for batch in islice(loader.epoch(0), 3)]
        ends.append((losses, parameters_of(trainer).tolist(), trainer.mixing.facts()))
    assert ends[0] == ends[1]


def test_an_evaluation_between_steps_sees_samples_as_they_are_and_changes_none_that_follow() -> None:
    (with_one, loader, dataset), (without, _, _) = trainer_of(make()), trainer_of(make())
    for trainer in (with_one, without):
        trainer.step(next(loader.epoch(0)))
    first = with_one.evaluate(dataset, 1, lambda _step, _steps: None)
    again = with_one.evaluate(dataset, 1, lambda _step, _steps: None)
    assert (first.accuracy, first.loss) == (again.accuracy, again.loss)
    logits = with_one.bare_model(dataset.test.inputs)
    assert first.loss == pytest.approx(functional.cross_entropy(logits, dataset.test.targets).item(), rel=1e-5)
    batches = [trainer.step(next(loader.epoch(1))) for trainer in (with_one, without)]
    assert float(batches[0]) == float(batches[1])


@pytest.mark.parametrize("mixing", ["mixup", "meta_mixup"])
def test_a_compiled_model_is_not_compiled_again_for_other_pairs(mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled, loader, _ = trainer_of(make(mixing=mixing, compile="default", global_batch=100))
    compiled.warm_up(loader)
    graphs = counters["stats"]["unique_graphs"]
    plain, _, _ = trainer_of(make(mixing=mixing, global_batch=100))
    losses = [(float(compiled.step(batch)), float(plain.step(batch))) for batch in loader.epoch(0)]
    assert all(ours == pytest.approx(theirs, rel=1e-5) for ours, theirs in losses)
    assert counters["stats"]["unique_graphs"] == graphs > 0
    assert not counters["graph_break"]


# Many workers against one

# Which replica draws for which part of a batch, in a reference of one process; equal parts, or the shares of a rest.
TWO = ((0, 2), (1, 2))
CREWS: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp_per_sample": {"strategy": "ddp", "mixing.per": "sample"},
    "ddp_smoothed": {"strategy": "ddp", "label_smoothing": 0.2},
    "zero1": {"strategy": "zero1"},
    "fsdp": {"strategy": "fsdp", "strategy.group_mb": 0.01},
    "local_sgd": {"strategy": "local_sgd", "strategy.every": 1},
}
# Workers that hold a replica together: one process draws as they do.
TOGETHER: dict[str, dict[str, Any]] = {
    "tensor_parallel": {"strategy": "tensor_parallel", "workload": "vit", "workload.depth": 1},
}
PIPELINES: dict[str, dict[str, Any]] = {
    name: {"strategy": name, "mixing": "none", "label_smoothing": 0.3} for name in ("pipeline", "model_parallel")
}


def cases() -> dict[str, Case]:
    return {
        name: Case(run=make_two(**settings), steps=STEPS) for name, settings in (CREWS | TOGETHER | PIPELINES).items()
    }


def make_two(**settings: Any) -> RunConfig:
    if settings.get("workload") == "vit":  # which has no hidden size of 64 more than it has
        return make(**{"workload.hidden_size": 32, "workers": 2, **settings})
    return make(workers=2, **settings)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    crews = Crews(lambda workers, folder: take_together(cases(), workers, folder), tmp_path_factory)
    return lambda name: crews(2)[name]


class TwoReplicas:
    """What two replicas draw for their shares of a batch, as one process needs it to mix the whole batch."""

    def __init__(self, mixing: Mixup, alpha: float, per: str) -> None:
        self.blend, self.alpha, self.per = mixing.blend, alpha, per
        self.draws = [Draws(mixing.setting.seed, replica, CPU) for replica in range(2)]

    def __call__(self, batch: Batch) -> None:
        size = len(batch)
        shares = [size // 2, size - size // 2]
        partners = torch.cat([self.draws[0].partners(shares[0]), self.draws[1].partners(shares[1]) + shares[0]])
        weights = [
            draws.lambdas(self.alpha, share) if self.per == "sample" else draws.one_lambda(self.alpha, share)
            for draws, share in zip(self.draws, shares, strict=True)
        ]
        self.blend.pairs = partners, torch.cat(weights)


def alone(settings: dict[str, Any]) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of one process that mixes as two replicas do, and its parameters after all steps."""
    run = make(**{**settings, "strategy": "single"})
    trainer, loader, _ = trainer_of(run)
    assert isinstance(trainer.mixing, Mixup)
    draw = TwoReplicas(trainer.mixing, 1.0, str(run.mixing.options["per"]))
    losses = []
    for batch in islice(loader.epoch(0), STEPS):
        draw(batch)
        loss = trainer.loss(trainer.model(batch.inputs), batch.targets)
        loss.backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        losses.append(float(loss))
    return losses, {name: value.detach() for name, value in trainer.bare_model.named_parameters()}


@pytest.mark.parametrize("name", CREWS)
def test_two_workers_equal_one_that_mixes_their_shares(outcome: Callable[[str], Outcome], name: str) -> None:
    settings = {key: value for key, value in CREWS[name].items() if not key.startswith("strategy")}
    _, wanted = alone(settings)
    assert_close(outcome(name).parameters, wanted)


@pytest.mark.parametrize("name", [*TOGETHER, *PIPELINES])
def test_workers_that_hold_one_replica_equal_one_worker(outcome: Callable[[str], Outcome], name: str) -> None:
    """Tensor parallelism mixes; a pipeline, with a loss of its own, smoothes."""
    settings = (TOGETHER | PIPELINES)[name]
    rest = {key: value for key, value in settings.items() if not key.startswith("strategy")}
    run = make_two(**rest, strategy="single", workers=1) if "workload" in rest else make(**rest)
    own_part = outcome(name).parameters  # a pipeline's first worker has some of the layers
    wanted = take(Case(run=run, steps=STEPS), 0).parameters
    assert own_part
    assert_close(own_part, {name: wanted[name] for name in own_part})


def assert_close(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(ours[name], value, atol=2e-5), name


@pytest.mark.parametrize(
    "settings", [{"strategy": "hogwild"}, {"strategy": "ddp", "strategy.accumulate": 2}, {"precision": "bf16"}]
)
def test_it_trains(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """One worker in a group, on easy pairs: lambda is hardly ever far from 0 or 1."""
    run = make(**{"mixing.alpha": 0.1, "epochs": 8, **settings})
    if run.strategy.name == "single":
        outcome = take(Case(run=run, steps=40), 0)
    else:
        outcome = take_together({"it": Case(run=run, steps=40)}, 1, tmp_path_factory.mktemp("crew") / "one")["it"]
    assert outcome.accuracy > 0.5


# What is held out


@pytest.mark.parametrize("share", [0.1, 0.37])
def test_what_is_held_out_is_a_share_of_each_class(share: float) -> None:
    dataset = load(Variant(name="digits", options={"train_samples": 1437}), None)
    divided = hold_out(dataset, share, seed=1)
    assert divided.held_out is not None
    assert len(divided.held_out) == int(1437 * share)
    for one in range(10):
        of_class = int((dataset.train.targets == one).sum())
        assert abs(int((divided.held_out.targets == one).sum()) - share * of_class) <= 1
    assert divided.test is dataset.test
    assert rows(divided.train, divided.held_out) == rows(dataset.train)
    again, other = hold_out(dataset, share, seed=1), hold_out(dataset, share, seed=2)
    assert again.held_out is not None
    assert other.held_out is not None
    assert torch.equal(again.held_out.inputs, divided.held_out.inputs)
    assert not torch.equal(other.held_out.inputs, divided.held_out.inputs)


def rows(*splits: Split) -> list[bytes]:
    """All samples with their classes, sorted."""
    return sorted(
        np.append(inputs.numpy().ravel(), int(target)).tobytes()
        for split in splits
        for inputs, target in zip(split.inputs, split.targets, strict=True)
    )


def test_nothing_is_held_out_of_nothing() -> None:
    dataset = load(Variant(name="digits", options={"train_samples": 1437}), None)
    assert hold_out(dataset, 0.0, seed=1) is dataset


# What cannot be

REFUSED: Sequence[tuple[dict[str, Any], str]] = [
    ({"mixing.alpha": 0.0}, "Beta's parameters are positive"),
    ({"mixing.per": "pixel"}, "these are the ways to draw lambda"),
    ({"strategy": "pipeline", "workers": 2}, "without their partners' targets"),
    ({"strategy": "model_parallel", "workers": 2}, "without their partners' targets"),
    ({"batch_schedule": "noise"}, "samples that are not mixed"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    if "batch_schedule" in keys:
        keys |= {"steps": None, "epochs": 2}
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(mixing="mixup", **keys)


@pytest.mark.parametrize("mixing", ["mixup", "meta_mixup"])
def test_sequences_of_targets_are_not_mixed(mixing: str) -> None:
    with pytest.raises(ImpossibleRunError, match="has one for each token"):
        make(mixing=mixing, workload="gpt", data="tokens")


@pytest.mark.parametrize("mixing", ["mixup", "meta_mixup"])
def test_texts_are_mixed_behind_their_stem(mixing: str) -> None:
    """What a text's words have become; padding of both stays padding, which is a vector of zeros."""
    text = {"workload": "text_transformer", "workload.hidden_size": 16, "workload.depth": 1, "data": "synthetic_text"}
    trainer, loader, _ = trainer_of(make(mixing=mixing, global_batch=32, **text))
    stem, blend = trainer.bare_model[0], trainer.bare_model[1]  # type: ignore[index]
    assert isinstance(blend, Blend)
    batch = next(loader.epoch(0))
    partners, weights = torch.arange(32).flip(0), torch.full((32,), 0.25)
    blend.pairs = partners, weights
    vectors = stem(batch.inputs)
    mixed = blend(vectors)
    assert torch.allclose(mixed, 0.25 * vectors + 0.75 * vectors[partners], atol=1e-6)
    padded = (batch.inputs == 0) & (batch.inputs[partners] == 0)
    assert padded[:, 1:].any()
    assert not mixed[padded & (torch.arange(padded.shape[1]) > 0)].any()
    losses = [float(trainer.step(batch)) for _ in range(12)]
    assert losses[-1] < losses[0]
