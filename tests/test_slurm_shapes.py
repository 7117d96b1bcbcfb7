"""What a run asks of Slurm, which runs share an array, and what never fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.core.errors import ConfigError, UserError
from benchmarks.core.sweep import PlannedRun
from slurm import sbatch
from slurm.commands import NodeGroup, node_groups, tasks_of
from slurm.shapes import Shape, batches, check_fits, earlier_times_s
from tests.fake_slurm import FakeSlurm
from tests.slurm_cases import a_folder, a_plan, cluster_file, leave_record


def shapes(cluster: dict[str, Any], **axes: Any) -> list[Shape]:
    return [batch.shape for batch in batches(a_plan(cluster, **axes).runs, cluster)]


def the_shape(name: str, *, slurm: dict[str, Any] | None = None, **axes: Any) -> Shape:
    [shape] = shapes(cluster_file(name, **slurm or {}), **axes)
    return shape


@pytest.mark.parametrize(
    ("name", "axes", "expected"),
    [
        ("greene", {"workers": 1}, (1, 1, 16, 1, 32768)),  # the cores of its share of the GPUs
        ("greene", {"workers": 4}, (1, 4, 64, 4, 131072)),
        ("greene", {"workers": 6}, (2, 3, 48, 3, 98304)),  # equally many on each node
        ("greene", {"workers": 7}, (7, 1, 16, 1, 32768)),
        ("greene", {"workers": 8, "nodes": 4}, (4, 2, 32, 2, 65536)),
        ("greene", {"workers": 2, "node_type": "v100", "memory_gb_per_worker": 0.3}, (1, 2, 20, 2, 615)),
        ("greene", {"workers": 8, "node_type": "cpu"}, (1, 8, 48, 0, 262144)),
        ("greene", {"workers": 2, "device": "cpu"}, (1, 2, 64, 0, 65536)),  # the GPU node's cores alone
        ("onehost", {"workers": 2}, (1, 2, 4, 0, 0)),
        ("onehost", {"workers": 8, "threads_per_worker": 2}, (4, 2, 4, 0, 0)),
        ("onehost", {"workers": 1, "threads_per_worker": 3}, (1, 1, 3, 0, 0)),
        ("template", {"workers": 8}, (2, 4, 64, 4, 0)),
    ],
)
def test_nodes_cores_gpus_and_memory(name: str, axes: dict[str, Any], expected: tuple[int, ...]) -> None:
    shape = the_shape(name, **axes)
    assert (
        shape.nodes,
        shape.workers_per_node,
        shape.cores_per_node,
        shape.gpus_per_node,
        shape.memory_mb_per_node,
    ) == expected


def test_a_worker_is_the_same_resource_at_every_worker_count_of_a_kind_of_node() -> None:
    found = shapes(cluster_file("greene"), workers=[1, 2, 4], node_type=["a100", "v100"])
    assert {(shape.node_type, shape.workers_per_node): shape.cores_per_node for shape in found} == {
        **{("a100", 1): 16, ("a100", 2): 32, ("a100", 4): 64},
        **{("v100", 1): 10, ("v100", 2): 20, ("v100", 4): 40},
    }


@pytest.mark.parametrize(
    ("limit_s", "allowance_s", "minutes"),
    [
        *[(0.5, 0, 2), (60, 0, 2), (120, 0, 2), (121, 0, 3), (600, 120, 15), (600, 300, 15), (600, 301, 20)],
        *[(86400, 0, 1440), (86401, 0, 2880)],
    ],
)
def test_minutes_are_of_few_kinds(limit_s: float, allowance_s: float, minutes: int) -> None:
    slurm = {"start_allowance_s": allowance_s}
    assert the_shape("onehost", slurm=slurm, workers=1, run_limit_s=limit_s).minutes == minutes


@pytest.mark.parametrize(
    ("took_s", "minutes"),
    [
        (1.0, 5),  # 61 s and the site's 120 s
        (59.0, 5),
        (100.0, 10),  # 200 s and 120 s
        (500.0, 15),  # no more than run_limit_s=600 and 120 s
        (9999.0, 15),
    ],
)
def test_minutes_follow_from_what_the_cell_took_before(took_s: float, minutes: int, tmp_path: Path) -> None:
    cluster = cluster_file("onehost")
    runs = a_plan(cluster, workers=1).runs
    folder, other = a_folder(tmp_path), a_folder(tmp_path).path.parent / "other"
    other.mkdir()
    leave_record(type(folder)(other), runs[0], "ok", wall_time_s=took_s)
    [batch] = batches(runs, cluster, earlier_times_s(folder, runs))
    assert batch.shape.minutes == minutes


def test_only_good_runs_of_the_same_cell_are_estimates_and_the_longest_counts(tmp_path: Path) -> None:
    cluster, folder = cluster_file("onehost"), a_folder(tmp_path)
    runs = a_plan(cluster, workers=[1, 2], repeats=3).runs
    first, second, third = [run for run in runs if run.config.workers == 1]
    leave_record(folder, first, "ok", wall_time_s=5.0)
    leave_record(folder, second, "ok", wall_time_s=7.0)
    leave_record(folder, third, "timeout", wall_time_s=600.0)
    assert earlier_times_s(folder, runs) == {first.config.cell_id: 7.0}


def test_cells_that_need_too_many_nodes_are_dropped_with_the_reason() -> None:
    plan = a_plan(cluster_file("onehost"), workers=[4, 16, 32], threads_per_worker=1)
    assert [run.config.nodes for run in plan.runs] == [1, 4]
    [dropped] = plan.dropped
    assert dropped.settings["workers"] == 32
    assert dropped.reason == "nodes=8: more than the 4 of cluster=onehost, node_type=cpu"


def test_more_workers_on_a_node_than_it_has_gpus() -> None:
    with pytest.raises(ConfigError, match=r"workers=8: more than the 4 GPUs of cluster=greene, nodes=1"):
        a_plan(cluster_file("greene"), workers=8, nodes=1)


GROUP = NodeGroup(partition="gpu", nodes=2, cores=64, memory_mb=262144, gpus={"a100": 4}, time_limit_min=60)
SMALL = NodeGroup(partition="tiny", nodes=9, cores=2, memory_mb=1000, gpus={}, time_limit_min=9999)
GPU_NODE = "its nodes have 64 cores, 262144 MB, GPUs: 4 a100"


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        ({"workers": 8}, None),
        ({"workers": 12}, "64 cores, 4 GPUs, 15 min) is larger than partition gpu: it has 2 such nodes"),
        ({"workers": 1, "threads_per_worker": 65}, GPU_NODE),
        ({"workers": 4, "memory_gb_per_worker": 65}, GPU_NODE),
        ({"workers": 1, "gpu_type": "h100"}, f"{GPU_NODE}; none of type h100"),
        ({"workers": 1, "run_limit_s": 7200}, "its time limit is 60 minutes; lower run_limit_s"),
        ({"workers": 1, "partition": "nope"}, "cluster.slurm.partition=nope: no such partition; Slurm has gpu, tiny"),
        (
            {"workers": 1, "partition": "tiny"},
            "partition tiny: its nodes have 2 cores, 1000 MB, GPUs: none; none of type a100",
        ),
        ({"workers": 8, "partition": "tiny,gpu"}, None),  # Slurm takes whichever fits
        ({"workers": 8, "partition": None}, None),
    ],
)
def test_what_does_not_fit_is_said_before_submission(axes: dict[str, Any], problem: str | None) -> None:
    cluster = cluster_file("template")
    cluster["node_types"]["gpu"]["slurm"] |= {key: axes.pop(key) for key in ("partition", "gpu_type") if key in axes}
    [batch] = batches(a_plan(cluster, **axes).runs, cluster)
    if problem is None:
        check_fits(batch, [GROUP, SMALL])
        return
    with pytest.raises(UserError) as caught:
        check_fits(batch, [GROUP, SMALL])
    assert str(caught.value).endswith(problem)
    assert "\n" not in str(caught.value)


def test_nodes_of_one_partition_that_differ(slurm: FakeSlurm) -> None:
    columns = ["%P", "%a", "%D", "%c", "%m", "%G", "%l"]
    lines = [
        "gpu* up 3 48 500000 gpu:a100:4(S:0-1) 2-00:00:00",
        "gpu* up 1 96+ 900000+ gpu:h100:8,gpu:2 2-00:00:00",
        "debug up 1 4 900 (null) 30:00",
        "long down 0 0 0 (null) infinite",
        "short up 2 4 900 (null) 01:30:00",
    ]
    slurm.set(groups=[dict(zip(columns, line.split(), strict=True)) for line in lines])
    found = node_groups()
    assert [group.partition for group in found] == ["gpu", "gpu", "debug", "long", "short"]
    assert [group.gpus for group in found] == [{"a100": 4}, {"h100": 8, "": 2}] + [{}] * 3
    assert [group.time_limit_min for group in found] == [2880, 2880, 30, float("inf"), 90]
    assert [(group.nodes, group.cores, group.memory_mb) for group in found][1] == (1, 96, 900000)


@pytest.mark.parametrize(
    ("job", "tasks"),
    [
        ("7", ["7"]),
        ("7_3", ["7_3"]),
        ("7_[1-3,5%2]", ["7_1", "7_2", "7_3", "7_5"]),
        ("7_[0]", ["7_0"]),
        ("7_[0-6:3]", ["7_0", "7_3", "7_6"]),
        ("27944592_[0-20%3]", [f"27944592_{index}" for index in range(21)]),
        ("7_[bad]", ["7_[bad]"]),
    ],
)
def test_tasks_of(job: str, tasks: list[str]) -> None:
    assert list(tasks_of(job)) == tasks


@given(
    indices=st.sets(st.integers(0, 300), min_size=1), limit=st.sampled_from(["", "%1", "%20"]), cut=st.integers(1, 9)
)
def test_tasks_of_reads_any_way_to_write_a_set(indices: set[int], limit: str, cut: int) -> None:
    """Runs of consecutive indices, cut anywhere, as `a-b`; the rest one by one."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and parts[-1][-1] == index - 1 and len(parts[-1]) < cut:
            parts[-1].append(index)
        else:
            parts.append([index])
    text = ",".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)
    assert list(tasks_of(f"12_[{text}{limit}]")) == [f"12_{index}" for index in sorted(indices)]


