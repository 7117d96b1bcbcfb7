"""Runs whose job ended without leaving a record get one, from what Slurm knows of the job."""

from __future__ import annotations

import contextlib
import datetime
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.core.folder import ManifestRun, SweepFolder
from benchmarks.core.progress import PROGRESS_NAME
from benchmarks.core.record import RECORD_NAME, Reason, Record, Status, archive, write_record
from slurm.commands import PastJob
from slurm.sbatch import JOBS_FOLDER
from slurm.state import RunState, SweepState, look

_LOG_TAIL_LINES = 20

# Slurm's words for a job's end, and ours.
_STATUS: dict[str, Status] = {
    "OUT_OF_MEMORY": "oom",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node_fail",
    "BOOT_FAIL": "node_fail",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "FAILED": "error",
}


def reconciled(folder: SweepFolder) -> SweepState:
    """The sweep's state, after the vanished runs have got their records. The caller holds the sweep's lock."""
    state = look(folder)
    vanished = [run for run in state.runs if run.vanished]
    if not vanished:
        return state
    manifest = folder.manifest()
    assert manifest
    planned = {run.run_id: run for run in manifest.runs}
    settled = {run.run_id: _settle(folder, planned[run.run_id], run) for run in vanished}
    return msgspec.structs.replace(state, runs=[settled.get(run.run_id, run) for run in state.runs])


def _settle(folder: SweepFolder, planned: ManifestRun, run: RunState) -> RunState:
    past = run.past
    if past and past.never_began:
        # It never began, so there is nothing to record and no attempt was spent.
        folder.note("ended", run.run_id, attempt=run.attempt, job=run.job, status="cancelled")
        return msgspec.structs.replace(run, state="planned", reason="cancelled before it began")
    status, reason = _verdict(folder, run)
    _leave_record(folder, _record(planned, run, status, reason))
    folder.note("ended", run.run_id, attempt=run.attempt, job=run.job, status=status)
    return msgspec.structs.replace(run, state=status, reason=f"{reason.kind}: {reason.message}")


def _verdict(folder: SweepFolder, run: RunState) -> tuple[Status, Reason]:
    past = run.past
    log = _log(folder, run)
    status: Status = "lost"
    kind, message = "lost", f"job {run.job} is gone from the queue and has left no record"
    if past and past.state in _STATUS:
        status = "oom" if past.out_of_memory else _STATUS[past.state]
        kind = f"Slurm: {'OUT_OF_MEMORY' if past.out_of_memory else past.state}"
        message = f"job {run.job} ended with exit code {past.exit_code} on {past.nodes} and left no record"
        if log is None and past.started_s:
            message += f" and no log; do the nodes see {folder.path.resolve()}?"
    return status, Reason(phase="start", kind=kind, message=message, log_tail=log or [])


def _log(folder: SweepFolder, run: RunState) -> list[str] | None:
    """The last lines that the job printed; None where there is no log."""
    path = Path(folder.path) / JOBS_FOLDER / f"{run.job}_0_log.out"
    try:
        return path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
    except OSError:
        return None


def _record(planned: ManifestRun, run: RunState, status: Status, reason: Reason) -> Record:
    past = run.past
    started = datetime.datetime.fromtimestamp(past.started_s if past and past.started_s else 0, datetime.UTC)
    return Record(
        run_id=planned.run_id,
        cell_id=planned.cell_id,
        sweep=planned.config["sweep"],
        repeat=planned.repeat,
        attempt=run.attempt,
        status=status,
        reason=reason,
        config=planned.config,
        workers=planned.config["workers"],
        nodes=planned.config["nodes"],
        started_at=started.isoformat(timespec="seconds"),
        wall_time_s=run.elapsed_s,
        window=None,
        ranks=[],
        evaluation=[],
        memory=None,
        energy=None,
        ledger={"start": run.elapsed_s},
        ceilings=None,
        sanity=[],
        notes=["written from Slurm's accounting"] if past else ["written after its job had vanished"],
        environment=_environment(run, past),
    )


def _environment(run: RunState, past: PastJob | None) -> dict[str, Any]:
    return {"slurm_job": {"SLURM_JOB_ID": run.job, "SLURM_JOB_NODELIST": past.nodes if past else None}}


def _leave_record(folder: SweepFolder, record: Record) -> None:
    path = folder.run_folder(record.run_id)
    path.mkdir(exist_ok=True)
    head = folder.head(record.run_id)
    if head and head.attempt < record.attempt and (path / RECORD_NAME).exists():
        archive(path, head.attempt)
    with contextlib.suppress(FileExistsError):  # the run has left its own after all
        write_record(path, record)
    (path / PROGRESS_NAME).unlink(missing_ok=True)
