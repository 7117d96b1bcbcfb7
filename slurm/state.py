"""Where every run of a sweep is: from its records, the ledger, what running jobs say, and Slurm.

Slurm is asked first and records are read after that, so a run that ends in between is seen with its record. One call
of squeue and one of sacct do for any number of runs.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.folder import MANIFEST_NAME, NO_SWEEP, ManifestRun, SweepFolder
from benchmarks.core.progress import Progress, read_progress
from benchmarks.core.record import Head
from slurm import commands, sbatch
from slurm.commands import PastJob, QueuedJob, SlurmError

PENDING = "PENDING"
_FRESH_S = 90.0  # a sign of life comes every few seconds, but nodes' clocks differ and file systems lag
_RECORD_PATIENCE_S = 15.0  # until a file that a node has written is seen on another machine
_STILL_THERE = {"PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "RESIZING", "CONFIGURING"}


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of the ledger about a run's submission."""

    job: str
    attempt: int
    minutes: int
    at_s: float
    user: str
    token: str = ""
    ended: bool = False
    """It is known to have ended before it began, so there is no record."""


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """One run. `state` is a word of the record's, or planned, submitted, running."""

    run_id: str
    cell_id: str
    workers: int
    state: str
    attempt: int = 0
    job: str | None = None
    reason: str | None = None
    """Why it waits, what it does, or why it has no number."""
    step: int | None = None
    steps: int | None = None
    samples_per_s: float | None = None
    nodes: str | None = None
    elapsed_s: float = 0.0
    """Of the job where Slurm knows it, else of the run."""
    limit_s: float = 0.0
    """What it may take at most, if it is still to run."""
    past: PastJob | None = None
    vanished: bool = False
    """The job has ended without leaving a record."""


class SweepState(msgspec.Struct, frozen=True, kw_only=True):
    """All runs of a sweep at one moment."""

    folder: str
    sweep: str
    cluster: str
    runs: list[RunState]
    warnings: list[str]
    """What could not be asked."""

    @property
    def in_flight(self) -> set[str]:
        """The runs that are in Slurm's hands."""
        return {run.run_id for run in self.runs if run.state in ("submitted", "running")}

    @property
    def counts(self) -> dict[str, int]:
        """Runs by state."""
        states = [run.state for run in self.runs]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    @property
    def worker_hours_used(self) -> float:
        """Of all last attempts."""
        return sum(run.workers * run.elapsed_s for run in self.runs) / 3600

    @property
    def worker_hours_left(self) -> float:
        """At most, of the runs that have not ended."""
        open_runs = [run for run in self.runs if run.state in ("planned", "submitted", "running")]
        return sum(run.workers * max(0.0, run.limit_s - run.elapsed_s) for run in open_runs) / 3600

    @property
    def time_left_s(self) -> float | None:
        """If runs go on at the pace of those that have ended, as many at a time as now; None while that is unknown."""
        took_s = [run.elapsed_s for run in self.runs if run.state == "ok" and run.elapsed_s]
        running = sum(run.state == "running" for run in self.runs)
        left = sum(run.state in ("submitted", "running") for run in self.runs)
        if not took_s or not running:
            return 0.0 if not left else None
        return sum(took_s) / len(took_s) * left / running


def look(folder: SweepFolder) -> SweepState:
    """The state of every run. Writes nothing.

    Raises:
        UserError: there is no sweep in this folder.
    """
    manifest = folder.manifest()
    if manifest is None:
        raise UserError(f"{folder.path}: no {MANIFEST_NAME} here that can be read; {NO_SWEEP}")
    submitted = submissions(folder)
    asked = _Slurm.asked(folder, submitted)
    return SweepState(
        folder=str(folder.path),
        sweep=manifest.sweep,
        cluster=manifest.cluster,
        runs=[_state(folder, run, submitted.get(run.run_id), asked) for run in manifest.runs],
        warnings=asked.warnings,
    )


def submissions(folder: SweepFolder) -> dict[str, Submitted]:
    """The last submission of each run."""
    found: dict[str, Submitted] = {}
    for event in folder.events():
        run_id = event.get("run_id")
        if event["event"] == "submitted":
            found[event["run_id"]] = Submitted(
                job=event["job"],
                attempt=event["attempt"],
                minutes=event["minutes"],
                at_s=datetime.datetime.fromisoformat(event["at"]).timestamp(),
                token=event["token"],
                user=event["user"],
            )
        elif event["event"] == "withdrawn":
            for each, last in found.items():
                if last.token in event["tokens"]:
                    found[each] = msgspec.structs.replace(last, ended=True)
        elif event["event"] == "ended" and run_id in found and event.get("job") == found[run_id].job:
            found[run_id] = msgspec.structs.replace(found[run_id], ended=True)
    return found


