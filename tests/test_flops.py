"""Parameters and operations of models, against numbers worked out by hand and those that papers give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.core.config import Variant
from benchmarks.core.record import DataFacts, ModelSize
from benchmarks.core.variants import variant_file
from benchmarks.data import Dataset, Split
from benchmarks.measuring import flops
from benchmarks.measuring.flops import model_size
from benchmarks.model import build_model
from benchmarks.supervision.supervisor import supervise
from benchmarks.workload import ImageShape, workloads
from tests.conftest import MakeRun


def images(channels: int, size: int, classes: int) -> Dataset:
    split = Split(
        inputs=torch.zeros(3, channels, size, size, dtype=torch.uint8), targets=torch.zeros(3, dtype=torch.int64)
    )
    return Dataset(train=split, test=split, classes=classes)


def text(length: int, vocabulary: int, classes: int | None) -> Dataset:
    targets = torch.zeros((3,) if classes else (3, length), dtype=torch.int64)
    split = Split(inputs=torch.zeros(3, length, dtype=torch.int32), targets=targets)
    return Dataset(train=split, test=split, classes=classes or vocabulary, vocabulary=vocabulary)


def workload(name: str, **options: Any) -> Variant:
    return Variant(name=name, options={**variant_file("workload", name).defaults, **options})


def test_linear_layers_by_hand() -> None:
    """64 x 16 and 16 x 10 weights; the gradient of the images is not needed, that of what lies between is."""
    found = model_size(workload("mlp", hidden_size=16, hidden_layers=1), images(1, 8, 10))
    first, second = 2 * 64 * 16, 2 * 16 * 10
    assert found == ModelSize(
        parameters=65 * 16 + 17 * 10,
        forward_flops_per_sample=first + second,
        step_flops_per_sample=2 * first + 3 * second,
    )


def test_convolutions_by_hand() -> None:
    """LeNet at 32 pixels: 6 channels of 32 x 32 from 5 x 5, 16 of 12 x 12 from 6 x 5 x 5, then 576, 120, 84, 10."""
    found = model_size(workload("lenet"), images(1, 32, 10))
    first, second = 2 * 25 * 6 * 32 * 32, 2 * 6 * 25 * 16 * 12 * 12
    dense = 2 * (576 * 120 + 120 * 84 + 84 * 10)
    assert found.forward_flops_per_sample == first + second + dense
    assert found.step_flops_per_sample == 2 * first + 3 * (second + dense)


GPT = {"hidden_size": 48, "depth": 3, "heads": 4, "mlp_ratio": 4}


@pytest.mark.parametrize("tied", [False, True])
def test_attention_by_hand(tied: bool) -> None:
    """For n tokens of size h in each block: 4 h x h layers and two of h x 4 h, and n x n scores made and used."""
    found = model_size(workload("gpt", **GPT, tied=tied), text(20, 100, None))
    block = 20 * 2 * (4 * 48 * 48 + 2 * 4 * 48 * 48) + 2 * 2 * 20 * 20 * 48
    forward = 3 * block + 20 * 2 * 48 * 100
    assert (found.forward_flops_per_sample, found.step_flops_per_sample) == (forward, 3 * forward)


def test_padding_is_computed_and_counted_as_words_are() -> None:
    """A matrix product does not leave it out; the head's logits are of one vector for each text."""
    found = model_size(workload("text_transformer", **GPT, class_token=False), text(20, 100, 5))
    block = 20 * 2 * (4 * 48 * 48 + 2 * 4 * 48 * 48) + 2 * 2 * 20 * 20 * 48
    assert found.forward_flops_per_sample == 3 * block + 2 * 48 * 5


def test_resnet_18_has_the_published_operations() -> None:
    """1.8e9 multiply-adds for 224 pixels (He et al. 2016, table 1), each of which is two operations."""
    found = model_size(workload("resnet18", cifar_stem=False), images(3, 224, 1000))
    assert found.parameters == 11_689_512
    assert found.forward_flops_per_sample == 2 * 1_814_073_344
    assert found.step_flops_per_sample is not None
    first = 2 * 3 * 49 * 64 * 112 * 112
    assert found.step_flops_per_sample == 3 * found.forward_flops_per_sample - first


@pytest.mark.parametrize("name", ["resnet18", "text_transformer", "vit"])
def test_the_numbers_are_of_a_sample_whatever_the_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = text(12, 50, 3) if name == "text_transformer" else images(3, 16, 10)
    two = model_size(workload(name), data)
    monkeypatch.setattr(flops, "_SAMPLES", 7)
    assert model_size(workload(name), data) == two


def test_kernels_that_fuse_attention_do_as_many_operations() -> None:
    """As counted while the model runs on real numbers; in the backward pass they compute scores a second time."""
    data = text(20, 100, None)
    model = build_model(workload("gpt", **GPT), data, torch.contiguous_format)
    found = model_size(workload("gpt", **GPT), data)
    with FlopCounterMode(display=False) as counter:
        outputs = model(data.train.inputs)
        forward = counter.get_total_flops()
        outputs.sum().backward()
    assert "aten._scaled_dot_product_flash_attention_for_cpu" in str(counter.get_flop_counts()["Global"])
    assert found.forward_flops_per_sample is not None
    assert forward == 3 * found.forward_flops_per_sample
    scores = 3 * 2 * 20 * 20 * 48
    assert found.step_flops_per_sample is not None
    assert counter.get_total_flops() == 3 * (found.step_flops_per_sample + scores)


class Looking(nn.Module):
    """Decides by a value, which a tensor without memory does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits if logits.sum().item() > 0 else -logits


def test_what_cannot_be_counted_is_unknown_with_the_reason() -> None:
    @workloads.register("looking")
    def looking(_image: ImageShape) -> nn.Module:
        return Looking()

    try:
        found = model_size(Variant(name="looking", options={}), images(1, 8, 10))
    finally:
        del workloads._makers["looking"]
    assert found.parameters == 650
    assert (found.forward_flops_per_sample, found.step_flops_per_sample) == (None, None)
    assert "meta" in str(found.flops_unknown_because)


def test_counting_takes_no_memory_and_no_random_numbers() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    found = model_size(workload("gpt", hidden_size=4096, depth=48, heads=32), text(1024, 50257, None))
    assert torch.equal(torch.rand(4), wanted)
    assert found.parameters > 9e9, "40 GB of them"


def test_the_record_tells_of_the_whole_model_and_the_data(make_run: MakeRun, tmp_path: Path) -> None:
    """Though each of the two workers has half of the model."""
    options = {"data__train_samples": 64, "data__test_samples": 8, "data__length": 16}
    settings = {"workload": "gpt", "workload__tied": False, "data": "tokens", **options}
    record = supervise(make_run(strategy="pipeline", workers=2, **settings), tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    options = {"hidden_size": 64, "depth": 2, "heads": 4, "tied": False}
    assert record.model == model_size(workload("gpt", **options), text(16, 64, None))
    assert record.model.parameters == 2 * 64 * 64 + 16 * 64 + 2 * 64 + 2 * (2 * 128 + 12 * 64 * 64 + 9 * 64)
    assert record.data is not None
    assert 0 < (record.data.lowest_loss or 0) < 2
    assert record.data == DataFacts(
        kind="tokens",
        train_samples=64,
        test_samples=8,
        tokens_per_sample=16,
        lowest_loss=record.data.lowest_loss,
        highest_accuracy=record.data.highest_accuracy,
    )
    assert record.evaluation[0].samples == 8
