"""Optimisers: torch's ways to go through the parameters agree, and what cannot be is refused with the reason."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.core.variants import variant_file
from benchmarks.data.batches import Division
from benchmarks.optimizer import WatchingOptimizer, optimizers
from benchmarks.optimizer.implementations import flags
from benchmarks.restore import Snapshot
from tests.conftest import MakeRun
from tests.test_ngd import trainer_of

ELEMENTWISE = ("sgd", "sgd_nesterov", "adagrad", "adadelta", "adam", "adamw")
IMPLEMENTED = [
    (name, implementation)
    for name in ELEMENTWISE
    for implementation in ("loop", "foreach", "fused")
    if (name, implementation) != ("adadelta", "fused")
]


def made(name: str, parameters: list[torch.nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    defaults = variant_file("optimizer", name).defaults
    return optimizers.make(Variant(name=name, options={**defaults, **options}), parameters)


def some_parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((7, 5), (5,), (3, 2, 3, 3))]


def trained(name: str, **options: Any) -> list[Tensor]:
    """Five steps with known gradients."""
    parameters, generator = some_parameters(), torch.Generator().manual_seed(1)
    optimizer = made(name, parameters, **options)
    for _ in range(5):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTED)
def test_implementations_take_the_same_steps(name: str, implementation: str) -> None:
    wanted = trained(name, weight_decay=0.1)
    given = trained(name, weight_decay=0.1, implementation=implementation)
    assert max(float((a - b).abs().max()) for a, b in zip(given, wanted, strict=True)) < 1e-6
    moved = [float((a - b).detach().abs().max()) for a, b in zip(given, some_parameters(), strict=True)]
    assert min(moved) > 1e-3


@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTED)
def test_the_implementation_asked_for_is_the_one_that_runs(
    name: str, implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch chooses among three functions of the optimiser's module."""
    optimizer = made(name, some_parameters(), implementation=implementation)
    module = __import__(type(optimizer).__module__, fromlist=["_"])
    called: list[str] = []
    kinds = {"loop": "_single_tensor_", "foreach": "_multi_tensor_", "fused": "_fused_"}
    algorithm = type(optimizer).__name__.lower()
    for kind, prefix in kinds.items():
        # AdamW is a kind of Adam: its functions lie there
        home = __import__("torch.optim.adam", fromlist=["_"]) if algorithm == "adamw" else module
        function = prefix + algorithm.removesuffix("w")
        if hasattr(home, function):
            monkeypatch.setattr(home, function, lambda *_, kind=kind, **__: called.append(kind))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert called == [implementation]


def test_auto_leaves_the_choice_to_torch() -> None:
    assert flags("auto") == {}


def by_hand(name: str, start: float, gradients: list[float]) -> float:
    """One number's way, from the papers' formulas; the options are those of `options`."""
    value, memory, delta = start, 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        if name == "sgd_nesterov":
            memory = 0.9 * memory + gradient
            value -= 0.1 * (gradient + 0.9 * memory)
        elif name == "adadelta":
            memory = 0.9 * memory + 0.1 * gradient**2
            move = ((delta + 1e-6) / (memory + 1e-6)) ** 0.5 * gradient
            delta = 0.9 * delta + 0.1 * move**2
            value -= move
        else:
            memory = 0.9 * memory + 0.1 * gradient
            delta = 0.999 * delta + 0.001 * gradient**2
            value *= 1 - 0.1 * 0.01
            value -= 0.1 * (memory / (1 - 0.9**step)) / ((delta / (1 - 0.999**step)) ** 0.5 + 1e-8)
    return value


@pytest.mark.parametrize(("name", "options"), [("sgd_nesterov", {"lr": 0.1}), ("adadelta", {}), ("adamw", {"lr": 0.1})])
def test_an_optimiser_by_its_formula(name: str, options: dict[str, Any]) -> None:
    parameter = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = made(name, [parameter], **options)
    gradients = [1.0, -0.5, 3.0]
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    assert parameter.item() == pytest.approx(by_hand(name, 2.0, gradients), rel=1e-9)


