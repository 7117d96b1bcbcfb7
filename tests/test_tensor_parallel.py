"""Tensor parallelism and its meshes against one process; what each worker holds and sends; what cannot be."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.multiprocessing.spawn import start_processes
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data import load
from benchmarks.strategy import Place, strategies
from benchmarks.strategy.buckets import GradientMean
from benchmarks.strategy.tensor_parallel import TensorParallel
from benchmarks.strategy.tensor_plan import cut, local, partial_sums
from benchmarks.supervision.supervisor import supervise
from benchmarks.trainer import Trainer
from benchmarks.workload import ImageShape
from benchmarks.workload.transformer import vit
from tests.conftest import MakeRun
from tests.crew import CPU, Case, Crews, Outcome, take
from tests.test_strategies import OPTIMIZERS, STEPS, distance, largest_difference
from tests.test_strategies import make as make_mlp

# Four tokens. In each of two blocks, tensor parallelism cuts attention and MLP, but for what they add in the end.
VIT: dict[str, Any] = {f"workload.{key}": value for key, value in {"hidden_size": 32, "depth": 2, "heads": 4}.items()}
VIT |= {"workload": "vit", "workload.mlp_ratio": 2, "workload.patch_size": 4}
CUT = 2 * (3 * (32 * 32 + 32) + 32 * 32 + (32 * 64 + 64) + 64 * 32)
WHOLE = (16 * 32 + 32 + 4 * 32) + 2 * (2 * 64 + 32 + 32) + (64 + 32 * 10 + 10)

TENSOR: dict[str, dict[str, Any]] = {
    "tensor": {},
    "tensor_sequence": {"strategy.sequence": True},
    "ddp_tensor": {"strategy.degree": 2},
    "ddp_tensor_sequence": {"strategy.degree": 2, "strategy.sequence": True, "strategy.bucket_mb": 0.02},
    "fsdp_tensor": {"strategy.degree": 2, "strategy.data": "fsdp", "strategy.group_mb": 0.01},
    "fsdp_tensor_sequence": {"strategy.degree": 2, "strategy.data": "fsdp", "strategy.sequence": True},
}
OTHERS = {"ddp": {}, "zero1": {"strategy.bucket_mb": 0.02}, "fsdp": {"strategy.group_mb": 0.01}}
# How far parameters may be from the reference's, as a part of how far these have moved: a wrong sign makes it 2.
SHORT = {"bf16": 0.05, "fp16": 0.01}
WORLDS = (2, 4)


def make(**settings: Any) -> RunConfig:
    return make_mlp(**{**VIT, **settings})


def strategies_of(workers: int) -> dict[str, dict[str, Any]]:
    """Those that make sense with so many workers; with two, one replica takes both."""
    return {
        name: {"strategy": "tensor_parallel", **settings}
        for name, settings in TENSOR.items()
        if workers == 4 or "strategy.degree" not in settings
    }


def is_repeated(name: str, workers: int) -> bool:
    """Four workers repeat, without replicas, what two have shown: once is enough there."""
    return workers == 4 and "strategy.degree" not in TENSOR[name]


def optimized(name: str, workers: int) -> list[str]:
    """adagrad, whose state is made with the optimiser, for one way to hold parameters each."""
    if is_repeated(name, workers) or (workers == 4 and name.endswith("_sequence")):
        return ["nesterov"]
    return ["nesterov", "adam", *(["adagrad"] if name in ("tensor", "fsdp_tensor") else [])]


def shortened(name: str, workers: int) -> list[str]:
    if is_repeated(name, workers) or name == "ddp_tensor":
        return []
    return ["bf16", *(["fp16"] if name in ("tensor", "ddp_tensor_sequence") else [])]


def counted(name: str, workers: int) -> list[str]:
    is_short = name in ("tensor", "tensor_sequence", "fsdp_tensor_sequence") and not is_repeated(name, workers)
    return ["fp32", *(["bf16"] if is_short else [])]


def cases_of(workers: int) -> dict[str, Case]:
    cases = {}
    for name, settings in strategies_of(workers).items():
        for optimizer in optimized(name, workers):
            run = make(workers=workers, **settings, **OPTIMIZERS[optimizer])
            cases[f"{name}/{optimizer}"] = Case(run=run, steps=STEPS)
        for precision in shortened(name, workers):
            run = make(workers=workers, **settings, **OPTIMIZERS["nesterov"], precision=precision)
            cases[f"{name}/{precision}"] = Case(run=run, steps=STEPS)
        for precision in counted(name, workers):
            run = make(workers=workers, **settings, steps=5, epochs=None, precision=precision)
            cases[f"{name}/bytes_{precision}"] = Case(run=run, steps=2, count_bytes=True)
    for name, settings in OTHERS.items() if workers == 2 else ():
        run = make(workers=workers, strategy=name, **settings, **OPTIMIZERS["nesterov"])
        cases[f"{name}/nesterov"] = Case(run=run, steps=STEPS)
    return cases


@dataclass(kw_only=True)
class Look:
    """A strategy's model from inside, after one backward pass of a batch; lists are by rank."""

    facts: dict[str, Any]
    collectives: list[dict[str, int]]
    """Of activations, in the forward and the backward pass, and in an evaluation's forward pass."""
    logits_apart: float
    """The largest difference from the uncut model's."""
    gradients_apart: float
    cut_bytes: list[int]
    counting: list[int]
    shares: list[tuple[int, int]]
    alarms: dict[str, list[int]]
    """Which ranks' checks fail after a change on the last rank alone, by the parameter."""


