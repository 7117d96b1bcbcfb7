"""Repeats in rounds on one machine: which cells get how many, what a kill leaves, what the tables say of the rest."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from analysis.cells.intervals import widths
from analysis.runs.load import load_cells
from analysis.series import build_report
from analysis.tables.cells import cells_table
from benchmarks.core.adaptive import Once, Rounds, check_sweep, repeat_of
from benchmarks.core.errors import ConfigError
from benchmarks.core.folder import MANIFEST_NAME, SweepFolder
from benchmarks.core.record import RECORD_NAME, Status
from benchmarks.core.repeat_target import RepeatTarget, Width
from benchmarks.core.sweep import Plan, PlannedRun, plan, read_sweep
from hydra_plugins.scalebench.sweeper import ScalebenchSweeper
from tests import synthetic
from tests.conftest import base_mapping
from tests.slurm_cases import leave_record

TARGET = RepeatTarget(half_width=0.02, max_repeats=20)
QUIET, LATER, NOISY, FAILING, FLAKY = 16, 32, 64, 128, 256
"""Batches of cells whose repeats are all alike; from the ninth on; never; fail; pass at the second attempt."""


def a_plan(*batches: int, repeats: int = 2, **definition: Any) -> Plan:
    sweep = {"name": "test", "axes": {"batch_per_worker": list(batches)}, "repeats": repeats, "shuffle_seed": 1}
    return plan(read_sweep(sweep | definition), base_mapping(workload="mlp"))


class Machine(ScalebenchSweeper):
    """The sweep's own loop; its runs are not made, their records are left."""

    def __init__(self, folder: SweepFolder, target: RepeatTarget = TARGET, calls: int = 10**6) -> None:
        self.folder = folder
        self.composed = OmegaConf.create({"max_attempts": 3})
        self.said: list[str] = []
        self.rounds = Rounds(
            target=target, folder=folder, max_attempts=3, widths=widths, say=lambda text: self.said.append(text)
        )
        self.calls = calls
        """Runs after which the command is killed."""
        self.made: list[list[tuple[int, int]]] = []
        """Batch and repeat of the runs of each round, in their order."""

    def give(self, the_plan: Plan) -> list[str]:
        """The command; returns the runs' ends."""
        self.made = []
        return self._make(self.folder, the_plan, self.rounds, [])

    def _run(self, folder: SweepFolder, runs: list[PlannedRun], _passed_on: list[str]) -> list[str]:
        self.made.append([])
        return [self.make(run) for run in runs]

    def make(self, run: PlannedRun) -> Status:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        batch, repeat = run.config.global_batch, run.config.repeat
        self.made[-1].append((batch, repeat))
        path = self.folder.run_folder(run.config.run_id) / RECORD_NAME
        if batch == FAILING:
            leave_record(self.folder, run, "oom")
            return "oom"
        if batch == FLAKY and repeat == 1 and not path.exists():
            leave_record(self.folder, run, "error")
            return "error"
        if path.exists():
            path.rename(path.with_name("record.attempt1.json"))
        varies = batch == NOISY or (batch == LATER and repeat < 8)
        time_s = 0.1 * (1 + (0.05 if repeat % 2 else -0.05) * varies)
        record = synthetic.record(
            run.config.as_dict(), [time_s] * 4, run_id=run.config.run_id, cell_id=run.config.cell_id
        )
        synthetic.write(self.folder.path, [record])
        return "ok"

    @property
    def repeats(self) -> Counter[int]:
        """Records by batch."""
        return Counter(run.global_batch for run in load_cells(self.folder.path).cells for _ in run.runs)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(SweepFolder.create(tmp_path, "local", "test"))


def rounds_made(machine: Machine) -> list[set[tuple[int, int]]]:
    assert all(len(set(runs)) == len(runs) for runs in machine.made)
    return [set(runs) for runs in machine.made]


def runs(batches: tuple[int, ...], *repeats: int) -> set[tuple[int, int]]:
    return {(batch, repeat) for batch in batches for repeat in range(*repeats)}


