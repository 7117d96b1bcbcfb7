"""Workers and servers in processes of their own: the same model as one process trains, and nobody left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.core.record import Record
from benchmarks.core.sweep import apply
from benchmarks.supervision.supervisor import supervise
from benchmarks.train import Measured
from tests.conftest import MakeRun, base_mapping
from tests.crew import Case, Crews, Outcome, take
from tests.server_crew import take_and_measure
from tests.test_strategies import GLOBAL_BATCH, OPTIMIZERS, STEPS, distance, largest_difference

pytestmark = pytest.mark.alone

WORLDS = (2, 4)
SERVERS = (1, 2)
SHORT = {"bf16": 0.03, "fp16": 0.006}
PARAMETERS = 64 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10  # of the small mlp that `make` asks for
EPOCHS = 10


def make(settings: dict[str, Any]) -> RunConfig:
    small: dict[str, Any] = {} if "workload" in settings else {"workload": "mlp", "workload.hidden_size": 64}
    plain: dict[str, Any] = {
        "warmup_steps": 2,
        "run_limit_s": 60,
        "global_batch": GLOBAL_BATCH,
        "steps": None,
        "epochs": 2,
    }
    return RunConfig.from_mapping(apply(base_mapping(), {**plain, **small, **settings}))


def served(settings: dict[str, Any], workers: int = 2) -> RunConfig:
    return make({"workers": workers, "strategy": "parameter_server", **settings})


LENET = {"workload": "lenet", "channels_last": True, "epochs": 1}
SLEEP = {"workload": "faulty", "workload.fault": "sleep", "workload.rank": -1, "workload.sleep_s": 0.02}
SLOWED = {**SLEEP, "steps": 20, "epochs": None, "global_batch": 32, "evaluate": False, "slowdown": {1: 3.0}}
LEARNING = {"epochs": EPOCHS, "global_batch": 64, "optimizer.lr": 0.1, "optimizer.momentum": 0.0}
OVERFLOWING = {
    **{"workload": "faulty", "workload.fault": "nan", "workload.rank": 1, "workload.call": 2 + 4, "precision": "fp16"},
    **{"steps": 10, "epochs": None, "global_batch": 32, "evaluate": False},
}


def works_of(workers: int) -> dict[str, Case | RunConfig]:
    works: dict[str, Case | RunConfig] = {}
    for servers in SERVERS:
        for name, options in OPTIMIZERS.items():
            run = served({"strategy.servers": servers, **options}, workers)
            works[f"sync/{servers}/{name}"] = Case(run=run, steps=STEPS)
    if workers > 2:
        works["measured/nodes"] = served({"nodes": 2, "strategy.servers": 3}, workers)
        return works
    for precision in SHORT:
        works[precision] = Case(run=served({"precision": precision}), steps=STEPS)
    works["lenet"] = Case(run=served(LENET), steps=4)
    wide = {"workload.hidden_size": 256, "steps": 5, "epochs": None}
    works["bytes"] = Case(run=served({"strategy.servers": 2, **wide}), steps=2, count_bytes=True)
    works["measured/sync"] = served({"strategy.servers": 2})
    for mode in ("sync", "async"):
        works[f"overflowing/{mode}"] = served({"strategy.mode": mode, **OVERFLOWING})
    modes: dict[str, dict[str, Any]] = {"async": {}, "bounded": {"strategy.staleness": 2}}
    for mode, options in modes.items():
        works[f"learned/{mode}"] = served({"strategy.mode": mode, **options, **LEARNING})
        works[f"slowed/{mode}"] = served({"strategy.mode": mode, **options, **SLOWED})
    works["short/async"] = served({"strategy.mode": "async", "precision": "fp16", **LEARNING})
    return works


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Any]:
    """What a crew has made of a work; each crew is started once, for all of its works."""
    crews = Crews(lambda workers, folder: take_and_measure(works_of(workers), workers, folder), tmp_path_factory)
    return lambda workers, name: crews(workers)[name]


@pytest.fixture(scope="module")
def reference() -> Callable[..., Outcome]:
    """The same steps in one process, without a strategy and without warm-up."""
    known: dict[str, Outcome] = {}

    def of(name: str, settings: dict[str, Any], steps: int = STEPS) -> Outcome:
        if name not in known:
            known[name] = take(Case(run=make({"strategy": "single", "warmup_steps": 0, **settings}), steps=steps), 0)
        return known[name]

    return of


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("servers", SERVERS)
@pytest.mark.parametrize("workers", WORLDS)
def test_sync_trains_the_same_model(workers: int, servers: int, optimizer: str, taken: Any, reference: Any) -> None:
    """fp32, an uneven last batch, after a warm-up that is undone, with an evaluation halfway."""
    result: Outcome = taken(workers, f"sync/{servers}/{optimizer}")
    wanted, start = reference(optimizer, OPTIMIZERS[optimizer]), reference("start", {}, steps=0)
    assert largest_difference(result.parameters, wanted.parameters) < 1e-5
    assert largest_difference(result.parameters, start.parameters) > 5e-3, "ten steps must have moved the parameters"
    assert result.accuracy == pytest.approx(wanted.accuracy, abs=0.01)
    assert all(result.checks)
    assert max(result.state_bytes) == 0, "the optimiser's state is the servers'"


@pytest.mark.parametrize("precision", SHORT)
def test_a_short_format_trains_nearly_the_same_model(precision: str, taken: Any, reference: Any) -> None:
    wanted, start = reference("sgd", OPTIMIZERS["sgd"]), reference("start", {}, steps=0)
    result: Outcome = taken(2, precision)
    apart = distance(result.parameters, wanted.parameters) / distance(wanted.parameters, start.parameters)
    assert 0 < apart < SHORT[precision]


def test_convolutions_in_another_memory_format(taken: Any, reference: Any) -> None:
    result, wanted = taken(2, "lenet"), reference("lenet", LENET, steps=4)
    assert largest_difference(result.parameters, wanted.parameters) < 1e-5


def test_a_worker_sends_its_gradients_once(taken: Any) -> None:
    """As the operating system counts it: within 2 % and 1.5 kB from each worker, for headers and for barriers."""
    result: Outcome = taken(2, "bytes")
    size = (64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10) * 4
    assert result.communication.bytes_per_step == size
    assert size <= result.sent_bytes_per_step < 1.02 * size + 3000
    assert result.communication.unsynchronised_step_s is not None


def facts_of(measured: list[Measured]) -> dict[str, Any]:
    first, *others = [each.strategy_facts for each in measured]
    assert others == [{}] * len(others), "the record keeps rank 0's"
    assert all(check.passed for each in measured for check in each.checks)
    return first


def test_the_servers_load_by_hand(taken: Any) -> None:
    """Two epochs of six steps, two workers; evaluations are not in the window."""
    facts = facts_of(taken(2, "measured/sync"))
    servers = facts["servers"]
    assert [(one["server"], one["hosted_by_rank"], one["node"]) for one in servers] == [(0, 0, 0), (1, 0, 0)]
    assert [one["updates"] for one in servers] == [12, 12]
    sizes = [one["parameter_bytes"] for one in servers]
    assert sum(sizes) == 4 * PARAMETERS
    assert [one["received_bytes"] for one in servers] == [one["sent_bytes"] for one in servers]
    assert [one["received_bytes"] for one in servers] == [2 * 12 * size for size in sizes]
    assert (facts["largest_lead"], facts["staleness"]) == (0, {"max": 0, "mean": 0.0, "counts": {"0": 2 * 2 * 12}})
    for one in servers:
        assert 0 < one["update_s"] <= one["busy_s"] <= one["window_s"]
        assert one["busy_fraction"] == pytest.approx(one["busy_s"] / one["window_s"])
        assert one["cpu_s"] > 0
    wall_s = sum(span.wall_time_s for span in taken(2, "measured/sync")[0].spans)
    assert wall_s <= servers[0]["window_s"] < wall_s + 1.0, "from before each span to after it, evaluations apart"


def test_servers_on_several_nodes(taken: Any) -> None:
    """Two nodes of two workers each, here on one machine."""
    servers = facts_of(taken(4, "measured/nodes"))["servers"]
    assert [(one["server"], one["hosted_by_rank"], one["node"]) for one in servers] == [(0, 0, 0), (1, 2, 1), (2, 0, 0)]
    assert [one["received_bytes"] for one in servers] == [4 * 12 * one["parameter_bytes"] for one in servers]


@pytest.mark.parametrize(("mode", "updates"), [("sync", 4), ("async", 10 + 4)])
def test_overflows_on_one_worker(mode: str, updates: int, taken: Any) -> None:
    """From its fifth step on: with sync no worker takes these steps, else only that one does not."""
    measured = taken(2, f"overflowing/{mode}")
    assert measured[0].strategy_facts["servers"][0]["updates"] == updates
    for each in measured:
        assert next(check for check in each.checks if check.name == "replicas_equal").passed


@pytest.mark.parametrize("mode", ["async", "bounded"])
def test_stale_gradients_learn_as_well(mode: str, taken: Any, reference: Any) -> None:
    """Within 2 points of one process with the same epochs and learning rate, or better: they make twice the updates.

    Without momentum, which staleness adds to (Mitliagkas et al. 2016, arXiv 1605.09774).
    """
    measured = taken(2, f"learned/{mode}")
    facts, steps = facts_of(measured), len(measured[0].losses)
    wanted = reference("learning", LEARNING, steps=steps).accuracy
    assert wanted > 0.9
    assert measured[0].evaluations[-1].accuracy >= wanted - 0.02
    assert [one.accuracy for one in measured[0].evaluations] == [one.accuracy for one in measured[1].evaluations]
    assert facts["servers"][0]["updates"] == 2 * steps
    assert sum(facts["staleness"]["counts"].values()) == 2 * steps
    assert 0 < facts["staleness"]["mean"] <= facts["staleness"]["max"]


def test_half_precision_without_a_common_scale_learns_too(taken: Any) -> None:
    measured = taken(2, "short/async")
    facts_of(measured)
    assert measured[0].evaluations[-1].accuracy > 0.85


@pytest.mark.parametrize("mode", ["async", "bounded"])
def test_a_slow_worker_holds_the_other_back_within_the_bound_only(mode: str, taken: Any) -> None:
    """20 steps of 20 ms, and of 60 ms. What else delays the slow one delays both; hence medians, and its own time."""
    measured = taken(2, f"slowed/{mode}")
    lead = facts_of(measured)["largest_lead"]
    fast, slow = (each.spans[0] for each in measured)
    if mode == "async":
        assert median(slow.step_s) / median(fast.step_s) == pytest.approx(3.0, rel=0.15), "in its own time"
        assert lead > 10
        assert median(fast.sync_wait_s) < 0.2 * median(fast.step_s)
    else:
        assert lead == 2
        took_s = sum(fast.step_s)
        assert took_s == pytest.approx(sum(slow.step_s[:-2]), rel=0.15), "as the slow one, but two steps ahead of it"
        assert sum(fast.sync_wait_s) == pytest.approx(took_s - 20 * 0.02, rel=0.15), "and that is seen as waiting"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mode": "later"}, "these are the modes there are"),
    ({"mode": "bounded", "staleness": -1}, "nobody is fewer than no steps ahead"),
    ({"mode": "async", "staleness": 1}, "only mode bounded has a bound"),
    ({"servers": 0}, "somebody must keep the parameters"),
    ({"server_threads": 0}, "a server computes"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(workers=2, strategy="parameter_server", **{f"strategy__{key}": one for key, one in options.items()})


# Whole runs, in which somebody dies.


def servers_of(run: RunConfig) -> list[int]:
    """Servers of the run that live, and the process that they are forked from: the worker's environment is theirs."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"parameter_server.server" in (entry / "cmdline").read_bytes():
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                if not dead and run.run_id.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        except OSError:
            continue  # it has just ended
    return found