class _Slurm(msgspec.Struct, kw_only=True):
    """What Slurm says now; None where it does not answer."""

    queue: Mapping[str, QueuedJob] | None
    past: Mapping[str, PastJob]
    warnings: list[str]

    @classmethod
    def asked(cls, folder: SweepFolder, submitted: Mapping[str, Submitted]) -> _Slurm:
        if not submitted:
            return cls(queue={}, past={}, warnings=[])
        queue: dict[str, QueuedJob] | None = None
        past: dict[str, PastJob] = {}
        warnings = []
        try:
            queue = {job.job: job for job in commands.queued_jobs(sbatch.job_name(folder.path.name))}
        except SlurmError as error:
            warnings.append(f"the queue is not known: {error}")
        try:
            past = commands.past_jobs(sorted({each.job.partition("_")[0] for each in submitted.values()}))
        except SlurmError as error:
            warnings.append(f"no accounting: {error}; signs of life are used")
        return cls(queue=queue, past=past, warnings=warnings)


def _state(folder: SweepFolder, run: ManifestRun, submitted: Submitted | None, slurm: _Slurm) -> RunState:
    head = folder.head(run.run_id)
    past = slurm.past.get(submitted.job) if submitted else None
    state = RunState(
        run_id=run.run_id,
        cell_id=run.cell_id,
        workers=run.config["workers"],
        state="planned",
        elapsed_s=float(past.elapsed_s) if past else head.wall_time_s if head else 0.0,
        limit_s=60.0 * submitted.minutes if submitted else run.config["run_limit_s"],
        past=past,
    )
    progress = read_progress(folder.run_folder(run.run_id))
    if progress and progress.attempt <= (head.attempt if head else 0):
        progress = None  # what an earlier attempt has left
    if submitted is None and progress and abs(_age_s(progress)) < _FRESH_S:
        return _running(state, progress)  # not through Slurm: on this machine, or in somebody's allocation
    if submitted is None or submitted.ended or (head and head.attempt >= submitted.attempt):
        return _of_record(state, head) if head else state
    state = msgspec.structs.replace(
        state, attempt=submitted.attempt, job=submitted.job, nodes=past.nodes if past else None
    )
    return _of_job(state, submitted, slurm, progress)


def _of_record(state: RunState, head: Head) -> RunState:
    reason = f"{head.reason.kind}: {head.reason.message}" if head.reason else None
    return msgspec.structs.replace(state, state=head.status, attempt=head.attempt, reason=reason)


def _of_job(state: RunState, submitted: Submitted, slurm: _Slurm, progress: Progress | None) -> RunState:
    """A job without its record: it waits, it runs, or it has vanished."""
    if slurm.queue is None:  # Slurm does not answer, so nothing can have vanished
        if progress and abs(_age_s(progress)) < _FRESH_S:  # a node's clock may be ahead
            return _running(state, progress)
        return msgspec.structs.replace(state, state="submitted", reason="Slurm does not answer")
    if submitted.job in slurm.queue:
        queued = slurm.queue[submitted.job]
        if queued.state == PENDING:
            return msgspec.structs.replace(state, state="submitted", reason=queued.reason)
        return _running(state, progress)
    past = state.past
    if past is None and submitted.user != commands.me():  # some sites show people their own jobs only
        return msgspec.structs.replace(state, state="submitted", reason=f"Slurm shows no such job of {submitted.user}")
    if past and past.never_began:
        return msgspec.structs.replace(state, state="cancelled", vanished=True, reason="before it began")
    if time.time() - _last_seen_s(past, submitted, progress) < _RECORD_PATIENCE_S:
        return msgspec.structs.replace(state, state="running", reason="ending")
    return msgspec.structs.replace(state, state="lost", vanished=True, reason="its job has left no record")


def _last_seen_s(past: PastJob | None, submitted: Submitted, progress: Progress | None) -> float:
    """When a job that is not in the queue was last known to be there, in seconds since 1970."""
    if past and past.state in _STILL_THERE:
        # Accounting lags behind the queue; soon it says how the job ended, if not, the job's time comes to an end.
        return (past.started_s or submitted.at_s) + 60.0 * submitted.minutes
    if past and past.ended_s:
        return float(past.ended_s)
    written_s = _written_s(progress) if progress else 0.0
    return max(submitted.at_s, min(written_s, time.time()))  # a node's clock may be ahead


def _running(state: RunState, progress: Progress | None) -> RunState:
    if progress is None:
        return msgspec.structs.replace(state, state="running", reason="starting")
    return msgspec.structs.replace(
        state,
        state="running",
        reason=progress.phase,
        step=progress.step,
        steps=progress.steps,
        samples_per_s=progress.samples_per_s,
        nodes=state.nodes or progress.host,
    )


def _age_s(progress: Progress) -> float:
    return time.time() - _written_s(progress)


def _written_s(progress: Progress) -> float:
    return datetime.datetime.fromisoformat(progress.at).timestamp()
