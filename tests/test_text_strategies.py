"""Texts and tokens under every strategy that cuts models or batches, against one process with the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.core.config import RunConfig
from tests.conftest import base_mapping
from tests.crew import Case, Crews, Outcome, take, take_together

STEPS, WORKERS = 6, 2
# 3 full batches of 20 and a short one of 7, which two workers share as 3 and 4, and micro-batches do not divide.
SAMPLES, GLOBAL_BATCH = 67, 20

DATA = {"data.train_samples": SAMPLES, "data.test_samples": 30, "data.length": 8}
SIZES = {"workload.hidden_size": 16, "workload.depth": 2, "workload.heads": 2, "workload.mlp_ratio": 2}
GPT = {"workload": "gpt", "data": "tokens", "data.vocabulary": 30, **SIZES, **DATA}
TEXT = {"workload": "text_transformer", "data": "synthetic_text", "data.vocabulary": 22, **SIZES, **DATA}
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {**GPT, "workload.tied": False},
    "tied": GPT,
    "text": TEXT,
    "class_token": {**TEXT, "workload.class_token": True},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "accumulate": {"strategy": "ddp", "strategy.accumulate": 3},
    "dbs": {"strategy": "dbs"},
    "zero1": {"strategy": "zero1", "strategy.bucket_mb": 0.01},
    "fsdp": {"strategy": "fsdp", "strategy.group_mb": 0.005},
    "model_parallel": {"strategy": "model_parallel", "strategy.balance": "layers"},
    "1f1b": {"strategy": "pipeline", "strategy.balance": "layers", "strategy.micro_batches": 3},
    "tensor": {"strategy": "tensor_parallel"},
    "sequence": {"strategy": "tensor_parallel", "strategy.sequence": True},
}
CUT = ("model_parallel", "1f1b")
CASES = [
    *(("gpt", strategy) for strategy in STRATEGIES),
    *(("text", strategy) for strategy in STRATEGIES if strategy not in ("accumulate", "dbs")),
    *(("tied", strategy) for strategy in ("ddp", "zero1", "fsdp", "tensor", "sequence")),
    *(("class_token", strategy) for strategy in ("fsdp", "1f1b", "tensor")),
]
SHORT = {
    ("gpt", "fsdp", "bf16"): 0.03,
    ("tied", "fsdp", "bf16"): 0.03,
    ("gpt", "1f1b", "bf16"): 0.03,
    ("gpt", "tensor", "bf16"): 0.03,
    ("text", "ddp", "bf16"): 0.03,
    ("text", "fsdp", "fp16"): 0.006,
    ("text", "1f1b", "fp16"): 0.006,
    ("text", "sequence", "bf16"): 0.03,
}
COUNTED = [
    ("tied", "ddp"),
    ("tied", "zero1"),
    ("tied", "fsdp"),
    ("gpt", "1f1b"),
    ("gpt", "tensor"),
    ("text", "sequence"),
]


def make(model: str, **settings: Any) -> RunConfig:
    keys: dict[str, Any] = {
        "global_batch": GLOBAL_BATCH,
        "steps": None,
        "epochs": 2,
        "warmup_steps": 1,
        "run_limit_s": 60,
    }
    keys |= {"optimizer.lr": 0.2, "optimizer.momentum": 0.5, **MODELS[model], **settings}
    return RunConfig.from_mapping(base_mapping(**{key.replace(".", "__"): value for key, value in keys.items()}))


def cases() -> dict[str, Case]:
    made = {}
    for model, strategy in CASES:
        run = make(model, workers=WORKERS, **STRATEGIES[strategy])
        made[f"{model}/{strategy}"] = Case(run=run, steps=STEPS, of_all_ranks=True)
    for model, strategy, precision in SHORT:
        run = make(model, workers=WORKERS, precision=precision, **STRATEGIES[strategy])
        made[f"{model}/{strategy}/{precision}"] = Case(run=run, steps=STEPS, of_all_ranks=True)
    for model, strategy in COUNTED:
        more: dict[str, Any] = {"workload.hidden_size": 64, "data.length": 32, "steps": 5, "epochs": None}
        more |= {"strategy.bucket_mb": 25.0} if strategy == "zero1" else {}  # each bucket's message has its headers
        run = make(model, workers=WORKERS, **{**STRATEGIES[strategy], **more})
        made[f"{model}/{strategy}/bytes"] = Case(run=run, steps=2, count_bytes=True)
    return made


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    crews = Crews(lambda workers, folder: take_together(cases(), workers, folder), tmp_path_factory)
    return lambda name: crews(WORKERS)[name]


@pytest.fixture(scope="module")
def reference() -> Callable[[str, int], Outcome]:
    @cache
    def of(model: str, steps: int) -> Outcome:
        return take(Case(run=make(model, strategy="single", warmup_steps=0), steps=steps), 0)

    return of


def whole(result: Outcome, strategy: str) -> dict[str, Tensor]:
    """The model, put together of the workers' parts where each has its own."""
    if strategy not in CUT:
        return result.parameters
    parts = [rank.parameters for rank in result.by_rank]
    assert not parts[0].keys() & parts[1].keys()
    return parts[0] | parts[1]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return float(sum((one[name] - other[name]).square().sum() for name in one) ** 0.5)


