"""The vision transformer against torch's and torchvision's, by the same weights; its size; and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.supervision.supervisor import supervise
from benchmarks.workload import ImageShape
from benchmarks.workload.transformer import Attention, vit
from tests.conftest import MakeRun

BASE: dict[str, Any] = {"patch_size": 16, "hidden_size": 768, "depth": 12, "heads": 12, "mlp_ratio": 4}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_torchs_by_the_same_weights(heads: int) -> None:
    torch.manual_seed(0)
    ours, reference = Attention(32, heads), nn.MultiheadAttention(32, heads, batch_first=True)
    with torch.no_grad():
        for whole, ours_of in ((reference.in_proj_weight, "weight"), (reference.in_proj_bias, "bias")):
            for part, layer in zip(whole.chunk(3), (ours.query, ours.key, ours.value), strict=True):
                getattr(layer, ours_of).copy_(part.normal_())
        ours.output.load_state_dict(reference.out_proj.state_dict())
    tokens = torch.randn(3, 7, 32)
    wanted, _ = reference(tokens, tokens, tokens)
    assert torch.allclose(ours(tokens), wanted, atol=1e-5)


def in_torchvisions_words(weights: dict[str, Tensor], depth: int, patch_size: int) -> dict[str, Tensor]:
    """Our parameters under the names and in the shapes of torchvision's VisionTransformer."""
    named = {
        "class_token": weights["0.class_token"],
        "conv_proj.weight": weights["0.projection.weight"].unflatten(1, (-1, patch_size, patch_size)),
        "conv_proj.bias": weights["0.projection.bias"],
        "encoder.pos_embedding": weights["0.position"],
    }
    for kind in ("weight", "bias"):
        named[f"encoder.ln.{kind}"] = weights[f"2.norm.{kind}"]
        named[f"heads.head.{kind}"] = weights[f"2.logits.{kind}"]
        for block in range(depth):
            ours, theirs = f"1.{block}", f"encoder.layers.encoder_layer_{block}"
            attention = [weights[f"{ours}.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            named[f"{theirs}.self_attention.in_proj_{kind}"] = torch.cat(attention)
            pairs = {"self_attention.out_proj": "attention.output", "ln_1": "attention_norm", "ln_2": "mlp_norm"}
            for their_name, our_name in {**pairs, "mlp.0": "mlp.up", "mlp.3": "mlp.down"}.items():
                named[f"{theirs}.{their_name}.{kind}"] = weights[f"{ours}.{our_name}.{kind}"]
    return named


def test_with_a_class_token_it_is_torchvisions_by_the_same_weights() -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"patch_size": 4, "hidden_size": 32, "depth": 2, "heads": 4, "mlp_ratio": 2}
    ours = vit(ImageShape(channels=3, size=12, classes=5), **sizes, class_token=True)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases, norms and class token too
    reference = VisionTransformer(
        image_size=12, patch_size=4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    reference.load_state_dict(in_torchvisions_words(ours.state_dict(), depth=2, patch_size=4))
    images = torch.randn(6, 3, 12, 12)
    assert torch.allclose(ours(images), reference.eval()(images), atol=1e-5)
    assert torch.allclose(ours(images.to(memory_format=torch.channels_last)), ours(images), atol=1e-6)


def test_it_is_vit_b_16_at_the_papers_sizes() -> None:
    """86,567,656 parameters, as the paper's 86 million and torchvision's documentation."""
    with torch.device("meta"):
        model = vit(ImageShape(channels=3, size=224, classes=1000), **BASE, class_token=True)
    assert count(model) == 86_567_656


def test_its_parameters_by_hand() -> None:
    """Stem: (4 + 1) x 64 and 16 x 64 positions; a block: two norms, 4 + 4 + 4 square matrices; head: a norm, logits."""
    sizes: dict[str, Any] = {
        "patch_size": 2,
        "hidden_size": 64,
        "depth": 3,
        "heads": 4,
        "mlp_ratio": 4,
        "class_token": False,
    }
    model = vit(ImageShape(channels=1, size=8, classes=10), **sizes)
    block = 2 * 2 * 64 + 4 * (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64)
    assert count(model) == 5 * 64 + 16 * 64 + 3 * block + 2 * 64 + 65 * 10


@pytest.mark.parametrize("class_token", [False, True])
def test_the_place_of_a_patch_matters_and_every_patch_counts(class_token: bool) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "patch_size": 4,
        "hidden_size": 32,
        "depth": 1,
        "heads": 2,
        "mlp_ratio": 2,
        "class_token": class_token,
    }
    model = vit(ImageShape(channels=1, size=8, classes=10), **sizes)
    model.requires_grad_(False)
    images = torch.randn(1, 1, 8, 8)
    swapped = torch.cat([images[:, :, 4:], images[:, :, :4]], dim=2)
    assert float((model(images) - model(swapped)).abs().max()) > 1e-3
    for row, column in ((0, 0), (0, 4), (4, 0), (4, 4)):
        changed = images.clone()
        changed[:, :, row, column] += 1
        assert float((model(images) - model(changed)).abs().max()) > 1e-4


def test_it_can_be_cut_between_any_two_of_its_layers() -> None:
    """Stem, blocks and head are modules of their own in nested sequences, and the trait counts them."""
    sizes: dict[str, Any] = {
        "patch_size": 4,
        "hidden_size": 32,
        "depth": 3,
        "heads": 2,
        "mlp_ratio": 2,
        "class_token": False,
    }
    model = vit(ImageShape(channels=1, size=8, classes=10), **sizes)

    def layers(module: nn.Module) -> list[nn.Module]:
        if not isinstance(module, nn.Sequential):
            return [module]
        return [layer for child in module for layer in layers(child)]

    images = torch.randn(2, 1, 8, 8)
    values = images
    for layer in layers(model):
        values = layer(values)
    assert len(layers(model)) == 3 + 2
    assert torch.equal(values, model(images))


def test_it_learns_digits(make_run: MakeRun, tmp_path: Path) -> None:
    settings = {"workload": "vit", "strategy": "single", "batch_per_worker": 32, "epochs": 10, "steps": None}
    run = make_run(**settings, optimizer="adam", optimizer__lr=0.001, workload__depth=2)
    record = supervise(run, tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.evaluation[-1].accuracy > 0.9


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"workload.hidden_size": 66}, "heads share the hidden size equally"),
    ({"workload.heads": 0}, "attention has one head at least"),
    ({"workload.patch_size": 0}, "a patch has pixels"),
    ({"workload.depth": 0}, "without blocks"),
    ({"workload.mlp_ratio": 0}, "the MLP has an inner layer"),
    ({"workload.input_size": 15}, "patches fill the image"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(workload="vit", strategy="single", **keys)


def test_patches_that_do_not_fill_the_images_of_the_data(make_run: MakeRun, tmp_path: Path) -> None:
    """Only the data set knows its images' size: the run is built, and its record says what was wrong."""
    record = supervise(make_run(workload="vit", strategy="single", workload__patch_size=3), tmp_path)
    assert record is not None
    assert record.reason is not None
    assert record.status == "invalid"
    assert "workload.patch_size=3: patches do not fill images of 8 x 8 pixels" in record.reason.message
