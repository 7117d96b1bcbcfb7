"""Learning rates that change: against torch's schedulers, by the samples of a run, and under every strategy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, OneCycleLR

from benchmarks.core.config import RunConfig, Variant
from benchmarks.core.errors import ConfigError, ImpossibleRunError
from benchmarks.core.variants import variant_file
from benchmarks.data import load
from benchmarks.data.batches import Batch, Division
from benchmarks.lr_schedule import LrSchedule, lr_schedules
from benchmarks.lr_schedule.rates import Rates, samples_of
from benchmarks.strategy import Place, strategies
from benchmarks.strategy.parameter_server.wire import RATE_FACTOR, Kind
from benchmarks.trainer import Trainer
from tests.conftest import MakeRun, base_mapping
from tests.crew import CPU, Case, Crews, Outcome, take
from tests.server_crew import take_and_measure
from tests.test_server import Running
from tests.test_strategies import GLOBAL_BATCH, STEPS, largest_difference

TOTAL = 20


def schedule(name: str, **options: Any) -> LrSchedule:
    defaults = variant_file("lr_schedule", name).defaults
    return lr_schedules.make(Variant(name=name, options={**defaults, **options}))


def optimizer_of(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def torch_rates(make: Callable[[torch.optim.Optimizer], LRScheduler], lr: float) -> list[float]:
    """The rate of each step, and the one that the last would be followed by."""
    optimizer = optimizer_of(lr)
    scheduler = make(optimizer)
    rates = [optimizer.param_groups[0]["lr"]]
    for _ in range(TOTAL - 1):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


# torch counts scheduler steps: a rise over `pct_start` of 20 steps ends at step 0.3 x 20 - 1 of 0 to 19.
TORCH_ONE_CYCLE = (0.3 * TOTAL - 1) / (TOTAL - 1)
AS_TORCH: list[tuple[str, dict[str, Any], Callable[..., LRScheduler], int]] = [
    ("cosine", {"warmup": 0.0}, lambda o: CosineAnnealingLR(o, T_max=TOTAL), TOTAL),
    (
        "cosine",
        {"warmup": 0.0, "final_factor": 0.25},
        lambda o: CosineAnnealingLR(o, T_max=TOTAL, eta_min=0.1),
        TOTAL,
    ),
    (
        "linear",
        {"warmup": 0.0, "final_factor": 0.2},
        lambda o: LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=TOTAL),
        TOTAL,
    ),
    ("steps", {}, lambda o: MultiStepLR(o, milestones=[10, 15], gamma=0.1), TOTAL),
    ("steps", {"milestones": [0.3], "decay": 0.5}, lambda o: MultiStepLR(o, milestones=[6], gamma=0.5), TOTAL),
    (
        "one_cycle",
        {"warmup": TORCH_ONE_CYCLE},
        lambda o: OneCycleLR(o, max_lr=0.4, total_steps=TOTAL, pct_start=0.3, cycle_momentum=False),
        TOTAL - 1,
    ),
]


@pytest.mark.parametrize(("name", "options", "make", "end"), AS_TORCH)
def test_a_schedule_is_torchs(
    name: str, options: dict[str, Any], make: Callable[[torch.optim.Optimizer], LRScheduler], end: int
) -> None:
    """At each of 20 steps; `end` is the scheduler's step at which the run is over."""
    ours = schedule(name, **options)
    rates = [0.4 * ours.factor(step / end) for step in range(TOTAL)]
    assert rates == pytest.approx(torch_rates(make, 0.4), rel=1e-9, abs=1e-12)
    assert max(rates) > 1.5 * min(rates)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_a_warm_up_rises_in_a_straight_line(name: str) -> None:
    ours = schedule(name, warmup=0.2, initial_factor=0.5)
    assert [ours.factor(part) for part in (0.0, 0.1, 0.2)] == pytest.approx([0.5, 0.75, 1.0])
    assert ours.factor(0.6) == pytest.approx(0.5), "half of the rest"
    assert ours.factor(1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("name", sorted({name for name, *_ in AS_TORCH}))
def test_factors_stay_in_bounds_and_join(name: str) -> None:
    """No schedule is above the optimiser's rate, and none but `steps` jumps."""
    ours = schedule(name)
    factors = [ours.factor(part / 1000) for part in range(1001)]
    assert min(factors) >= 0
    assert max(factors) == pytest.approx(1.0, abs=1e-3)
    assert max(factors) <= 1.0
    if name != "steps":
        assert max(abs(a - b) for a, b in pairwise(factors)) < 0.02


def a_batch(samples: int, weight: float = 1.0) -> Batch:
    return Batch(torch.zeros(samples), torch.zeros(samples), weight)


def test_progress_is_counted_in_samples_of_the_global_batch() -> None:
    """A share of 4 of 17 samples on 4 ranks weighs 16/17; another rank takes 5. Batches may change."""
    optimizer = optimizer_of(2.0)
    for rank, own in ((0, 4), (3, 5)):
        division = Division(rank, 4)
        assert division.samples(17) == own
        rates = Rates(optimizer, schedule("linear", warmup=0.0), 100, division)
        seen = [optimizer.param_groups[0]["lr"]]
        for size in (17, 40, 43):
            rates.after(a_batch(division.samples(size), division.weight(size)))
            seen.append(optimizer.param_groups[0]["lr"])
        assert seen == pytest.approx([2.0, 2.0 * 0.83, 2.0 * 0.43, 0.0])
        wanted = {"first": 1.0, "highest": 1.0, "lowest": 0.43, "last": 0.43}
        assert rates.facts()["lr_factor"] == pytest.approx(wanted)
        optimizer.param_groups[0]["lr"] = 2.0


def test_every_group_keeps_its_own_rate() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.01)]
    optimizer = torch.optim.SGD(groups)
    rates = Rates(optimizer, schedule("steps"), 4, Division(0, 1))
    for _ in range(3):
        rates.after(a_batch(1))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.01, 0.0001])


