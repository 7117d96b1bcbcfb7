"""Synthetic sweeps for tests: configurations, records and manifests of any shape, without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.core.energy import SCOPES, CounterReading, Energy, PowerSeries, Source
from benchmarks.core.folder import MANIFEST_NAME, Manifest, ManifestRun
from benchmarks.core.record import Check, Evaluation, RankSummary, Reason, Record, Span, Window, write_record
from benchmarks.core.sweep import Dropped

_BASE: dict[str, Any] = {
    "sweep": "synthetic",
    "cluster": {"name": "local", "device": "cpu", "cores_per_node": 64, "gpus_per_node": 0},
    "workload": {"name": "lenet", "input_size": 32},
    "data": {"name": "digits", "train_samples": 1437},
    "strategy": {"name": "ddp", "bucket_mb": 25},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "precision": {"name": "fp32"},
    "device": "cpu",
    "threads_per_worker": 1,
    "channels_last": False,
    "compile": "none",
    "steps": 4,
    "epochs": None,
    "warmup_steps": 1,
    "evaluate": True,
    "run_limit_s": 600.0,
    "hang_limit_s": 60.0,
}


def config(workers: int, *, global_batch: int = 64, repeat: int = 0, **changes: Any) -> dict[str, Any]:
    """A canonical configuration; a change replaces a whole top-level value."""
    return _BASE | {
        "workers": workers,
        "global_batch": global_batch,
        "batch_per_worker": global_batch // workers,
        "seed": 1 + repeat,
        "repeat": repeat,
        **changes,
    }


def cell_id(of: Mapping[str, Any]) -> str:
    """Readable, the same for all repeats."""
    return f"{of['workload']['name']}-{of['strategy']['name']}-w{of['workers']}-b{of['global_batch']}"


def run_id(of: Mapping[str, Any]) -> str:
    """Readable, another one for each repeat."""
    return f"{cell_id(of)}-r{of['repeat']}"


def record(of: Mapping[str, Any], step_times_s: Sequence[float] = (0.1,) * 4, **changes: Any) -> Record:
    """An ok record of full batches with one span; `changes` replace fields."""
    samples = [of["global_batch"]] * len(step_times_s)
    span = Span(steps=len(samples), samples=sum(samples), wall_time_s=float(sum(step_times_s)))
    fields: dict[str, Any] = {
        "run_id": run_id(of),
        "cell_id": cell_id(of),
        "sweep": "synthetic",
        "repeat": of["repeat"],
        "attempt": 1,
        "status": "ok",
        "reason": None,
        "config": dict(of),
        "workers": of["workers"],
        "nodes": 1,
        "started_at": "2025-01-01T00:00:00+00:00",
        "wall_time_s": 10.0,
        "window": window(step_times_s, samples, [span]),
        "ranks": [rank_summary(rank, 0.08) for rank in range(min(of["workers"], 8))],
        "evaluation": [Evaluation(after_steps=len(samples), time_s=0.1, samples=360, accuracy=0.9, loss=0.3)],
        "memory": None,
        "communication": None,
        "energy": None,
        "ledger": {"window": 10.0},
        "ceilings": None,
        "sanity": [Check(name="finite_loss", passed=True, detail="")],
        "notes": [],
        "environment": {},
    }
    return Record(**(fields | changes))


def window(step_times_s: Sequence[float], samples: Sequence[int], spans: list[Span]) -> Window:
    """A window in which nobody waits."""
    times = [float(time) for time in step_times_s]
    return Window(
        clock="monotonic",
        step_time_s=times,
        compute_time_s=times,
        data_wait_s=[0.0] * len(times),
        exposed_comm_s=None,
        samples=list(samples),
        loss=[1.0] * len(times),
        spans=spans,
    )


def epochs_record(
    of: Mapping[str, Any], epoch_times_s: Sequence[float], steps_per_epoch: int, last_batch: int | None = None
) -> Record:
    """A record with one span for each epoch; the last batch of each may be smaller."""
    batches = [of["global_batch"]] * (steps_per_epoch - 1) + [last_batch or of["global_batch"]]
    spans = [Span(steps=steps_per_epoch, samples=sum(batches), wall_time_s=time) for time in epoch_times_s]
    times = [time / steps_per_epoch for time in epoch_times_s for _ in range(steps_per_epoch)]
    return record(of, window=window(times, batches * len(spans), spans))


def rank_summary(rank: int, own_time_s: float) -> RankSummary:
    """One worker on this machine."""
    return RankSummary(
        rank=rank,
        host="node0",
        device="cpu",
        threads=1,
        step_time_s=0.1,
        own_time_s=own_time_s,
        data_wait_s=0.0,
        sync_wait_s=0.0,
        peak_host_bytes=1,
        peak_device_bytes=None,
    )


def energy(
    *of_ranks: Sequence[float | None], source: Source = "nvml", unknown: str = "", clocks_mhz: Sequence[float] = ()
) -> Energy:
    """Joules of each span, for each rank's counter; `unknown` says why there is no sum."""
    series = PowerSeries(
        time_s=[index / 10 for index in range(len(clocks_mhz))],
        power_w=[300.0] * len(clocks_mhz),
        sm_clock_mhz=list(clocks_mhz),
        temperature_c=[71.0] * len(clocks_mhz),
    )
    counters = [
        CounterReading(
            source=source,
            name=f"counter {rank}",
            host="node0",
            rank=rank,
            span_j=list(span_j),
            idle_w=60.0,
            series=series,
        )
        for rank, span_j in enumerate(of_ranks)
    ]
    return Energy(source=source, scope=SCOPES[source], counters=counters, unknown={source: unknown} if unknown else {})


