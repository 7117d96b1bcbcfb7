"""The kernel against references: the clock, the step, and two workers against one."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from benchmarks.core.config import RunConfig
from benchmarks.data import load
from benchmarks.measuring.timing import MonotonicClock
from benchmarks.strategy import Place, strategies
from benchmarks.train import Report, measure, timed_span
from benchmarks.trainer import Trainer
from tests.conftest import MakeRun

CPU = torch.device("cpu")
QUIET = Report(phase=lambda _phase: None, beat=lambda _step, _steps: None)


def train(run: RunConfig, rank: int, batches: int) -> dict[str, Tensor]:
    """The parameters after some steps, as `measure` makes them: built, warmed up, put back, trained."""
    torch.set_num_threads(1)
    place = Place(rank=rank, workers=run.workers, device=CPU)
    dataset = load(run.data, None)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed)
    trainer = Trainer(run, place, strategy, dataset)
    trainer.warm_up(loader)
    steps = loader.epoch(0) if run.epochs else loader.endless()
    for _ in range(batches):
        trainer.step(next(steps))
    return {name: value.detach().clone() for name, value in trainer.bare_model.state_dict().items()}


def _one_of_many(rank: int, run: RunConfig, rendezvous: str, result: str, batches: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=run.workers)
    parameters = train(run, rank, batches)
    if rank == 0:
        torch.save(parameters, result)
    dist.destroy_process_group()


def train_together(run: RunConfig, folder: Path, batches: int) -> dict[str, Tensor]:
    arguments = (run, str(folder / "rendezvous"), str(folder / "result"), batches)
    start_processes(_one_of_many, arguments, nprocs=run.workers, start_method="forkserver")
    result: dict[str, Tensor] = torch.load(folder / "result")
    return result


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("length", [{"steps": 5}, {"steps": None, "epochs": 1}])
@pytest.mark.parametrize("workers", [2, 4])
def test_many_workers_equal_one_with_the_same_global_batch(
    make_run: MakeRun, tmp_path: Path, workers: int, length: dict[str, Any]
) -> None:
    """fp32, no batch norm; with epochs, the last batch of 1437 mod 284 = 17 samples is shared unequally."""
    batches = 6 if "epochs" in length else 5
    single = train(make_run(strategy="single", global_batch=284, optimizer__lr=0.05, **length), 0, batches)
    together = train_together(
        make_run(workers=workers, global_batch=284, optimizer__lr=0.05, **length), tmp_path, batches
    )
    assert largest_difference(single, together) < 1e-5
    untrained = train(make_run(strategy="single", global_batch=284, optimizer__lr=0.05, **length), 0, 0)
    assert largest_difference(single, untrained) > 1e-2, "five steps must have moved the parameters"


def test_the_step_is_a_plain_training_loop(make_run: MakeRun) -> None:
    run = make_run(
        strategy="single",
        batch_per_worker=64,
        optimizer="sgd_nesterov",
        optimizer__lr=0.05,
        optimizer__weight_decay=0.01,
    )
    ours = train(run, 0, 5)

    torch.manual_seed(run.seed)
    dataset = load(run.data, None)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True)
    order = torch.randperm(1437, generator=torch.Generator().manual_seed(run.seed * 1_000_003))
    for step in range(5):
        chosen = order[64 * step : 64 * (step + 1)]
        loss = nn.functional.cross_entropy(
            model(dataset.train.inputs[chosen].float() / 127.5 - 1), dataset.train.targets[chosen]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    plain = list(model.parameters())
    assert len(plain) == len(ours)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.values(), plain, strict=True))


def test_warm_up_leaves_no_trace(make_run: MakeRun) -> None:
    cold, warm = (make_run(strategy="single", workload="resnet18", batch_per_worker=8, warmup_steps=n) for n in (0, 3))
    before, after = train(cold, 0, 2), train(warm, 0, 2)
    assert largest_difference(before, after) == 0.0
    assert int(after["1.bn1.num_batches_tracked"]) == 2


@pytest.mark.alone
def test_the_clock_finds_injected_delays() -> None:
    """20 ms in the step, 10 ms in the loader, 5 ms between the last gradient and the end of the backward pass."""
    clock = MonotonicClock(5)
    clock.marks_last_gradient = True

    def batches() -> Any:
        while True:
            time.sleep(0.010)
            yield [0]

    def step(_batch: Any) -> Tensor:
        time.sleep(0.015)
        clock.last_gradient()
        time.sleep(0.005)
        clock.backward_done()
        return torch.zeros(())

    losses, samples = timed_span(step, batches(), clock, lambda _step, _steps: None)
    times = clock.times()
    assert (len(losses), samples) == (5, [1] * 5)
    assert median(times.step_s) == pytest.approx(0.030, rel=0.1)
    assert median(times.data_wait_s) == pytest.approx(0.010, rel=0.1)
    assert times.sync_wait_s is not None
    assert median(times.sync_wait_s) == pytest.approx(0.005, rel=0.1)
    assert sum(times.step_s) == pytest.approx(times.wall_time_s, rel=1e-3)


def test_the_window_asks_for_no_value_of_the_device(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor's value read inside the window would make the host wait for the device."""
    inside = False
    real_start, real_stop = MonotonicClock.start, MonotonicClock.stop

    def start(clock: MonotonicClock) -> None:
        nonlocal inside
        real_start(clock)
        inside = True

    def stop(clock: MonotonicClock) -> None:
        nonlocal inside
        inside = False
        real_stop(clock)

    def forbidden(name: str) -> Any:
        real = getattr(Tensor, name)

        def read(tensor: Tensor, *arguments: Any) -> Any:
            assert not inside, f"Tensor.{name} inside the window"
            return real(tensor, *arguments)

        return read

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, forbidden(name))
    monkeypatch.setattr(MonotonicClock, "start", start)
    monkeypatch.setattr(MonotonicClock, "stop", stop)
    run = make_run(strategy="single", steps=3, evaluate=False)
    place = Place(rank=0, workers=1, device=CPU)
    measured = measure(run, place, strategies.make(run.strategy, place), QUIET)
    assert len(measured.losses) == 3


