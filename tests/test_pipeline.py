"""Layers on several workers, in every schedule, against one process with the same global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ConfigError
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun, base_mapping
from tests.crew import Case, Crews, Outcome, take, take_together
from tests.pipeline_crew import Seen, act_together, look, overflow, trainer_of

STEPS = 10
# 1437 samples make five full batches and one of 17. 284 samples are no multiple of 8 or 5 micro-batches, nor 17 of any.
GLOBAL_BATCH = 284
WORLDS = (2, 4)

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd_nesterov", "optimizer.weight_decay": 0.01},
    "adam": {"optimizer": "adam", "optimizer.weight_decay": 0.01, "optimizer.eps": 1e-4},
    "adagrad": {"optimizer": "adagrad", "optimizer.initial_accumulator": 0.1, "optimizer.lr": 0.05},
}


def pipeline(schedule: str, stages_per_worker: int = 1, **more: Any) -> dict[str, Any]:
    settings = {"schedule": schedule, "stages_per_worker": stages_per_worker, "balance": "layers", **more}
    return {"strategy": "pipeline", **{f"strategy.{key}": value for key, value in settings.items()}}


STRATEGIES: dict[str, dict[str, Any]] = {
    "model_parallel": {"strategy": "model_parallel"},
    "gpipe": pipeline("gpipe", micro_batches=5),
    "gpipe_one": pipeline("gpipe", micro_batches=1),
    "1f1b": {"strategy": "pipeline"},
    "1f1b_size": pipeline("1f1b", micro_batch_size=50),
    "interleaved": pipeline("interleaved_1f1b", 2, micro_batches=8),
    "interleaved_few": pipeline("interleaved_1f1b", 2, micro_batches=3),
    "looped_bfs": pipeline("looped_bfs", 2, micro_batches=3),
    "zero_bubble": pipeline("zero_bubble", micro_batches=8),
    "zero_bubble_2": pipeline("zero_bubble", 2, micro_batches=8),
    "zbv": pipeline("zbv", 2, micro_batches=8),
    "zbv_few": pipeline("zbv", 2, micro_batches=2),
}
# Two replicas of two workers each.
REPLICAS: dict[str, dict[str, Any]] = {
    f"{name}_x2": {**STRATEGIES[name], "strategy.stages": 2}
    for name in ("model_parallel", "gpipe", "1f1b", "interleaved", "zero_bubble", "zbv")
}
PRECISIONS: dict[str, tuple[dict[str, Any], float]] = {
    f"{strategy}_{precision}": ({**STRATEGIES[strategy], "precision": precision}, bound)
    for strategy in ("1f1b", "zero_bubble")
    for precision, bound in {"bf16": 0.03, "fp16": 0.006}.items()
}
BYTES = ("model_parallel", "gpipe", "1f1b", "interleaved", "zbv", "1f1b_x2", "zbv_x2", "1f1b_bf16")


def make(**settings: Any) -> RunConfig:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    defaults: dict[str, Any] = {"workload": "mlp", "run_limit_s": 60, "warmup_steps": 1}
    if keys.get("workload", "mlp") == "mlp":  # eight layers, as many as the most stages
        defaults |= {"workload__hidden_size": 48, "workload__hidden_layers": 7}
    schedule = {"global_batch": GLOBAL_BATCH, "steps": None, "epochs": 2}
    return RunConfig.from_mapping(base_mapping(**{**defaults, **schedule, **keys}))


def named(workers: int) -> dict[str, dict[str, Any]]:
    return STRATEGIES | (REPLICAS if workers == 4 else {})


def optimized(name: str, workers: int) -> list[str]:
    """A stage's optimiser is its own whatever the schedule: for most one will do, with four workers for nearly all."""
    with_all = ("model_parallel", "1f1b", "zbv") if workers == 2 else ("1f1b_x2",)
    return [*OPTIMIZERS] if name in with_all else ["sgd"]


