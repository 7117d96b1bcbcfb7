"""Every synchronous strategy against one process with the same global batch, and what it costs each worker."""

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

STEPS = 10
# 1437 samples make five full batches and one of 17, which four workers share as 4, 4, 4 and 5.
GLOBAL_BATCH = 284
WORLDS = (2, 4)

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd"},
    "nesterov": {"optimizer": "sgd_nesterov", "optimizer.weight_decay": 0.01},
    "adam": {"optimizer": "adam", "optimizer.weight_decay": 0.01, "optimizer.eps": 1e-4},
    "adagrad": {"optimizer": "adagrad", "optimizer.initial_accumulator": 0.1, "optimizer.lr": 0.05},
}
# On shards only: what treats every number by itself, in each of torch's implementations.
ON_SHARDS: dict[str, dict[str, Any]] = {
    "adadelta": {"optimizer": "adadelta", "optimizer.eps": 1e-4},
    "adadelta_foreach": {"optimizer": "adadelta", "optimizer.eps": 1e-4, "optimizer.implementation": "foreach"},
    "adamw_fused": {"optimizer": "adamw", "optimizer.eps": 1e-4, "optimizer.implementation": "fused"},
    "nesterov_fused": {**OPTIMIZERS["nesterov"], "optimizer.implementation": "fused"},
    "adagrad_fused": {**OPTIMIZERS["adagrad"], "optimizer.implementation": "fused"},
}
SHARDED = [
    *(("zero1", optimizer) for optimizer in ON_SHARDS),
    *(("fsdp", optimizer) for optimizer in ("adadelta", "adadelta_foreach", "adamw_fused")),
]
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp_small_buckets": {"strategy": "ddp", "strategy.bucket_mb": 0.01, "strategy.gradient_as_bucket_view": False},
    "ddp_static_graph": {"strategy": "ddp", "strategy.static_graph": True},
    "ddp_accumulate": {"strategy": "ddp", "strategy.accumulate": 3},
    "dbs": {"strategy": "dbs"},
    "zero1": {"strategy": "zero1"},
    "zero1_small_buckets": {"strategy": "zero1", "strategy.bucket_mb": 0.01},
    "fsdp": {"strategy": "fsdp", "strategy.group_mb": 0.01},
    "fsdp_one_group": {"strategy": "fsdp", "strategy.reshard_after_forward": False},
    "fsdp_hybrid": {"strategy": "fsdp", "strategy.group_mb": 0.01, "strategy.hybrid": True, "nodes": 2},
}
# How far parameters may be from the reference, as a part of how far they have moved: a wrong sign makes it 2.
HOOKS: dict[str, tuple[dict[str, Any], float]] = {
    "hook_fp16": ({"strategy.hook": "fp16"}, 0.0005),
    "hook_bf16": ({"strategy.hook": "bf16"}, 0.02),
    "hook_powersgd": ({"strategy.hook": "powersgd", "strategy.powersgd_rank": 4}, 0.3),
}
PRECISIONS: dict[str, tuple[dict[str, Any], float]] = {
    f"{strategy}_{precision}": ({**STRATEGIES[strategy], "precision": precision}, bound)
    for strategy in ("ddp", "zero1", "fsdp")
    for precision, bound in {"bf16": 0.03, "fp16": 0.006}.items()
}
BYTES = ("ddp", "ddp_accumulate", "zero1", "zero1_small_buckets", "fsdp", "fsdp_one_group", "fsdp_hybrid")


def make(**settings: Any) -> RunConfig:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    defaults = {"workload": "mlp", "workload__hidden_size": 64, "warmup_steps": 2, "run_limit_s": 60}
    return RunConfig.from_mapping(
        base_mapping(**{**defaults, "global_batch": GLOBAL_BATCH, "steps": None, "epochs": 2, **keys})
    )


def fits(name: str, workers: int) -> bool:
    return name != "fsdp_hybrid" or workers == 4


def optimized(strategy: str, workers: int) -> list[str]:
    """All with two workers; with four, where shares are uneven, those with most state, for each way to hold it."""
    if not fits(strategy, workers):
        return []
    if workers == 2:
        return [*OPTIMIZERS]
    return ["adam", "adagrad"] if strategy in ("ddp", "zero1", "fsdp", "fsdp_hybrid") else ["adam"]


