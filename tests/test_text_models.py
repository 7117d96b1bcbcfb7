"""The text models against torch's transformer by the same weights, their sizes, and how well they learn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.core.config import RunConfig, Variant
from benchmarks.core.errors import ConfigError, ImpossibleRunError
from benchmarks.core.variants import variant_file
from benchmarks.data import load
from benchmarks.model import build_model, shape_of
from benchmarks.strategy.layers import layers_of
from benchmarks.workload import ImageShape, Shape, TextShape, TokenShape, build
from benchmarks.workload.text import gpt, text_transformer
from tests.conftest import MakeRun, base_mapping
from tests.crew import Case, Outcome, take

SMALL: dict[str, Any] = {"hidden_size": 32, "depth": 2, "heads": 4, "mlp_ratio": 2}
GPT2: dict[str, Any] = {"hidden_size": 768, "depth": 12, "heads": 12, "mlp_ratio": 4}
TEXT = TextShape(length=9, vocabulary=20, classes=5)
TOKENS = TokenShape(length=9, vocabulary=20)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def randomised(model: nn.Module) -> nn.Module:
    """Biases and norms are not what they begin as: else a wrong one would not show."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False)


def torchs_encoder(trunk: nn.Module) -> nn.TransformerEncoder:
    """torch's pre-norm encoder with a trunk's weights."""
    sizes: dict[str, Any] = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "layer_norm_eps": 1e-6}
    layer = nn.TransformerEncoderLayer(**sizes, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
    for block in range(2):
        ours, theirs = trunk.get_submodule(str(block)), encoder.layers[block]
        for kind in ("weight", "bias"):
            inner: list[Tensor] = [ours.get_parameter(f"attention.{name}.{kind}") for name in ("query", "key", "value")]
            theirs.get_parameter(f"self_attn.in_proj_{kind}").data.copy_(torch.cat(inner))
        pairs = {"self_attn.out_proj": "attention.output", "norm1": "attention_norm", "norm2": "mlp_norm"}
        for their_name, our_name in {**pairs, "linear1": "mlp.up", "linear2": "mlp.down"}.items():
            theirs.get_submodule(their_name).load_state_dict(ours.get_submodule(our_name).state_dict())
    return encoder.train()  # in eval mode it takes a path of its own; there is no dropout


@pytest.mark.parametrize("tied", [False, True])
def test_gpt_is_torchs_encoder_with_a_causal_mask(tied: bool) -> None:
    model = randomised(gpt(TOKENS, **SMALL, tied=tied))
    stem, trunk, head = model.children()
    numbers = torch.randint(20, (3, 9))
    vectors = stem.get_parameter("embedding.weight")[numbers] + stem.get_parameter("position")
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    mixed = torchs_encoder(trunk)(vectors, mask=mask, is_causal=True)
    weight, bias = head.get_parameter("norm.weight"), head.get_parameter("norm.bias")
    normed = nn.functional.layer_norm(mixed, (32,), weight, bias, 1e-6)
    wanted = normed @ head.get_parameter("logits.weight").T
    assert torch.allclose(model(numbers), wanted, atol=1e-4)
    assert (head.get_parameter("logits.weight") is stem.get_parameter("embedding.weight")) == tied


def test_a_token_sees_those_before_it_and_itself_only() -> None:
    model = randomised(gpt(TOKENS, **SMALL, tied=True))
    numbers = torch.randint(20, (1, 9))
    for place in range(9):
        changed = numbers.clone()
        changed[0, place] = (changed[0, place] + 1) % 20
        moved = (model(changed) - model(numbers)).abs().amax(-1)[0]
        assert not moved[:place].any()
        assert (moved[place:] > 1e-4).all()


def texts() -> Tensor:
    """Of 9, 4 and 1 words."""
    numbers = torch.randint(1, 20, (3, 9))
    numbers[1, 4:] = numbers[2, 1:] = 0
    return numbers


@pytest.mark.parametrize("class_token", [False, True])
def test_the_text_transformer_is_torchs_encoder_with_a_padding_mask(class_token: bool) -> None:
    model = randomised(text_transformer(TEXT, **SMALL, class_token=class_token))
    stem, trunk, head = model.children()
    numbers = texts()
    padding = numbers == 0
    vectors = stem.get_parameter("embedding.weight")[numbers] + stem.get_parameter("position")
    if class_token:
        vectors = torch.cat([stem.get_parameter("class_token").expand(3, -1, -1), vectors], dim=1)
        padding = torch.cat([torch.zeros(3, 1, dtype=torch.bool), padding], dim=1)
    mixed = torchs_encoder(trunk)(vectors, src_key_padding_mask=padding)
    weight, bias = head.get_parameter("norm.weight"), head.get_parameter("norm.bias")
    normed = nn.functional.layer_norm(mixed, (32,), weight, bias, 1e-6)
    pooled = normed[:, 0] if class_token else torch.stack([one[~gap].mean(0) for one, gap in zip(normed, padding)])  # noqa: B905
    assert torch.allclose(model(numbers), head.get_submodule("logits")(pooled), atol=1e-4)


@pytest.mark.parametrize("class_token", [False, True])
def test_padding_changes_nothing_and_every_word_counts(class_token: bool) -> None:
    model = randomised(text_transformer(TEXT, **SMALL, class_token=class_token))
    numbers = texts()
    stem = model.get_submodule("0")
    before = model(numbers)
    stem.get_parameter("embedding.weight")[0] += 1
    stem.get_parameter("position")[0, 4:] += 1
    after = model(numbers)
    assert torch.equal(after[1:], before[1:])
    assert not torch.equal(after[0], before[0])
    for place in range(4):
        changed = numbers.clone()
        changed[1, place] = numbers[1, place] % 19 + 1
        assert float((model(changed) - after)[1].abs().max()) > 1e-4


def test_a_text_without_words_has_finite_logits_and_gradients() -> None:
    model = text_transformer(TEXT, **SMALL, class_token=False)
    logits = model(torch.zeros(2, 9, dtype=torch.int32))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_the_stream_is_zero_where_there_is_padding() -> None:
    """From the stem to the head, whatever the biases are: so a pipeline's later stages know it, too."""
    model = randomised(text_transformer(TEXT, **SMALL, class_token=False))
    values, padding = texts(), texts() == 0
    for layer in (model.get_submodule("0"), *model.get_submodule("1").children()):
        values = layer(values)
        assert torch.equal((values == 0).all(-1), padding)


def test_it_is_gpt_2_at_its_sizes() -> None:
    """124,439,808 parameters, as OpenAI's checkpoint; untied 50257 x 768 more."""
    shape = TokenShape(length=1024, vocabulary=50257)
    with torch.device("meta"):
        tied, untied = (gpt(shape, **GPT2, tied=tied) for tied in (True, False))
    assert count(tied) == 124_439_808
    assert count(untied) - count(tied) == 50257 * 768


def test_the_encoders_parameters_by_hand() -> None:
    """Vectors of tokens and places; two norms, 4 + 4 square matrices and biases in each block; a norm and logits."""
    block = 2 * 2 * 32 + 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32)
    rest = 20 * 32 + 9 * 32 + 2 * 32 + 33 * 5
    assert count(text_transformer(TEXT, **SMALL, class_token=False)) == rest + 2 * block
    assert count(text_transformer(TEXT, **SMALL, class_token=True)) == rest + 2 * block + 32