def look(run: RunConfig, rank: int) -> Look:
    """One backward pass of 17 samples, all of them together."""
    torch.set_num_threads(1)
    dataset = load(run.data, None)
    strategy = strategies.make(run.strategy, Place(rank=rank, workers=run.workers, device=CPU))
    assert isinstance(strategy, TensorParallel)
    loader = strategy.make_loader(dataset.train, global_batch=17, seed=run.seed)
    trainer = Trainer(run, strategy.place, strategy, dataset)
    alone_run = make(strategy="single")
    alone = strategies.make(alone_run.strategy, Place(rank=0, workers=1, device=CPU))
    whole = Trainer(alone_run, alone.place, alone, dataset).bare_model
    batch = next(loader.endless())
    with CommDebugMode() as evaluation:
        evaluate(trainer, batch.inputs)
    with CommDebugMode() as forward:
        logits = trainer.bare_model(batch.inputs)
    with CommDebugMode() as backward:
        (trainer.loss(logits, batch.targets) * batch.weight).backward()
    strategy._complete()
    everything = next(alone.make_loader(dataset.train, global_batch=17, seed=run.seed).endless())
    wanted = whole(everything.inputs)
    trainer.loss(wanted, everything.targets).backward()
    part = strategy.division.part(17)
    return Look(
        facts=strategy.facts(),
        collectives=[counts(forward), counts(backward), counts(evaluation)],
        logits_apart=float((logits - wanted[part]).detach().abs().max()),
        gradients_apart=gradients_apart(strategy, whole),
        cut_bytes=gathered(storage_bytes(trainer.bare_model, strategy.cut)),
        counting=gathered(strategy.counts_samples),
        shares=list(zip(gathered(part.start), gathered(part.stop), strict=True)),
        alarms={name: alarms(trainer, name) for name in ("projection.weight", "query.weight", "attention.output.bias")},
    )


@torch.inference_mode()
def evaluate(trainer: Trainer, inputs: Tensor) -> None:
    with trainer.strategy.evaluating(trainer.bare_model):
        trainer.strategy.predict(trainer.bare_model, inputs)


def counts(mode: CommDebugMode) -> dict[str, int]:
    """Of collectives in the graph of the model; those of gradients are none of them."""
    names = {str(operation).rpartition(".")[2]: count for operation, count in mode.get_comm_counts().items()}
    functional = {str(operation) for operation in mode.get_comm_counts() if "c10d_functional" in str(operation)}
    return {name: count for name, count in names.items() if any(text.endswith(name) for text in functional)}


def gradients_apart(strategy: TensorParallel, whole: nn.Module) -> float:
    largest = 0.0
    for parameter, wanted in zip(strategy.model.parameters(), whole.parameters(), strict=True):
        gradient = parameter.grad if strategy.shards_over_replicas else strategy.held[parameter].grad
        assert gradient is not None
        assert wanted.grad is not None
        if isinstance(parameter, DTensor) and not isinstance(gradient, DTensor):
            gradient = DTensor.from_local(gradient, parameter.device_mesh, parameter.placements)
        full = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        largest = max(largest, float((full - wanted.grad).abs().max()))
    return largest


