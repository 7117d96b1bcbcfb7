"""Lock-free training: exact where processes take turns, no update amiss where they do not, and no trace afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.data import load
from benchmarks.data.batches import Division, Loader
from benchmarks.precision import Precision
from benchmarks.strategy import Place, Step, strategies
from benchmarks.strategy.hogwild import Hogwild, SharedMemory, WholeEpochs
from benchmarks.supervision.supervisor import supervise
from benchmarks.trainer import Trainer
from tests.conftest import MakeRun, base_mapping
from tests.crew import Case, Crews, Outcome, take, take_together
from tests.many_in_one import shares_of_batches, shares_of_epochs, workers_on_one_model

CPU = torch.device("cpu")
WORKERS = 2
EPOCHS = 16
NUMBERS, UPDATES = 4096, 200


def make(**settings: Any) -> RunConfig:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    defaults = {"strategy": "hogwild", "workload": "mlp", "warmup_steps": 2}
    return RunConfig.from_mapping(base_mapping(**{**defaults, "steps": None, "epochs": 2, "run_limit_s": 60, **keys}))


# 1437 samples make five full batches and one of 17, shared as 8 and 9; or 14 of 100 and one of 37 for each process.
BATCHES = {"workers": WORKERS, "global_batch": 284}
RESNET = {"workload": "resnet18", "workload.input_size": 16, "workers": WORKERS, "global_batch": 8, "warmup_steps": 1}
IN_TURNS: dict[str, tuple[RunConfig, int]] = {
    "momentum": (make(**BATCHES), 8),
    "adam": (make(**BATCHES, optimizer="adam"), 8),
    "fp16": (make(**BATCHES, precision="fp16"), 8),
    "epochs": (make(workers=WORKERS, batch_per_worker=100, epochs=4, **{"strategy.split": "epochs"}), 17),
    "batch_norm": (make(**RESNET), 2),
    "channels_last": (make(**RESNET, channels_last=True), 2),
}


class Flat(nn.Module):
    """Numbers whose gradient is one, whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Parameter(torch.zeros(NUMBERS))

    def forward(self, _inputs: Tensor) -> Tensor:
        return self.numbers


class Sum(nn.Module):
    def forward(self, numbers: Tensor, _targets: Tensor) -> Tensor:
        return numbers.sum()


def _work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORKERS)
    torch.set_num_threads(1)
    place = Place(rank=rank, workers=WORKERS, device=CPU)
    turns = {name: take_turns(run, place, steps) for name, (run, steps) in IN_TURNS.items()}
    torch.save({"turns": turns, "at_once": update_at_once(place)}, f"{folder}/rank{rank}")
    dist.destroy_process_group()


def take_turns(run: RunConfig, place: Place, steps: int) -> dict[str, Any]:
    """Warm up at once and out of step, then one process's update after the other's; state and facts of this process."""
    size = run.workload.options.get("input_size")
    dataset = load(run.data, size if isinstance(size, int) else None)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=run.global_batch, seed=run.seed)
    trainer = Trainer(run, place, strategy, dataset)
    layouts = [value.is_contiguous() for value in trainer.bare_model.state_dict().values()]
    time.sleep(0.05 * place.rank)  # the later process finds parameters that the earlier one has already moved
    trainer.warm_up(loader)
    spans = range((run.epochs or 0) // loader.epochs_in_span)
    for batch in islice(chain.from_iterable(map(loader.epoch, spans)), steps):
        for turn in range(WORKERS):
            if turn == place.rank:
                trainer.step(batch)
            dist.barrier()
    state = {name: value.clone() for name, value in trainer.bare_model.state_dict().items()}
    checks = [check.passed for check in trainer.checks()]
    return {"state": state, "facts": strategy.facts(), "checks": checks, "contiguous": layouts}


def update_at_once(place: Place) -> dict[str, Any]:
    """Steps of length one on numbers whose gradient is one: minus their value is the number of updates that arrived."""
    strategy = Hogwild(place, split="batches")
    model = strategy.wrap(Flat(), Precision(CPU))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = strategy.make_step(
        Step(model=model, loss=Sum(), optimizer=optimizer, precision=Precision(CPU), after_backward=lambda: None)
    )
    [numbers] = model.parameters()
    batch = replace(
        next(
            Loader(
                load(make(**BATCHES).data, None).train, device=CPU, division=Division(0, 1), global_batch=2, seed=1
            ).endless()
        )
    )
    moved_by_others, left = 0, 0.0
    dist.barrier()
    for _ in range(UPDATES - 1):
        moved_by_others += float(numbers.detach()[0]) != left
        step(batch)
        left = float(numbers.detach()[0])
        time.sleep(0.0005)
    time.sleep(0.2 * place.rank)
    step(batch)  # the last process's when the first waits to evaluate
    with strategy.evaluating(model):
        seen = [numbers.detach().clone()]
        time.sleep(0.2 * (WORKERS - 1 - place.rank))
        seen.append(numbers.detach().clone())  # the first process's when the last waits to train on
    step(batch)
    dist.barrier()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "scalebench-parameters" in line]
    return {
        "arrived": -seen[0],
        "evaluated": seen,
        "moved_by_others": moved_by_others,
        "facts": strategy.facts(),
        "mapped": mapped[-1],
    }


