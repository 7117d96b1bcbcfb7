"""Whole runs with real workers: what is measured, and every way in which a run can go wrong."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.core.config import RunConfig
from benchmarks.core.record import RECORD_NAME, Record, Window, read_record
from benchmarks.supervision import agent, supervisor, watch
from benchmarks.supervision.supervisor import supervise as supervise_any
from tests.conftest import PROJECT, MakeRun


def supervise(run: RunConfig, folder: Path, attempt: int = 1) -> Record:
    record = supervise_any(run, folder, attempt)
    assert record, "the only node of a team writes the record"
    return record


def faulty(make_run: MakeRun, fault: str, **settings: Any) -> Any:
    defaults = {"workload": "faulty", "workers": 2, "steps": 8, "warmup_steps": 2, "workload__fault": fault}
    return make_run(**defaults | settings)


def window_of(record: Record) -> Window:
    assert record.status == "ok", record.reason
    assert record.window is not None
    return record.window


def alive_workers() -> list[int]:
    """Processes that the fork server of this test process has forked and that still live."""

    def parent(pid: int) -> int:
        try:
            state, ppid = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            return 0
        return 0 if state == "Z" else int(ppid)

    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    servers = {
        pid
        for pid in pids
        if parent(pid) == os.getpid() and b"forkserver" in (Path("/proc") / str(pid) / "cmdline").read_bytes()
    }
    return [pid for pid in pids if parent(pid) in servers]


@pytest.fixture(autouse=True)
def _no_orphans() -> Any:
    yield
    deadline = time.monotonic() + 5
    while alive_workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive_workers() == []


@pytest.mark.alone
def test_a_run_leaves_a_whole_record(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(workers=2, steps=7, epochs=None)
    record = supervise(run, tmp_path)
    assert read_record(tmp_path / RECORD_NAME) == record
    window = window_of(record)
    assert len(window.step_time_s) == len(window.compute_time_s) == len(window.data_wait_s) == len(window.loss) == 7
    assert window.samples == [32] * 7
    assert [(span.steps, span.samples) for span in window.spans] == [(7, 224)]
    assert sum(window.step_time_s) == pytest.approx(window.spans[0].wall_time_s, rel=0.2, abs=2e-3)
    assert [rank.rank for rank in record.ranks] == [0, 1]
    assert all(check.passed for check in record.sanity)
    assert {check.name for check in record.sanity} == {
        "finite_loss",
        "expected_samples",
        "clocks_agree",
        "replicas_equal",
    }
    assert sum(record.ledger.values()) == pytest.approx(record.wall_time_s, rel=1e-6)
    assert set(record.ledger) >= {"start", "rendezvous", "data", "build", "warmup", "window", "evaluation", "teardown"}
    assert record.evaluation[0].samples == 360
    assert record.environment["packages"]["torch"]
    assert not list((tmp_path / "attempt1").glob("*.json"))


def test_epochs_are_spans_with_their_short_last_batch(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(workers=2, global_batch=200, steps=None, epochs=2)
    record = supervise(run, tmp_path)
    window = window_of(record)
    assert window.samples == [200] * 7 + [37] + [200] * 7 + [37]
    assert [(span.steps, span.samples) for span in window.spans] == [(8, 1437), (8, 1437)]
    assert [evaluation.after_steps for evaluation in record.evaluation] == [8, 16]


def test_training_learns(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(make_run(workers=2, global_batch=64, steps=120), tmp_path)
    assert record.evaluation[-1].accuracy > 0.9
    losses = [loss for loss in window_of(record).loss if loss is not None]
    assert median(losses[-10:]) < 0.3 * median(losses[:10])


@pytest.mark.alone
def test_twice_the_steps_same_throughput(make_run: MakeRun, tmp_path: Path) -> None:
    """Side by side: sleeping steps of a known length, so that the machine's noise does not decide."""
    rates, quickest_s = [], []
    for steps in (10, 20):
        run = faulty(make_run, "sleep", workers=1, strategy="single", workload__rank=0, steps=steps, evaluate=False)
        window = window_of(supervise(run, tmp_path / str(steps)))
        rates.append(sum(window.samples) / window.spans[0].wall_time_s)
        quickest_s.append(min(window.step_time_s))
        assert window.spans[0].wall_time_s == pytest.approx(sum(window.step_time_s), rel=0.02)
    assert rates[0] == pytest.approx(rates[1], rel=0.3)
    # A busy machine wakes a sleeper late, never early: the quickest step is as long as it sleeps.
    assert quickest_s == pytest.approx([0.021, 0.021], rel=0.1)
    assert rates[0] == pytest.approx(16 / 0.021, rel=0.4)