def parent(pid: int) -> int:
    return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])


def supervised(run: RunConfig, folder: Path) -> Record:
    """The record of a run that leaves no server behind."""
    record = supervise(run, folder)
    assert record is not None
    deadline = time.monotonic() + 10  # it may not have begun to live, on a busy machine
    while servers_of(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert servers_of(run) == []
    return record


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_takes_its_servers_along(make_run: MakeRun, tmp_path: Path, rank: int) -> None:
    """Rank 0 is the one that has started them; rank 1's death must not leave the others waiting for its gradients."""
    fault = {"workload": "faulty", "workload__fault": "kill", "workload__rank": rank, "workload__call": 5}
    run = make_run(workers=2, strategy="parameter_server", steps=10, strategy__servers=2, run_limit_s=200, **fault)
    record = supervised(run, tmp_path)
    assert record.status == "error"
    assert record.reason is not None
    assert record.reason.message == f"rank {rank} ended by signal SIGKILL"


def test_a_killed_server_ends_the_run_at_once(make_run: MakeRun, tmp_path: Path) -> None:
    sleep = {"workload": "faulty", "workload__fault": "sleep", "workload__rank": -1}
    run = make_run(workers=2, strategy="parameter_server", steps=10_000, run_limit_s=200, **sleep)
    killed_at: list[float] = []

    def kill() -> None:
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline and not killed_at:
            family = servers_of(run)
            for pid in [one for one in family if len(family) > 1 and parent(one) in family]:
                time.sleep(1.0)  # it is in the middle of its work
                os.kill(pid, signal.SIGKILL)
                killed_at.append(time.monotonic())
            time.sleep(0.05)

    killer = threading.Thread(target=kill)
    killer.start()
    record = supervised(run, tmp_path)
    killer.join()
    assert time.monotonic() - killed_at[0] < 8
    assert record.status == "comm_error"
    assert record.reason is not None
    assert "parameter server 0 at 127.0.0.1 is lost" in record.reason.message
    assert "server 0: its process ended with code -9" in record.reason.message


def test_more_servers_than_tensors_is_said_in_one_line(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(workers=1, strategy="parameter_server", strategy__servers=7)
    record = supervised(run, tmp_path)
    assert record.status == "invalid"
    assert record.reason is not None
    assert record.reason.message.startswith("strategy.servers=7: the model has 6 tensors to train")