def shortened(workers: int) -> list[str]:
    """A short format rounds alike for any number of workers; a compressor does not."""
    return [*HOOKS, *PRECISIONS] if workers == 2 else ["hook_powersgd", "zero1_bf16"]


def cases_of(workers: int) -> dict[str, Case]:
    cases = {}
    for strategy, settings in STRATEGIES.items():
        for optimizer in optimized(strategy, workers):
            run = make(workers=workers, **settings, **OPTIMIZERS[optimizer])
            cases[f"{strategy}/{optimizer}"] = Case(run=run, steps=STEPS)
    for strategy, optimizer in SHARDED if workers == 2 else ():
        run = make(workers=workers, **STRATEGIES[strategy], **ON_SHARDS[optimizer])
        cases[f"{strategy}/{optimizer}"] = Case(run=run, steps=STEPS)
    for name in shortened(workers):
        cases[name] = Case(run=make(workers=workers, **(HOOKS | PRECISIONS)[name][0]), steps=STEPS)
    cases["powersgd_cold"] = Case(run=make(workers=workers, **HOOKS["hook_powersgd"][0], warmup_steps=0), steps=STEPS)
    wide = {"workload.hidden_size": 256, "steps": 5, "epochs": None}
    counted = {name: STRATEGIES[name] for name in BYTES} | {name: settings for name, (settings, _) in HOOKS.items()}
    counted["fsdp_bf16"] = {**STRATEGIES["fsdp"], "precision": "bf16"}
    for name, settings in counted.items():
        if fits(name, workers):
            run = make(workers=workers, **settings, **wide)
            cases[f"bytes/{name}"] = Case(run=run, steps=2, count_bytes=True)
    slow = make(workers=workers, strategy="ddp", steps=5, epochs=None)
    cases["slow_hook"] = Case(run=slow, steps=2, slow_hook_s=0.05)
    return cases


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Outcome]:
    """What a crew has made of a case; each crew is started once, for all of its cases."""
    crews = Crews(lambda workers, folder: take_together(cases_of(workers), workers, folder), tmp_path_factory)
    return lambda workers, name: crews(workers)[name]


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Outcome]:
    """The same steps in one process, without a strategy and without warm-up."""

    @cache
    def of(optimizer: str) -> Outcome:
        return take(
            Case(run=make(strategy="single", warmup_steps=0, **(OPTIMIZERS | ON_SHARDS)[optimizer]), steps=STEPS), 0
        )

    return of


@pytest.fixture(scope="module")
def start() -> dict[str, Tensor]:
    return take(Case(run=make(strategy="single", warmup_steps=0), steps=0), 0).parameters


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert len(one) == len(other)
    return max(float((a - b).abs().max()) for a, b in zip(one.values(), other.values(), strict=True))


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    flat = [torch.cat([value.flatten() for value in values.values()]) for values in (one, other)]
    return float(torch.linalg.vector_norm(flat[0] - flat[1]))


OPTIMIZED = [(n, strategy, each) for n in WORLDS for strategy in STRATEGIES for each in optimized(strategy, n)]


@pytest.mark.parametrize(("workers", "strategy", "optimizer"), OPTIMIZED)
def test_a_strategy_trains_the_same_model(
    workers: int, strategy: str, optimizer: str, outcome: Any, reference: Any, start: dict[str, Tensor]
) -> None:
    """fp32, an uneven last batch, after a warm-up that is undone, with an evaluation halfway."""
    result, wanted = outcome(workers, f"{strategy}/{optimizer}"), reference(optimizer)
    assert largest_difference(result.parameters, wanted.parameters) < 1e-5
    assert largest_difference(result.parameters, start) > 5e-3, "ten steps must have moved the parameters"
    assert result.accuracy == pytest.approx(wanted.accuracy, abs=0.01)
    assert all(result.checks)


