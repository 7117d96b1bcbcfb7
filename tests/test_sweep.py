"""From axes to runs: known grids, and properties that hold of every grid."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.core.errors import ConfigError
from benchmarks.core.sweep import Plan, expand, override, plan, read_sweep
from benchmarks.core.telling import telling_keys
from tests.conftest import base_mapping

BASE = base_mapping(workload="mlp", batch_per_worker=16, threads_per_worker=None)


def make_plan(**definition: Any) -> Plan:
    return plan(read_sweep({"name": "test", **definition}), BASE)


def points(the_plan: Plan) -> set[tuple[int, int, int]]:
    return {(r.config.workers, r.config.batch_per_worker, r.config.global_batch) for r in the_plan.runs}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("1..8x2", [1, 2, 4, 8]),
        ("1..9x2", [1, 2, 4, 8]),
        ("3..24x2", [3, 6, 12, 24]),
        ("1..7+2", [1, 3, 5, 7]),
        ("1..4", [1, 2, 3, 4]),
        ("5..5", [5]),
        ([1, "2..8x2"], [1, 2, 4, 8]),
        (3, [3]),
        ("ddp", ["ddp"]),
        (None, [None]),
    ],
)
def test_series(values: object, expected: list[object]) -> None:
    assert expand(values) == expected


@pytest.mark.parametrize("series", ["8..1x2", "1..8x1", "0..8x2", "1..8x0", "1..8+0"])
def test_series_that_do_not_grow_are_refused(series: str) -> None:
    with pytest.raises(ConfigError, match=f"series {series[:4]}.*must grow"):
        expand(series)


@given(st.integers(1, 50), st.integers(1, 1000), st.integers(2, 9))
def test_geometric_series_start_at_the_first_and_end_at_or_below_the_last(first: int, span: int, factor: int) -> None:
    last = first + span
    values = [int(str(value)) for value in expand(f"{first}..{last}x{factor}")]
    assert values[0] == first
    assert all(b == a * factor for a, b in itertools.pairwise(values))
    assert values[-1] <= last < values[-1] * factor


def test_strong_keeps_the_global_batch_and_weak_the_batch_per_worker() -> None:
    axes = {"workers": "1..4x2", "batch": 64}
    assert points(make_plan(scaling=["strong"], axes=axes)) == {(1, 64, 64), (2, 32, 64), (4, 16, 64)}
    assert points(make_plan(scaling=["weak"], axes=axes)) == {(1, 64, 64), (2, 64, 128), (4, 64, 256)}


def test_a_cell_that_both_kinds_ask_for_is_run_once() -> None:
    the_plan = make_plan(scaling=["strong", "weak"], axes={"workers": [1, 2], "batch": [64, 128]})
    assert points(the_plan) == {(1, 64, 64), (1, 128, 128), (2, 32, 64), (2, 64, 128), (2, 128, 256)}
    assert len(the_plan.runs) == 5


def test_zipped_axes_advance_together() -> None:
    the_plan = make_plan(
        zip=[{"workers": [1, 2, 4], "batch_per_worker": [64, 32, 8]}], axes={"optimizer.lr": [0.1, 0.2]}
    )
    assert points(the_plan) == {(1, 64, 64), (2, 32, 64), (4, 8, 32)}
    assert len(the_plan.runs) == 6
    with pytest.raises(ConfigError, match="need the same number of values"):
        make_plan(zip=[{"workers": [1, 2], "seed": [1, 2, 3]}])


def test_dropped_points_keep_their_reasons() -> None:
    the_plan = make_plan(
        axes={"strategy": ["single", "ddp"], "workers": [1, 2, 3], "global_batch": 64},
        where=["workers < 3 or seed > 5"],
    )
    assert points(the_plan) == {(1, 64, 64), (2, 32, 64)}
    reasons = {(d.settings["strategy"], d.settings["workers"]): d.reason for d in the_plan.dropped}
    assert reasons == {
        ("single", 2): "strategy=single needs workers == 1: it is one process without communication",
        ("single", 3): "global_batch=64: cannot be shared equally by workers=3",
        ("ddp", 3): "global_batch=64: cannot be shared equally by workers=3",
    }
    excluded = make_plan(axes={"workers": [1, 2]}, where=["workers == 1"]).dropped
    assert [drop.reason for drop in excluded] == ["excluded by where: workers == 1"]


def test_a_point_is_dropped_once_whatever_the_options_that_it_does_not_have() -> None:
    hooks = {"strategy": ["single", "ddp"], "strategy.hook": ["none", "fp16"], "workers": 2, "batch_per_worker": 8}
    [dropped] = make_plan(axes=hooks).dropped
    assert dropped.settings == {"strategy": "single", "workers": 2, "batch_per_worker": 8}


def test_nothing_left_to_run_is_an_error_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="nothing to run, all 1 cells are dropped: excluded by where: workers > 8"):
        make_plan(axes={"workers": 1}, where=["workers > 8"])


def test_an_option_of_one_strategy_is_no_axis_of_another() -> None:
    the_plan = make_plan(axes={"strategy": ["single", "ddp"], "strategy.bucket_mb": [5.0, 25.0]})
    assert sorted((r.config.strategy.name, r.config.strategy.options.get("bucket_mb")) for r in the_plan.runs) == [
        ("ddp", 5.0),
        ("ddp", 25.0),
        ("single", None),
    ]


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        ({"strategy": ["ddp", "dpp"]}, r"strategy=dpp: not known \(did you mean ddp\?\)"),
        ({"wrokers": [1]}, r"axis=wrokers: not known \(did you mean workers\?\)"),
        ({"strategy.bucket": [1.0]}, r"axis=strategy.bucket: not known \(did you mean strategy.bucket_mb\?\)"),
        ({"workers": []}, "an axis without values"),
        ({"workers": [0]}, "workers=0: must be a whole number from 1"),
        ({"batch": 64}, "axis batch: needs sweep.scaling"),
    ],
)
def test_axes_that_cannot_be(axes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        make_plan(axes=axes)


def test_repeats_differ_in_seed_and_number_only() -> None:
    runs = make_plan(repeats=3).runs
    assert [(run.config.repeat, run.config.seed) for run in runs] == [(0, 1), (1, 2), (2, 3)]
    assert len({run.config.cell_id for run in runs}) == 1
    assert len({run.config.run_id for run in runs}) == 3


def test_order_is_shuffled_by_the_stated_seed_and_by_nothing_else() -> None:
    def order(seed: int | None) -> list[str]:
        axes = {"workers": [1, 2], "optimizer.lr": [0.1, 0.2, 0.3]}
        return [run.config.run_id for run in make_plan(axes=axes, repeats=2, shuffle_seed=seed).runs]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(None)
    assert sorted(order(1)) == sorted(order(None))


def test_workers_are_the_same_resource_at_every_count() -> None:
    base = base_mapping(workload="mlp", batch_per_worker=16, threads_per_worker=None)
    base["cluster"]["cores_per_node"] = 16
    the_plan = plan(read_sweep({"name": "test", "axes": {"workers": "1..4x2"}}), base)
    assert {run.config.threads_per_worker for run in the_plan.runs} == {4}


def test_overrides_replace_add_and_unzip() -> None:
    sweep = read_sweep(
        {
            "name": "test",
            "scaling": ["weak"],
            "axes": {"workers": [1, 2], "batch": [64]},
            "zip": [{"seed": [1, 2], "optimizer.lr": [0.1, 0.2]}],
            "fixed": {"steps": 9},
        }
    )
    changed = override(sweep, {"workers": [4], "strategy": ["ddp"], "optimizer.lr": 0.3, "steps": 3})
    assert changed.axes == {"workers": [4], "batch": [64], "strategy": ["ddp"], "optimizer.lr": 0.3, "steps": 3}
    assert (changed.zip, changed.fixed) == ([{"seed": [1, 2]}], {})
    assert override(sweep, {"global_batch": [128]}).axes == {"workers": [1, 2], "global_batch": [128]}


def test_unknown_keys_of_a_sweep() -> None:
    with pytest.raises(ConfigError, match=r"key of sweep=axis: not known \(did you mean axes\?\)"):
        read_sweep({"name": "test", "axis": {}})
    with pytest.raises(ConfigError, match=r"sweep.repeats=0: must be a whole number >= 1"):
        read_sweep({"name": "test", "repeats": 0})
    with pytest.raises(ConfigError, match=r"sweep.scaling=week: not known \(did you mean weak\?\)"):
        read_sweep({"name": "test", "scaling": ["week"]})


def test_varying_keys_are_the_axes() -> None:
    runs = make_plan(axes={"workers": [1, 2], "optimizer.lr": [0.1, 0.2]}, repeats=2).runs
    assert telling_keys([run.config.flat() for run in runs]) == ["optimizer.lr", "workers", "global_batch"]


def test_options_that_follow_from_a_name_tell_nothing() -> None:
    axes = {"workload": ["mlp", "lenet"], "strategy": ["single", "ddp"], "workers": 1}
    flats = [run.config.flat() for run in make_plan(axes=axes).runs]
    assert telling_keys(flats) == ["workload", "strategy"]
    flats = [run.config.flat() for run in make_plan(axes=axes | {"workload.hidden_size": [64, 128]}).runs]
    assert telling_keys(flats) == ["workload", "workload.hidden_size", "strategy"]


AXES = st.fixed_dictionaries(
    {},
    optional={
        "workers": st.lists(st.integers(1, 9), min_size=1, max_size=4),
        "optimizer.lr": st.lists(st.sampled_from([0.1, 0.2, 0.5]), min_size=1, max_size=3),
        "strategy": st.lists(st.sampled_from(["single", "ddp"]), min_size=1, max_size=2),
        "batch": st.lists(st.integers(1, 200), min_size=1, max_size=3),
    },
)


@settings(max_examples=60, deadline=None)
@given(axes=AXES, kinds=st.sets(st.sampled_from(["strong", "weak"]), min_size=1), repeats=st.integers(1, 3))
def test_every_point_is_run_or_dropped_with_a_reason(axes: dict[str, Any], kinds: set[str], repeats: int) -> None:
    try:
        the_plan = make_plan(axes=axes, scaling=sorted(kinds), repeats=repeats)
    except ConfigError:
        with pytest.raises(ConfigError, match="nothing to run"):
            make_plan(axes=axes, scaling=sorted(kinds), repeats=repeats)
        return
    ids = [run.config.run_id for run in the_plan.runs]
    assert len(set(ids)) == len(ids)
    cells = {run.config.cell_id for run in the_plan.runs}
    assert len(ids) == repeats * len(cells)
    assert all(drop.reason for drop in the_plan.dropped)
    for run in the_plan.runs:
        assert run.config.global_batch == run.config.batch_per_worker * run.config.workers
    distinct = len(list(itertools.product(*({repr(v) for v in values} for values in axes.values()))))
    kinds_of_batch = len(kinds) if "batch" in axes else 1
    assert len(cells) + len(the_plan.dropped) <= distinct * kinds_of_batch
    assert len(cells) + len(the_plan.dropped) >= distinct
