"""Profiled runs: known answers from traces made by hand, injected waits in real ones, and their place in a sweep."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from benchmarks.core.config import RunConfig
from benchmarks.core.folder import SweepFolder
from benchmarks.core.profile import RankProfile, TimeSplit, trace_name
from benchmarks.core.record import RECORD_NAME, Record, read_record
from benchmarks.core.sweep import Plan, PlannedRun, Sweep, plan
from benchmarks.measuring import trace
from benchmarks.strategy import Place, strategies
from benchmarks.supervision.agent import preload
from benchmarks.supervision.supervisor import supervise
from benchmarks.train import Report, measure
from tests.conftest import MakeRun, base_mapping

MAIN, GLOO, STREAM = 1, 2, 7


def event(name: str, start_us: float, end_us: float, category: str = "cpu_op", thread: int = MAIN, **more: Any) -> Any:
    args = {"External id": more["launched_by"]} if "launched_by" in more else {}
    duration = end_us - start_us
    return {"ph": "X", "name": name, "cat": category, "tid": thread, "ts": start_us, "dur": duration, "args": args}


def step(number: int, start_us: float, end_us: float) -> Any:
    return event(f"ProfilerStep#{number}", start_us, end_us, "user_annotation")


def kernel(name: str, start_us: float, end_us: float, **more: Any) -> Any:
    return event(name, start_us, end_us, more.pop("category", "kernel"), more.pop("thread", STREAM), **more)


def host_split(*events: Any) -> list[float]:
    found = trace.events_of({"traceEvents": list(events)})
    return in_us(trace.split_on_host(found, trace.window_of(found)))


def device_split(*events: Any) -> list[float]:
    found = trace.events_of({"traceEvents": list(events)})
    return in_us(trace.split_on_device(found, trace.window_of(found)))


def in_us(split: TimeSplit) -> list[float]:
    """Computing, copying, exposed communication, idle, hidden communication, all."""
    order = (split.compute_s, split.copy_s, split.exposed_communication_s, split.idle_s)
    return [round(1e6 * value, 3) for value in (*order, split.hidden_communication_s, split.step_s)]


def test_a_step_on_the_host() -> None:
    """Every kind of moment once, in one step of 100 us."""
    assert host_split(
        step(3, 0, 100),
        event("aten::linear", 0, 20),  # its own time, before and after what it calls, is computing
        event("aten::addmm", 5, 15),
        event("aten::copy_", 20, 30),
        event("c10d::allreduce_", 30, 35),
        event("aten::copy_", 31, 33),  # into the send buffer: a part of the collective
        event("aten::div", 33, 34),  # as this one
        event("gloo:all_reduce", 32, 70, "user_annotation", GLOO),
        event("aten::mul", 40, 50),  # hides 10 us of it
        event("aten::copy_", 60, 63),
        event("autograd::engine::evaluate_function: X", 60, 80),  # calls that one, waits until 70, calls another
        event("aten::add", 75, 80),
        event("aten::sum", 85, 95, thread=GLOO),  # not the model's
    ) == [20 + 10 + 5 + 5, 10 + 3, 5 + 5 + 10 + 7, 20, 10 + 3, 100]


def test_annotations_are_no_work_but_the_wait_for_others_is_communication() -> None:
    """A strategy with sockets of its own has no other sign of it."""
    assert host_split(
        step(1, 0, 50),
        event("Optimizer.step#SGD.step", 0, 50, "user_annotation"),
        event(trace.SYNCHRONISING, 10, 40, "user_annotation"),
        event("aten::add_", 20, 25),
    ) == [5, 0, 25, 20, 5, 50]


def test_a_step_on_a_gpu() -> None:
    """Streams overlap; copies before communication; what is after the last step is cut off; the host does not count."""
    assert device_split(
        step(1, 0, 60),
        step(2, 60, 100),
        step(1, 3, 170) | {"cat": "gpu_user_annotation", "tid": STREAM},
        event("aten::mm", 0, 99),
        kernel("sm80_gemm", 0, 30),
        kernel("relu", 20, 40, thread=9),
        kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL(args)", 35, 60, thread=11),
        kernel("Memcpy HtoD", 55, 75, category="gpu_memcpy", thread=13),
        kernel("late", 98, 120),
    ) == [(40 + 2) / 2, 20 / 2, 15 / 2, 23 / 2, 10 / 2, 50]


def test_no_step_no_window() -> None:
    with pytest.raises(ValueError, match="no profiled step"):
        trace.window_of(trace.events_of({"traceEvents": [event("aten::mm", 0, 1)]}))


def test_set_operations_agree_with_counting_moments() -> None:
    rng = random.Random(1)

    def some() -> list[tuple[int, int]]:
        starts = [rng.randrange(-20, 120) for _ in range(rng.randrange(12))]
        return [(start, start + rng.randrange(40)) for start in starts]

    def moments(parts: list[tuple[int, int]]) -> set[int]:
        return {moment for start, end in parts for moment in range(start, end)}

    for _ in range(300):
        one, other = some(), some()
        first, second = trace.merged_intervals(one), trace.merged_intervals(other)
        assert moments(first) == moments(one)
        assert trace.length_ns(first) == len(moments(one))
        assert moments(trace.common(first, second)) == moments(one) & moments(other)
        assert moments(trace.less(first, second)) == moments(one) - moments(other)


def test_the_parts_add_up_to_the_step() -> None:
    """Of any events, also such as overlap in ways that no program's do."""
    rng = random.Random(2)
    names = ["aten::mm", "aten::copy_", "c10d::allreduce_", "gloo:send", "ncclKernel", "relu"]
    categories = ["cpu_op", "user_annotation", "kernel", "gpu_memcpy", "gpu_memset"]
    for _ in range(300):
        starts = [rng.randrange(-9, 99) for _ in range(rng.randrange(20))]
        events = [
            event(rng.choice(names), start, start + rng.randrange(60), rng.choice(categories), rng.randrange(1, 4))
            for start in starts
        ]
        for split in (host_split, device_split):
            *parts, _, whole = split(step(1, 0, 100), *events)
            assert min(parts) >= 0
            assert sum(parts) == pytest.approx(whole)