def test_each_cell_gets_the_repeats_that_it_needs(machine: Machine) -> None:
    ended = machine.give(a_plan(QUIET, LATER, NOISY, FAILING))
    assert rounds_made(machine) == [
        runs((QUIET, LATER, NOISY, FAILING), 2),
        runs((QUIET, LATER, NOISY), 2, 8),
        runs((LATER, NOISY), 8, 12),
        runs((LATER, NOISY), 12, 18),
        runs((NOISY,), 18, 20),
    ]
    assert Counter(ended) == {"ok": 8 + 18 + 20, "oom": 2}
    lines = [text.splitlines() for text in machine.said]
    assert [line[0] for line in lines] == [
        "target_ci=2 %, 4 cells: 3 to get more repeats, 1 failed",
        "target_ci=2 %, 4 cells: 1 there, 2 to get more repeats, 1 failed",
        "target_ci=2 %, 4 cells: 1 there, 2 to get more repeats, 1 failed",
        "target_ci=2 %, 4 cells: 2 there, 1 to get more repeats, 1 failed",
        "target_ci=2 %, 4 cells: 2 there, 1 not there with all repeats that they may have, 1 failed",
    ]
    assert [len(each) for each in lines] == [4, 3, 3, 2, 2]
    assert all(line.endswith(": 2 repeats are too few to judge, 8 now") for line in lines[0][1:])
    assert lines[3][1].startswith("  mlp-ddp-w1-b64-fp32-")
    assert lines[3][1].endswith(": +-5 % after 18, 20 now")
    assert lines[4][1].endswith(": interval still +-5 % after 20 repeats (target 2 %)")


def test_the_same_command_again_makes_nothing_more(machine: Machine) -> None:
    the_plan = a_plan(QUIET, NOISY)
    machine.give(the_plan)
    manifest = (machine.folder.path / MANIFEST_NAME).read_bytes()
    assert machine.give(the_plan) == []
    assert machine.made == []
    assert (machine.folder.path / MANIFEST_NAME).read_bytes() == manifest
    machine.rounds = Once()  # type: ignore[assignment]
    assert machine.give(the_plan) == [], "nor without the target"


@pytest.mark.parametrize("calls", [0, 3, 9, 15, 16, 21, 40])
def test_a_command_that_was_killed_is_gone_on_with(machine: Machine, tmp_path: Path, calls: int) -> None:
    """Killed anywhere, the same command leaves what it would have left: cells are not looked at within a round."""
    the_plan = a_plan(QUIET, LATER)
    whole = Machine(SweepFolder.create(tmp_path, "whole", "test"))
    whole.give(the_plan)
    machine.calls = calls
    if calls < whole.repeats.total():
        with pytest.raises(KeyboardInterrupt):
            machine.give(the_plan)
    before = [run for made in machine.made for run in made]
    machine.calls = 10**6
    machine.give(the_plan)
    after = [run for made in machine.made for run in made]
    assert sorted(before + after) == sorted(run for made in whole.made for run in made)
    assert machine.repeats == whole.repeats == {QUIET: 8, LATER: 18}


def test_records_count_where_the_manifest_is_gone(machine: Machine) -> None:
    the_plan = a_plan(LATER)
    machine.calls = 12
    with pytest.raises(KeyboardInterrupt):
        machine.give(the_plan)
    (machine.folder.path / MANIFEST_NAME).unlink()
    machine.calls = 10**6
    machine.give(the_plan)
    assert rounds_made(machine) == [runs((LATER,), 12, 18)]


def test_repeats_that_other_commands_have_planned_come_first(machine: Machine) -> None:
    """Ten were asked for before: they are made, and judged together."""
    machine.folder.write_manifest(a_plan(QUIET, LATER, repeats=10), ["batch_per_worker"])
    machine.give(a_plan(QUIET, LATER))
    assert rounds_made(machine) == [runs((QUIET, LATER), 10), runs((LATER,), 10, 12), runs((LATER,), 12, 18)]


def test_a_failure_that_may_pass_is_tried_again_by_the_next_command(machine: Machine) -> None:
    the_plan = a_plan(QUIET, FLAKY)
    assert Counter(machine.give(the_plan)) == {"ok": 9, "error": 1}
    assert rounds_made(machine) == [runs((QUIET, FLAKY), 2), runs((QUIET,), 2, 8)]
    machine.give(the_plan)
    assert rounds_made(machine) == [{(FLAKY, 1)}, runs((FLAKY,), 2, 8)]


def test_the_cap_is_moved_and_the_sweep_goes_on(machine: Machine) -> None:
    the_plan = a_plan(NOISY, repeats=3)
    for cap, made in ((8, [range(3), range(3, 8)]), (10, [range(8, 10)]), (9, [])):
        machine = Machine(machine.folder, RepeatTarget(half_width=0.02, max_repeats=cap))
        machine.give(the_plan)
        assert rounds_made(machine) == [{(NOISY, repeat) for repeat in each} for each in made]


