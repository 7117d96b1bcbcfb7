"""The supervisors of one run, one on each node, and how they find each other.

Slurm starts them (`srun --ntasks-per-node=1`). Node 0's supervisor opens a store on a port that the system chooses, so
two jobs on a node cannot collide, and publishes its address in the run's folder, which all nodes see. It also decides
the attempt, collects the other nodes' words at the end, and writes the record.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.record import Reason, Status, replace

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

JOIN_LIMIT_S = 300.0
WORD_LIMIT_S = 30.0
_POLL_S = 0.1

Found = TypeVar("Found")


class Team(msgspec.Struct, frozen=True, kw_only=True):
    """This supervisor among all supervisors of the run."""

    node: int = 0
    nodes: int = 1
    address: str = "127.0.0.1"
    token: str = "here"
    """The same on all nodes and in no other job step."""

    @property
    def leads(self) -> bool:
        """Whether this is the supervisor that writes the record."""
        return self.node == 0


class Meeting(msgspec.Struct, frozen=True, kw_only=True):
    """What node 0 publishes."""

    attempt: int
    address: str
    port: int


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """What a node's supervisor says of its own workers at the end."""

    status: Status
    reason: Reason | None = None


def team_here() -> Team:
    """The team that Slurm's variables describe; outside a job step of several tasks, this process alone.

    Raises:
        UserError: srun has started more than one supervisor on a node.
    """
    tasks, nodes = (int(os.environ.get(f"SLURM_STEP_NUM_{what}", 1)) for what in ("TASKS", "NODES"))
    if tasks == 1:
        return Team()
    if tasks != nodes:
        raise UserError(f"srun has started {tasks} tasks on {nodes} nodes: it must be one on each, --ntasks-per-node=1")
    return Team(
        node=int(os.environ["SLURM_NODEID"]),
        nodes=nodes,
        address=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        token=f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}",
    )


def meet(team: Team, folder: Path, attempt: int) -> tuple[TCPStore, Meeting]:
    """Open the store as node 0, or find it; `attempt` is node 0's to decide.

    Raises:
        UserError: node 0 did not publish its address within JOIN_LIMIT_S.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    path = _meeting_path(team, folder)
    if team.leads:
        store = TCPStore(team.address, 0, is_master=True, wait_for_workers=False)
        meeting = Meeting(attempt=attempt, address=team.address, port=store.port)
        replace(path, msgspec.json.encode(meeting))
        return store, meeting
    found = _wait_for(lambda: _read(path, Meeting), JOIN_LIMIT_S)
    if found is None:
        raise UserError(f"{path}: node 0 has not published its address; do all nodes see this folder?")
    return TCPStore(found.address, found.port, is_master=False), found


def part(team: Team, folder: Path) -> None:
    """Node 0 takes its address back, once all have met."""
    if team.leads:
        _meeting_path(team, folder).unlink(missing_ok=True)


def leave_word(team: Team, logs: Path, word: Word) -> None:
    """Say how this node's workers ended."""
    replace(_word_path(logs, team.node), msgspec.json.encode(word))


def collect_words(team: Team, logs: Path, own: Word, limit_s: float = WORD_LIMIT_S) -> list[Word]:
    """All nodes' words, in the order of nodes; a node that stays silent for `limit_s` from now on has failed."""
    words = [own]
    deadline = time.monotonic() + limit_s  # for all of them together: silent nodes must not add up
    for node in range(1, team.nodes):
        path = _word_path(logs, node)
        word = _wait_for(lambda path=path: _read(path, Word), deadline - time.monotonic())  # type: ignore[misc]
        words.append(word or _silence(node, limit_s))
        path.unlink(missing_ok=True)
    return words


def _silence(node: int, limit_s: float) -> Word:
    message = f"node {node} has not said within {limit_s:g} s how its workers ended: its supervisor or the node died"
    return Word(status="node_fail", reason=Reason(phase="teardown", kind="silence", message=message))


def _meeting_path(team: Team, folder: Path) -> Path:
    return folder / f".meeting-{team.token}.json"


def _word_path(logs: Path, node: int) -> Path:
    return logs / f"node{node}.json"


def _wait_for(look: Callable[[], Found | None], limit_s: float) -> Found | None:
    deadline = time.monotonic() + limit_s
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found


def _read(path: Path, kind: type[Found]) -> Found | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
