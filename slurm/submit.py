"""Submission: what is missing of a sweep goes to Slurm, each run once, all of it or nothing.

Arrays are submitted held. Only when Slurm has taken all of them and the ledger has a line for each run are they
released. So a refusal or a crash in between starts nothing twice: what was held is found again by its comment, and is
either released or withdrawn.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.folder import CANCEL_NAME, SweepFolder
from benchmarks.core.sweep import PlannedRun
from containers.inside import Inside, inside, read_container
from slurm import commands, sbatch
from slurm.commands import SlurmError
from slurm.sbatch import Array
from slurm.shapes import Batch, batches, check_fits, earlier_times_s
from slurm.site import shared_path_problem

_DEFAULT_MAX_ARRAY_SIZE = 1001  # Slurm's own
_PROBE_S = 5


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be submitted, before anything is."""

    arrays: list[Array]
    left_for_later: int = 0
    """Runs beyond what one may have in the queue."""
    nodes: dict[str | None, list[str]] = {}
    """With `same_nodes`: those to which the jobs of a partition are bound."""
    inside: Inside | None = None
    """In which image; None: in none."""

    @property
    def runs(self) -> int:
        """How many go to Slurm."""
        return sum(len(array.attempts) for array in self.arrays)

    @property
    def worker_hours(self) -> float:
        """At most: workers x the time that the jobs ask for."""
        return sum(len(array.attempts) * array.batch.shape.worker_hours for array in self.arrays)

    @property
    def cost(self) -> tuple[float, str] | None:
        """At most, with its currency; None where a price is not known."""
        total, currency = 0.0, ""
        for array in self.arrays:
            cluster = array.attempts[0].run.config.cluster
            if cluster.price_per_worker_hour is None:
                return None
            total += len(array.attempts) * array.batch.shape.worker_hours * cluster.price_per_worker_hour
            currency = cluster.currency
        return total, currency


def prepare(
    folder: SweepFolder,
    runs: Sequence[PlannedRun],
    cluster: Mapping[str, Any],
    attempts: Mapping[str, int],
    queued: int = 0,
) -> Submission:
    """Sort runs into arrays. Asks Slurm for its limits where the cluster's file leaves them open and there is a Slurm.

    Raises:
        UserError: the cluster's file is not sound, or Slurm cannot take the results' path.
    """
    sorted_runs = batches(runs, cluster, earlier_times_s(folder, runs))
    if not sorted_runs:
        return Submission(arrays=[])
    sbatch.check_path(folder.path)
    site = sorted_runs[0].site
    room = len(runs) if site.max_queued is None else max(0, site.max_queued - queued)
    taken = _first(sorted_runs, room)
    nodes = _nodes_to_keep_to(folder, sorted_runs)
    arrays = sbatch.arrays(folder.path, taken, attempts, site.max_array_size or _max_array_size(), nodes)
    container = read_container(cluster)
    box = inside(container, folder.path, [run.config for run in runs]) if container else None
    return Submission(
        arrays=[_boxed(array, box) for array in arrays] if box else arrays,
        inside=box,
        left_for_later=len(runs) - sum(len(batch.runs) for batch in taken),
        nodes=nodes,
    )


def _boxed(array: Array, box: Inside) -> Array:
    return msgspec.structs.replace(array, python=box.python(gpus=array.batch.shape.gpus_per_node > 0))


def _first(sorted_runs: Sequence[Batch], room: int) -> list[Batch]:
    kept = []
    for batch in sorted_runs:
        if room > 0:
            kept.append(msgspec.structs.replace(batch, runs=batch.runs[:room]))
        room -= len(batch.runs)
    return kept


def _max_array_size() -> int:
    """The most tasks of one array. Slurm's MaxArraySize is one more than the largest index."""
    try:
        return max(1, int(commands.configured("MaxArraySize") or _DEFAULT_MAX_ARRAY_SIZE) - 1)
    except SlurmError:
        return _DEFAULT_MAX_ARRAY_SIZE - 1