def test_rounds_have_orders_of_their_own_by_the_stated_seed(machine: Machine) -> None:
    """The same for a cell whether or not others need more, too."""

    def order(seed: int | None, *batches: int) -> list[tuple[int, int]]:
        the_plan = a_plan(QUIET, LATER, NOISY, shuffle_seed=seed)
        known = {
            run.config.cell_id: Width(repeats=18, repeats_ok=0, half_width=1.0)
            for run in the_plan.runs
            if run.config.global_batch in batches
        }
        machine.rounds = dataclasses.replace(machine.rounds, widths=lambda _: known)
        return [(run.config.global_batch, run.config.repeat) for run in machine.rounds.extended(the_plan).runs]

    every = order(1, QUIET, LATER, NOISY)
    assert [{repeat for _, repeat in every[start:end]} for start, end in ((0, 6), (6, 24), (24, 36), (36, 54))] == [
        *({0, 1}, set(range(2, 8)), set(range(8, 12)), set(range(12, 18)))
    ], "round by round"
    assert every == order(1, QUIET, LATER, NOISY)
    assert every != order(2, QUIET, LATER, NOISY)
    in_turn = order(None, QUIET, LATER, NOISY)
    assert in_turn[6:] == [(batch, repeat) for repeat in range(2, 18) for batch in (QUIET, LATER, NOISY)]
    assert sorted(every) == sorted(in_turn)
    assert order(1, NOISY) == [run for run in every if run[0] == NOISY or run[1] < 2]


def test_an_added_repeat_is_the_one_that_a_longer_plan_has() -> None:
    longer = a_plan(QUIET, repeats=5, shuffle_seed=None, fixed={"seed": 7}).runs
    first = a_plan(QUIET, repeats=1, fixed={"seed": 7}).runs[0]
    assert first.config.run_id == longer[0].config.run_id
    for repeat, run in enumerate(longer):
        added = repeat_of(first, repeat)
        assert (added.config, added.settings) == (run.config, run.settings)
        assert (added.config.run_id, added.config.cell_id) == (run.config.run_id, run.config.cell_id)


@pytest.mark.parametrize("seed", range(4))
def test_profiled_repeats_are_one_a_cell(machine: Machine, seed: int) -> None:
    """Also where the order puts it first."""
    sweep = {"name": "test", "axes": {"batch_per_worker": [QUIET]}, "repeats": 1, "shuffle_seed": seed}
    the_plan = plan(read_sweep(sweep), base_mapping(workload="mlp", profile=True))
    known = {the_plan.runs[0].config.cell_id: Width(repeats=8, repeats_ok=0, half_width=1.0)}
    machine.rounds = dataclasses.replace(machine.rounds, widths=lambda _: known)
    whole = machine.rounds.extended(the_plan)
    assert sorted((run.config.profile, run.config.repeat) for run in whole.runs) == [
        *((False, repeat) for repeat in range(8)),
        (True, 0),
    ]


def test_the_tables_know_what_was_planned_and_what_is_not_there(machine: Machine) -> None:
    the_plan = a_plan(QUIET, NOISY)
    machine.calls = 27
    with pytest.raises(KeyboardInterrupt):
        machine.give(the_plan)
    half_way = build_report(load_cells(machine.folder.path))
    assert [point.notes for point in half_way.cells] == [[], []], "not before the cap"
    machine.calls = 10**6
    machine.give(the_plan)
    report = build_report(load_cells(machine.folder.path))
    words = "interval still +-5 % after 20 repeats (target 2 %)"
    assert [(p.repeats_ok, p.repeats_missing, p.notes) for p in report.cells] == [(8, 0, []), (20, 0, [words])]
    table = cells_table(report)
    assert table is not None
    assert f"† {words}" in table.notes
    [point] = [point for point in report.cells if point.notes]
    assert point.step_time_s is not None
    shown = (point.step_time_s.high - point.step_time_s.low) / 2 / point.step_time_s.value
    assert widths(machine.folder.path)[point.cell_id].half_width == pytest.approx(shown), "the interval of the tables"
    assert shown == pytest.approx(0.05, rel=0.01)


def test_the_outlook_is_what_may_come_at_most(machine: Machine) -> None:
    the_plan = a_plan(QUIET, NOISY, FAILING, fixed={"run_limit_s": 1200})
    assert machine.rounds.outlook(the_plan) == (
        "target_ci=2 %: cells get more repeats until then, up to 20; at most 54 further runs, 18.00 worker-hours\n"
    )
    machine.calls = 18
    with pytest.raises(KeyboardInterrupt):
        machine.give(the_plan)
    assert "at most 8 further runs, 2.67 worker-hours\n" in machine.rounds.outlook(the_plan), (
        "twelve are planned of the noisy cell"
    )
    assert not Once().outlook(the_plan)


def test_sweeps_that_cannot_have_a_target() -> None:
    with pytest.raises(ConfigError, match=r"^max_repeats=20: must be at least sweep.repeats=21$"):
        check_sweep(TARGET, read_sweep({"name": "test", "repeats": 21}))
    with pytest.raises(ConfigError, match=r"^target_ci=2 %: sweep=test is a tuning sweep"):
        check_sweep(TARGET, read_sweep({"name": "test", "tune": {"trials": 3}}))
