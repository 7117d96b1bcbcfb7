"""The schedules against theory, with stages that sleep: no noise makes sleep shorter, and sleeping takes no core."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from benchmarks.core.config import RunConfig
from tests.conftest import base_mapping
from tests.pipeline_crew import Seen, act_together, timed

pytestmark = pytest.mark.alone

LAYERS, SAMPLES, WORK_S = 8, 48, 0.96
"""Each worker sleeps so long in a step, a third of it in forward passes."""


def run_of(workers: int, schedule: str, micro_batches: int, stages_per_worker: int = 1, **more: Any) -> RunConfig:
    model = {"sleeping_layers": LAYERS, "sample_ms": WORK_S * workers / LAYERS / SAMPLES * 1e3}
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


def ideal_s(micro_batches: int, bubble: float) -> float:
    """A worker's work, and a bubble of so many times its work for one micro-batch."""
    return WORK_S * (1 + bubble / micro_batches)


# Workers, schedule, micro-batches, stages on each worker, and the bubble in theory: S - 1 without more
# (Huang et al. 2019, section 2.3), of which V stages on each worker leave 1/V (Narayanan et al. 2021, section 2.2.2).
EXACT: list[tuple[int, str, int, int, float]] = [
    (2, "model_parallel", 1, 1, 1),
    (2, "1f1b", 6, 1, 1),
    (2, "interleaved_1f1b", 4, 2, 1 / 2),
    (2, "looped_bfs", 4, 2, 1 / 2),
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


# Layers of 3, 1, 1 and 1: by their number, a stage would have 4 of these 6 and the other 2.
BALANCED: dict[str, Any] = {
    "workload__sleeping_layers": 4,
    "workload__first_factor": 3.0,
    "workload__sample_ms": 2.5,
    "strategy__balance": "measured",
}
BALANCED_MICRO_BATCH_S = 3 * 2.5e-3 * SAMPLES / 4

# What a micro-batch costs however few samples it has: more micro-batches make the bubble smaller, and this larger.
STAGE_S, OVERHEAD_S = 0.6, 0.04
GRID = (1, 2, 4, 8, 16)
CURVE: dict[str, Any] = {
    "workload__sleeping_layers": 2,
    "workload__sample_ms": STAGE_S / SAMPLES * 1e3,
    "workload__call_ms": OVERHEAD_S * 1e3,
}

IDEAL_S: dict[str, float] = {
    **{str(cell): WORK_S * (1 + cell[4] / cell[2]) for cell in TIMED},
    **{f"curve {count}": (count + 1) * (STAGE_S / count + OVERHEAD_S) for count in GRID},
    "balanced": (4 + 1) * BALANCED_MICRO_BATCH_S,
}
"""A worker's work and its bubble, which is so many times its work for one micro-batch."""


@pytest.fixture(scope="module")
def times(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Seen]]:
    seen: dict[str, list[Seen]] = {}
    for workers in (2, 4):
        runs = {str(cell): run_of(*cell[:4]) for cell in TIMED if cell[0] == workers}
        if workers == 2:
            runs |= {f"curve {count}": run_of(2, "gpipe", count, **CURVE) for count in GRID}
            runs["balanced"] = run_of(2, "1f1b", 4, **BALANCED)
        acts: dict[str, Any] = {name: (partial(timed, enough_s=1.1 * IDEAL_S[name]), run) for name, run in runs.items()}
        seen |= act_together(acts, workers, tmp_path_factory.mktemp("times") / str(workers))
    return seen


@pytest.mark.parametrize("name", IDEAL_S)
def test_a_step_takes_what_theory_says(name: str, times: dict[str, list[Seen]]) -> None:
    assert 0.99 * IDEAL_S[name] < times[name][0].step_s < 1.15 * IDEAL_S[name]


def test_layers_are_shared_out_by_their_measured_times(times: dict[str, list[Seen]]) -> None:
    ranks = times["balanced"]
    stages = ranks[0].facts["stages"]
    assert [len(stage["layers"]) for stage in stages] == [1, 3]
    for stage in stages:
        assert stage["forward_backward_s"] == pytest.approx(BALANCED_MICRO_BATCH_S, rel=0.3)
    assert all(rank.facts == ranks[0].facts for rank in ranks), "rank 0 measures for all"


def test_the_best_number_of_micro_batches_is_theorys(times: dict[str, list[Seen]]) -> None:
    """(m + S - 1) (t/m + o) is least at m = sqrt((S - 1) t / o), here 3.9."""
    measured = {count: times[f"curve {count}"][0].step_s for count in GRID}
    best = min(measured, key=lambda count: measured[count])
    assert best in (2, 4, 8)
    assert min(measured[1], measured[16]) > 1.1 * measured[best]