def test_evaluation_equals_a_plain_pass_over_the_test_data(make_run: MakeRun) -> None:
    run = make_run(strategy="single", batch_per_worker=64)
    place = Place(rank=0, workers=1, device=CPU)
    dataset = load(run.data, None)
    trainer = Trainer(run, place, strategies.make(run.strategy, place), dataset)
    evaluation = trainer.evaluate(dataset, after_steps=0, beat=lambda _step, _steps: None)
    with torch.no_grad():
        logits = trainer.bare_model(dataset.test.inputs)
    assert evaluation.samples == 360
    assert evaluation.accuracy == pytest.approx(float((logits.argmax(1) == dataset.test.targets).float().mean()))
    assert evaluation.loss == pytest.approx(float(nn.functional.cross_entropy(logits, dataset.test.targets)), rel=1e-5)
    assert trainer.bare_model.training


@pytest.mark.parametrize(("name", "millions"), [("resnet18", 11.17), ("resnet50", 23.52)])
def test_residual_networks_have_their_known_size(make_run: MakeRun, name: str, millions: float) -> None:
    """With the CIFAR stem and 10 classes; torchvision's ImageNet models have 11.69 and 25.56 million."""
    run = make_run(workload=name, strategy="single", data="synthetic")
    place = Place(rank=0, workers=1, device=CPU)
    trainer = Trainer(run, place, strategies.make(run.strategy, place), load(run.data, None))
    count = sum(parameter.numel() for parameter in trainer.bare_model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def test_batch_norm_can_be_left_out(make_run: MakeRun) -> None:
    run = make_run(workload="resnet18", strategy="single", workload__batch_norm=False, workload__cifar_stem=False)
    place = Place(rank=0, workers=1, device=CPU)
    trainer = Trainer(run, place, strategies.make(run.strategy, place), load(run.data, 32))
    modules = list(trainer.bare_model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
    first = next(module for module in modules if isinstance(module, nn.Conv2d))
    assert (first.in_channels, first.kernel_size, first.stride) == (1, (7, 7), (2, 2))