@pytest.mark.parametrize(("strategy", "optimizer"), SHARDED)
def test_shards_take_every_implementation(
    strategy: str, optimizer: str, outcome: Any, reference: Any, start: dict[str, Tensor]
) -> None:
    result, wanted = outcome(2, f"{strategy}/{optimizer}"), reference(optimizer)
    assert largest_difference(result.parameters, wanted.parameters) < 1e-5
    assert largest_difference(result.parameters, start) > 5e-3, "ten steps must have moved the parameters"


@pytest.mark.parametrize(("workers", "name"), [(n, name) for n in WORLDS for name in shortened(n)])
def test_a_short_format_trains_nearly_the_same_model(
    workers: int, name: str, outcome: Any, reference: Any, start: dict[str, Tensor]
) -> None:
    result, wanted = outcome(workers, name), reference("sgd")
    bound = (HOOKS | PRECISIONS)[name][1]
    apart = distance(result.parameters, wanted.parameters) / distance(wanted.parameters, start)
    assert 0 < apart < bound, "0 would mean that nothing was rounded"
    assert all(result.checks)


@pytest.mark.parametrize("workers", WORLDS)
def test_a_compressor_forgets_the_warm_up(workers: int, outcome: Any) -> None:
    warm, cold = outcome(workers, "hook_powersgd"), outcome(workers, "powersgd_cold")
    assert largest_difference(warm.parameters, cold.parameters) < 1e-6


@pytest.mark.parametrize(
    ("workers", "strategy", "optimizer"), [case for case in OPTIMIZED if case[1].startswith(("zero1", "fsdp"))]
)
def test_a_shard_of_the_optimiser_state_on_each_worker(
    workers: int, strategy: str, optimizer: str, outcome: Any, reference: Any
) -> None:
    """1/N of the bytes, but for what rounding up to whole rows and shards adds; together, all of them."""
    shards = 2 if strategy == "fsdp_hybrid" else workers
    [whole] = reference(optimizer).state_bytes
    each = outcome(workers, f"{strategy}/{optimizer}").state_bytes
    assert whole > 0
    assert max(each) == pytest.approx(whole / shards, rel=0.05)
    assert sum(each) * shards / workers == pytest.approx(whole, rel=0.01)
    assert min(outcome(workers, f"ddp/{optimizer}").state_bytes) == whole


@pytest.mark.parametrize(
    ("workers", "name"), [(n, name) for n in WORLDS for name in (*BYTES, *HOOKS, "fsdp_bf16") if fits(name, n)]
)
def test_the_formula_counts_what_the_operating_system_sends(workers: int, name: str, outcome: Any) -> None:
    """Within 2 % and 1.5 kB from each worker, which messages' headers take, and what torch sends besides."""
    result = outcome(workers, f"bytes/{name}")
    counted = result.communication.bytes_per_step
    assert counted <= result.sent_bytes_per_step < 1.02 * counted + 1500 * workers


def test_bytes_per_step_by_hand(outcome: Any) -> None:
    """64 x 256 + 256 + 256 x 256 + 256 + 256 x 10 + 10 = 85,002 numbers of 4 bytes."""
    size = 85_002 * 4
    assert outcome(4, "bytes/ddp").communication.bytes_per_step == 2 * 3 * size // 4
    assert outcome(2, "bytes/hook_fp16").communication.bytes_per_step == size // 2
    assert outcome(2, "bytes/fsdp_one_group").communication.bytes_per_step == pytest.approx(1.5 * size, rel=1e-3)


@pytest.mark.parametrize("workers", WORLDS)
def test_a_slow_journey_is_found_in_the_exposed_communication(workers: int, outcome: Any) -> None:
    """50 ms for each bucket, of which this small model has one."""
    result = outcome(workers, "slow_hook")
    [(size, without)] = result.communication.unsynchronised_step_s.items()
    assert size == GLOBAL_BATCH
    assert 0.05 <= result.step_time_s - without < 0.1
    assert without < 0.05


def test_what_cannot_be_switched_off_is_unknown(outcome: Any) -> None:
    assert outcome(2, "fsdp/sgd").communication.unsynchronised_step_s is None
    assert outcome(2, "zero1/sgd").communication.unsynchronised_step_s.keys() == {17, GLOBAL_BATCH}
    assert outcome(2, "powersgd_cold").communication.unsynchronised_step_s is None, "no warm-up, no measuring"