def test_self_time_is_without_what_an_operator_calls() -> None:
    """linear takes 20 + 10 us in two calls, of which addmm has 15 and t 4; other threads and steps do not count."""
    events = trace.events_of(
        {
            "traceEvents": [
                step(1, 0, 50),
                step(2, 50, 100),
                event("aten::linear", 0, 20),
                event("aten::t", 0, 4),
                event("aten::transpose", 1, 2),
                event("aten::addmm", 5, 20),
                event("aten::linear", 20, 30),
                event("aten::mm", 10, 90, thread=GLOO),
                event("aten::mm", 101, 190),
                event("Optimizer.step", 0, 90, "user_annotation"),
            ]
        }
    )
    table = trace.operators_on_host(events, trace.window_of(events), most=2)
    assert [(row.name, row.calls_per_step, round(row.self_time_s * 1e6, 6)) for row in table] == [
        ("aten::addmm", 0.5, 7.5),
        ("aten::linear", 1.0, 5.5),
    ]
    assert [row.share for row in table] == [15 / 30, 11 / 30]


def test_a_kernel_belongs_to_the_operator_that_launched_it() -> None:
    events = trace.events_of(
        {
            "traceEvents": [
                step(1, 0, 100),
                event("aten::conv", 0, 5, launched_by=1),
                event("aten::mm", 5, 8, launched_by=2),
                event("aten::mm", 8, 9, launched_by=3),
                kernel("im2col", 10, 30, launched_by=1),
                kernel("gemm", 30, 60, launched_by=1),
                kernel("gemm", 60, 70, launched_by=2),
                kernel("gemm", 70, 80, launched_by=3),
                kernel("of a graph", 80, 85, launched_by=9),
                kernel("late", 100, 200, launched_by=2),
            ]
        }
    )
    table = trace.operators_on_device(events, trace.window_of(events), most=9)
    assert [(row.name, row.calls_per_step, round(row.self_time_s * 1e6, 6)) for row in table] == [
        ("aten::conv", 1, 50),
        ("aten::mm", 2, 20),
        ("of a graph", 1, 5),
    ]
    assert sum(row.share for row in table) == pytest.approx(1)


def test_a_trace_is_cut_to_its_first_events_and_keeps_the_names_of_threads() -> None:
    name = {"ph": "M", "name": "thread_name", "ts": 99, "args": {"name": "main"}}
    whole = {"traceEvents": [event("late", 5, 6), name, event("early", 1, 2), event("middle", 3, 9)], "other": 1}
    shown, left_out = trace.bounded(whole, most_events=2)
    assert [each["name"] for each in shown["traceEvents"]] == ["thread_name", "early", "middle"]
    assert (left_out, shown["other"]) == (1, 1)
    assert trace.bounded(whole, most_events=3)[1] == 0


def test_only_the_first_ranks_leave_a_trace() -> None:
    assert [trace_name(rank) for rank in (0, 1, 7, 8)] == [
        "trace.json.gz",
        "trace.rank1.json.gz",
        "trace.rank7.json.gz",
        None,
    ]


def sweep_plan(profile: bool, repeats: int = 2) -> Plan:
    axes = {"workers": [1, 2], "batch_per_worker": 16}
    return plan(Sweep(name="test", axes=axes, repeats=repeats), base_mapping(workload="mlp", profile=profile))


def test_a_profiled_repeat_changes_no_other() -> None:
    """It has the first repeat's seed, is of the same cell, and is the same however many others there are."""
    without, profiled = sweep_plan(False), sweep_plan(True)
    ids = {run.config.run_id for run in without.runs}
    more = [run for run in profiled.runs if run.config.run_id not in ids]
    assert ids < {run.config.run_id for run in profiled.runs}
    assert [(run.config.profile, run.config.seed, run.settings["profile"]) for run in more] == [(True, 1, True)] * 2
    assert {run.config.cell_id for run in more} == {run.config.cell_id for run in without.runs}
    assert not any(run.config.profile for run in profiled.runs if run not in more)
    again = {run.config.run_id for run in sweep_plan(True, repeats=5).runs}
    assert {run.config.run_id for run in more} < again