@pytest.mark.alone
def test_an_injected_delay_comes_back_in_step_time_and_straggler_ratio(make_run: MakeRun, tmp_path: Path) -> None:
    """One of two ranks sleeps 50 ms in every step; all ranks' steps take that long, and only its own time shows why."""
    plain, slow = (
        supervise(faulty(make_run, fault, workload__sleep_s=0.05, steps=40, evaluate=False), tmp_path / fault)
        for fault in ("none", "sleep")
    )
    before, after = (median(window_of(record).step_time_s) for record in (plain, slow))
    assert after - before == pytest.approx(0.050, rel=0.12)
    own = [rank.own_time_s for rank in plain.ranks]
    expected = (median(own) + 0.050) / median([median(own), median(own) + 0.050])
    measured = [rank.own_time_s for rank in slow.ranks]
    assert max(measured) / median(measured) == pytest.approx(expected, rel=0.1)
    assert slow.ranks[0].sync_wait_s == pytest.approx(0.050, rel=0.15)


@pytest.mark.alone
def test_workers_enter_the_window_together(make_run: MakeRun, tmp_path: Path) -> None:
    """A rank that is late for the window must not lengthen the others' first step."""
    run = faulty(make_run, "late", workload__sleep_s=0.5, steps=5, evaluate=False)
    assert max(window_of(supervise(run, tmp_path)).step_time_s) < 0.1


def strategies_in_memory() -> set[str]:
    return {name for name in sys.modules if name.startswith("benchmarks.strategy.")}


def test_workers_find_all_variants_imported() -> None:
    """Each worker of each run would else import them for itself."""
    agent.preload()
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        found = pool.submit(strategies_in_memory).result()
    own = {path.stem for path in (PROJECT / "benchmarks" / "strategy").glob("*.py")} - {"__init__"}
    assert {f"benchmarks.strategy.{name}" for name in own} <= found


