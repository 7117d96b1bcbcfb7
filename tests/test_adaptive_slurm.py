"""Repeats in rounds with Slurm: waited for, or submitted when the same command is given again; and the budget."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from analysis.cells.intervals import widths
from benchmarks.core.adaptive import Rounds
from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.repeat_target import RepeatTarget
from benchmarks.core.sweep import PlannedRun
from slurm import status
from slurm.cancel import cancel
from slurm.launch import Order, launch, planned
from slurm.state import look
from tests import synthetic
from tests.fake_slurm import FakeSlurm
from tests.slurm_cases import age_ledger, an_order, folder, jobs_of, run_jobs
from tests.test_slurm_cli import Shell, shell

__all__ = ["folder", "shell"]  # fixtures

NOISY = 64


def run(folder: SweepFolder, planned: PlannedRun) -> None:
    """Leave the record of a run: those of the larger batch vary by 5 %, the others are all alike."""
    config = planned.config
    time_s = 0.1 * (1 + 0.05 * (config.global_batch == NOISY) * (1 if config.repeat % 2 else -1))
    of = {"run_id": config.run_id, "cell_id": config.cell_id, "nodes": config.nodes}
    synthetic.write(folder.path, [synthetic.record(config.as_dict(), [time_s] * 4, **of)])


def adaptive(folder: SweepFolder, max_repeats: int = 12, **changes: object) -> Order:
    """Two cells of one worker."""
    rounds = Rounds(
        target=RepeatTarget(half_width=0.02, max_repeats=max_repeats),
        folder=folder,
        max_attempts=3,
        widths=widths,
        say=lambda text: None,
    )
    order = an_order(workers=1, batch_per_worker=[16, NOISY], repeats=2)
    return msgspec.structs.replace(order, extended=rounds.extended, **changes)


def array_sizes(slurm: FakeSlurm) -> list[int]:
    jobs = [task["job"] for task in slurm.tasks()]
    return [jobs.count(job) for job in dict.fromkeys(jobs)]


def test_whoever_waits_gets_all_rounds(slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = SimpleNamespace(sleep=lambda _: run_jobs(slurm, lambda one: run(folder, one)))
    monkeypatch.setattr(status, "time", sleep)
    assert launch(adaptive(folder, wait=True), folder) == 0
    assert array_sizes(slurm) == [4, 12, 4]
    assert look(folder).counts == {"ok": 20}
    assert all(len(jobs) == 1 for jobs in jobs_of(folder).values())


def test_the_same_command_again_submits_the_next_round_of_the_cells_whose_last_one_has_ended(
    slurm: FakeSlurm, folder: SweepFolder
) -> None:
    order = adaptive(folder)
    for _ in range(2):
        launch(order, folder)
        assert array_sizes(slurm) == [4], "while they are under way, nothing is added"
    run_jobs(slurm, lambda one: run(folder, one), but="100_3")
    launch(order, folder)
    assert array_sizes(slurm) == [4, 6], "the other cell is not yet to be judged"
    for sizes in ([4, 6, 6], None, None):
        run_jobs(slurm, lambda one: run(folder, one))
        launch(order, folder)
        assert sizes is None or array_sizes(slurm) == sizes
    assert sum(array_sizes(slurm)) == 20
    assert look(folder).counts == {"ok": 20}
    launch(order, folder)
    assert sum(array_sizes(slurm)) == 20


def test_a_round_that_was_cut_off_is_found_again(
    slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def sleep(_: float) -> None:
        looks.append(1)
        if len(looks) == 2:
            raise KeyboardInterrupt
        run_jobs(slurm, lambda one: run(folder, one))

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=sleep))
    assert launch(adaptive(folder, wait=True), folder) == 130
    assert array_sizes(slurm) == [4, 12]
    assert launch(adaptive(folder, wait=True), folder) == 0
    assert array_sizes(slurm) == [4, 12, 4]
    assert all(len(jobs) == 1 for jobs in jobs_of(folder).values())


def test_cancelling_ends_the_rounds(slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled(_: float) -> None:
        cancel(folder)
        age_ledger(folder, 100.0)

    monkeypatch.setattr(status, "time", SimpleNamespace(sleep=cancelled))
    assert launch(adaptive(folder, wait=True), folder) == 1
    assert array_sizes(slurm) == [4]


def test_the_budget_holds_for_all_rounds_of_a_command(
    slurm: FakeSlurm, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = SimpleNamespace(sleep=lambda _: run_jobs(slurm, lambda one: run(folder, one)))
    monkeypatch.setattr(status, "time", sleep)
    hours = planned(adaptive(folder), folder).worker_hours
    order = adaptive(folder, wait=True, budget_worker_hours=hours + 0.01)
    line = (
        rf"^budget_worker_hours={hours + 0.01:g}: the 12 runs may take \d.\d\d besides the {hours:.2f} submitted before"
    )
    with pytest.raises(UserError, match=line):
        launch(order, folder)
    assert array_sizes(slurm) == [4]
    assert look(folder).counts == {"ok": 4}, "what was refused was never planned"


def test_the_command_line_submits_the_next_round(slurm: FakeSlurm, shell: Shell) -> None:
    words = (
        *("cluster=onehost", "workload=mlp", "strategy=single", "workers=1", "batch=64"),
        *("sweep.scaling=[weak]", "sweep.repeats=8"),
    )
    code, out, err = shell.sweep(*words, "target_ci=2%", "max_repeats=10")
    assert (code, err) == (0, "")
    assert out.startswith("submitted 8 runs as 1 job array")
    run_jobs(slurm, lambda one: run(shell.folder, one))
    code, out, err = shell.sweep(*words, "target_ci=2%", "max_repeats=10", "plan=true")
    assert (code, err) == (0, "")
    assert "1 cells, 10 runs (2 to be made)" in out
    assert "up to 10; at most 0 further runs, 0.00 worker-hours" in out
    assert "#SBATCH --array=0-1" in out
    code, out, err = shell.sweep(*words, "target_ci=2%", "max_repeats=10")
    assert (code, err) == (0, "")
    assert out.startswith("target_ci=2 %, 1 cell: 1 to get more repeats\n  mlp-")
    assert ": +-5 % after 8, 10 now\nsubmitted 2 runs as 1 job array" in out