def _measured_together(rank: int, runs: list[RunConfig], rendezvous: str, folder: str) -> None:
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "RANK": str(rank)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = {}
    for run in runs:
        place = Place(rank=rank, workers=2, device=torch.device("cpu"))
        strategy = strategies.make(run.strategy, place)
        report = Report(phase=lambda _phase: None, beat=lambda _step, _steps: None, folder=Path(folder))
        found[run.strategy.name] = measure(run, place, strategy, report)
        strategy.close()
    both: list[Any] = [None, None]
    dist.all_gather_object(both, {name: (one.profile, one.checks) for name, one in found.items()})
    if rank == 0:
        torch.save(both, f"{folder}/both")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[RankProfile, list[Any]]]]:
    """Profiles by rank and strategy: two workers, of which the second sleeps 30 ms in each step's forward pass."""
    folder = tmp_path_factory.mktemp("profiles")
    of = {"workload": "faulty", "workload__fault": "sleep", "workload__rank": 1, "workload__sleep_s": 0.03}
    common = {**of, "workers": 2, "batch_per_worker": 16, "steps": 4, "warmup_steps": 1, "profile": True}
    names = ("ddp", "zero1", "local_sgd", "fsdp")
    runs = [RunConfig.from_mapping(base_mapping(strategy=name, **common)) for name in names]
    preload()
    arguments = (runs, str(folder / "rendezvous"), str(folder))
    start_processes(_measured_together, arguments, nprocs=2, start_method="forkserver")
    found: list[dict[str, tuple[RankProfile, list[Any]]]] = torch.load(folder / "both", weights_only=False)
    return found


@pytest.mark.alone
def test_a_sleeping_worker_is_idle_and_the_other_waits_for_it(both_ranks: Any) -> None:
    for name in ("ddp", "zero1"):
        awake, asleep = (ranks[name][0].split for ranks in both_ranks)
        assert asleep.idle_s > 0.03, name
        assert awake.exposed_communication_s > 0.02, name
        assert awake.idle_s < asleep.idle_s - 0.01, name
        assert asleep.step_s > 0.03, name


@pytest.mark.alone
def test_parts_of_real_steps_add_up(both_ranks: Any) -> None:
    for ranks in both_ranks:
        for name, (profile, checks) in ranks.items():
            split = profile.split
            parts = split.compute_s + split.copy_s + split.exposed_communication_s + split.idle_s
            assert parts == pytest.approx(split.step_s, rel=1e-9), name
            assert split.compute_s > 0, name
            assert profile.steps == 3, name
            assert all(check.passed for check in checks), name
            assert sum(row.share for row in profile.operators) <= 1 + 1e-9, name


@pytest.mark.alone
def test_parameters_and_gradients_are_counted_with_every_strategy(both_ranks: Any) -> None:
    """Also where a strategy drops its gradients early, or shards them: then each rank has its part."""
    whole = both_ranks[0]["ddp"][0].parameters
    assert whole.bytes == 4 * whole.elements > 0
    for name in ("ddp", "zero1", "local_sgd"):
        for ranks in both_ranks:
            assert ranks[name][0].parameters == ranks[name][0].gradients == whole, name
    sharded = [ranks["fsdp"][0] for ranks in both_ranks]
    assert sum(one.parameters.elements for one in sharded) == whole.elements
    assert all(one.gradients == one.parameters for one in sharded)


def test_a_profiled_run_leaves_its_traces_and_no_time(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(workers=2, epochs=3, steps=None, profile=True, evaluate=True)
    folder = SweepFolder.create(tmp_path, "local", "test")
    record = supervise(run, folder.run_folder(run.run_id))
    assert isinstance(record, Record)
    assert record == read_record(folder.run_folder(run.run_id) / RECORD_NAME)
    assert record.status == "profiled", record.reason
    assert (record.window, record.ranks, record.evaluation, record.memory) == (None, [], [], None)
    assert [one.rank for one in record.profile] == [0, 1]
    for one in record.profile:
        assert one.trace
        found = json.loads(gzip.decompress((folder.run_folder(run.run_id) / one.trace).read_bytes()))
        events = trace.events_of(found)
        window = trace.window_of(events)
        assert trace.split_on_host(events, window) == one.split
        # the only sign of strategies that send through sockets of their own
        assert sum(each.name == trace.SYNCHRONISING for each in events) == 3
        assert window.steps == one.steps == 3
    assert {row.name for row in record.profile[0].operators} >= {"aten::addmm", "aten::mm"}
    assert "profile" in record.ledger
    planned = PlannedRun(config=run, settings={})
    assert folder.remaining(Plan(sweep=Sweep(name="test"), runs=[planned], dropped=[]), max_attempts=3) == []