@pytest.mark.parametrize(("model", "strategy"), CASES)
def test_the_same_model_as_one_process(model: str, strategy: str, outcome: Any, reference: Any) -> None:
    result, wanted = outcome(f"{model}/{strategy}"), reference(model, STEPS)
    moved = distance(wanted.parameters, reference(model, 0).parameters)
    assert moved > 0.1, "six steps must have moved the parameters"
    assert distance(whole(result, strategy), wanted.parameters) < 1e-5 * moved
    for rank in result.by_rank:
        assert rank.accuracy == pytest.approx(wanted.accuracy, abs=0.005)
        assert all(rank.checks)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "dbs"])
def test_the_loss_is_the_mean_over_all_tokens(strategy: str, outcome: Any, reference: Any) -> None:
    """Weighted by samples, as the record does it, the ranks' losses are those of the whole batch.

    But for dbs, which shares batches out by times.
    """
    ranks = outcome(f"gpt/{strategy}").by_rank
    for step, loss in enumerate(reference("gpt", STEPS).losses):
        known = [rank.losses[step] for rank in ranks]
        shares = {"model_parallel": [0, 1], "1f1b": [0, 1], "tensor": [1, 0], "sequence": [1, 0]}.get(strategy)
        shares = shares or ([3, 4] if step % 4 == 3 else [1, 1])
        mean = sum(share * one for share, one in zip(shares, known, strict=True)) / sum(shares)
        assert mean == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize(("model", "strategy", "precision"), SHORT)
def test_nearly_the_same_model_in_a_short_format(
    model: str, strategy: str, precision: str, outcome: Any, reference: Any
) -> None:
    parameters = whole(outcome(f"{model}/{strategy}/{precision}"), strategy)
    wanted = reference(model, STEPS).parameters
    apart = distance(parameters, wanted) / distance(wanted, reference(model, 0).parameters)
    assert 0 < apart < SHORT[model, strategy, precision], "0 would mean that nothing was rounded"


@pytest.mark.parametrize(("model", "strategy"), COUNTED)
def test_the_formula_counts_what_the_operating_system_sends(model: str, strategy: str, outcome: Any) -> None:
    """Within 2 % and 2.5 kB from each worker, which the headers of many messages take."""
    result = outcome(f"{model}/{strategy}/bytes")
    counted = result.communication.bytes_per_step
    assert counted <= result.sent_bytes_per_step < 1.02 * counted + 2500 * WORKERS


def test_a_tied_weight_is_held_and_sent_once(outcome: Any, reference: Any) -> None:
    """The untied model has 30 x 16 numbers more, of which the last layer's are the tokens' vectors in the tied one."""
    tied, untied = outcome("tied/fsdp").parameters, outcome("gpt/fsdp").parameters
    assert untied.keys() - tied.keys() == {"2.logits.weight"}
    sizes = [sum(value.numel() for value in one.values()) for one in (tied, untied)]
    assert sizes[1] - sizes[0] == 30 * 16
    ddp = [outcome(f"{model}/ddp").communication.bytes_per_step for model in ("tied", "gpt")]
    assert ddp[1] - ddp[0] == 4 * 30 * 16
    assert not torch.equal(reference("tied", STEPS).parameters["0.embedding.weight"], untied["0.embedding.weight"])