def _nodes_to_keep_to(folder: SweepFolder, sorted_runs: Sequence[Batch]) -> dict[str | None, list[str]]:
    """By partition, the nodes that this sweep's jobs use: those chosen before, then the first that are idle now."""
    needed: dict[str | None, int] = {}
    for batch in sorted_runs:
        if batch.site.same_nodes and not batch.site.nodelist:
            needed[batch.site.partition] = max(batch.shape.nodes, needed.get(batch.site.partition, 0))
    chosen = _chosen_nodes(folder)
    found: dict[str | None, list[str]] = {}
    for partition, count in needed.items():
        nodes = chosen.get(partition, [])
        if len(nodes) < count:
            nodes = list(dict.fromkeys([*nodes, *commands.idle_nodes(partition)]))[:count]
        if len(nodes) < count:
            raise UserError(
                f"cluster.slurm.same_nodes=true: {count} nodes are needed and {len(nodes)} are up and not fully in "
                "use; name them with cluster.slurm.nodelist, or try again later"
            )
        found[partition] = nodes
    return found


def _chosen_nodes(folder: SweepFolder) -> dict[str | None, list[str]]:
    return {event["partition"]: event["nodes"] for event in folder.events() if event["event"] == "nodes"}


def check(
    submission: Submission, folder: SweepFolder, budget_worker_hours: float | None, submitted_worker_hours: float = 0.0
) -> None:
    """Everything that can be known before: size, budget, whether nodes see the results.

    The budget holds with the `submitted_worker_hours` that the same command has asked for before.

    Raises:
        UserError: nothing was submitted; the text says why.
    """
    if budget_worker_hours is not None and submitted_worker_hours + submission.worker_hours > budget_worker_hours:
        could = f"budget_worker_hours={budget_worker_hours:g}: the {submission.runs} runs may take"
        if submitted_worker_hours:
            raise UserError(
                f"{could} {submission.worker_hours:.2f} besides the {submitted_worker_hours:.2f} submitted before; "
                "they were not submitted. The same command again goes on, with its budget anew"
            )
        raise UserError(
            f"{could} {submission.worker_hours:.2f}; nothing was submitted. Lower run_limit_s, or take fewer cells"
        )
    if not submission.arrays:
        return
    if problem := where_nodes_do_not_see(submission):
        raise UserError(problem)
    if submission.inside:
        submission.inside.verified()
    groups = commands.node_groups()
    for array in submission.arrays:
        check_fits(array.batch, groups)
    _probe(submission.arrays[0], submission.inside, folder)


def where_nodes_do_not_see(submission: Submission) -> str | None:
    """Why the nodes will not see the results, as far as the cluster's file knows."""
    problems = (shared_path_problem(array.batch.site, array.folder) for array in submission.arrays)
    return next((problem for problem in problems if problem), None)


def _probe(array: Array, box: Inside | None, folder: SweepFolder) -> None:
    """Once per sweep, try on a node: does it see the folder, does the image start? A busy cluster is not waited for."""
    probed = folder.path.name if box is None else box.image.sha256
    if any(event["event"] == "probed" and event["what"] == probed for event in folder.events()):
        return
    site = array.batch.site
    if not commands.idle_nodes(site.partition):
        return
    options = [
        f"--{option}={value}"
        for option in ("account", "partition", "qos", "reservation", "constraint")
        if (value := getattr(site, option))
    ]
    if array.batch.shape.gpus_per_node:
        options.append(f"--gres={sbatch.gres(array)}")
    test = f"if test -d {shlex.quote(str(folder.path.resolve()))}; then echo seen; else echo unseen; exit 0; fi; "
    limits = (f"--immediate={_PROBE_S}", "--time=1", "--nodes=1", "--ntasks=1", "--chdir=/", "--quiet")
    start = f"{array.python} -c 'print(\"started\")' 2>&1" if box else "echo started"
    try:
        answer = commands.call("srun", *limits, *options, "bash", "-c", test + start + " || true", patience_s=60)
    except SlurmError:
        return  # no node is free at once, or Slurm refuses: sbatch will say so
    _judge(answer.split(), answer, folder)
    folder.note("probed", what=probed)