def cases_of(workers: int) -> dict[str, Case]:
    cases = {}
    for strategy, settings in named(workers).items():
        for optimizer in optimized(strategy, workers):
            run = make(workers=workers, **settings, **OPTIMIZERS[optimizer])
            cases[f"{strategy}/{optimizer}"] = Case(run=run, steps=STEPS, of_all_ranks=True)
    for name, (settings, _) in PRECISIONS.items() if workers == 2 else ():
        cases[name] = Case(run=make(workers=workers, **settings), steps=STEPS, of_all_ranks=True)
    wide = {"workload.hidden_size": 256, "steps": 5, "epochs": None}
    for name, settings in (named(workers) | {"1f1b_bf16": PRECISIONS["1f1b_bf16"][0]}).items():
        if name in BYTES:
            cases[f"bytes/{name}"] = Case(run=make(workers=workers, **settings, **wide), steps=2, count_bytes=True)
    return cases


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Outcome]:
    crews = Crews(lambda workers, folder: take_together(cases_of(workers), workers, folder), tmp_path_factory)
    return lambda workers, name: crews(workers)[name]


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Outcome]:
    @cache
    def of(optimizer: str) -> Outcome:
        return take(Case(run=make(strategy="single", warmup_steps=0, **OPTIMIZERS[optimizer]), steps=STEPS), 0)

    return of


@pytest.fixture(scope="module")
def start() -> dict[str, Tensor]:
    return take(Case(run=make(strategy="single", warmup_steps=0), steps=0), 0).parameters


