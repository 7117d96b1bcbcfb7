"""Slurm's commands, at the edge of this program: what they print, and their own words when they refuse."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from collections.abc import Iterable, Sequence

import msgspec

from benchmarks.core.errors import UserError

_PATIENCE_S = 120.0

# Moments as seconds since 1970, whatever the site's taste and time zone.
_FORMAT = {"SLURM_TIME_FORMAT": "%s"}

# A user's own defaults: with SQUEUE_STATES=RUNNING, say, all jobs that wait would seem to have vanished.
_TASTES = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")

# Job ids on one command line: an argument may have 128 KiB.
_IDS_PER_CALL = 8000


class SlurmError(UserError):
    """Slurm refused, or does not answer; the text holds its own words."""


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """One line of squeue: a job, or one task of an array."""

    job: str
    state: str
    reason: str
    priority: str
    comment: str

    @property
    def held(self) -> bool:
        """It waits to be released. The priority is the sign: a dependency, too, is a reason to wait, and hides this."""
        return self.state == "PENDING" and self.priority == "0"


class PastJob(msgspec.Struct, frozen=True, kw_only=True):
    """What accounting knows of a job or of one task of an array."""

    job: str
    state: str
    exit_code: str
    elapsed_s: int
    started_s: int | None
    """Seconds since 1970; None where it never started."""
    ended_s: int | None
    nodes: str
    out_of_memory: bool = False
    """Of any of its steps: the job itself then only says FAILED."""

    @property
    def never_began(self) -> bool:
        """Cancelled while it waited. Some versions then give the moment of its end as that of its start."""
        return self.state == "CANCELLED" and (self.started_s is None or self.nodes in ("", "None assigned"))


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes of one partition that are alike."""

    partition: str
    nodes: int
    cores: int
    memory_mb: int
    gpus: dict[str, int]
    """By type; without a type under the empty name."""
    time_limit_min: float


