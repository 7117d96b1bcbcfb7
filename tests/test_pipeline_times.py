"""The schedules against theory, with stages that sleep: no noise makes sleep shorter, and sleeping takes no core."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.config import RunConfig
from tests.conftest import base_mapping
from tests.pipeline_crew import Seen, act_together, timed

LAYERS, SAMPLES, SAMPLE_MS = 8, 48, 2.5
ALL_LAYERS_S = LAYERS * SAMPLES * SAMPLE_MS / 1e3
"""A whole step, were there one worker: a third of it in forward passes."""


def run_of(workers: int, schedule: str, micro_batches: int, stages_per_worker: int = 1, **more: Any) -> RunConfig:
    model = {"sleeping_layers": LAYERS, "sample_ms": SAMPLE_MS}
    options: dict[str, Any] = {"balance": "layers"}
    name = "model_parallel" if schedule == "model_parallel" else "pipeline"
    if name == "pipeline":
        options |= {"schedule": schedule, "micro_batches": micro_batches, "stages_per_worker": stages_per_worker}
    settings = {f"workload__{key}": value for key, value in model.items()}
    settings |= {f"strategy__{key}": value for key, value in options.items()} | more
    return RunConfig.from_mapping(
        base_mapping(
            workload="sleeping", strategy=name, workers=workers, global_batch=SAMPLES, run_limit_s=60, **settings
        )
    )


def ideal_s(workers: int, micro_batches: int, bubble: float) -> float:
    """Each worker's work, and a bubble of so many times a worker's work for one micro-batch."""
    work_s = ALL_LAYERS_S / workers
    return work_s * (1 + bubble / micro_batches)


# Workers, schedule, micro-batches, stages on each worker, and the bubble in theory: S - 1 without more
# (Huang et al. 2019, section 2.3), of which V stages on each worker leave 1/V (Narayanan et al. 2021, section 2.2.2).
EXACT: list[tuple[int, str, int, int, float]] = [
    (2, "model_parallel", 1, 1, 1),
    (2, "gpipe", 2, 1, 1),
    (2, "gpipe", 6, 1, 1),
    (2, "1f1b", 6, 1, 1),
    (2, "interleaved_1f1b", 4, 2, 1 / 2),
    (2, "looped_bfs", 4, 2, 1 / 2),
    (4, "model_parallel", 1, 1, 3),
    (4, "gpipe", 4, 1, 3),
    (4, "1f1b", 8, 1, 3),
    (4, "interleaved_1f1b", 8, 2, 3 / 2),
]
# Qi et al. 2023, where forward passes and both gradients take a third each: S - 1 thirds (section 2.3), and with zbv
# (section 6) only that the last worker waits for its first micro-batch: S - 1 forward passes of half a worker's layers.
ZERO_BUBBLE: list[tuple[int, str, int, int, float]] = [
    (2, "zero_bubble", 6, 1, 1 / 3),
    (4, "zero_bubble", 8, 1, 3 / 3),
    (2, "zbv", 4, 2, 1 / 6),
]
TIMED = EXACT + ZERO_BUBBLE


BALANCED: dict[str, Any] = {
    "workload__sleeping_layers": 4,
    "workload__first_factor": 3.0,
    "strategy__balance": "measured",
}


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[Seen]]:
    seen: dict[Any, list[Seen]] = {}
    for workers in (2, 4):
        runs: dict[Any, RunConfig] = {cell: run_of(*cell[:4]) for cell in TIMED if cell[0] == workers}
        if workers == 2:
            runs["balanced"] = run_of(2, "1f1b", 4, **BALANCED)
        acts: dict[str, Any] = {str(name): (timed, run) for name, run in runs.items()}
        found = act_together(acts, workers, tmp_path_factory.mktemp("times") / str(workers))
        seen |= {name: found[str(name)] for name in runs}
    return seen


def step_s(seen: list[Seen]) -> float:
    """The fastest of the steps, each as slow as its slowest rank."""
    return min(max(rank.step_s[step] for rank in seen) for step in range(len(seen[0].step_s)))


@pytest.mark.parametrize("cell", TIMED, ids=str)
def test_a_step_takes_what_theory_says(cell: Any, times: Any) -> None:
    workers, _, micro_batches, _, bubble = cell
    ideal = ideal_s(workers, micro_batches, bubble)
    assert 0.99 * ideal < step_s(times[cell]) < 1.15 * ideal


def test_layers_are_shared_out_by_their_measured_times(times: Any) -> None:
    """Layers of 3, 1, 1 and 1: by their number, a stage would have 4 of these 6 and the other 2."""
    seen = times["balanced"]
    stages = seen[0].facts["stages"]
    assert [len(stage["layers"]) for stage in stages] == [1, 3]
    micro_batch_s = 3 * SAMPLES / 4 * SAMPLE_MS / 1e3
    for stage in stages:
        assert stage["forward_backward_s"] == pytest.approx(micro_batch_s, rel=0.15)
    assert 0.99 * 5 * micro_batch_s < step_s(seen) < 1.15 * 5 * micro_batch_s
    assert all(rank.facts == seen[0].facts for rank in seen), "rank 0 measures for all"
