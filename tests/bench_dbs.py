"""Dynamic batch size against DDP, for two workers of which one is twice as slow: epochs of real runs, in turns."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.core.config import RunConfig
from benchmarks.core.record import Record
from benchmarks.supervision.supervisor import supervise
from tests.conftest import base_mapping

TURNS = 5
EPOCHS = 5
SETTLED = 3  # epochs after which the shares have followed


TIMED = {"data": "synthetic", "data.train_samples": 8192, "evaluate": False}  # 32 steps in an epoch, digits have 6


def _run(strategy: str, folder: Path, **more: Any) -> Record:
    settings = {"workload": "lenet", "strategy": strategy, "workers": 2, "global_batch": 256, "slowdown": {1: 2.0}}
    keys = {key.replace(".", "__"): value for key, value in {**settings, **more}.items()}
    run = RunConfig.from_mapping(base_mapping(**keys, steps=None, epochs=EPOCHS))
    record = supervise(run, folder)
    assert record is not None
    assert record.window is not None, record.reason
    return record


def _epoch_s(record: Record) -> float:
    assert record.window is not None
    return statistics.median(span.wall_time_s for span in record.window.spans[SETTLED:])


def bench_dbs() -> list[tuple[str, str, str, str]]:
    """How long an epoch takes once shares have settled, what the shares are, and what the model has learned."""
    ratios, shares = [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(TURNS):
            equal = _run("ddp", Path(folder) / f"ddp{turn}", **TIMED)
            dynamic = _run("dbs", Path(folder) / f"dbs{turn}", **TIMED)
            assert dynamic.window is not None
            ratios.append(_epoch_s(dynamic) / _epoch_s(equal))
            shares += [one[0] / one[1] for span in dynamic.window.spans[SETTLED:] for one in [span.samples_by_rank]]
        learned = [_run(strategy, Path(folder) / strategy).evaluation[-1].accuracy for strategy in ("dbs", "ddp")]
    ratio, share = statistics.median(ratios), statistics.median(shares)
    spread = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    apart = abs(learned[0] - learned[1])
    return [
        ("dbs / ddp epoch, rank 1 slowed 2 x", spread, "<= 0.75", "reached" if ratio <= 0.75 else "missed"),
        ("its shares", f"{share:.2f} : 1", "about 2", "reached" if abs(share - 2) < 0.3 else "missed"),
        ("its accuracy on digits less ddp's", f"{apart:.3f}", "<= 0.02", "reached" if apart <= 0.02 else "missed"),
    ]