@pytest.fixture(scope="module")
def by_process(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes has to tell; nothing but the process group joins them: each is an interpreter anew."""
    folder = tmp_path_factory.mktemp("hogwild")
    start_processes(_work, (str(folder),), nprocs=WORKERS, start_method="spawn")
    return [torch.load(folder / f"rank{rank}", weights_only=False) for rank in range(WORKERS)]


@pytest.mark.alone
@pytest.mark.parametrize("name", IN_TURNS)
def test_in_turns_it_is_one_model_with_an_optimiser_for_each_process(name: str, by_process: Any) -> None:
    """Bit by bit, on both processes, batch norm's averages and counts included, after a warm-up that left no trace."""
    torch.set_num_threads(1)
    run, steps = IN_TURNS[name]
    workers = workers_on_one_model(run)
    start = {name: value.clone() for name, value in workers[0].model.state_dict().items()}
    shares = shares_of_epochs if run.strategy.options["split"] == "epochs" else shares_of_batches
    for step in islice(shares(run, 1437), steps):
        for worker, share in zip(workers, step, strict=True):
            worker.step(share)
    wanted = workers[0].model.state_dict()
    for process in by_process:
        result = process["turns"][name]
        assert result["state"].keys() == wanted.keys()
        for key, value in wanted.items():
            assert torch.equal(result["state"][key], value), key
        assert result["checks"] == [True]
        assert result["facts"]["updates_by_process"] == [steps] * WORKERS
        assert result["contiguous"] == [value.is_contiguous() for value in wanted.values()]
    assert max(float((wanted[key].float() - value.float()).abs().max()) for key, value in start.items()) > 5e-3


@pytest.mark.alone
def test_updates_at_once_arrive(by_process: Any) -> None:
    """All but those few that were lost because two processes added to the same numbers at the same moment."""
    for process in by_process:
        result = process["at_once"]
        arrived = result["arrived"]
        assert torch.equal(arrived, by_process[0]["at_once"]["arrived"]), "both see the same memory"
        assert float(arrived.max()) <= WORKERS * UPDATES
        assert float(arrived.mean()) > 0.95 * WORKERS * UPDATES
        assert result["facts"]["updates_by_process"] == [UPDATES + 1] * WORKERS
        assert result["moved_by_others"] > UPDATES / 10, "the others' updates come between this process's own"


@pytest.mark.alone
def test_nobody_trains_while_anybody_evaluates(by_process: Any) -> None:
    """The first process has to wait for the last one's update, and the last one for the first one's evaluation."""
    first, *others = [seen for process in by_process for seen in process["at_once"]["evaluated"]]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.alone
def test_the_memory_has_no_name_in_any_folder(by_process: Any) -> None:
    for process in by_process:
        _, permissions, _, _, _, path, state = process["at_once"]["mapped"].split()
        assert (permissions, path, state) == ("rw-s", "/memfd:scalebench-parameters", "(deleted)")


def accuracy_cases(workers: int) -> dict[str, Case]:
    """The same epochs and batch in all: sixteen by one process, eight each by two, four each by four."""
    cases = {}
    if workers == 1:
        for split in ("batches", "epochs"):
            cases[split] = Case(run=make(workers=1, global_batch=284, **{"strategy.split": split}), steps=8)
    run = make(
        workers=workers, batch_per_worker=32, epochs=EPOCHS, **{"strategy.split": "epochs", "optimizer.lr": 0.02}
    )
    cases["accuracy"] = Case(run=run, steps=EPOCHS // workers * 45)
    return cases


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Outcome]:
    crews = Crews(lambda workers, folder: take_together(accuracy_cases(workers), workers, folder), tmp_path_factory)
    return lambda workers, name: crews(workers)[name]


@pytest.mark.parametrize("split", ["batches", "epochs"])
def test_one_process_is_single(split: str, outcome: Any) -> None:
    result = outcome(1, split)
    wanted = take(Case(run=make(strategy="single", workers=1, global_batch=284), steps=8), 0)
    assert result.losses == wanted.losses
    assert all(torch.equal(result.parameters[name], value) for name, value in wanted.parameters.items())


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_same_epochs_reach_the_same_accuracy(processes: int, outcome: Any) -> None:
    result = outcome(processes, "accuracy")
    alone = make(strategy="single", workers=1, batch_per_worker=32, epochs=EPOCHS, **{"optimizer.lr": 0.02})
    wanted = take(Case(run=alone, steps=EPOCHS * 45), 0)
    assert wanted.accuracy > 0.9
    assert result.accuracy == pytest.approx(wanted.accuracy, abs=0.02)
    assert result.checks == [True]
    assert result.communication.bytes_per_step == 0


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_whole_epochs_together_are_those_of_one_process(processes: int) -> None:
    train = load(make(**BATCHES).data, None).train
    alone = Loader(train, device=CPU, division=Division(0, 1), global_batch=100, seed=3)

    def loader(process: int) -> WholeEpochs:
        division = Division(process, processes)
        return WholeEpochs(train, device=CPU, division=division, global_batch=100 * processes, seed=3)

    assert loader(0).epochs_in_span == processes
    assert loader(0).epoch_sizes() == [100 * processes] * 14 + [37 * processes]
    for process in range(processes):
        for span in range(2):
            own, wanted = list(loader(process).epoch(span)), list(alone.epoch(span * processes + process))
            assert [loader(process).division.samples(size) for size in loader(0).epoch_sizes()] == list(map(len, own))
            for batch, other in zip(own, wanted, strict=True):
                assert torch.equal(batch.inputs, other.inputs)
                assert torch.equal(batch.targets, other.targets)
                assert batch.weight == 1.0
        full = list(islice(loader(process).endless(), 15))
        assert {len(batch) for batch in full} == {100}
        assert torch.equal(full[14].targets, next(loader(process).epoch(1)).targets)
        same = islice(loader(process).same(37 * processes), 2)
        assert [batch.targets.tolist() for batch in same] == [next(alone.epoch(0)).targets[:37].tolist()] * 2
        warm = loader(process).for_warmup(37 * processes)
        assert (len(warm), warm.weight) == (37, 1.0)


def left_behind() -> set[Path]:
    """Files of shared memory, but for the semaphores of Python's own processes."""
    return {path for path in Path("/dev/shm").iterdir() if not path.name.startswith("sem.")}


@pytest.mark.alone
@pytest.mark.parametrize("split", ["batches", "epochs"])
def test_the_record_tells(make_run: MakeRun, tmp_path: Path, split: str) -> None:
    before = left_behind()
    run = make_run(workers=2, strategy="hogwild", strategy__split=split, global_batch=64, epochs=2, steps=None)
    record = supervise(run, tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.window is not None
    assert sum(record.window.samples) == 2 * 1437
    updates = {"batches": 2 * 23, "epochs": 45}[split]
    size = (2 + 512 * 64 // 16 + 512 // 16 + 512 * 512 // 16 + 512 // 16 + 512 * 10 // 16 + 1) * 64
    assert record.strategy_facts == {
        "processes": 2,
        "split": split,
        "updates_by_process": [updates, updates],
        "shared_bytes": size,
    }
    assert record.communication is not None
    assert (record.communication.bytes_per_step, record.communication.unsynchronised_step_s) == (0, None)
    assert record.window.exposed_comm_s is None
    assert all(check.passed for check in record.sanity)
    assert {check.name for check in record.sanity} >= {"expected_samples", "replicas_equal"}
    assert left_behind() - before == set()


@pytest.mark.alone
@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_a_crash_leaves_no_memory_behind(make_run: MakeRun, tmp_path: Path, fault: str) -> None:
    before = left_behind()
    run = make_run(workers=2, strategy="hogwild", workload="faulty", workload__fault=fault, workload__call=4)
    record = supervise(run, tmp_path)
    assert record is not None
    assert record.status == "error"
    assert record.reason is not None
    assert record.reason.rank == 1
    assert left_behind() - before == set()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strategy.split": "samples"}, r"strategy.split in \['batches', 'epochs'\]: these are the ways"),
    ({"nodes": 2}, "shared memory ends at the node"),
    (
        {"device": "cuda", "cluster": {"name": "x", "device": "cuda", "cores_per_node": 2, "gpus_per_node": 2}},
        "not a device's",
    ),
    ({"strategy.split": "epochs"}, "with steps there are no epochs to share out"),
    ({"strategy.split": "epochs", "steps": None, "epochs": 3}, "each process takes as many epochs as the others"),
    ({"global_batch": 1438}, "larger than the data set"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(workers=2, strategy="hogwild", **keys)


def test_memory_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def announce(names: list[str]) -> None:
        names[0] = f"/proc/{os.getpid()}/fd/999999"

    monkeypatch.setattr(dist, "broadcast_object_list", announce)
    with pytest.raises(ImpossibleRunError, match=r"rank 1 cannot map the parameters of rank 0 \(No such file"):
        SharedMemory([torch.zeros(3)], Place(rank=1, workers=2, device=CPU))