def storage_bytes(model: nn.Module, names: set[str]) -> int:
    """Memory behind these parameters: a view of the whole tensor would keep all of it."""
    return sum(local(model.get_parameter(name)).untyped_storage().nbytes() for name in names)


def alarms(trainer: Trainer, name: str) -> list[int]:
    parameter = next(value for key, value in trainer.bare_model.named_parameters() if key.endswith(name))
    value = local(parameter)
    kept = value.clone()
    if trainer.place.rank == trainer.place.workers - 1:
        value.add_(1)
    passed = [check.passed for check in trainer.checks()]
    value.copy_(kept)
    return [rank for rank, good in enumerate(gathered(all(passed))) if not good]


def gathered(value: int) -> list[int]:
    values = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(values, torch.tensor([int(value)]))
    return [int(one) for one in values]


class NormedHeads(nn.Module):
    """A region with a layer of its own for each head, the same for all heads, as some transformers norm queries."""

    column_parallel = ("inner",)
    row_parallel = ("outer",)

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(8, 16), nn.LayerNorm(4), nn.Linear(16, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        heads = self.inner(tokens).unflatten(-1, (-1, 4))
        return self.outer(self.norm(heads).flatten(-2))  # type: ignore[no-any-return]


class Line(nn.Sequential):
    """A model of one's own, whose tokens lie along dimension 0."""

    sequence_dim = 0


def own_model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), Line(nn.LayerNorm(8), NormedHeads(), NormedHeads()), nn.Linear(8, 3))


def vision_model() -> nn.Module:
    sizes: dict[str, Any] = {"patch_size": 4, "hidden_size": 16, "depth": 2, "heads": 4, "mlp_ratio": 2}
    return vit(ImageShape(channels=1, size=16, classes=3), **sizes, class_token=False)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "own": (own_model, (12, 5, 8)),
    "vision": (vision_model, (5, 1, 16, 16)),
}


def proof(model_name: str, sequence: bool) -> dict[str, tuple[bool, bool, bool, bool]]:
    """Of each parameter that is held whole: whether it is called partial, and three things of its gradient.

    Whether it is the same on all ranks bit by bit, is the uncut model's, and adds up to the uncut model's over ranks.
    """
    make_model, shape = MODELS[model_name]
    torch.manual_seed(3)
    whole = make_model()
    for parameter in whole.parameters():
        nn.init.normal_(parameter)
    model, inputs = copy.deepcopy(whole), torch.randn(shape)
    partial = partial_sums(model, sequence=sequence)
    names = {name for name, parameter in model.named_parameters() if parameter in partial}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    cut(model, mesh, sequence=sequence, dtype=torch.float32)
    for one in (model, whole):
        one(inputs).square().sum().backward()
    found = {}
    gradients = [parameter.grad.flatten() for parameter in whole.parameters() if parameter.grad is not None]
    near = 1e-5 * float(torch.cat(gradients).abs().max())
    for name, parameter in model.named_parameters():
        wanted = whole.get_parameter(name).grad
        assert parameter.grad is not None
        assert wanted is not None
        if isinstance(parameter.grad, DTensor) and parameter.grad.placements[0].is_shard():
            assert torch.allclose(parameter.grad.full_tensor(), wanted, atol=near), name
            continue
        gradient = local(parameter.grad)
        everyones = [torch.empty_like(gradient) for _ in range(dist.get_world_size())]
        dist.all_gather(everyones, gradient.contiguous())
        found[name] = (
            name in names,
            all(torch.equal(one, everyones[0]) for one in everyones),
            all(torch.allclose(one, wanted, atol=near) for one in everyones),
            torch.allclose(sum(everyones[1:], start=everyones[0]), wanted, atol=near),
        )
    return found


@dataclass(kw_only=True)
class Crew:
    outcomes: dict[str, Outcome]
    looks: dict[str, Look]
    proofs: dict[tuple[str, bool], dict[str, tuple[bool, bool, bool, bool]]]


