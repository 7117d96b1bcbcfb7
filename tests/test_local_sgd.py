"""Averaging now and then: against one process where that is possible, and against plain loops over copies elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data.batches import Batch
from benchmarks.precision import Precision
from benchmarks.strategy import Place, Step
from benchmarks.strategy.local_sgd import LocalSgd
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun, base_mapping
from tests.crew import Case, Crews, Outcome, take, take_together
from tests.many_in_one import Worker, accuracy, shares_of_batches, workers_on_copies

CPU = torch.device("cpu")
STEPS = 10
# 1437 samples make five full batches and one of 17, which four workers share as 4, 4, 4 and 5.
GLOBAL_BATCH = 284
WORLDS = (2, 4)
EPOCHS = 10

NESTEROV = {"strategy.outer": "nesterov"}
GENTLE = {**NESTEROV, "strategy.outer_lr": 0.6, "strategy.outer_momentum": 0.5}
PLAIN = {"optimizer.momentum": 0.0}
LOOK_AHEAD = {"optimizer": "sgd_nesterov", "optimizer.weight_decay": 0.01}
ADAM = {"optimizer": "adam", "optimizer.eps": 1e-4}
RESNET = {"workload": "resnet18", "workload.input_size": 16, "global_batch": 32, "warmup_steps": 1}

LIKE_ONE: dict[str, dict[str, Any]] = {
    "plain": {"strategy.every": 1, **PLAIN},
    "momentum": {"strategy.every": 1},
    "look_ahead": {"strategy.every": 1, **LOOK_AHEAD},
    "unit_outer_step": {"strategy.every": 1, **NESTEROV, "strategy.outer_lr": 1.0, "strategy.outer_momentum": 0.0},
}
# Ten steps are two averagings and two steps more; six steps of warm-up are one averaging and two steps more.
DRIFTING: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "momentum": {},
    "adam": ADAM,
    "diloco": {**NESTEROV, **PLAIN},
    "diloco_adam": {**GENTLE, **ADAM},
    "every_three": {"strategy.every": 3},
    "fp16": {"precision": "fp16", "optimizer.lr": 0.05},
}
BATCH_NORM: dict[str, dict[str, Any]] = {
    "batch_norm": {**RESNET, "strategy.every": 2},
    "batch_norm_diloco": {**RESNET, **GENTLE, "strategy.every": 2, "channels_last": True},
}
TRAINED: dict[str, dict[str, Any]] = {
    "1": {"strategy.every": 1},
    "4": {"strategy.every": 4},
    "8": {"strategy.every": 8},
    "diloco": {"strategy.every": 8, **NESTEROV, "optimizer": "adam"},
}


def make(**settings: Any) -> RunConfig:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    defaults = {"strategy": "local_sgd", "workload": "mlp", "warmup_steps": 3, "epochs": 2, "steps": None}
    return RunConfig.from_mapping(base_mapping(**{**defaults, "global_batch": GLOBAL_BATCH, "run_limit_s": 60, **keys}))


def drifting(workers: int) -> list[str]:
    """With four workers those that differ in their averaging; the rest is each worker's own."""
    return [*DRIFTING] if workers == 2 else ["plain", "diloco_adam", "every_three"]


def cases_of(workers: int) -> dict[str, Case]:
    if workers == 1:
        return {"one": Case(run=make(workers=1), steps=STEPS)}
    cases = {f"like_one/{name}": (settings, STEPS) for name, settings in LIKE_ONE.items()}
    cases |= {f"drifting/{name}": (DRIFTING[name], STEPS) for name in drifting(workers)}
    if workers == 2:
        cases |= {f"drifting/{name}": (settings, 3) for name, settings in BATCH_NORM.items()}
        cases |= {
            f"trained/{name}": ({"global_batch": 64, "epochs": EPOCHS, **settings}, EPOCHS * 23)
            for name, settings in TRAINED.items()
        }
    made = {name: Case(run=make(workers=workers, **settings), steps=steps) for name, (settings, steps) in cases.items()}
    for every in (1, 2, 4):
        run = make(workers=workers, steps=5, epochs=None, **{"strategy.every": every})
        made[f"bytes/{every}"] = Case(run=run, steps=2, count_bytes=True)
    return made


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Outcome]:
    crews = Crews(lambda workers, folder: take_together(cases_of(workers), workers, folder), tmp_path_factory)
    return lambda workers, name: crews(workers)[name]