def _judge(said: Sequence[str], answer: str, folder: SweepFolder) -> None:
    if "unseen" in said:
        raise UserError(
            f"results: a node of the cluster does not see {folder.path.resolve()}; name a folder on a shared file "
            "system with results=..."
        )
    if "seen" in said and "started" not in said:
        lines = [line for line in answer.splitlines() if line and line != "seen"]
        raise UserError(f"container: it does not start on a node of the cluster: {lines[-1] if lines else 'no answer'}")


def submit(submission: Submission, folder: SweepFolder) -> list[str]:
    """Submit all arrays, note every run in the ledger, release them. Returns the ids of jobs and arrays.

    Raises:
        SlurmError: Slurm refused one of them; none is left in the queue.
    """
    (folder.path / CANCEL_NAME).unlink(missing_ok=True)
    chosen = _chosen_nodes(folder)
    for partition, nodes in submission.nodes.items():
        if chosen.get(partition) != nodes:
            folder.note("nodes", partition=partition, nodes=nodes)
    if not submission.arrays:
        return []
    try:
        tasks = _submit_held(submission, folder)
    except BaseException:
        with contextlib.suppress(SlurmError, OSError):  # what stays in the queue is held; the next command withdraws it
            _withdraw([array.token for array in submission.arrays], folder)
        raise
    released = [_array_id(ids) for ids in tasks]
    commands.release(released)
    folder.note("released", tokens=[array.token for array in submission.arrays])
    return released


def _submit_held(submission: Submission, folder: SweepFolder) -> list[list[str]]:
    """The tasks' ids by array, all of them in the ledger."""
    tasks: list[list[str]] = []
    for array in submission.arrays:
        folder.note("submitting", token=array.token, runs=len(array.attempts))
        tasks.append(sbatch.submit(array))
    folder.note_all(
        "submitted",
        [
            {
                "run_id": each.run.config.run_id,
                "attempt": each.attempt,
                "job": job,
                "token": array.token,
                "minutes": array.batch.shape.minutes,
                "user": commands.me(),
            }
            for array, ids in zip(submission.arrays, tasks, strict=True)
            for each, job in zip(array.attempts, ids, strict=True)
        ],
    )
    return tasks


def _array_id(tasks: Sequence[str]) -> str:
    return tasks[0].partition("_")[0]


def settle(folder: SweepFolder) -> None:
    """Finish what a submission that was cut off has begun: release what the ledger knows, withdraw what it does not.

    The caller holds the sweep's lock, so no submission is under way.
    """
    begun = _unfinished(folder)
    if not begun:
        return
    whole = [token for token, missing in begun.items() if not missing]
    if unknown := [token for token, missing in begun.items() if missing]:
        _withdraw(unknown, folder)
    if whole:
        if jobs := _arrays_of(whole, folder, only_held=True):
            commands.release(jobs)
        folder.note("released", tokens=whole)


def _withdraw(tokens: Sequence[str], folder: SweepFolder) -> None:
    """Take arrays back that the ledger does not know, or not whole. They are held, so none of their runs began."""
    # Found by their comment, not by what sbatch said: it may have failed, or been stopped, after Slurm took the job.
    if jobs := _arrays_of(tokens, folder):
        commands.cancel(jobs)
    folder.note("withdrawn", tokens=list(tokens))


def _arrays_of(tokens: Sequence[str], folder: SweepFolder, only_held: bool = False) -> list[str]:
    jobs = commands.queued_jobs(sbatch.job_name(folder.path.name))
    chosen = [job for job in jobs if job.comment in tokens and (job.held or not only_held)]
    return list(dict.fromkeys(job.job.partition("_")[0] for job in chosen))


def _unfinished(folder: SweepFolder) -> dict[str, int]:
    """The tokens of arrays that were neither released nor withdrawn, and how many of their runs the ledger lacks."""
    begun: dict[str, int] = {}
    for event in folder.events():
        if event["event"] == "submitting":
            begun[event["token"]] = event["runs"]
        elif event["event"] == "submitted" and event["token"] in begun:
            begun[event["token"]] -= 1
        elif event["event"] in ("released", "withdrawn"):
            for token in event["tokens"]:
                begun.pop(token, None)
    return begun
