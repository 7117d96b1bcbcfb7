"""Batch norm folded for evaluation: the same results, the model untouched, and only pairs that are really pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.core.config import Variant
from benchmarks.core.errors import ConfigError, ImpossibleRunError
from benchmarks.data import load
from benchmarks.fusion import foldable_pairs, folded
from benchmarks.strategy import Place, strategies
from benchmarks.trainer import Trainer
from benchmarks.workload import ImageShape, build
from tests.conftest import MakeRun

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def unsettled(model: nn.Module) -> nn.Module:
    """The model with batch norms as training leaves them: no mean 0, no variance 1, no gamma 1, no beta 0."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
            ):
                assert tensor is not None
                values = torch.rand(tensor.shape, generator=generator) * (high - low) + low
                tensor.data.copy_(values)
    return model


@pytest.mark.parametrize(("name", "norms"), [("resnet18", 20), ("resnet50", 53)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_folded_network_computes_the_same(name: str, norms: int, layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    options = {"cifar_stem": True, "batch_norm": True, "input_size": 16}
    shape = ImageShape(channels=3, size=16, classes=10)
    model = unsettled(build(Variant(name=name, options=options), shape)).to(memory_format=layout)
    twin = folded(model, foldable_pairs(model))

    images = torch.randn(2, 3, 16, 16).to(memory_format=layout)
    assert model.training
    assert not twin.training
    with torch.no_grad():
        logits, wanted = twin(images), model.eval()(images)
        assert float((logits - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
        assert float((model.train()(images) - wanted).abs().max()) > 1e-2, "running averages must matter"
    assert len(foldable_pairs(model)) == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in twin.modules())
    convolutions = [module for module in twin.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == norms
    assert all(module.weight.is_contiguous(memory_format=layout) for module in convolutions)
    assert twin.get_parameter("fc.weight") is model.get_parameter("fc.weight"), "what is not folded is not copied"


def test_folding_leaves_the_model_as_it_was() -> None:
    convolution, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    model = unsettled(nn.Sequential(convolution, norm))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded(model, foldable_pairs(model))
    assert list(model.children()) == [convolution, norm]
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert all(module.training for module in model.modules())


class Tangled(nn.Module):
    """Convolutions and batch norms that stand beside each other and are, but for one, no pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.forked, self.forked_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.twice, self.one_norm, self.other_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.late, self.late_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.free, self.free_norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)
        self.upwards, self.upwards_norm = nn.ConvTranspose2d(3, 3, 1), nn.BatchNorm2d(3)
        self.shared_norm, self.left, self.right = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        images = self.first_norm(self.first(images))
        forked = self.forked(images)
        images = self.forked_norm(forked) + forked
        images = self.one_norm(self.twice(images)) + self.other_norm(self.twice(images * 2))
        images = self.late_norm(self.late(images).relu())
        images = self.free_norm(self.free(images))
        images = self.upwards_norm(self.upwards(images))
        out: Tensor = self.shared_norm(self.left(images)) + self.shared_norm(self.right(images))
        return out


def test_only_real_pairs_are_folded() -> None:
    model = unsettled(Tangled())
    assert foldable_pairs(model) == [("first", "first_norm")]
    images = torch.randn(8, 3, 5, 5)
    with torch.no_grad():
        twin = folded(model, foldable_pairs(model))
        assert torch.allclose(twin(images), model.eval()(images), atol=1e-5)


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if images.sum() > 0 else -images


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), "no convolution that a batch norm follows"),
        (Branching(), r"cannot be traced \(symbolically traced variables cannot be used as inputs to control flow\)"),
    ],
)
def test_what_cannot_be_folded_is_refused(model: nn.Module, reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        foldable_pairs(model)


@pytest.fixture
def norm_calls(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every batch norm that has been called."""
    calls: list[nn.Module] = []
    forward = nn.BatchNorm2d.forward

    def counted(self: nn.BatchNorm2d, values: Tensor) -> Tensor:
        calls.append(self)
        return forward(self, values)

    monkeypatch.setattr(nn.BatchNorm2d, "forward", counted)
    return calls


def test_evaluations_follow_the_training(make_run: MakeRun, norm_calls: list[nn.Module]) -> None:
    """Each evaluation folds what training has made of the weights by then."""
    results: dict[bool, list[tuple[float, float]]] = {}
    for fuse in (False, True):
        settings = {"workload": "resnet18", "workload__input_size": 8, "optimizer__lr": 0.01}
        run = make_run(strategy="single", fuse_for_evaluation=fuse, **settings)
        place = Place(rank=0, workers=1, device=CPU)
        dataset = load(run.data, 8)
        strategy = strategies.make(run.strategy, place)
        loader = strategy.make_loader(dataset.train, global_batch=16, seed=1)
        trainer, batches = Trainer(run, place, strategy, dataset), loader.endless()
        results[fuse] = []
        for _ in range(2):
            for _ in range(4):
                trainer.step(next(batches))
            norm_calls.clear()
            evaluation = trainer.evaluate(dataset, after_steps=0, beat=lambda _step, _steps: None)
            assert bool(norm_calls) is not fuse
            assert trainer.bare_model.training
            results[fuse].append((evaluation.accuracy, evaluation.loss or 0.0))
    plain, fused = results[False], results[True]
    for one, other in zip(plain, fused, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert abs(plain[0][1] - plain[1][1]) > 0.01, "the second evaluation must see other weights"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"workload": "lenet"}, "no convolution that a batch norm follows"),
        ({"workload__batch_norm": False}, "no convolution that a batch norm follows"),
        ({"evaluate": False}, "without an evaluation there is nothing to fuse for"),
        ({"strategy": "fsdp"}, "a shard of each weight only"),
        ({"strategy": "pipeline", "workers": 2}, "a part of the model only"),
        ({"strategy": "model_parallel", "workers": 2}, "a part of the model only"),
    ],
)
def test_runs_that_cannot_fuse_are_refused_at_the_door(
    make_run: MakeRun, settings: dict[str, Any], reason: str
) -> None:
    run = {"workload": "resnet18", "fuse_for_evaluation": True}
    assert make_run(**run).fuse_for_evaluation
    with pytest.raises(ConfigError, match=reason):
        make_run(**{**run, **settings})