def test_oversubscription_is_noted(make_run: MakeRun, tmp_path: Path) -> None:
    assert supervise(make_run(workers=3, steps=2, evaluate=False), tmp_path).notes == ["oversubscribed"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_trains(make_run: MakeRun, tmp_path: Path, precision: str) -> None:
    record = supervise(make_run(precision=precision, global_batch=64, steps=60), tmp_path)
    assert record.status == "ok"
    assert record.evaluation[-1].accuracy > 0.8


@pytest.mark.parametrize("workload", ["lenet", "resnet18", "resnet50"])
def test_every_model_takes_a_step_in_channels_last(make_run: MakeRun, tmp_path: Path, workload: str) -> None:
    run = make_run(workload=workload, channels_last=True, steps=1, warmup_steps=1, batch_per_worker=4, evaluate=False)
    assert supervise(run, tmp_path).status == "ok"


@pytest.mark.parametrize(
    ("fault", "status", "kind", "words"),
    [
        ("raise", "error", "ZeroDivisionError", "broken on purpose"),
        ("exhaust", "oom", "RuntimeError", "allocate memory"),
        ("kill", "error", "signal SIGKILL", "rank 1 ended by signal SIGKILL"),
    ],
)
def test_a_worker_that_fails_is_the_reason(
    make_run: MakeRun, tmp_path: Path, fault: str, status: str, kind: str, words: str
) -> None:
    record = supervise(faulty(make_run, fault, workload__call=5), tmp_path)
    assert (record.status, record.reason and record.reason.kind) == (status, kind)
    assert record.reason is not None
    assert record.reason.phase == "window"
    assert record.reason.rank == 1
    assert words in record.reason.message
    assert record.window is None
    if fault != "kill":
        assert any("faulty.py" in line for line in record.reason.log_tail)
    assert sum(record.ledger.values()) == pytest.approx(record.wall_time_s, rel=1e-6)


@pytest.mark.parametrize(("fault", "kind"), [("kill", "signal SIGKILL"), ("orphan", "exit 255")])
@pytest.mark.parametrize(("kills", "status"), [(0, "error"), (1, "oom")])
def test_the_kernel_says_whether_memory_was_the_cause(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, kind: str, kills: int, status: str
) -> None:
    """Its killer may take the fork server, too, and then no exit code tells the signal."""
    counts = iter([3, 3 + kills])
    monkeypatch.setattr(supervisor, "count_oom_kills", lambda: next(counts))
    record = supervise(faulty(make_run, fault, workers=1, workload__rank=0, workload__call=5), tmp_path)
    assert (record.status, record.reason and record.reason.kind) == (status, kind)
    assert record.reason
    assert ("out-of-memory" in record.reason.message) == bool(kills)


def test_a_lost_peer_is_a_communication_error(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(faulty(make_run, "leave", workload__call=5), tmp_path)
    assert record.status == "comm_error"
    assert record.reason is not None
    assert (record.reason.phase, record.reason.rank) == ("window", 0)


def test_a_fault_before_the_window_names_its_phase(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(faulty(make_run, "raise"), tmp_path)
    assert record.reason is not None
    assert record.reason.phase == "warmup"


def test_a_hung_worker_is_ended_and_says_where_it_was(make_run: MakeRun, tmp_path: Path) -> None:
    started = time.monotonic()
    # Long enough for a cold start on a busy machine, which shows no progress either.
    record = supervise(faulty(make_run, "hang", workload__call=5, hang_limit_s=15), tmp_path)
    assert time.monotonic() - started < 60
    assert record.status == "timeout"
    assert record.reason is not None
    assert record.reason.kind == "hang"
    assert "no progress for hang_limit_s=15" in record.reason.message
    assert "step 3 of 8" in record.reason.message
    logs = "".join(path.read_text() for path in (tmp_path / "attempt1").glob("*.log"))
    assert "faulty.py" in logs, "the stacks of hung workers belong in their logs"


def test_workers_that_do_not_come_to_life_in_time_are_ended(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(faulty(make_run, "sleep", steps=1000, hang_limit_s=0.01), tmp_path)
    assert (record.status, record.reason and record.reason.kind) == ("timeout", "hang")
    assert record.wall_time_s < 20


def test_an_agent_that_is_stuck_is_ended_too(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker ever lives, as when the fork server hangs on a dead file system."""
    monkeypatch.setattr(watch, "_START_PATIENCE_S", 1.0)
    monkeypatch.setattr(agent, "_elastic_agent", lambda *_: SimpleNamespace(run=lambda: time.sleep(60)))
    record = supervise(make_run(hang_limit_s=0.5), tmp_path)
    assert (record.status, record.reason and record.reason.phase) == ("timeout", "start")
    assert record.wall_time_s < 20


def test_an_accident_of_the_supervisors_leaves_a_record_too(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(agent, "_elastic_agent", broken)
    record = supervise(make_run(), tmp_path)
    assert (record.status, record.reason and record.reason.kind) == ("error", "BlockingIOError")
    assert record.reason is not None
    assert "Resource temporarily unavailable" in record.reason.message
    assert any("in broken" in line for line in record.reason.log_tail)
    assert read_record(tmp_path / RECORD_NAME) == record


def test_a_run_that_takes_too_long_is_ended(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(faulty(make_run, "sleep", workload__sleep_s=0.2, steps=1000, run_limit_s=3), tmp_path)
    assert record.status == "timeout"
    assert record.reason is not None
    assert record.reason.kind == "run_limit"
    assert 3 <= record.wall_time_s < 10


def test_a_loss_that_is_not_finite_is_diverged(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(faulty(make_run, "nan", workload__call=6), tmp_path)
    assert record.status == "diverged"
    assert record.reason is not None
    assert record.reason.kind == "finite_loss"
    assert record.window is not None
    assert record.window.loss[-1] is None


def test_replicas_that_drift_apart_are_invalid(make_run: MakeRun, tmp_path: Path) -> None:
    record = supervise(faulty(make_run, "perturb", workload__call=6, evaluate=False), tmp_path)
    assert record.status == "invalid"
    assert record.reason is not None
    assert record.reason.kind == "replicas_equal"
    assert "ranks [1]" in record.reason.message


def test_a_second_attempt_keeps_the_first_ones_record(make_run: MakeRun, tmp_path: Path) -> None:
    run = faulty(make_run, "raise")
    supervise(run, tmp_path, attempt=1)
    record = supervise(run, tmp_path, attempt=2)
    assert record.attempt == 2
    assert read_record(tmp_path / "record.attempt1.json").attempt == 1
    assert read_record(tmp_path / RECORD_NAME).attempt == 2
    assert (tmp_path / "attempt1" / "rank1.log").exists()