@pytest.mark.parametrize("tied", [False, True])
def test_at_first_all_tokens_are_as_likely(tied: bool) -> None:
    """GPT-2's first weights: a loss of ln(vocabulary), and layers that add to the stream 1 / sqrt(2 depth) as large."""
    torch.manual_seed(0)
    sizes = {**SMALL, "hidden_size": 128, "depth": 8}
    model = gpt(TokenShape(length=32, vocabulary=500), **sizes, tied=tied)
    numbers = torch.randint(500, (8, 32))
    loss = nn.functional.cross_entropy(model(numbers).flatten(0, 1), torch.randint(500, (256,)))
    assert float(loss.detach()) == pytest.approx(math.log(500), abs=0.05)
    spread = {name: float(value.detach().std()) for name, value in model.named_parameters() if value.ndim == 2}
    for name, std in spread.items():
        wanted = 0.02 / 4 if name.endswith(("attention.output.weight", "mlp.down.weight")) else 0.02
        assert std == pytest.approx(wanted, rel=0.05), name


@pytest.mark.parametrize("name", ["gpt", "text_transformer"])
def test_it_is_cut_into_stem_blocks_and_head(name: str) -> None:
    """As many layers as the trait says, and the first makes floating point numbers of stored samples."""
    data = load(Variant(name="synthetic_text", options=variant_file("data", "synthetic_text").defaults), None)
    if name == "gpt":
        data = load(Variant(name="tokens", options=variant_file("data", "tokens").defaults), None)
    options = {**variant_file("workload", name).defaults, "depth": 3} | ({"tied": False} if name == "gpt" else {})
    model = build_model(Variant(name=name, options=options), data, torch.contiguous_format)
    assert [layer.name for layer in layers_of(model)] == ["0", "1.0", "1.1", "1.2", "2"]
    assert isinstance(model, nn.Sequential)
    assert model[0](data.train.inputs[:2]).is_floating_point()


