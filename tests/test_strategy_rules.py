"""Combinations that cannot be are refused at the door, with the reason; and what the record says of communication."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.core.sweep import plan, read_sweep
from benchmarks.precision import precisions
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun, base_mapping

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"strategy": "ddp", "strategy.accumulate": 9}, "batch norm needs two samples in each micro-batch"),
    ({"strategy": "ddp", "strategy.accumulate": 0}, "takes its batch in one part at least"),
    ({"strategy": "ddp", "strategy.hook": "fp8"}, "these are the hooks there are"),
    ({"strategy": "ddp", "strategy.hook": "powersgd", "strategy.powersgd_rank": 0}, "a matrix of rank 0 is zero"),
    ({"strategy": "ddp", "strategy.bucket_mb": 0.0}, "a bucket holds something"),
    ({"strategy": "ddp", "strategy.static_graph": True, "strategy.accumulate": 2}, "static graph"),
    ({"strategy": "zero1", "strategy.bucket_mb": 0.0}, "a bucket holds something"),
    ({"strategy": "dbs"}, "takes epochs, not steps"),
    ({"strategy": "dbs", "steps": None, "epochs": 1, "workers": 1}, "there is nothing to divide"),
    ({"strategy": "dbs", "steps": None, "epochs": 1, "batch_per_worker": 1}, "two samples on each worker"),
    ({"strategy": "dbs", "steps": None, "epochs": 1, "strategy.smoothing": 0.0}, "the last epoch's weight"),
    ({"strategy": "dbs", "steps": None, "epochs": 1, "strategy.min_share": 1.1}, "more than there is"),
    ({"strategy": "dbs", "steps": None, "epochs": 1, "strategy.max_share": 0.9}, "less than there is"),
    ({"strategy": "fsdp", "strategy.group_mb": -1.0}, "a size is not negative"),
    ({"strategy": "fsdp", "strategy.hybrid": True}, "keeps nodes equal to each other"),
    ({"strategy": "fsdp", "strategy.hybrid": True, "nodes": 2}, "shards within a node"),
    ({"strategy": "fsdp", "channels_last": True}, "contiguous parameters only"),
    ({"strategy": "ddp", "slowdown": {2: 2.0}}, "there is no rank 2 of workers=2"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    keys = {key.replace(".", "__"): value for key, value in settings.items()}
    with pytest.raises(ImpossibleRunError, match=reason):
        make_run(**{"workers": 2, **keys})


@pytest.mark.parametrize("strategy", ["zero1", "fsdp"])
def test_an_optimiser_that_looks_at_whole_matrices_cannot_be_sharded(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "whole.yaml").write_text("name: whole\n")
    monkeypatch.setenv("SCALEBENCH_EXTRA", str(tmp_path))
    with pytest.raises(ImpossibleRunError, match="each number must be updated by itself"):
        make_run(workers=2, strategy=strategy, optimizer="whole")


def test_a_plan_drops_them_with_the_reason() -> None:
    axes = {"strategy": ["ddp", "fsdp"], "strategy.accumulate": [1, 9], "channels_last": [False, True]}
    sweep = read_sweep({"name": "refused", "axes": axes, "fixed": {"workers": 2, "batch_per_worker": 16}})
    planned = plan(sweep, base_mapping())
    reasons = {drop.reason.partition(": ")[2] for drop in planned.dropped}
    assert reasons == {"batch norm needs two samples in each micro-batch", "torch shards contiguous parameters only"}
    assert len(planned.runs) == 3


@pytest.mark.parametrize(
    ("strategy", "per_gradient_byte"), [("single", 0.0), ("ddp", 1.0), ("zero1", 1.5), ("fsdp", 2.0)]
)
def test_the_record_says_what_was_sent(
    make_run: MakeRun, tmp_path: Path, strategy: str, per_gradient_byte: float
) -> None:
    """With gloo, whose reduce-scatter is an all-reduce; two workers."""
    workers = 1 if strategy == "single" else 2
    run = make_run(workers=workers, strategy=strategy, global_batch=64, epochs=1, steps=None)
    record = supervise(run, tmp_path)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.window is not None
    sent = record.communication
    assert sent is not None
    gradient_bytes = 4 * (64 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10)
    assert sent.bytes_per_step == pytest.approx(per_gradient_byte * gradient_bytes, rel=1e-3)
    assert (sent.allreduce_bytes, sent.allreduce_gb_per_s is None) == (
        (None, True) if strategy == "single" else (gradient_bytes, False)
    )
    if strategy in ("ddp", "zero1"):
        assert sent.unsynchronised_step_s is not None
        assert set(sent.unsynchronised_step_s) == set(record.window.samples) == {64, 1437 % 64}
        differences = [
            time - sent.unsynchronised_step_s[size]
            for time, size in zip(record.window.step_time_s, record.window.samples, strict=True)
        ]
        assert record.window.exposed_comm_s == pytest.approx(differences)
    else:
        assert record.window.exposed_comm_s is None
        assert sent.unsynchronised_step_s is None


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_overflow_in_another_workers_shard_skips_the_step_here(
    monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    def all_reduce(found: torch.Tensor, op: Any) -> None:
        assert op == dist.ReduceOp.MAX
        found.fill_(max(float(found), float(elsewhere)))

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    precision = precisions.make(Variant(name="fp16", options={}), torch.device("cpu"))
    precision.share_overflows()
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision.scale((weight * torch.tensor([0.25, 0.5])).sum()).backward()
    precision.step(optimizer)
    assert weight.tolist() == ([1.0, 1.0] if elsewhere else [0.75, 0.5])
