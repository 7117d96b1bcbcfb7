"""From a batch of runs to the text that sbatch gets, through submitit."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from benchmarks.core.errors import UserError
from benchmarks.core.sweep import PlannedRun
from slurm import job
from slurm.commands import SlurmError, is_of_allocation, no_slurm, words
from slurm.shapes import Batch
from slurm.site import Site

PROJECT = Path(__file__).resolve().parent.parent
JOBS_FOLDER = "slurm"
"""In a sweep's folder: job scripts, their logs, and what submitit keeps."""

_DEFAULTS_OF_USERS = ("account", "partition", "qos", "reservation", "constraint")


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is to be submitted."""

    run: PlannedRun
    attempt: int


class Array(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One job array: what a single call of sbatch submits."""

    batch: Batch
    attempts: list[Attempt]
    folder: str
    """The sweep's: another folder's sweep may have the same runs."""
    nodelist: str | None = None
    python: str | None = None
    """The jobs' Python, as a text for the shell: inside an image it is many words. None: the site's, or this one."""

    @cached_property
    def token(self) -> str:
        """Names this array's content. It is the jobs' comment, by which they are found again after a crash."""
        text = " ".join([self.folder, *(f"{each.run.config.run_id}:{each.attempt}" for each in self.attempts)])
        return f"scalebench-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class _Executor(submitit.SlurmExecutor):
    """submitit's, which can also write a job's script where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 2


def job_name(sweep: str) -> str:
    """The name of a sweep's jobs in Slurm's queue."""
    return "scalebench-" + re.sub(r"[^\w.-]", "_", sweep)


def check_path(path: Path) -> None:
    """Refuse a folder whose full name Slurm would read as a pattern. Raises UserError."""
    path = path.resolve()
    if not str(path).isprintable() or set(str(path)) & {"%", "\\"}:
        raise UserError(f"results: {str(path)!r} has a character that Slurm reads as a pattern (% or \\); name another")


def script(array: Array) -> str:
    """The exact text that `submit` hands to sbatch."""
    executor = _executor(array)
    if len(array.attempts) > 1:
        executor.parameters["map_count"] = len(array.attempts)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(array: Array) -> list[str]:
    """Hand an array to Slurm, held: no task starts before it is released. Returns the tasks' ids, in order.

    Raises:
        SlurmError: Slurm refused; the text holds its own words.
    """
    for program in ("sbatch", "srun"):  # submitit wants both
        if shutil.which(program) is None:
            raise no_slurm(program)
    payloads = [
        msgspec.to_builtins(
            job.Payload(
                config=each.run.config.as_dict(),
                folder=str(Path(array.folder) / each.run.config.run_id),
                attempt=each.attempt,
                minutes=array.batch.shape.minutes,
            )
        )
        for each in array.attempts
    ]
    try:
        # submitit prints Slurm's words, and raises them, too.
        with _without_overriding_variables(array.batch.site), contextlib.redirect_stderr(io.StringIO()):
            jobs = _executor(array).map_array(job.run, payloads)
    except (FailedJobError, FailedSubmissionError) as error:
        raise SlurmError(f"sbatch, for the shape ({array.batch.shape}): {_sbatch_words(error)}") from error
    return [str(submitted.job_id) for submitted in jobs]


@contextlib.contextmanager
def _without_overriding_variables(site: Site) -> Iterator[None]:
    """Within: sbatch sees no SBATCH_* variable, which would win over the script, but for what the site leaves open."""
    left_open = {f"SBATCH_{key.upper()}" for key in _DEFAULTS_OF_USERS if getattr(site, key) is None}
    hidden = {
        key: value
        for key, value in os.environ.items()
        if (key.startswith("SBATCH_") and key not in left_open) or is_of_allocation(key)
    }
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _sbatch_words(error: Exception) -> str:
    """Slurm's own words out of submitit's report of a failed command."""
    said = [line for line in str(error).splitlines() if line.startswith("sbatch: ")]
    return words("\n".join(said)) or words(str(error))


def _executor(array: Array) -> _Executor:
    folder = Path(array.folder)
    python = array.python or shlex.quote(array.batch.site.python or sys.executable)
    executor = _Executor(folder / JOBS_FOLDER, python=python)
    executor.update_parameters(**_parameters(array, folder.name))
    return executor


def _parameters(array: Array, sweep: str) -> dict[str, Any]:
    shape, site = array.batch.shape, array.batch.site
    memory = f"{shape.memory_mb_per_node}M" if shape.memory_mb_per_node else "0" if site.exclusive else None
    optional = {
        "account": site.account,
        "partition": site.partition,
        "qos": site.qos,
        "constraint": site.constraint,
        "gres": gres(array) if shape.gpus_per_node else None,
        "mem": memory,
        "exclusive": site.exclusive or None,
        "nodelist": array.nodelist,
    }
    return {
        **{key: value for key, value in optional.items() if value is not None},
        "job_name": job_name(sweep),
        "comment": array.token,
        "time": shape.minutes,
        "nodes": shape.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": shape.cores_per_node,
        "array_parallelism": site.array_parallelism or len(array.attempts),
        "wckey": None,
        "signal_delay_s": 0,  # a run has a deadline of its own before Slurm's
        "stderr_to_stdout": True,
        "setup": _setup(array),
        # A supervisor that dies must not take the others with it: one of them writes the record.
        "srun_args": ["--kill-on-bad-exit=0"],
        "additional_parameters": {
            **({"reservation": site.reservation} if site.reservation else {}),
            **{option: value for option, value in site.sbatch.items() if value is not False},
            "chdir": str(PROJECT),
            "hold": True,
            "no-requeue": True,  # another attempt is ours to decide, and has a record of its own
        },
    }


def gres(array: Array) -> str:
    """The GPUs of a node, as Slurm wants them asked for."""
    kind, count = array.batch.site.gpu_type, array.batch.shape.gpus_per_node
    return f"gpu:{kind}:{count}" if kind else f"gpu:{count}"


def _setup(array: Array) -> list[str]:
    # Since Slurm 22.05 srun does not take over the job's --cpus-per-task.
    exports = {"SRUN_CPUS_PER_TASK": str(array.batch.shape.cores_per_node), **array.batch.site.environment}
    began = f"export {job.JOB_START}=$(date +%s.%N)"
    return [began, *array.batch.site.setup, *(f"export {name}={shlex.quote(value)}" for name, value in exports.items())]


def arrays(
    folder: Path,
    batches: Sequence[Batch],
    attempts: Mapping[str, int],
    max_array_size: int,
    nodes: Mapping[str | None, Sequence[str]],
) -> list[Array]:
    """Batches as arrays of at most `max_array_size` tasks; `attempts` counts those that each run has had.

    Where `nodes` names those of a partition, its arrays are bound to as many of them as they need, from the first.
    """
    found = []
    for batch in batches:
        chosen = nodes.get(batch.site.partition, ())[: batch.shape.nodes]
        nodelist = batch.site.nodelist or ",".join(chosen) or None
        each = [Attempt(run=run, attempt=attempts.get(run.config.run_id, 0) + 1) for run in batch.runs]
        found += [
            Array(
                batch=batch,
                attempts=each[first : first + max_array_size],
                folder=str(folder.resolve()),
                nodelist=nodelist,
            )
            for first in range(0, len(each), max_array_size)
        ]
    return found