def alone(steps: int, **settings: Any) -> Outcome:
    """The same in one process, without a strategy and without warm-up."""
    settings = {key: value for key, value in settings.items() if not key.startswith("strategy.")}
    return take(Case(run=make(**{**settings, "strategy": "single", "warmup_steps": 0}), steps=steps), 0)


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((float((one[name].float() - other[name].float()).abs().max()) for name in one), default=0.0)


@pytest.mark.parametrize("name", LIKE_ONE)
@pytest.mark.parametrize("workers", WORLDS)
def test_an_averaging_at_each_step_is_data_parallelism(workers: int, name: str, outcome: Any) -> None:
    """With SGD, whose steps are linear in the gradients; an uneven last batch included."""
    result, wanted = outcome(workers, f"like_one/{name}"), alone(STEPS, **LIKE_ONE[name])
    start = alone(0)
    assert largest_difference(result.parameters, wanted.parameters) < 1e-5
    assert largest_difference(result.parameters, start.parameters) > 5e-3
    assert result.accuracy == pytest.approx(wanted.accuracy, abs=0.01)
    assert result.checks == [True]


def test_one_worker_is_single(outcome: Any) -> None:
    result, wanted = outcome(1, "one"), alone(STEPS)
    assert largest_difference(result.parameters, wanted.parameters) == 0.0
    assert result.losses == wanted.losses


class Loops:
    """The two papers' algorithms, worker by worker and parameter by parameter."""

    def __init__(self, run: RunConfig) -> None:
        self.run, self.options = run, run.strategy.options
        self.workers: list[Worker] = workers_on_copies(run)
        self.outer = [nn.Parameter(value.detach().clone()) for value in self.workers[0].model.parameters()]
        self.outer_optimizer = torch.optim.SGD(
            self.outer,
            lr=float(self.options["outer_lr"]),  # type: ignore[arg-type]
            momentum=float(self.options["outer_momentum"]),  # type: ignore[arg-type]
            nesterov=True,
        )

    def train(self, steps: int) -> None:
        for number, step in enumerate(islice(shares_of_batches(self.run, 1437), steps), start=1):
            for worker, share in zip(self.workers, step, strict=True):
                worker.step(share)
            if number % self.options["every"] == 0:  # type: ignore[operator]
                self.meet()

    @torch.no_grad()
    def meet(self) -> None:
        means = self.means([list(worker.model.parameters()) for worker in self.workers])
        if self.options["outer"] == "nesterov":
            for parameter, mean in zip(self.outer, means, strict=True):
                parameter.grad = parameter.detach() - mean
            self.outer_optimizer.step()
            means = [parameter.detach() for parameter in self.outer]
        running = self.means([self.running(worker) for worker in self.workers])
        for worker in self.workers:
            for value, mean in zip(
                (*worker.model.parameters(), *self.running(worker)), (*means, *running), strict=True
            ):
                value.copy_(mean)

    @staticmethod
    def running(worker: Worker) -> list[Tensor]:
        return [value for name, value in worker.model.named_buffers() if name.endswith(("running_mean", "running_var"))]

    @staticmethod
    def means(by_worker: list[list[Any]]) -> list[Tensor]:
        return [torch.stack(list(values)).mean(0) for values in zip(*by_worker, strict=True)]

    @torch.no_grad()
    def evaluated(self) -> float:
        """The accuracy of the mean of all workers, or of the outer parameters."""
        judged = workers_on_copies(self.run)[0].model
        values = (
            self.outer
            if self.options["outer"] == "nesterov"
            else self.means([list(w.model.parameters()) for w in self.workers])
        )
        for parameter, value in zip(judged.parameters(), values, strict=True):
            parameter.copy_(value)
        return accuracy(judged, self.workers[0].dataset)


@pytest.mark.parametrize(
    ("workers", "name"), [*((n, name) for n in WORLDS for name in drifting(n)), *((2, name) for name in BATCH_NORM)]
)
def test_workers_drift_as_plain_loops_do(workers: int, name: str, outcome: Any) -> None:
    """Rank 0's parameters and buffers, some steps after the last averaging; and what is evaluated then."""
    torch.set_num_threads(1)
    settings, steps = (DRIFTING | BATCH_NORM)[name], 3 if name in BATCH_NORM else STEPS
    result, loops = outcome(workers, f"drifting/{name}"), Loops(make(workers=workers, **settings))
    loops.train(steps)
    first, second = (
        {name: value.detach() for name, value in worker.model.named_parameters()} for worker in loops.workers[:2]
    )
    bound = 1e-4 if name in ("fp16", *BATCH_NORM) else 2e-5  # CPUs differ in how they sum
    assert largest_difference(result.parameters, first) < bound
    assert largest_difference(result.buffers, dict(loops.workers[0].model.named_buffers())) < bound
    assert largest_difference(first, second) > 20 * bound, "the workers must have drifted apart"
    assert result.checks == [True]
    if name not in BATCH_NORM:
        assert result.accuracy == pytest.approx(loops.evaluated(), abs=0.003), "one of the 360 test samples"


