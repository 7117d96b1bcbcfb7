"""A worker made slower on purpose: by the stated factor, and visibly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.runs.metrics import straggler_ratio
from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ConfigError, ImpossibleRunError
from benchmarks.data.batches import Batch
from benchmarks.measuring.slowdown import HostSlowdown, SlowedStep, kernels, slowdown_for
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun, base_mapping

BATCH = Batch(torch.zeros(1), torch.zeros(1), 1.0)


@pytest.mark.alone
@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_work_takes_the_factor_of_its_time(factor: float) -> None:
    """10 ms until the last gradient, 10 ms of waiting for others, which is not stretched, and 5 ms of update."""
    slowdown = HostSlowdown(factor)

    def step(_batch: Batch) -> Tensor:
        time.sleep(0.010)
        slowdown.stretch()
        time.sleep(0.010)
        slowdown.mark()
        time.sleep(0.005)
        return torch.zeros(())

    slowed = SlowedStep(step=step, slowdown=slowdown)
    times_s = []
    for _ in range(10):
        started = time.perf_counter()
        slowed(BATCH)
        times_s.append(time.perf_counter() - started)
    # The quickest of them: a busy machine wakes a sleeper late, never early.
    assert min(times_s) == pytest.approx(0.015 * factor + 0.010, rel=0.1)


@pytest.mark.alone
@pytest.mark.parametrize("strategy", ["ddp", "zero1"])
def test_a_slowed_worker_takes_the_factor_of_the_others_time(make_run: MakeRun, tmp_path: Path, strategy: str) -> None:
    """Within 10 %, of workers whose work is to sleep, so that the machine's noise does not decide."""
    work = {"workload": "faulty", "workload__fault": "sleep", "workload__rank": -1, "workload__sleep_s": 0.02}
    settings = {**work, "workers": 2, "steps": 20, "evaluate": False, "batch_per_worker": 16}
    record = supervise(make_run(strategy=strategy, slowdown={1: 3.0}, **settings), tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.window is not None
    fast, slow = record.ranks
    assert slow.own_time_s / fast.own_time_s == pytest.approx(3.0, rel=0.1)
    assert fast.sync_wait_s is not None
    assert fast.sync_wait_s > fast.own_time_s, "the fast one waits for the slow one"
    ratio = straggler_ratio([rank.own_time_s for rank in record.ranks])
    assert ratio == pytest.approx(3.0 / 2.0, rel=0.1), "the larger of two over their mean"
    assert record.config["slowdown"] == {1: 3.0}


def test_a_slowed_worker_trains_the_same_model(make_run: MakeRun, tmp_path: Path) -> None:
    settings = {"workers": 2, "steps": 4, "strategy": "ddp"}
    plain, slowed = (
        supervise(make_run(slowdown=slowdown, **settings), tmp_path / str(len(slowdown))) for slowdown in ({}, {0: 2.0})
    )
    assert plain is not None
    assert slowed is not None
    assert plain.window is not None
    assert slowed.window is not None
    assert plain.window.loss == slowed.window.loss
    assert plain.run_id != slowed.run_id


def test_part_of_a_runs_identity_only_where_it_slows() -> None:
    given: list[dict[Any, Any]] = [{}, {0: 1}, {0: 2}, {"0": 2.0}, {0: 2, 1: 1.0}]
    runs = [RunConfig.from_mapping(base_mapping(batch_per_worker=8, workers=2, slowdown=one)) for one in given]
    ids = [run.run_id for run in runs]
    assert ids[0] == ids[1]
    assert ids[2] == ids[3] == ids[4] != ids[0]
    assert runs[2].flat()["slowdown.0"] == 2.0
    assert RunConfig.from_mapping(runs[2].as_dict()) == runs[2]


@pytest.mark.parametrize("given", [2, {0: 0.5}, {0: "fast"}, {0: True}, {-1: 2}, {"first": 2}, {0: float("nan")}])
def test_what_is_no_slowdown_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^slowdown=.*: must be factors from 1 by rank, as \{0: 2.0\}, or \{\}$"):
        RunConfig.from_mapping(base_mapping(batch_per_worker=8, slowdown=given))


def test_a_rank_that_is_not_there_is_refused() -> None:
    with pytest.raises(ImpossibleRunError, match=r"slowdown=\{2: 2.0\}: there is no rank 2 of workers=2"):
        RunConfig.from_mapping(base_mapping(batch_per_worker=8, workers=2, slowdown={2: 2}))


@pytest.mark.parametrize("name", ["mark", "stretch"])
def test_the_kernels_compile(name: str) -> None:
    """For a device that this machine need not have; they are run where there is one."""
    utilities: Any = torch.cuda._utils
    try:
        utilities._get_gpu_rtc_library()
    except OSError:
        pytest.skip("no runtime compiler of CUDA here")
    code, _ = utilities._nvrtc_compile(kernels(2.5), name, compute_capability="90")
    assert code


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_work_on_a_gpu_takes_the_factor_of_its_time() -> None:
    slowdown = slowdown_for(torch.device("cuda"), 3.0)
    matrix = torch.randn(4096, 4096, device="cuda")
    matrix @ matrix  # the first one takes longer
    times = []
    for stretched in (False, True):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        slowdown.mark()
        for _ in range(20):
            matrix @ matrix
        if stretched:
            slowdown.stretch()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    assert times[1] / times[0] == pytest.approx(3.0, rel=0.1)