def trained(**settings: Any) -> tuple[Outcome, RunConfig]:
    keys = {"strategy": "single", "steps": None, "epochs": 100, "warmup_steps": 0, "optimizer": "adam", **settings}
    run = RunConfig.from_mapping(base_mapping(**{key.replace(".", "__"): value for key, value in keys.items()}))
    return take(Case(run=run, steps=STEPS), 0), run


STEPS = 250


def test_gpt_comes_near_the_chains_entropy_rate_and_not_below_it() -> None:
    """The mean of the last 30 losses: batches of 64 x 16 tokens that it has not seen, each batch's loss within 0.1."""
    settings = {"data.length": 16, "data.vocabulary": 12, "data.successors": 3, "data.train_samples": 64 * STEPS}
    sizes = {"workload.hidden_size": 32, "workload.depth": 1}
    result, run = trained(workload="gpt", data="tokens", global_batch=64, **settings, **sizes, **{"optimizer.lr": 0.01})
    data = load(run.data, None)
    assert data.lowest_loss is not None
    assert data.highest_accuracy is not None
    assert result.losses[0] > data.lowest_loss + 1
    assert -0.02 < sum(result.losses[-30:]) / 30 - data.lowest_loss < 0.05
    assert -0.03 < result.accuracy - data.highest_accuracy < 0.02


def test_the_text_transformer_comes_near_the_best_classifier() -> None:
    settings = {"data.length": 16, "data.vocabulary": 42, "data.train_samples": 64 * STEPS, "data.test_samples": 2000}
    sizes = {"workload.hidden_size": 32, "workload.depth": 1}
    options = {**settings, **sizes, "optimizer.lr": 0.01}
    result, run = trained(workload="text_transformer", data="synthetic_text", global_batch=64, **options)
    highest = load(run.data, None).highest_accuracy
    assert highest is not None
    assert highest > 0.6
    assert -0.04 < result.accuracy - highest < 0.03


@pytest.mark.parametrize(
    ("workload", "shape", "reason"),
    [
        ("gpt", TEXT, "is a model for sequences of tokens, and the data set holds texts with their classes"),
        ("text_transformer", TOKENS, "is a model for texts with their classes, and the data set holds sequences"),
        ("lenet", TEXT, "is a model for images, and the data set holds texts"),
        (
            "gpt",
            ImageShape(channels=1, size=8, classes=10),
            "is a model for sequences of tokens, and the data set holds images",
        ),
    ],
)
def test_a_data_set_that_no_rule_knows(workload: str, shape: Shape, reason: str) -> None:
    """One's own, whose YAML file has no trait: the model says it."""
    with pytest.raises(ImpossibleRunError, match=f"workload={workload}: {reason}"):
        build(Variant(name=workload, options=variant_file("workload", workload).defaults), shape)


def test_a_vocabulary_that_a_data_set_does_not_tell_is_looked_up() -> None:
    data = load(Variant(name="tokens", options=variant_file("data", "tokens").defaults), None)
    object.__setattr__(data, "vocabulary", None)
    assert shape_of(data) == TokenShape(length=64, vocabulary=64)


IMAGES, TOKEN_SETS = {"data": "digits"}, {"data": "tokens"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"workload": "gpt", **IMAGES}, "it predicts the next token, so it takes data=tokens"),
    ({"workload": "gpt", "data": "synthetic_text"}, "it predicts the next token"),
    ({"workload": "text_transformer", **TOKEN_SETS}, "it tells texts apart, so it takes data=agnews"),
    *(
        ({"workload": name, **TOKEN_SETS}, "it is a model for images")
        for name in ("lenet", "mlp", "resnet18", "resnet50", "vit")
    ),
    ({"workload": "gpt", **TOKEN_SETS, "channels_last": True}, "a memory format of images"),
    ({"workload": "gpt", **TOKEN_SETS, "workload__heads": 3}, "heads share the hidden size equally"),
    ({"workload": "gpt", **TOKEN_SETS, "workload__depth": 0}, "without blocks"),
    ({"workload": "gpt", **TOKEN_SETS, "workload__mlp_ratio": 0}, "the MLP has an inner layer"),
    ({"workload": "gpt", **TOKEN_SETS, "strategy": "pipeline", "workers": 2}, "set workload.tied to false"),
    ({"workload": "gpt", **TOKEN_SETS, "strategy": "model_parallel", "workers": 2}, "set workload.tied to false"),
    (
        {"workload": "gpt", **TOKEN_SETS, "strategy": "tensor_parallel", "strategy__data": "fsdp", "workers": 4}
        | {"strategy__degree": 2},
        "a shared weight would be sharded twice",
    ),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make_run(**{"strategy": "single", **settings})