@pytest.mark.parametrize("name", TRAINED)
def test_rare_averaging_reaches_the_same_accuracy(name: str, outcome: Any) -> None:
    wanted = alone(EPOCHS * 23, global_batch=64, epochs=EPOCHS)
    assert wanted.accuracy > 0.9
    assert outcome(2, f"trained/{name}").accuracy == pytest.approx(wanted.accuracy, abs=0.02)


@pytest.mark.parametrize("every", [1, 2, 4])
@pytest.mark.parametrize("workers", WORLDS)
def test_the_formula_counts_what_the_operating_system_sends(workers: int, every: int, outcome: Any) -> None:
    """64 x 512 + 512 + 512 x 512 + 512 + 512 x 10 numbers of 4 bytes, and 16 for the last 10, once in so many steps."""
    result = outcome(workers, f"bytes/{every}")
    counted = 2 * (workers - 1) / workers * 301_072 * 4 / every
    assert result.communication.bytes_per_step == counted
    assert counted <= result.sent_bytes_per_step < 1.02 * counted + 1500 * workers
    assert result.communication.unsynchronised_step_s.keys() == {GLOBAL_BATCH}


class Weights(nn.Module):
    """A linear map and batch norm, of which one parameter is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.norm(self.linear(inputs))
        return output


class Pair:
    """One of two workers; the other one's parameters are these plus `apart`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.apart, self.events = 0.5, list[str]()
        monkeypatch.setattr(dist, "all_reduce", self.all_reduce)
        monkeypatch.setattr(dist, "broadcast", lambda _tensor, _source: None)
        known: dict[str, Any] = {"every": 2, "outer": "average", "outer_lr": 0.7, "outer_momentum": 0.9}
        self.strategy = LocalSgd(Place(rank=0, workers=2, device=CPU), **known | options)
        torch.manual_seed(0)
        self.model = self.strategy.wrap(Weights(), Precision(CPU))
        self.strategy.on_last_gradient(self.model, lambda: self.events.append("own work done"))
        self.optimizer = self.strategy.make_optimizer(lambda values: torch.optim.SGD(values, lr=0.1), self.model)
        self.optimizer.register_step_post_hook(lambda *_: self.events.append("update"))
        self.step = self.strategy.make_step(
            Step(
                model=self.model,
                loss=nn.CrossEntropyLoss(),
                optimizer=self.optimizer,
                precision=Precision(CPU),
                after_backward=lambda: self.events.append("all done"),
            )
        )

    def all_reduce(self, flat: Tensor) -> None:
        self.events.append("average")
        flat.add_(flat + self.apart)

    def take(self, steps: int) -> None:
        for number in range(steps):
            inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
            self.step(Batch(inputs, torch.tensor([0, 1, 2, 3]), 1.0))

    def state(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}


def test_the_order_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the others lies between the own work's end and the end of all, and holds nothing else."""
    pair = Pair(monkeypatch)
    pair.take(2)
    assert pair.events == [
        *("update", "own work done", "all done"),
        *("update", "own work done", "average", "all done"),
    ]


@pytest.mark.parametrize("outer", ["average", "nesterov"])
def test_what_is_evaluated(monkeypatch: pytest.MonkeyPatch, outer: str) -> None:
    pair = Pair(monkeypatch, outer=outer)
    pair.take(2)
    met = pair.state()
    pair.take(1)
    own, steps = pair.state(), pair.strategy.steps
    with torch.inference_mode(), pair.strategy.evaluating(pair.model):
        inside = pair.state()
    for name, value in inside.items():
        if name == "frozen" or "num_batches" in name:
            assert torch.equal(value, own[name])
        elif outer == "average":
            assert torch.allclose(value, own[name] + 0.25), name
        else:
            assert torch.equal(value, met[name]), name
    assert all(torch.equal(value, own[name]) for name, value in pair.state().items()), "bit by bit"
    assert pair.strategy.steps == steps
    pair.take(1)
    now, events = pair.state(), list(pair.events)
    with torch.inference_mode(), pair.strategy.evaluating(pair.model):
        assert all(torch.equal(value, now[name]) for name, value in pair.state().items())
    assert pair.events == events, "workers that have just met need not meet again"