@pytest.mark.parametrize(("name", "implementation"), IMPLEMENTED)
def test_warm_up_is_undone(name: str, implementation: str) -> None:
    """After it, the same gradients take the same way as without it."""
    model = torch.nn.ParameterList(some_parameters())
    optimizer = made(name, list(model), implementation=implementation)

    def steps(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(3):
            for parameter in model:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        return [parameter.detach().clone() for parameter in model]

    before = Snapshot(model, optimizer)
    first = steps(5)
    before.restore()
    steps(9)
    before.restore()
    assert all(torch.equal(a, b) for a, b in zip(steps(5), first, strict=True))


def test_fused_under_a_scaler_of_sharded_gradients(make_run: MakeRun) -> None:
    """A fused optimiser divides by the scale itself, and skips an overflow itself; others leave that to the scaler."""
    from benchmarks.precision import precisions

    ways = {}
    for implementation in ("loop", "fused"):
        precision = precisions.make(Variant(name="fp16", options={}), torch.device("cpu"))
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = made("adam", [weight], implementation=implementation, lr=0.1)
        for factor in (1.0, float("inf"), 2.0):
            precision.scale((weight * factor).square().sum()).backward()
            precision.step(optimizer)
            optimizer.zero_grad()
        ways[implementation] = weight.detach().clone()
    assert torch.allclose(ways["loop"], ways["fused"], atol=1e-6)
    assert torch.isfinite(ways["fused"]).all()
    assert float(ways["fused"][0]) < 0.85, "two steps of 0.1 each"


FUSED = {"workers": 2, "optimizer.implementation": "fused"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**FUSED, "strategy": "fsdp", "optimizer": "sgd"}, "those of adam and adamw"),
    ({**FUSED, "strategy": "fsdp", "optimizer": "adagrad"}, "those of adam and adamw"),
    ({"optimizer": "sgd", "optimizer.implementation": "fast"}, "these are the implementations there are"),
    ({"optimizer": "adadelta", "optimizer.implementation": "fused"}, "no fused one"),
    ({"optimizer": "adadelta", "optimizer.rho": 1.0}, "has no mean"),
    ({"optimizer": "adamw", "optimizer.weight_decay": -0.1}, "lets weights grow"),
    ({"optimizer": "muon", "optimizer.adjust_lr": "other"}, "these are the adjustments there are"),
    ({"optimizer": "muon", "strategy": "pipeline", "workers": 2}, "which are hidden"),
    ({"optimizer": "muon", "strategy": "parameter_server"}, "which are hidden"),
    ({"optimizer": "muon", "strategy": "fsdp", "workers": 2}, "must be updated by itself, which muon and ngd do not"),
    ({"optimizer": "sgd_nesterov", "optimizer.momentum": 0.0}, "look-ahead is made of momentum"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(**{key.replace(".", "__"): value for key, value in settings.items()})


def small_network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.Conv2d(4, 6, 2),
        torch.nn.Flatten(),
        torch.nn.Linear(24, 5),
        torch.nn.Linear(5, 3),
    )


def watched_muon(model: torch.nn.Module, **options: Any) -> torch.optim.Optimizer:
    optimizer = made("muon", list(model.parameters()), **options)
    assert isinstance(optimizer, WatchingOptimizer)
    replicas = SimpleNamespace(division=Division(0, 1), summed_bytes_per_step=0.0, sum_over_replicas=None)
    optimizer.watch(model, lambda _batch: torch.zeros(()), replicas)
    return optimizer