def failed(of: Mapping[str, Any], status: str, message: str = "rank 1 is silent") -> Record:
    """A record without a window."""
    reason = Reason(phase="window", kind="hang", message=message)
    return record(of, status=status, reason=reason, window=None, evaluation=[], ranks=[])


def write(folder: Path, records: Sequence[Record]) -> None:
    """Write records the way runs do."""
    for one in records:
        path = folder / one.run_id
        path.mkdir(parents=True, exist_ok=True)
        write_record(path, one)


def write_manifest(
    folder: Path, configs: Sequence[Mapping[str, Any]], dropped: Sequence[Dropped] = (), **changes: Any
) -> None:
    """Write the plan of the given configurations."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [
        ManifestRun(run_id=run_id(of), cell_id=cell_id(of), repeat=of["repeat"], settings={}, config=dict(of))
        for of in configs
    ]
    fields: dict[str, Any] = {
        "sweep": "synthetic",
        "cluster": "local",
        "question": "How does it scale?",
        "scaling": ["strong", "weak"],
        "shuffle_seed": 1,
        "axes": ["workers", "batch"],
        "runs": runs,
        "dropped": list(dropped),
    }
    (folder / MANIFEST_NAME).write_bytes(msgspec.json.encode(Manifest(**(fields | changes))))


def demo_sweep(folder: Path, repeats: int = 3, noise: float = 0.02) -> None:
    """A half-finished sweep: two workloads, failed and missing cells and repeats, crowded cells, a dropped one."""
    import numpy as np

    rng = np.random.default_rng(0)
    configs, records = [], []
    grid = [(workers, batch) for workers in (1, 2, 4, 8) for batch in (64, 128, 256, 512)]
    for workload, cost in (("lenet", 1e-4), ("mlp", 4e-5)):
        for workers, batch in grid:
            for repeat in range(repeats):
                of = config(workers, global_batch=batch, repeat=repeat, workload={"name": workload, "input_size": 32})
                configs.append(of)
                where = (workload, workers, batch)
                if where == ("mlp", 8, 512) or (where == ("lenet", 8, 256) and repeat):
                    continue
                if where == ("lenet", 8, 512):
                    records.append(failed(of, "oom", "rank 3: out of memory"))
                elif where == ("lenet", 4, 64) and repeat == 1:
                    records.append(failed(of, "timeout"))
                else:
                    time = (cost * batch / workers + 3e-3 + 1e-3 * workers**0.5 * (workers > 1)) * rng.normal(1, noise)
                    times = time * rng.lognormal(0, 0.1, size=40)
                    records.append(record(of, list(times), notes=["oversubscribed"] if workers == 8 else []))
    dropped = [
        Dropped(
            settings={"strategy": "single", "workers": 2},
            reason="strategy=single needs workers == 1: it is one process",
        )
    ]
    write(folder, records)
    write_manifest(folder, configs, dropped)