def test_a_failed_evaluation_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    pair.take(1)
    own = pair.state()
    with pytest.raises(KeyError), pair.strategy.evaluating(pair.model):
        raise KeyError
    assert all(torch.equal(value, own[name]) for name, value in pair.state().items())


@pytest.mark.parametrize("outer", ["average", "nesterov"])
def test_what_must_be_equal(monkeypatch: pytest.MonkeyPatch, outer: str) -> None:
    """The parameters right after an averaging; later, what they were then."""
    pair = Pair(monkeypatch, outer=outer)

    def copied() -> Tensor:
        return torch.cat([*pair.strategy.copies(pair.model).tensors])

    pair.take(2)
    met = pair.strategy.flat.clone()
    assert torch.equal(copied(), torch.cat([met, met]))
    with torch.no_grad():
        pair.model.get_parameter("norm.weight").add_(1.0)
    assert not torch.equal(copied(), torch.cat([met, met])), "a parameter that differs is found"
    pair.take(1)
    assert torch.equal(copied(), met)


@pytest.mark.parametrize("outer", ["average", "nesterov"])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_it_forgets(monkeypatch: pytest.MonkeyPatch, outer: str, steps: int) -> None:
    """After any number of steps that were undone; the one averaging that it makes for practice is undone, too."""
    fresh, used = Pair(monkeypatch, outer=outer), Pair(monkeypatch, outer=outer)
    start = used.state()
    used.take(steps)
    used.model.load_state_dict(start)
    used.events.clear()
    used.strategy.forget()
    assert used.events == ["average"]
    assert all(torch.equal(value, start[name]) for name, value in used.state().items())
    assert torch.equal(used.strategy.anchor, used.strategy.flat)
    assert used.strategy.facts() == {"averagings": 0, "every": 2, "outer": outer, "steps_since_averaging": 0}
    for pair in (fresh, used):
        pair.take(5)
    assert all(torch.equal(value, fresh.state()[name]) for name, value in used.state().items())
    assert used.strategy.facts() == {"averagings": 2, "every": 2, "outer": outer, "steps_since_averaging": 1}


def test_all_begin_with_what_rank_0_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    sent: list[int] = []

    def broadcast(tensor: Tensor, source: int) -> None:
        sent.append(source)
        tensor.fill_(7)

    monkeypatch.setattr(dist, "broadcast", broadcast)
    state = pair.strategy.wrap(Weights(), Precision(CPU)).state_dict()
    assert sent == [0] * len(state)
    assert all(bool((value == 7).all()) for value in state.values())
    assert set(pair.strategy.flat.tolist()) == set(pair.strategy.anchor.tolist()) == {0.0, 7.0}, "0 fills up lines"


def test_steps_without_synchronisation_are_nobodys_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    pair.take(1)
    pair.events.clear()
    with pair.strategy.without_sync():
        pair.take(3)
    assert "average" not in pair.events
    assert (pair.strategy.steps, pair.strategy.averagings) == (1, 0)
    pair.take(1)
    assert pair.strategy.averagings == 1


def test_formats_that_do_not_fit_one_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    model = Weights()
    model.linear.to(torch.bfloat16)
    with pytest.raises(ImpossibleRunError, match=r"cannot average torch.bfloat16, torch.float32 as one vector"):
        pair.strategy.wrap(model, Precision(CPU))


@pytest.mark.alone
def test_a_slow_worker_is_waited_for_at_averagings_only(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(workers=2, strategy="local_sgd", strategy__every=4, steps=42, batch_per_worker=64, slowdown={1: 4.0})
    record = supervise(run, tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.strategy_facts == {"averagings": 10, "every": 4, "outer": "average", "steps_since_averaging": 2}
    assert record.window is not None
    [span] = record.window.spans
    assert span.sync_wait_s_by_rank is not None
    fast, slow = span.sync_wait_s_by_rank
    assert fast > 2 * slow
    fast_own, slow_own = (rank.own_time_s for rank in record.ranks)
    assert slow_own > 2 * fast_own, "its update is slowed, too; the averaging is not"
    assert record.window.exposed_comm_s is not None
    assert record.communication is not None
    assert record.communication.bytes_per_step == 301_072 * 4 / 4


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strategy.every": 0}, "the workers meet after a step at the earliest"),
    ({"strategy.outer": "adam"}, "these are the outer steps there are"),
    ({"strategy.outer_lr": 0.0}, "a step needs a length"),
    ({"strategy.outer_momentum": 1.0}, "momentum of 1 and more never decays"),
    ({"strategy.outer_momentum": -0.1}, "momentum of 1 and more never decays"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(workers=2, strategy="local_sgd", **keys)