def step_with_known_gradients(model: torch.nn.Module, optimizers_: list[torch.optim.Optimizer], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.grad = values.to(memory_format=torch.channels_last) if parameter.ndim == 4 else values
        for optimizer in optimizers_:
            optimizer.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_hidden_matrices_and_adamw_the_rest(layout: torch.memory_format) -> None:
    """Against torch's two, each given its parameters by name; a convolution's weights as a matrix of their own."""
    ours, theirs = small_network().to(memory_format=layout), small_network()
    optimizer = watched_muon(ours, lr=0.03, adamw_lr=0.002)
    step_with_known_gradients(ours, [optimizer], 3)

    hidden = {name: theirs.get_parameter(name) for name in ("2.weight", "4.weight")}
    matrices = {name: torch.nn.Parameter(weight.detach().flatten(1).clone()) for name, weight in hidden.items()}
    others = [value for name, value in theirs.named_parameters() if name not in hidden]
    muon = torch.optim.Muon(matrices.values(), lr=0.03, momentum=0.95, weight_decay=0.01)
    adamw = torch.optim.AdamW(others, lr=0.002, weight_decay=0.01)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for name, parameter in theirs.named_parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            if name in matrices:
                matrices[name].grad = gradient.flatten(1)
            else:
                parameter.grad = gradient
        muon.step()
        adamw.step()
    start = dict(small_network().named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = matrices[name].view(parameter.shape) if name in matrices else theirs.get_parameter(name)
        # the order of columns changes what is rounded to bfloat16 on the way
        assert torch.allclose(parameter, wanted, atol=2e-3 if name in matrices else 1e-6), name
        assert float((parameter - start[name]).detach().abs().max()) > 3e-3, name


def test_a_step_of_muon_is_nearly_orthogonal() -> None:
    """All singular values of a step are about lr, of a matrix that is not higher than wide."""
    model = small_network()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    step_with_known_gradients(model, [watched_muon(model, lr=1.0, weight_decay=0.0)], 1)
    for name in ("2.weight", "4.weight"):
        values = torch.linalg.svdvals((before[name] - model.get_parameter(name).detach()).flatten(1))
        assert 0.5 < float(values.min()) <= float(values.max()) < 1.4


@pytest.mark.parametrize(
    ("workload", "first", "last", "hidden"),
    [("lenet", "1.0.weight", "1.11.weight", 3), ("vit", "1.0.projection.weight", "1.2.logits.weight", None)],
)
def test_the_input_and_the_output_layer_are_adamws(
    make_run: MakeRun, workload: str, first: str, last: str, hidden: int | None
) -> None:
    trainer, _ = trainer_of(make_run(strategy="single", workload=workload, optimizer="muon"))
    named = dict(trainer.bare_model.named_parameters())
    matrices, others = ({id(value) for value in group["params"]} for group in trainer.optimizer.param_groups)
    assert len(matrices) + len(others) == len(named)
    assert {id(named[first]), id(named[last])} <= others
    between = [
        value for name, value in named.items() if value.ndim >= 2 and "weight" in name and name not in (first, last)
    ]
    assert matrices == {id(value) for value in between}
    assert hidden is None or len(matrices) == hidden


def test_an_embedding_is_the_first_layer_and_keeps_weights_that_it_shares() -> None:
    from benchmarks.optimizer.muon import hidden_weights

    embedding, hidden, head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9, bias=False)
    model = torch.nn.ModuleList([embedding, hidden, torch.nn.Linear(4, 4), head])
    assert [id(weight) for weight in hidden_weights(model)] == [id(hidden.weight), id(model[2].weight)]
    tied = torch.nn.Linear(4, 9, bias=False)
    tied.weight = embedding.weight
    assert hidden_weights(torch.nn.ModuleList([embedding, hidden, tied, torch.nn.Linear(9, 2)])) == [hidden.weight]


def test_a_model_without_hidden_layers_is_refused() -> None:
    with pytest.raises(ImpossibleRunError, match="no hidden layer"):
        watched_muon(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_muons_warm_up_is_undone(make_run: MakeRun, precision: str) -> None:
    """Also of the matrices, whose state is not under the parameters' own names; rates of both parts change."""
    ends = []
    for warmup_steps in (0, 3):
        run = make_run(
            strategy="single",
            workload="lenet",
            optimizer="muon",
            precision=precision,
            warmup_steps=warmup_steps,
            steps=4,
            lr_schedule="steps",
            lr_schedule__milestones=[0.5],
        )
        trainer, loader = trainer_of(run)
        trainer.warm_up(loader)
        for batch, _ in zip(loader.endless(), range(4), strict=False):
            trainer.step(batch)
        ends.append([value.detach().clone() for value in trainer.bare_model.parameters()])
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.002, 0.0001])
    apart = max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True))
    assert apart == 0.0 or precision == "fp16"  # the loss scale goes on from where warm-up left it
    assert all(torch.isfinite(value).all() for value in ends[1])


def test_both_parts_of_muon_take_the_rates_of_their_groups() -> None:
    """As a schedule sets them: with a rate of 0 for one group, its parameters stay, and the others move."""
    for still in (0, 1):
        model = small_network()
        before = {id(value): value.detach().clone() for value in model.parameters()}
        optimizer = watched_muon(model)
        optimizer.param_groups[still]["lr"] = 0.0
        step_with_known_gradients(model, [optimizer], 1)
        for number, group in enumerate(optimizer.param_groups):
            assert all(torch.equal(value, before[id(value)]) is (number == still) for value in group["params"])