def trainer_of(run: RunConfig) -> tuple[Trainer, Any]:
    torch.set_num_threads(1)
    place = Place(rank=0, workers=1, device=CPU)
    dataset = load(run.data, None)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed)
    return Trainer(run, place, strategy, dataset), loader


def rates_seen(trainer: Trainer, batches: Any) -> list[float]:
    """The rate that each update of the optimiser used."""
    seen: list[float] = []
    handle = trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"])
    )
    for batch in batches:
        trainer.step(batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("implementation", ["loop", "foreach", "fused"])
def test_the_optimiser_takes_its_steps_at_these_rates(make_run: MakeRun, implementation: str) -> None:
    """The way of the parameters is that of torch's scheduler after each step of a plain loop."""
    options = {"optimizer": "adamw", "optimizer__implementation": implementation}
    run = make_run(
        strategy="single", steps=6, batch_per_worker=32, lr_schedule="cosine", lr_schedule__warmup=0.0, **options
    )
    trainer, loader = trainer_of(run)
    trainer.warm_up(loader)
    batches = [batch for batch, _ in zip(loader.endless(), range(6), strict=False)]
    plain, _ = trainer_of(make_run(strategy="single", steps=6, batch_per_worker=32, optimizer="adamw"))
    scheduler = CosineAnnealingLR(plain.optimizer, T_max=6)
    wanted = []
    for batch in batches:
        wanted.append(plain.optimizer.param_groups[0]["lr"])
        plain.step(batch)
        scheduler.step()
    assert rates_seen(trainer, batches) == pytest.approx(wanted)
    for ours, theirs in zip(trainer.bare_model.parameters(), plain.bare_model.parameters(), strict=True):
        assert float((ours - theirs).detach().abs().max()) < 1e-6


def test_epochs_count_short_batches_and_changing_ones_by_their_samples(make_run: MakeRun) -> None:
    """1437 samples: two batches of 600 and one of 237; then one of 1200 and 237."""
    run = make_run(
        strategy="single",
        global_batch=600,
        steps=None,
        epochs=2,
        lr_schedule="linear",
        lr_schedule__warmup=0.0,
        optimizer__lr=1e-3,
        batch_schedule="growing",
        batch_schedule__most=2,
    )
    assert samples_of(run, 1437) == 2 * 1437
    trainer, loader = trainer_of(run)
    trainer.warm_up(loader)
    seen = rates_seen(trainer, loader.epoch(0))
    loader.global_batch = trainer.schedule.after(0, lambda _batches: 0.0)
    seen += rates_seen(trainer, loader.epoch(1))
    gone = [0, 600, 1200, 1437, 1437 + 1200]
    assert seen == pytest.approx([1e-3 * (1 - samples / 2874) for samples in gone])


def test_warm_up_does_not_move_the_rate(make_run: MakeRun) -> None:
    run = make_run(strategy="single", steps=5, warmup_steps=3, lr_schedule="one_cycle")
    trainer, loader = trainer_of(run)
    trainer.warm_up(loader)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * 0.04)
    assert trainer.rates.facts() == {}


def test_a_constant_rate_adds_no_call_to_the_step(make_run: MakeRun) -> None:
    run = make_run(strategy="single")
    trainer, _ = trainer_of(run)
    assert type(trainer.step).__name__ == "Step"
    assert trainer.rates.facts() == {}
    scheduled, _ = trainer_of(make_run(strategy="single", lr_schedule="linear"))
    assert type(scheduled.step).__name__ == "ScheduledStep"


def make(**settings: Any) -> RunConfig:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    defaults = {"workload": "mlp", "workload__hidden_size": 64, "warmup_steps": 2, "run_limit_s": 60}
    length = {"global_batch": GLOBAL_BATCH, "steps": None, "epochs": 2}
    return RunConfig.from_mapping(base_mapping(**defaults | length | keys))