def _work(rank: int, workers: int, rendezvous: str, result: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    crew = Crew(
        outcomes={name: take(case, rank) for name, case in cases_of(workers).items()},
        looks={name: look(make(workers=workers, **each), rank) for name, each in strategies_of(workers).items()},
        proofs={(model, sequence): proof(model, sequence) for model in MODELS for sequence in (False, True)},
    )
    if rank == 0:
        torch.save(crew, result)
    dist.destroy_process_group()


def together(workers: int, folder: Path) -> Crew:
    folder.mkdir()
    arguments = (workers, str(folder / "rendezvous"), str(folder / "result"))
    start_processes(_work, arguments, nprocs=workers, start_method="forkserver")
    made: Crew = torch.load(folder / "result", weights_only=False)
    return made


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Crew]:
    """Everything that so many workers have to tell; they are started once."""
    return Crews(together, tmp_path_factory)


@pytest.fixture(scope="module")
def reference() -> Callable[[str], Outcome]:
    """The same steps in one process, without a strategy and without warm-up."""

    @cache
    def of(optimizer: str) -> Outcome:
        return take(Case(run=make(strategy="single", warmup_steps=0, **OPTIMIZERS[optimizer]), steps=STEPS), 0)

    return of


@pytest.fixture(scope="module")
def start() -> dict[str, Tensor]:
    return take(Case(run=make(strategy="single", warmup_steps=0), steps=0), 0).parameters


ALL = [(workers, name) for workers in WORLDS for name in strategies_of(workers)]
TRAINED = [(workers, name, optimizer) for workers, name in ALL for optimizer in optimized(name, workers)]
SHORTENED = [(workers, name, precision) for workers, name in ALL for precision in shortened(name, workers)]
COUNTED = [(workers, name, precision) for workers, name in ALL for precision in counted(name, workers)]


@pytest.mark.parametrize(("workers", "name", "optimizer"), [*TRAINED, *((2, name, "nesterov") for name in OTHERS)])
def test_the_same_model_as_one_process(
    workers: int, name: str, optimizer: str, crew: Any, reference: Any, start: dict[str, Tensor]
) -> None:
    """fp32, an uneven last batch, after a warm-up that is undone, with an evaluation halfway."""
    result, wanted = crew(workers).outcomes[f"{name}/{optimizer}"], reference(optimizer)
    assert largest_difference(result.parameters, wanted.parameters) < 1e-5
    assert largest_difference(result.parameters, start) > 5e-3, "ten steps must have moved the parameters"
    assert result.accuracy == wanted.accuracy
    assert result.checks == ([] if name == "fsdp" else [True])


@pytest.mark.parametrize(("workers", "name", "precision"), SHORTENED)
def test_nearly_the_same_model_in_a_short_format(
    workers: int, name: str, precision: str, crew: Any, reference: Any, start: dict[str, Tensor]
) -> None:
    result, wanted = crew(workers).outcomes[f"{name}/{precision}"], reference("nesterov")
    apart = distance(result.parameters, wanted.parameters) / distance(wanted.parameters, start)
    assert 0 < apart < SHORT[precision], "0 would mean that nothing was rounded"
    assert all(result.checks)


@pytest.mark.parametrize(("workers", "name"), ALL)
def test_one_pass_is_the_uncut_models(workers: int, name: str, crew: Any) -> None:
    found = crew(workers).looks[name]
    assert found.logits_apart < 1e-5
    assert found.gradients_apart < 1e-6