def call(*command: str, patience_s: float = _PATIENCE_S) -> str:
    """What a command prints.

    Raises:
        SlurmError: it is not there, it refused, or it did not answer in time.
    """
    environment = {key: value for key, value in os.environ.items() if not _misleads(key)} | _FORMAT
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience_s, env=environment)
    except FileNotFoundError as error:
        raise no_slurm(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]}: no answer within {patience_s:g} s; does Slurm's controller run?") from error
    if done.returncode:
        raise SlurmError(f"{command[0]}: {words(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def _misleads(variable: str) -> bool:
    return variable.startswith(_TASTES) or is_of_allocation(variable)


def is_of_allocation(variable: str) -> bool:
    """Whether Slurm has set it inside a job: what is submitted from there is not a part of that job."""
    return variable.startswith("SLURM_") and variable != "SLURM_CONF"


def me() -> str:
    """The user whose process this is."""
    return pwd.getpwuid(os.geteuid()).pw_name


def no_slurm(program: str) -> SlurmError:
    """There is none on this machine."""
    return SlurmError(
        f"{program}: not on PATH, so there is no Slurm here; go to a login node, or run here with HYDRA_LAUNCHER=basic"
    )


def words(text: str) -> str:
    """Slurm's own words as one line, each said once."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def queued_jobs(name: str) -> list[QueuedJob]:
    """All jobs of this name in the queue, one entry for each task of an array. One call of squeue."""
    text = call("squeue", "--noheader", "--array", f"--name={name}", "--format=%i|%T|%r|%Q|%k")
    lines = (line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4)
    return [
        QueuedJob(job=job, state=state, reason=reason, priority=priority, comment=comment)
        for job, state, reason, priority, comment in lines
    ]


_SACCT_FIELDS = ("JobID", "State", "ExitCode", "ElapsedRaw", "Start", "End", "NodeList")


def past_jobs(ids: Sequence[str]) -> dict[str, PastJob]:
    """What accounting knows of jobs and arrays, by job or `array_task`; their steps' ends are read too.

    One call of sacct, however many tasks the arrays have.

    Raises:
        SlurmError: there is no accounting, or it does not answer.
    """
    found: dict[str, PastJob] = {}
    for first in range(0, len(ids), _IDS_PER_CALL):
        chosen = ",".join(ids[first : first + _IDS_PER_CALL])
        text = call(
            *("sacct", "--noheader", "--parsable2", "--jobs", chosen, f"--format={','.join(_SACCT_FIELDS)}"),
        )
        lines = [line.split("|") for line in text.splitlines()]
        # An array's waiting tasks share one line, which goes stale when one of them is cancelled: it comes first.
        for line in sorted(lines, key=lambda line: "[" not in line[0]):
            if len(line) == len(_SACCT_FIELDS):
                _take(line, found)
    return found


def _take(line: Sequence[str], found: dict[str, PastJob]) -> None:
    whole, state, exit_code, elapsed, started, ended, nodes = line
    name, _, step = whole.partition(".")
    if step:
        if state.startswith("OUT_OF_MEMORY") and name in found:
            found[name] = msgspec.structs.replace(found[name], out_of_memory=True)
        return
    for job in tasks_of(name):
        found[job] = PastJob(
            job=job,
            state=state.split()[0] if state else "UNKNOWN",
            exit_code=exit_code,
            elapsed_s=int(elapsed) if elapsed.isdigit() else 0,
            started_s=_moment(started),
            ended_s=_moment(ended),
            nodes=nodes,
            out_of_memory=state.startswith("OUT_OF_MEMORY"),
        )


def _moment(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def tasks_of(job: str) -> Iterable[str]:
    """`7_[1-3,5%2]`, as Slurm writes tasks that wait, one by one: 7_1, 7_2, 7_3, 7_5. Any other id as it is."""
    match = re.fullmatch(r"(\d+)_\[([\d,:-]+)(?:%\d+)?\]", job)
    if match is None:
        return [job]
    tasks: list[str] = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        last, _, by = last.partition(":")
        tasks += [f"{match[1]}_{task}" for task in range(int(first), int(last or first) + 1, int(by or 1))]
    return tasks


def release(ids: Iterable[str]) -> None:
    """Let held jobs start."""
    call("scontrol", "release", ",".join(ids))


def cancel(ids: Sequence[str]) -> None:
    """Ask jobs to end; those that have ended already are no error."""
    for first in range(0, len(ids), _IDS_PER_CALL):
        call("scancel", "--quiet", *ids[first : first + _IDS_PER_CALL])


def node_groups() -> list[NodeGroup]:
    """What the partitions offer. One call of sinfo."""
    text = call("sinfo", "--noheader", "--exact", "--format=%P|%D|%c|%m|%G|%l")
    return [_node_group(line.split("|")) for line in text.splitlines() if line.count("|") == 5]


def _node_group(values: Sequence[str]) -> NodeGroup:
    partition, nodes, cores, memory, gres, limit = values
    return NodeGroup(
        partition=partition.rstrip("*"),
        nodes=int(nodes),
        cores=_number(cores),
        memory_mb=_number(memory),
        gpus=_gpus(gres),
        time_limit_min=_minutes(limit),
    )


def _number(text: str) -> int:
    match = re.match(r"\d+", text)  # `48+` where nodes of one line differ
    return int(match[0]) if match else 0


def _gpus(gres: str) -> dict[str, int]:
    """`gpu:a100:4(S:0-1),gpu:2` -> {"a100": 4, "": 2}."""
    gpus: dict[str, int] = {}
    for kind, count in re.findall(r"\bgpu(?::([A-Za-z][\w.-]*))?:(\d+)", gres):
        gpus[kind] = gpus.get(kind, 0) + int(count)
    return gpus


def _minutes(limit: str) -> float:
    """`2-03:00:00`, `03:00:00`, `30:00` or `infinite`."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", limit)
    if match is None:
        return float("inf")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + minutes + seconds / 60


def idle_nodes(partition: str | None) -> list[str]:
    """The names of nodes that are idle, then of those partly in use; none of a partition that is down."""
    chosen = [f"--partition={partition}"] if partition else []
    text = call("sinfo", "--noheader", "--Node", *chosen, "--states=idle,mixed", "--format=%N|%t|%a")
    lines = [line.split("|") for line in text.splitlines() if line.count("|") == 2]
    ordered = sorted({(state != "idle", name) for name, state, available in lines if available == "up"})
    return list(dict.fromkeys(name for _, name in ordered))


def configured(key: str) -> str | None:
    """A value of Slurm's configuration, such as MaxArraySize."""
    match = re.search(rf"^{key}\s*=\s*(\S+)", call("scontrol", "show", "config"), flags=re.MULTILINE)
    return match[1] if match else None
