"""Optimisers: torch's ways to go through the parameters agree, and what cannot be is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.config import Variant
from benchmarks.errors import ImpossibleRunError
from benchmarks.optimizer import optimizers
from benchmarks.optimizer.implementations import flags
from benchmarks.restore import Snapshot
from benchmarks.variants import variant_file
from tests.conftest import MakeRun

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
    assert float(parameter) == pytest.approx(by_hand(name, 2.0, gradients), rel=1e-9)


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
    ({"optimizer": "sgd_nesterov", "optimizer.momentum": 0.0}, "look-ahead is made of momentum"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(**{key.replace(".", "__"): value for key, value in settings.items()})