def gathered(parts: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One model out of the parts of one replica, which must be disjoint."""
    whole: dict[str, Tensor] = {}
    for part in parts:
        assert not whole.keys() & part.keys()
        whole |= part
    return whole


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return float(sum((one[name] - other[name]).square().sum() for name in one) ** 0.5)


def replicas(result: Outcome, name: str) -> list[list[Outcome]]:
    """Each replica's ranks, which are neighbours."""
    ranks = result.by_rank
    return [ranks[:2], ranks[2:]] if name.endswith("_x2") else [ranks]


ALL = [(workers, name) for workers in WORLDS for name in named(workers)]
OPTIMIZED = [(workers, name, optimizer) for workers, name in ALL for optimizer in optimized(name, workers)]


@pytest.mark.parametrize(("workers", "name", "optimizer"), OPTIMIZED)
def test_a_pipeline_trains_the_same_model(
    workers: int, name: str, optimizer: str, outcome: Any, reference: Any, start: dict[str, Tensor]
) -> None:
    """Batches that micro-batches do not divide, after a warm-up that is undone, with an evaluation halfway."""
    result, wanted = outcome(workers, f"{name}/{optimizer}"), reference(optimizer)
    for ranks in replicas(result, name):
        parameters = gathered(rank.parameters for rank in ranks)
        assert largest_difference(parameters, wanted.parameters) < 1e-5
        assert largest_difference(parameters, start) > 5e-3, "ten steps must have moved the parameters"
    for rank in result.by_rank:
        assert rank.accuracy == pytest.approx(wanted.accuracy, abs=0.005)
        assert rank.accuracy == result.accuracy
        assert all(rank.checks)
        assert bool(rank.checks) == name.endswith("_x2"), "replicas are compared, bit by bit"


@pytest.mark.parametrize(("workers", "name"), ALL)
def test_one_rank_of_each_replica_has_the_losses(workers: int, name: str, outcome: Any, reference: Any) -> None:
    result, wanted = outcome(workers, f"{name}/sgd"), reference("sgd").losses
    last = 0 if name.startswith("zbv") else -1
    for step, loss in enumerate(wanted):
        known = []
        for ranks in replicas(result, name):
            losses = [rank.losses[step] for rank in ranks]
            known.append(losses.pop(last))
            assert not any(losses)
        # a full batch is shared equally; the last one of 17 as 8 and 9
        weights = [8 / 17, 9 / 17] if step == 5 and len(known) == 2 else [1 / len(known)] * len(known)
        assert sum(w * k for w, k in zip(weights, known, strict=True)) == pytest.approx(loss, abs=1e-5)


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_short_format_trains_nearly_the_same_model(
    name: str, outcome: Any, reference: Any, start: dict[str, Tensor]
) -> None:
    parameters = gathered(rank.parameters for rank in outcome(2, name).by_rank)
    plain = outcome(2, "1f1b/sgd")
    assert plain.by_rank[0].parameters.keys() <= parameters.keys()
    wanted = take(Case(run=make(strategy="single", warmup_steps=0), steps=STEPS), 0).parameters
    apart = distance(parameters, wanted) / distance(wanted, start)
    assert 0 < apart < PRECISIONS[name][1], "0 would mean that nothing was rounded"


@pytest.mark.parametrize(("workers", "name"), ALL)
def test_a_worker_holds_its_part_only(workers: int, name: str, outcome: Any, reference: Any) -> None:
    result, wanted = outcome(workers, f"{name}/sgd"), reference("sgd")
    whole = sum(value.nbytes for value in wanted.parameters.values())
    for ranks in replicas(result, name):
        held = [sum(value.nbytes for value in rank.parameters.values()) for rank in ranks]
        assert sum(held) == whole
        assert max(held) < 2 * whole / len(ranks), "a machine that was busy as it measured may move a layer"
    assert wanted.state_bytes[0] == whole, "one momentum for each parameter"
    assert sum(result.state_bytes) == len(replicas(result, name)) * wanted.state_bytes[0]


@pytest.mark.parametrize(
    ("workers", "name"), [(n, name) for n in WORLDS for name in BYTES if name in named(n) | PRECISIONS]
)
def test_the_formula_counts_what_the_operating_system_sends(workers: int, name: str, outcome: Any) -> None:
    """Within 2 % and 1.5 kB from each worker, besides the headers of at most some hundred messages."""
    result = outcome(workers, f"bytes/{name}")
    counted = result.communication.bytes_per_step
    assert counted <= result.sent_bytes_per_step < 1.02 * counted + 1500 * workers + 100 * 64
    assert result.communication.unsynchronised_step_s is None


def test_bytes_per_step_by_hand(outcome: Any) -> None:
    """284 samples of 256 numbers cross from one worker to the other and back, filled up to 285 for five parts."""
    sample = 2 * 256 * 4
    assert outcome(2, "bytes/model_parallel").communication.bytes_per_step == 284 * sample / 2
    assert outcome(2, "bytes/gpipe").communication.bytes_per_step == 285 * sample / 2
    assert outcome(2, "bytes/interleaved").communication.bytes_per_step == 288 * 3 * sample / 2
    assert outcome(2, "bytes/zbv").communication.bytes_per_step == 288 * 2 * sample / 2
    assert outcome(2, "bytes/1f1b_bf16").communication.bytes_per_step == 288 * sample / 2 / 2
    gradients = 4 * ((64 + 1) * 256 + 6 * (256 + 1) * 256 + (256 + 1) * 10)
    assert outcome(4, "bytes/1f1b_x2").communication.bytes_per_step == 144 * sample / 2 + gradients / 2


def test_facts_say_what_is_where(outcome: Any) -> None:
    facts = outcome(4, "interleaved/sgd").facts
    assert [stage["worker"] for stage in facts["stages"]] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert [stage["layers"] for stage in facts["stages"]] == [[f"1.{number}"] for number in range(1, 16, 2)]
    assert (facts["micro_batches"], facts["micro_batch_size"], facts["replicas"]) == (8, 36, 1)
    facts = outcome(4, "zbv_x2/sgd").facts
    assert [stage["worker"] for stage in facts["stages"]] == [0, 1, 1, 0]
    assert (facts["micro_batch_size"], facts["replicas"]) == (18, 2)
    assert all(stage["forward_backward_s"] > 0 for stage in outcome(2, "1f1b/sgd").facts["stages"])


RESNET = {"workload": "resnet18", "workload.input_size": 8, "data": "synthetic", "data.size": 8}
SMALL = {"data.train_samples": 37, "data.test_samples": 50, "global_batch": 16, "epochs": 1}
NO_NORM = {**RESNET, **SMALL, "workload.batch_norm": False}
NORM = {**RESNET, **SMALL, **pipeline("gpipe", micro_batches=3)}
LENET = {"workload": "lenet", "data": "digits"}
LOOKED_AT: dict[str, dict[str, Any]] = {
    "mlp": pipeline("1f1b"),
    "lenet": {**LENET, **pipeline("zero_bubble")},
    "lenet_interleaved": {**LENET, **pipeline("interleaved_1f1b", 2)},
    "resnet": {**NO_NORM, **pipeline("zero_bubble", 2)},
    "resnet_channels_last": {**NO_NORM, **pipeline("zbv", 2), "channels_last": True},
    "norm": NORM,
    "norm_zero_bubble": {**NORM, **pipeline("zero_bubble", micro_batches=3)},
    "norm_channels_last": {**NORM, "channels_last": True},
    "norm_model_parallel": {**NORM, "strategy": "model_parallel"},
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Seen]]:
    acts: dict[str, Any] = {name: (look, looked_at(settings)) for name, settings in LOOKED_AT.items()}
    acts["overflow"] = (overflow, make(workers=2, **pipeline("1f1b"), precision="fp16"))
    return act_together(acts, 2, tmp_path_factory.mktemp("seen") / "2")