@pytest.mark.parametrize(("workers", "name"), ALL)
def test_neighbours_share_a_replica_and_its_batch(workers: int, name: str, crew: Any) -> None:
    found = crew(workers).looks[name]
    degree = TENSOR[name].get("strategy.degree", workers)
    first, second = ((0, 17), (0, 17)) if degree == workers else ((0, 8), (8, 17))
    assert found.shares == [first] * (workers // 2) + [second] * (workers // 2)
    assert found.counting == [rank % degree == 0 for rank in range(workers)]


@pytest.mark.parametrize(("workers", "name"), ALL)
def test_activations_travel_as_often_as_the_papers_say(workers: int, name: str, crew: Any) -> None:
    """Two regions in each of two blocks; with `sequence`, also at the trunk's end, and backwards at its beginning."""
    if TENSOR[name].get("strategy.sequence"):
        each = {"all_gather_into_tensor": 4 + 1, "reduce_scatter_tensor": 4}
    else:
        each = {"all_reduce": 4}
    assert crew(workers).looks[name].collectives == [each, each, each]


@pytest.mark.parametrize(("workers", "name"), ALL)
def test_each_worker_holds_its_part(workers: int, name: str, crew: Any, reference: Any) -> None:
    """Of what can be cut 1/degree, the optimiser's state included, and with fsdp 1/replicas of all that it has then."""
    degree = TENSOR[name].get("strategy.degree", workers)
    shards = workers // degree if "fsdp" in name else 1
    found = crew(workers).looks[name]
    assert found.cut_bytes == [4 * CUT // degree // shards] * workers
    facts = {"mesh": {"data": workers // degree, "tensor": degree}, "degree": degree, "replicas": workers // degree}
    assert found.facts == facts | {
        "tokens": 4,
        "cut_parameters": 2 * (3 * 2 + 1 + 2 + 1),
        "whole_parameters": 3 + 2 * (4 + 1 + 1) + 4,
        "cut_bytes_per_worker": 4 * CUT // degree,
        "whole_bytes_per_worker": 4 * WHOLE,
    }
    for optimizer in optimized(name, workers):
        numbers = 2 if optimizer == "adam" else 1
        assert reference(optimizer).state_bytes == [4 * numbers * (CUT + WHOLE)]
        states = crew(workers).outcomes[f"{name}/{optimizer}"].state_bytes
        each = 4 * numbers * (CUT // degree + WHOLE) / shards
        assert states == pytest.approx([each] * workers, rel=0.02), "fully_shard divides by whole rows"
        assert sum(states) == each * workers


@pytest.mark.parametrize(("workers", "name"), ALL)
def test_a_worker_that_goes_astray_is_found(workers: int, name: str, crew: Any) -> None:
    """What is whole is compared within a replica, what is cut with the same part in other replicas."""
    found = crew(workers).looks[name].alarms
    replica = [rank for rank in range(workers) if "degree" not in str(TENSOR[name]) or "ddp" in name or rank >= 2]
    assert found["projection.weight"] == found["attention.output.bias"] == replica
    assert found["query.weight"] == ([1, 3] if "ddp" in name else [])


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("workers", WORLDS)
def test_whole_gradients_are_equal_and_partial_ones_add_up(workers: int, model: str, sequence: bool, crew: Any) -> None:
    for name, (partial, equal, right, adds_up) in crew(workers).proofs[model, sequence].items():
        wanted = (False, False, True) if partial else (True, True, False)
        assert (equal, right, adds_up) == wanted, name
    partial = {name for name, found in crew(workers).proofs[model, sequence].items() if found[0]}
    always = {"1.1.norm.weight", "1.1.norm.bias", "1.2.norm.weight", "1.2.norm.bias"} if model == "own" else set()
    norms = (
        {"1.0"} if model == "own" else {f"1.{block}.{part}_norm" for block in (0, 1) for part in ("attention", "mlp")}
    )
    assert partial == always | (
        {f"{norm}.{kind}" for norm in norms for kind in ("weight", "bias")} if sequence else set()
    )


@pytest.mark.parametrize(("workers", "name", "precision"), COUNTED)
def test_the_formula_counts_what_the_operating_system_sends(workers: int, name: str, precision: str, crew: Any) -> None:
    """Within 2 % and 2.5 kB from each worker, which the headers of many messages take."""
    result = crew(workers).outcomes[f"{name}/bytes_{precision}"]
    counted = result.communication.bytes_per_step
    assert counted <= result.sent_bytes_per_step < 1.02 * counted + 2500 * workers


def test_bytes_per_step_by_hand(crew: Any) -> None:
    """A batch of 284 x 4 tokens x 32 numbers of 4 bytes is a message, of which four regions send two each."""
    message = 284 * 4 * 32 * 4
    two, four = crew(2).outcomes, crew(4).outcomes
    assert two["tensor/bytes_fp32"].communication.bytes_per_step == 8 * message
    assert four["tensor/bytes_fp32"].communication.bytes_per_step == 8 * message * 3 // 2
    assert two["tensor/bytes_bf16"].communication.bytes_per_step == 4 * message
    whole, held = 4 * WHOLE, 4 * (CUT // 2 + WHOLE)
    assert four["ddp_tensor/bytes_fp32"].communication.bytes_per_step == 8 * message // 2 + whole + held


def test_nothing_can_be_switched_off(crew: Any) -> None:
    assert crew(4).outcomes["ddp_tensor/adam"].communication.unsynchronised_step_s is None


T = {"strategy": "tensor_parallel"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**T, "workers": 1}, "one worker has nobody to share a layer with"),
    ({**T, "strategy.degree": 1}, "a whole number of workers from 2"),
    ({**T, "strategy.degree": 2.5, "workers": 5}, "a whole number of workers from 2"),
    ({**T, "strategy.degree": "two"}, "a whole number of workers from 2"),
    ({**T, "strategy.degree": 3}, "replicas have equally many workers"),
    ({**T, "workload.heads": 2}, "share its attention heads equally"),
    ({**T, "strategy.data": "zero"}, "these are the ways there are to keep replicas"),
    ({**T, "strategy.data": "fsdp"}, "so it takes two or more"),
    ({**T, "strategy.data": "fsdp", "strategy.degree": 2, "channels_last": True}, "contiguous parameters only"),
    ({**T, "strategy.bucket_mb": 0.0}, "a bucket holds something"),
    ({**T, "strategy.group_mb": -1.0}, "a size is not negative"),
    ({**T, "compile": "default"}, "not provided for"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make(**{"workers": 4, "global_batch": 20, **settings})


@pytest.mark.parametrize("workload", ["resnet18", "lenet", "mlp"])
def test_a_workload_without_heads(make_run: MakeRun, workload: str) -> None:
    with pytest.raises(ImpossibleRunError, match="attention is shared by heads, and this workload has none"):
        make_run(workers=2, **T, workload=workload)


OWN_TRUNK = Line(nn.Linear(8, 8))
BUILT: list[tuple[dict[str, Any], nn.Module, tuple[int, ...], str]] = [
    ({"sequence": True}, vision_model(), (1, 1, 16, 16), "the model's 16 tokens cannot be shared equally by degree=3"),
    ({}, nn.Sequential(nn.Dropout(0.1), own_model()), (4, 8), "the model has dropout"),
    ({}, nn.Sequential(OWN_TRUNK), (4, 8), "names no layers that can be cut"),
    ({}, nn.Linear(8, 8), (4, 8), "names no layers that can be cut"),
]


@pytest.mark.parametrize(("options", "model", "shape", "reason"), BUILT)
def test_what_only_the_model_knows(
    options: dict[str, Any], model: nn.Module, shape: tuple[int, ...], reason: str
) -> None:
    defaults = {"degree": None, "data": "ddp", "sequence": False, "bucket_mb": 25.0, "group_mb": 4.0}
    strategy = TensorParallel(Place(rank=0, workers=3, device=CPU), **{**defaults, **options})
    with pytest.raises(ImpossibleRunError, match=reason):
        strategy.take_part(model, torch.zeros(shape))


def test_a_layer_that_cannot_be_shared() -> None:
    """As one of three workers: nothing is sent before it is refused."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=3)
    try:
        mesh = init_device_mesh("cpu", (3,))
        with pytest.raises(ImpossibleRunError, match="degree=3: cannot share the 16 outputs of the layer inner"):
            cut(own_model(), mesh, sequence=False, dtype=torch.float32)
    finally:
        dist.destroy_process_group()


def test_a_parameter_that_a_step_does_not_use_is_sent_as_zeros() -> None:
    """As one of two workers, of whom the other sends nothing; two buckets, the last of which no gradient fills."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:
        unused, used = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        mean = GradientMean([unused, used], init_device_mesh("cpu", (2,)).get_group(), bucket_bytes=8)
        (3 * used).sum().backward()
        means = mean.finish()
        assert (means[used].tolist(), means[unused].tolist()) == ([1.5, 1.5], [0.0, 0.0, 0.0])
    finally:
        dist.destroy_process_group()


def test_the_record_says_how_it_was_cut(make_run: MakeRun, tmp_path: Path) -> None:
    keys = {key.replace(".", "__"): value for key, value in VIT.items()}
    run = make_run(**{**keys, **T, "workers": 2, "strategy__sequence": True, "channels_last": True})
    record = supervise(run, tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.strategy_facts["mesh"] == {"data": 1, "tensor": 2}
    assert record.window is not None
    assert record.window.spans[0].samples_by_rank == [5 * 32, 0]
    assert record.window.exposed_comm_s is None
    assert all(check.passed for check in record.sanity)


def test_an_optimiser_that_looks_at_whole_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "whole.yaml").write_text("name: whole\n")
    monkeypatch.setenv("SCALEBENCH_EXTRA", str(tmp_path))
    with pytest.raises(ImpossibleRunError, match="each number must be updated by itself"):
        make(workers=2, **T, optimizer="whole")
