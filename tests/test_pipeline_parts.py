"""Cutting a model into stages: its layers, the best cut, micro-batches, and what passes between stages."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.core import rules
from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.core.variants import variant_file
from benchmarks.data.batches import Batch
from benchmarks.model import ToFloat
from benchmarks.precision import precisions
from benchmarks.strategy.balance import measured_costs_s, partition
from benchmarks.strategy.layers import Part, Slice, layers_of
from benchmarks.strategy.schedules import IGNORED, SCHEDULES, BatchLoss, MicroBatches, Plan, unwrapped
from benchmarks.workload import ImageShape, build, workloads
from tests.conftest import MakeRun

CPU = torch.device("cpu")
IMAGE = ImageShape(channels=3, size=32, classes=10)
MODELS: list[tuple[str, dict[str, Any]]] = [
    ("mlp", {}),
    ("mlp", {"hidden_size": 16, "hidden_layers": 1}),
    ("mlp", {"hidden_size": 16, "hidden_layers": 6}),
    ("lenet", {}),
    ("resnet18", {}),
    ("resnet18", {"batch_norm": False, "cifar_stem": False}),
    ("resnet50", {}),
]


def model_of(name: str, options: dict[str, Any]) -> nn.Module:
    """As the trainer builds it."""
    torch.manual_seed(1)
    model = build(Variant(name=name, options={**variant_file("workload", name).defaults, **options}), IMAGE)
    return nn.Sequential(ToFloat(torch.contiguous_format), model)


def images(count: int) -> Tensor:
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_the_layers_in_turn_are_the_model(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, options).eval()
    layers = layers_of(model)
    values = images(2)
    with torch.no_grad():
        wanted = model(values)
        for layer in layers:
            for _, module in layer.modules:
                values = module(values)
    assert torch.equal(values, wanted)
    assert layers[0].modules[0] == ("0", model[0]), "bytes become numbers in the first layer"  # type: ignore[index]
    assert all(any(True for _ in layer.parameters()) for layer in layers)


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_the_trait_says_how_many_layers_there_are(name: str, options: dict[str, Any]) -> None:
    file = variant_file("workload", name)
    values = {f"workload.{key}": value for key, value in {**file.defaults, **options}.items()}
    assert rules.value(str(file.traits["layers"]), values) == len(layers_of(model_of(name, options)))


def test_every_workload_of_the_project_says_how_many_layers_it_has() -> None:
    assert {name for name in workloads.names() if "layers" in variant_file("workload", name).traits} >= {
        *("mlp", "lenet", "resnet18", "resnet50")
    }


@pytest.mark.parametrize(("name", "options"), MODELS)
def test_parts_keep_the_names_and_the_order_of_the_model(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, options)
    layers = layers_of(model)
    parts = [Part(layers[: len(layers) // 2]), Part(layers[len(layers) // 2 :])]
    named = [(key, id(value)) for part in parts for key, value in part.named_parameters()]
    assert named == [(key, id(value)) for key, value in model.named_parameters()]
    assert {key for part in parts for key in part.state_dict()} == model.state_dict().keys()
    parts[0].load_state_dict(parts[0].state_dict())
    parts[1].eval()
    assert not any(module.training for layer in layers[len(layers) // 2 :] for _, module in layer.modules)


def test_a_resnet_is_cut_between_its_blocks() -> None:
    names = [layer.name for layer in layers_of(model_of("resnet18", {}))]
    blocks = [f"1.layer{group}.{block}" for group in (1, 2, 3, 4) for block in (0, 1)]
    assert names == ["1.conv1", *blocks, "1.fc"]


class _Doubled(nn.Sequential):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2 * super().forward(inputs)  # type: ignore[no-any-return, no-untyped-call]


class _Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"b": nn.Linear(4, 4), "a": nn.Linear(4, 4)})
        self.head = nn.Linear(4, 2)

    def layers_in_order(self) -> Iterator[tuple[str, nn.Module]]:
        yield "body.a", self.body["a"]
        yield "body.b", nn.Sequential(self.body["b"], nn.ReLU())
        yield "head", self.head


def test_a_model_that_says_itself_where_it_can_be_cut() -> None:
    layers = layers_of(nn.Sequential(nn.Identity(), _Own()))
    assert [layer.name for layer in layers] == ["1.body.a", "1.body.b.0", "1.head"]


def test_what_does_more_than_pass_samples_on_is_not_cut() -> None:
    inner = _Doubled(nn.Linear(4, 4), nn.Linear(4, 4))
    assert [layer.name for layer in layers_of(nn.Sequential(inner, nn.Linear(4, 2)))] == ["0", "1"]
    assert len(layers_of(nn.Transformer(d_model=4, nhead=1))) == 1


def test_a_layer_that_is_frozen_stays_with_the_one_before() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 2))
    assert [len(layer.modules) for layer in layers_of(model)] == [3, 1]


def test_layers_that_share_a_parameter_cannot_be_parted() -> None:
    shared = nn.Linear(4, 4)
    with pytest.raises(ImpossibleRunError, match="layers 0 and 2 share a parameter"):
        layers_of(nn.Sequential(shared, nn.ReLU(), shared))


def test_an_activation_in_several_places_is_used_in_all_of_them() -> None:
    relu = nn.ReLU()
    layers = layers_of(nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 2), relu))
    assert [[name for name, _ in layer.modules] for layer in layers] == [["0", "1"], ["2", "3"]]


def slowest(costs: list[float], cuts: tuple[int, ...]) -> float:
    return max(sum(costs[start:end]) for start, end in itertools.pairwise((0, *cuts, len(costs))))


@given(st.lists(st.integers(0, 9).map(float), min_size=1, max_size=9), st.data())
def test_the_partition_is_the_best_of_all(costs: list[float], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(costs)))
    found = partition(costs, parts)
    assert [part.start for part in found] == [0, *[part.stop for part in found[:-1]]]
    assert found[-1].stop == len(costs)
    assert len(found) == parts
    assert all(part.stop > part.start for part in found)
    best = min(slowest(costs, cuts) for cuts in itertools.combinations(range(1, len(costs)), parts - 1))
    assert max(sum(costs[part]) for part in found) == best


def test_a_partition_needs_a_layer_for_each_part() -> None:
    with pytest.raises(ValueError, match="2 layers cannot be divided into 3 parts"):
        partition([1.0, 1.0], 3)


def test_costs_are_the_layers_times_and_leave_no_trace(make_run: MakeRun) -> None:
    """The first layer sleeps 30 ms for 10 samples, the others 10 ms; whatever else the machine does only adds."""
    make_run(workload="sleeping")
    defaults = variant_file("workload", "sleeping").defaults
    model = build(Variant(name="sleeping", options={**defaults, "first_factor": 3.0}), IMAGE)
    layers = layers_of(nn.Sequential(ToFloat(torch.contiguous_format), model))
    costs = measured_costs_s(layers, images(10), CPU)
    assert costs == [pytest.approx(wanted, rel=0.3, abs=0.005) for wanted in (0.03, 0.01, 0.01, 0.01)]
    assert all(cost >= 0.0099 for cost in costs)
    assert partition(costs, 2) == [slice(0, 1), slice(1, 4)]

    normed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    measured_costs_s(layers_of(nn.Sequential(ToFloat(torch.contiguous_format), normed)), images(4), CPU)
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())
    assert all(parameter.grad is None for parameter in normed.parameters())


def test_what_went_wrong_in_a_stage_is_told_as_what_it_was() -> None:
    """torch wraps it in a RuntimeError, which would hide that the memory was full."""
    for cause in (torch.OutOfMemoryError("CUDA out of memory"), ZeroDivisionError("broken")):
        with pytest.raises(type(cause), match=str(cause)), unwrapped():
            raise RuntimeError("\n[Stage 1] failed to run forward") from cause
    with pytest.raises(RuntimeError, match="connection reset"), unwrapped():
        raise RuntimeError("connection reset")


def plan(schedule: str, workers: int, **sizes: int | None) -> Plan:
    keys = {"micro_batches": None, "micro_batch_size": None, "full_samples": 284, **sizes}
    return Plan(schedule=schedule, workers=workers, stages_per_worker=1, **keys)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("planned", "samples", "count", "size"),
    [
        (plan("gpipe", 2), 284, 8, 36),
        (plan("gpipe", 4), 284, 16, 18),
        (plan("gpipe", 4), 17, 16, 2),
        (plan("gpipe", 4, full_samples=6), 6, 3, 2),
        (plan("gpipe", 2, micro_batches=4), 284, 4, 71),
        (plan("gpipe", 2, micro_batches=4), 17, 4, 5),
        (plan("gpipe", 2, micro_batches=4), 3, 4, 2),
        (plan("gpipe", 2, micro_batch_size=50), 284, 6, 48),
        (plan("gpipe", 2, micro_batch_size=50), 17, 1, 17),
        (plan("1f1b", 4, micro_batch_size=50), 17, 4, 5),
        (plan("interleaved_1f1b", 4, micro_batch_size=32), 284, 10, 29),
        (plan("zero_bubble", 4, micro_batch_size=100), 284, 3, 95),
    ],
)
def test_micro_batches_by_hand(planned: Plan, samples: int, count: int, size: int) -> None:
    assert planned.cut(samples) == MicroBatches(count=count, size=size)


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(2, 8), st.integers(2, 40), st.integers(2, 300))
def test_micro_batches_hold_the_batch_and_suit_the_schedule(
    schedule: str, workers: int, micro_batch_size: int, samples: int
) -> None:
    cut = plan(schedule, workers, micro_batch_size=micro_batch_size).cut(samples)
    assert cut.size == 2 or samples <= cut.count * cut.size < samples + cut.count
    assert 2 <= cut.size <= max(2, micro_batch_size)
    assert samples <= cut.count * cut.size
    assert SCHEDULES[schedule].allows(cut.count, workers)


def test_which_worker_holds_which_stage() -> None:
    def owners(schedule: str, each: int) -> list[int]:
        planned = Plan(
            schedule=schedule, workers=3, stages_per_worker=each, micro_batches=3, micro_batch_size=None, full_samples=9
        )
        return [planned.owner(stage) for stage in range(planned.stages)]

    assert owners("1f1b", 1) == [0, 1, 2]
    assert owners("interleaved_1f1b", 2) == [0, 1, 2, 0, 1, 2]
    assert owners("zbv", 2) == [0, 1, 2, 2, 1, 0]


def test_what_fills_a_batch_up_counts_for_nothing() -> None:
    batch = Batch(torch.arange(5.0).reshape(5, 1), torch.arange(5), 0.5)
    filled = MicroBatches(count=3, size=2).fill(batch)
    assert filled.inputs.flatten().tolist() == [0, 1, 2, 3, 4, 0]
    assert filled.targets.tolist() == [0, 1, 2, 3, 4, IGNORED]
    twice = MicroBatches(count=3, size=4).fill(batch)
    assert twice.inputs.flatten().tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert (twice.targets == IGNORED).sum() == 7
    assert batch.targets.tolist() == [0, 1, 2, 3, 4]
    assert MicroBatches(count=5, size=1).fill(batch) is batch


def test_the_loss_is_the_mean_over_all_samples_however_they_are_cut() -> None:
    torch.manual_seed(0)
    precision = precisions.make(Variant(name="fp32", options={}), CPU)
    logits, targets = torch.randn(7, 10, requires_grad=True), torch.randint(10, (7,))
    loss = BatchLoss(precision, CPU)
    loss.begin(Batch(torch.empty(7), targets, 0.75))
    filled = torch.cat([targets, torch.full((2,), IGNORED)])
    weighted = sum(
        (loss(torch.cat([logits, logits[:2]])[first : first + 3], filled[first : first + 3]) for first in (0, 3, 6)),
        start=torch.zeros(()),
    )
    mean = nn.functional.cross_entropy(logits, targets)
    assert float(loss.mean()) == pytest.approx(mean.item())
    [gradient] = torch.autograd.grad(weighted, logits)
    [wanted] = torch.autograd.grad(0.75 * mean, logits)
    assert torch.allclose(gradient, wanted, atol=1e-7)
    loss.begin(Batch(torch.empty(7), targets, 1.0))
    assert float(loss.mean()) == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_what_passes_between_slices_can_be_sent_and_is_what_it_would_be(channels_last: bool, precision: str) -> None:
    """Contiguous in both directions, no view, in the layout and the format of the model, in shapes known before."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = nn.Sequential(
        *(ToFloat(layout), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(28 * 28 * 5, 10)),
    ).to(memory_format=layout)
    made = precisions.make(Variant(name=precision, options={}), CPU)
    layers = layers_of(model)
    assert len(layers) == 4
    slices = [Slice([layer], made) for layer in layers]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probed, boundary = images(2), None
    for one in slices:
        probed, boundary = one.probe(probed, boundary)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    values, inputs = images(6), []
    for one in slices:
        inputs.append(values.detach().requires_grad_(values.is_floating_point()))
        values = one(inputs[-1])
        assert one.after is not None
        assert values.is_contiguous()
        assert not values._is_view()
        assert (values.dtype, tuple(values.shape[1:])) == (one.after.dtype, one.after.shape)
        assert values.nbytes == one.after.size_bytes(6)
    if channels_last:
        assert [one.after is not None and one.after.channels_last for one in slices] == [True, True, False, False]
        assert inputs[1].shape == (6, 30, 30, 4)
    with made.autocast():
        wanted = model.train()(images(6))
    assert torch.equal(values, wanted)
    for one, given_ in zip(slices[1:], inputs[1:], strict=True):
        outputs = one(given_)
        [gradient] = torch.autograd.grad(outputs, given_, torch.ones(()).to(outputs.dtype).expand_as(outputs))
        assert gradient.is_contiguous()


class _Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.transpose(1, 2) + self.bias


def test_gradients_that_lie_otherwise_are_put_in_order_before_they_are_sent() -> None:
    """As they come from torch.autograd.grad, which zero_bubble and zbv use: nothing has copied them on the way."""
    made = precisions.make(Variant(name="fp32", options={}), CPU)
    inputs, weights = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 4, 3)
    [raw] = torch.autograd.grad(_Turned()(inputs), inputs, weights)
    [gradient] = torch.autograd.grad(Slice(layers_of(_Turned()), made)(inputs), inputs, weights)
    assert not raw.is_contiguous()
    assert gradient.is_contiguous()
    assert torch.equal(gradient, raw)