ONEHOST = cluster_file("onehost")
MANY = a_plan(ONEHOST, workers=[1, 2, 4], run_limit_s=[60, 600], node_type=["cpu", "gpu"], repeats=5).runs


@given(chosen=st.lists(st.sampled_from(MANY), unique_by=lambda run: run.config.run_id), size=st.integers(1, 7))
def test_every_run_is_in_exactly_one_array_of_its_shape(chosen: list[PlannedRun], size: int) -> None:
    arrays = sbatch.arrays(Path("/results/onehost/test"), batches(chosen, ONEHOST), {}, size, {})
    placed = [(array, each.run) for array in arrays for each in array.attempts]
    assert sorted(run.config.run_id for _, run in placed) == sorted(run.config.run_id for run in chosen)
    assert all(1 <= len(array.attempts) <= size for array in arrays)
    for array in arrays:
        shape, order = array.batch.shape, [chosen.index(each.run) for each in array.attempts]
        assert order == sorted(order), "the sweep's order is kept"
        for run in (each.run.config for each in array.attempts):
            assert (run.nodes, run.workers_per_node, run.node_type) == (
                *(shape.nodes, shape.workers_per_node),
                shape.node_type,
            )
            assert shape.minutes * 60 >= run.run_limit_s + 120
    kinds = {(array.batch.shape, array.batch.site.partition) for array in arrays}
    assert len(kinds) == len({shape for shape, _ in kinds})
    assert {partition for shape, partition in kinds if shape.node_type == "gpu"} <= {"gpu"}