def looked_at(settings: dict[str, Any]) -> RunConfig:
    settings = {key: value for key, value in settings.items() if not key.startswith("strategy.") or fits(settings, key)}
    return make(**{"workers": 2, **settings})


def fits(settings: dict[str, Any], key: str) -> bool:
    return settings["strategy"] == "pipeline" or key == "strategy.balance"


def alone(name: str) -> RunConfig:
    """The same run in one process."""
    settings = {key: value for key, value in LOOKED_AT[name].items() if not key.startswith("strategy.")}
    return make(**{**settings, "strategy": "single"})


@pytest.mark.parametrize("name", [name for name in LOOKED_AT if not name.startswith("norm")])
def test_gradients_and_logits_are_the_whole_models(name: str, seen: dict[str, list[Seen]]) -> None:
    """For a full batch and for the epoch's short last one."""
    wanted = look(alone(name), 0)
    for number in (0, 1):
        gradients = gathered(rank.gradients[number] for rank in seen[name])
        scale = max(float(value.abs().max()) for value in wanted.gradients[number].values())
        assert largest_difference(gradients, wanted.gradients[number]) < 1e-5 * max(1.0, scale)
        assert sum(rank.losses[number] for rank in seen[name]) == pytest.approx(wanted.losses[number], rel=1e-5)
    for rank in seen[name]:
        assert torch.allclose(rank.logits, wanted.logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(rank.logits, seen[name][0].logits)


def micro_batches_in_one_process(name: str, count: int) -> Seen:
    """A plain loop over the micro-batches of a full and a short batch, each filled up with its own first samples."""
    run = alone(name)
    trainer, loader, _ = trainer_of(run, 0)
    model, seen = trainer.bare_model.train(), Seen()
    for size in (run.global_batch, loader.epoch_sizes()[-1]):
        batch = next(loader.same(size))
        part = -(-size // count)
        order = [*range(size), *range(part * count - size)]
        for first in range(0, part * count, part):
            chosen = order[first : first + part]
            real = min(part, max(0, size - first))
            logits = model(batch.inputs[chosen])[:real]
            if real:
                (torch.nn.functional.cross_entropy(logits, batch.targets[chosen][:real]) * real / size).backward()
        seen.gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    seen.buffers = {key: value.clone() for key, value in model.named_buffers()}
    return seen


@pytest.mark.parametrize("name", [name for name in LOOKED_AT if name.startswith("norm")])
def test_batch_norm_sees_one_micro_batch_after_another(name: str, seen: dict[str, list[Seen]]) -> None:
    count = 1 if name == "norm_model_parallel" else 3
    wanted = micro_batches_in_one_process(name, count)
    for number in (0, 1):
        gradients = gathered(rank.gradients[number] for rank in seen[name])
        scale = max(float(value.abs().max()) for value in wanted.gradients[number].values())
        assert largest_difference(gradients, wanted.gradients[number]) < 1e-4 * scale
    buffers = gathered(rank.buffers for rank in seen[name])
    assert largest_difference(buffers, wanted.buffers) < 1e-5
    assert buffers["1.bn1.num_batches_tracked"] == 2 * count
    unsplit = look(alone(name), 0)
    apart = largest_difference(gathered(rank.gradients[0] for rank in seen[name]), unsplit.gradients[0])
    assert (apart > 1e-2) == (count > 1), "micro-batches have statistics of their own"


def test_replicas_are_evaluated_with_the_averages_of_the_first(tmp_path: Path) -> None:
    """Two replicas, which have seen different samples; as DistributedDataParallel does it."""
    run = make(**{**NORM, **pipeline("1f1b", stages=2, micro_batches=2), "workers": 4})
    ranks = act_together({"norm": (look, run)}, 4, tmp_path / "4")["norm"]
    for first, second in ((ranks[0], ranks[2]), (ranks[1], ranks[3])):
        assert largest_difference(first.buffers, second.buffers) > 1e-3
        assert largest_difference(first.evaluated_buffers, first.buffers) == 0
        assert largest_difference(second.evaluated_buffers, first.buffers) == 0
    assert all(torch.equal(rank.logits, ranks[0].logits) for rank in ranks)


def test_an_overflow_in_one_stage_skips_the_step_in_all(seen: dict[str, list[Seen]]) -> None:
    for rank in seen["overflow"]:
        assert largest_difference(rank.before, rank.after) == 0
        assert rank.scale == 2**15, "the scaler begins with 2**16"


@pytest.mark.parametrize("strategy", ["model_parallel", "pipeline"])
def test_the_record_counts_each_sample_once(make_run: MakeRun, tmp_path: Path, strategy: str) -> None:
    run = make_run(workers=2, strategy=strategy, global_batch=64, epochs=1, steps=None)
    record = supervise(run, tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.window is not None
    assert record.window.samples == [64] * 22 + [1437 % 64]
    assert record.window.spans[0].samples_by_rank == [0, 1437]
    assert all(loss is not None and 0 < loss < 10 for loss in record.window.loss)
    assert record.strategy_facts["micro_batches"] == (1 if strategy == "model_parallel" else 8)
    assert record.communication is not None
    assert record.communication.bytes_per_step == 2 * 64 * 512 * 4 / 2


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strategy.schedule": "2f2b"}, "these are the schedules there are"),
    ({"strategy.balance": "weight"}, "these are the balances there are"),
    ({"workers": 1}, "a pipeline takes two workers or more"),
    ({"strategy": "model_parallel", "workers": 1}, "divided over two workers or more"),
    ({"strategy.stages": 1}, "a whole number of workers, from 2"),
    ({"strategy.stages": 1.5, "workers": 3}, "a whole number of workers, from 2"),
    ({"strategy.stages": 3, "workers": 4}, "each replica takes as many workers as there are stages"),
    ({"strategy": "model_parallel", "strategy.stages": 3, "workers": 4}, "each replica takes as many workers"),
    ({"workers": 4}, "a stage holds one layer of the model at least"),
    ({"strategy": "model_parallel", "workers": 4}, "a stage holds one layer of the model at least"),
    ({"strategy.schedule": "zbv", "strategy.stages_per_worker": 2}, "a stage holds one layer of the model at least"),
    ({"strategy.stages_per_worker": 0}, "each worker holds a part of the model"),
    ({"strategy.stages_per_worker": 2}, "gpipe and 1f1b have one stage on each worker"),
    ({"strategy.schedule": "looped_bfs"}, "with one stage on each worker it is 1f1b or gpipe"),
    ({"strategy.schedule": "zbv"}, "each worker has two"),
    ({"strategy.micro_batches": 2, "strategy.micro_batch_size": 8}, "one of them follows from the other"),
    ({"strategy.micro_batches": 0}, "a whole number of parts, from 1"),
    ({"strategy.micro_batches": 2.5}, "a whole number of parts, from 1"),
    ({"strategy.micro_batch_size": 1}, "a whole number of samples, from 2"),
    ({"strategy.micro_batches": 17}, "two samples of the replica's share in each micro-batch"),
    ({"strategy.micro_batch_size": 33}, "a part of the replica's share"),
    ({"strategy.micro_batches": 1}, "1f1b fills all stages before its first backward pass"),
    ({"strategy.schedule": "zero_bubble", "strategy.micro_batches": 5}, "in equal rounds"),
    ({"compile": "default"}, "a schedule that torch.compile does not see"),
    ({"strategy": "model_parallel", "compile": "default"}, "torch.compile does not see them"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    """Two workers with 16 samples each, a model of three layers."""
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=reason):
        make_run(**{"workers": 2, "strategy": "pipeline", **keys})


def test_what_just_fits_is_allowed(make_run: MakeRun) -> None:
    make_run(workers=3, strategy="pipeline")
    make_run(workers=4, strategy="pipeline", strategy__stages=2)
    make_run(workers=2, strategy="pipeline", strategy__micro_batches=16)
    make_run(workers=2, strategy="pipeline", strategy__micro_batch_size=32)
    make_run(workers=2, strategy="pipeline", strategy__schedule="zero_bubble", strategy__micro_batches=6)