SCHEDULED: dict[str, Any] = {"lr_schedule": "cosine", "lr_schedule.warmup": 0.3}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "zero1": {"strategy": "zero1"},
    "fsdp": {"strategy": "fsdp", "strategy.group_mb": 0.01},
    "parameter_server": {"strategy": "parameter_server", "strategy.servers": 2},
    "local_sgd": {"strategy": "local_sgd", "strategy.every": 1, "strategy.outer": "average"},
    "slowed": {"strategy": "ddp", "slowdown": {1: 1.2}},
}
MEASURED: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "async": {"strategy": "parameter_server", "strategy.mode": "async"},
    "hogwild": {"strategy": "hogwild"},
    "muon": {"strategy": "ddp", "optimizer": "muon"},
}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    works: dict[str, Case | RunConfig] = {}
    for name, settings in STRATEGIES.items():
        works[name] = Case(run=make(workers=2, **settings, **SCHEDULED), steps=STEPS)
    for name, settings in MEASURED.items():
        works[f"measured/{name}"] = make(workers=2, steps=8, epochs=None, evaluate=False, **settings, **SCHEDULED)
    crews = Crews(lambda workers, folder: take_and_measure(works, workers, folder), tmp_path_factory)
    return lambda name: crews(2)[name]


@pytest.fixture(scope="module")
def reference() -> Callable[[bool], Outcome]:
    @cache
    def of(scheduled: bool) -> Outcome:
        more = SCHEDULED if scheduled else {}
        return take(Case(run=make(strategy="single", warmup_steps=0, **more), steps=STEPS), 0)

    return of


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_strategy_trains_the_same_model_at_changing_rates(strategy: str, taken: Any, reference: Any) -> None:
    """With an uneven last batch in each epoch, after a warm-up that is undone."""
    result: Outcome = taken(strategy)
    assert largest_difference(result.parameters, reference(True).parameters) < 1e-5
    assert largest_difference(result.parameters, reference(False).parameters) > 1e-3
    assert all(result.checks)


@pytest.mark.parametrize("name", MEASURED)
def test_the_record_says_which_rates_were_used(name: str, taken: Any) -> None:
    """Eight steps, of which the first three rise; what is measured after the window moves no rate."""
    cosine = schedule("cosine", warmup=0.3)
    factors = [cosine.factor(step / 8) for step in range(8)]
    for measured in taken(f"measured/{name}"):
        assert measured.strategy_facts["lr_factor"] == pytest.approx(
            {"first": 0.1, "highest": max(factors), "lowest": min(factors), "last": factors[-1]}
        )
        assert all(check.passed for check in measured.checks)
        if name == "ddp":
            assert measured.communication.unsynchronised_step_s is not None


def test_an_asynchronous_server_keeps_each_workers_rate() -> None:
    """Plain SGD with a rate of 1: a gradient moves the parameters by it, times its worker's factor."""
    running = Running("async", workers=2)
    try:
        for rank, factor in ((0, 0.5), (1, 0.25)):
            running.workers[rank].set_rate(factor)
        for rank in (0, 1, 0):
            worker = running.workers[rank]
            worker.parts[0].parameters[0].grad = torch.ones(3)
            worker.push(overflowed=False)
        assert worker.parts[0].flat.tolist() == pytest.approx([1 - 1.25, 2 - 1.25, 3 - 1.25])
    finally:
        running.end()


def test_a_server_is_told_of_new_rates_only(monkeypatch: pytest.MonkeyPatch) -> None:
    running = Running("sync", workers=1)
    try:
        [client] = running.workers[0].clients
        sent: list[Any] = []
        monkeypatch.setattr(client, "send", lambda kind, payload: sent.append((kind, RATE_FACTOR.unpack(payload))))
        for factor in (1.0, 0.5, 0.5, 1.0):
            running.workers[0].set_rate(factor)
        monkeypatch.undo()
        assert sent == [(Kind.RATE, (0.5,)), (Kind.RATE, (1.0,))]
    finally:
        running.end()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lr_schedule": "cosine", "lr_schedule__warmup": 1.0}, "the fall takes the rest"),
        ({"lr_schedule": "linear", "lr_schedule__final_factor": -0.1}, "ends at or below the optimiser's lr"),
        ({"lr_schedule": "one_cycle", "lr_schedule__initial_factor": 2.0}, "begins at or below the optimiser's lr"),
        ({"lr_schedule": "steps", "lr_schedule__milestones": []}, "without a milestone"),
        ({"lr_schedule": "steps", "lr_schedule__milestones": [0.5, 1.0]}, "milestones are parts of the run"),
        ({"lr_schedule": "steps", "lr_schedule__milestones": [0.0]}, "milestones are parts of the run"),
        ({"lr_schedule": "steps", "lr_schedule__decay": -1.0}, "a rate is not negative"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(**settings)


def test_a_milestone_that_is_no_number_ends_in_one_line(make_run: MakeRun) -> None:
    with pytest.raises(ConfigError, match=r"rule '0 < min\(lr_schedule.milestones\)") as caught:
        make_run(lr_schedule="steps", lr_schedule__milestones=[0.5, "x"])
    assert "\n" not in str(caught.value)
