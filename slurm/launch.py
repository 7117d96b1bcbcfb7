"""A sweep's way into Slurm: what is missing is submitted, and if asked for, watched until it has ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Set
from typing import Any

import msgspec
from rich.console import Console

from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import OWN_FAULT, WELL
from benchmarks.core.sweep import Plan, shown_keys
from slurm import sbatch
from slurm.reconcile import reconciled
from slurm.state import SweepState, look, submissions
from slurm.status import watch
from slurm.submit import Submission, check, prepare, settle, submit, where_nodes_do_not_see

_LOCK_PATIENCE_S = 60.0  # somebody else's submission takes seconds


def _as_it_is(plan: Plan) -> Plan:
    return plan


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be done with a plan."""

    plan: Plan
    extended: Callable[[Plan], Plan] = _as_it_is
    """Adds what has become necessary by the results up to now; see `benchmarks/core/adaptive.py`."""
    cluster: Mapping[str, Any]
    """The composed file, with its `slurm` section."""
    max_attempts: int
    budget_worker_hours: float | None = None
    """For all that one command submits."""
    wait: bool = False


def launch(order: Order, folder: SweepFolder) -> int:
    """Submit what is missing of a sweep; returns the exit code.

    Raises:
        UserError: nothing was submitted; the text says why.
    """
    submission, jobs = _submit_missing(order, folder)
    submitted_worker_hours = submission.worker_hours
    sys.stdout.write(_told(submission, jobs, folder))
    if not order.wait:
        return 0
    try:
        while True:
            state = watch(folder, Console(highlight=False))
            submission, _ = _submit_missing(order, folder, _cancelled(state, folder), submitted_worker_hours)
            submitted_worker_hours += submission.worker_hours
            if not submission.runs:
                return int(any(run.state not in WELL | OWN_FAULT for run in state.runs))
    except KeyboardInterrupt:
        sys.stderr.write("no longer watching; the jobs go on: `make status` shows them, `make cancel` ends them\n")
        return 130


def _cancelled(state: SweepState, folder: SweepFolder) -> set[str]:
    """Runs that somebody has cancelled, before or after they began. Whoever watches must not submit them again."""
    ended = {run_id for run_id, last in submissions(folder).items() if last.ended}
    before = {run.run_id for run in state.runs if run.state == "planned"} & ended
    return before | {run.run_id for run in state.runs if run.state == "cancelled"}


def _submit_missing(
    order: Order, folder: SweepFolder, spared: Set[str] = frozenset(), submitted_worker_hours: float = 0.0
) -> tuple[Submission, list[str]]:
    with folder.lock(_LOCK_PATIENCE_S):
        settle(folder)
        state = reconciled(folder) if folder.manifest() else None
        order = msgspec.structs.replace(order, plan=order.extended(order.plan))
        submission = _missing(order, folder, state, spared)
        check(submission, folder, order.budget_worker_hours, submitted_worker_hours)
        folder.write_manifest(order.plan, shown_keys(order.plan))
        return submission, submit(submission, folder)


def planned(order: Order, folder: SweepFolder) -> Submission:
    """What `launch` would submit now. Writes nothing; works without Slurm, too."""
    return _missing(order, folder, look(folder) if folder.manifest() else None)


def _missing(order: Order, folder: SweepFolder, state: SweepState | None, spared: Set[str] = frozenset()) -> Submission:
    in_flight = state.in_flight if state else set()
    left_out = in_flight | spared
    runs = [run for run in folder.remaining(order.plan, order.max_attempts) if run.config.run_id not in left_out]
    attempts = {run_id: last.attempt - last.ended for run_id, last in submissions(folder).items()}
    for run in runs:
        if head := folder.head(run.config.run_id):
            attempts[run.config.run_id] = max(head.attempt, attempts.get(run.config.run_id, 0))
    return prepare(folder, runs, order.cluster, attempts, queued=len(in_flight))


def _told(submission: Submission, jobs: list[str], folder: SweepFolder) -> str:
    later = f"{submission.left_for_later} more wait for room in the queue: give the same command again later\n"
    if not submission.left_for_later:
        later = ""
    if not submission.runs:
        return f"nothing to submit; results in {folder.path}\n{_where(submission)}{later}"
    arrays = f"{len(jobs)} job array{'s' * (len(jobs) > 1)} ({', '.join(jobs[:8])}{', ...' * (len(jobs) > 8)})"
    return (
        f"submitted {submission.runs} run{'s' * (submission.runs > 1)} as {arrays}; {_price(submission)}; "
        f"results in {folder.path}\n{_where(submission)}{later}"
        "`make status` shows how they go; the same command again submits what is missing\n"
    )


def _where(submission: Submission) -> str:
    box = submission.inside
    return f"inside {box.image.path} (sha256 {box.image.sha256[:12]}...)\n" if box else ""


def _price(submission: Submission) -> str:
    cost = submission.cost
    return f"at most {submission.worker_hours:.2f} worker-hours" + (f", {cost[0]:.2f} {cost[1]}" if cost else "")


def describe(submission: Submission) -> str:
    """A submission before it is made: shapes, arrays, worker-hours, cost, and each array's exact script."""
    if not submission.arrays:
        return "nothing to submit"
    count = len(submission.arrays)
    lines = [f"{count} job array{'s' * (count > 1)}, {_price(submission)} (workers x the time asked for):"]
    box = submission.inside
    for problem in (where_nodes_do_not_see(submission), box.problem if box else None):
        if problem:
            lines.insert(0, f"warning: {problem}; to be mended before these are submitted")
    for array in submission.arrays:
        hours = len(array.attempts) * array.batch.shape.worker_hours
        lines.append(f"  {len(array.attempts)} x ({array.batch.shape}): at most {hours:.2f} worker-hours")
    for number, array in enumerate(submission.arrays, start=1):
        lines += ["", f"---- array {number} of {len(submission.arrays)}", sbatch.script(array)]
    return "\n".join(lines)
