"""Starting a node's workers through torch's elastic agent: no restarts, one attempt."""

from __future__ import annotations

import logging
import multiprocessing.forkserver
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.core.config import RunConfig
from benchmarks.process.heartbeat import Heartbeat, Pulse
from benchmarks.supervision.team import WORD_LIMIT_S, Team
from benchmarks.supervision.watch import Ending, Limits, Watch, send

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

_POLL_S = 0.05


def preload() -> None:
    """Begin to import torch in the process that workers are forked from, while this one goes on.

    The fork server imports torch once for a whole sweep, and stays free of threads and of device state, so forking it
    is safe. It ends by itself when this process does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.process.preloaded", "hydra"])
    multiprocessing.forkserver.ensure_running()


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How this node's workers ended, as the agent saw it. `rank` and `code` are those of the first that failed."""

    ranks: tuple[int, ...] = ()
    """The global ranks of this node's workers, by local rank."""
    pulses: tuple[Pulse, ...] = ()
    """Their last signs of life before they were ended, by local rank."""
    rank: int | None = None
    code: int = 0
    ended_by_watch: Ending | None = None


@dataclass(frozen=True, kw_only=True)
class Watching:
    """What the watch needs beyond the run: its limits, and who wants to see the workers' signs of life."""

    limits: Limits
    show: Callable[[Sequence[Pulse]], None]


def run_workers(run: RunConfig, team: Team, store: TCPStore, logs: Path, watching: Watching) -> Exit:
    """Start all workers of this node and wait for their end. Interrupted or not, none is alive afterwards."""
    for chatty in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # the record says what happened
    # No handlers of the agent's: it would pass Ctrl-C on to workers that ignore it, and wait for them.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"
    with tempfile.TemporaryDirectory(prefix="scalebench-") as scratch:
        heartbeat_path = Path(scratch) / "heartbeat"
        heartbeat = Heartbeat(heartbeat_path, run.workers_per_node)
        agent = _elastic_agent(run, team, store, (run, str(logs), str(heartbeat_path)))
        watch = Watch(run, heartbeat, watching.limits, watching.show)
        watch.start()
        try:
            result = agent.run()
        except BaseException:
            for pulse in heartbeat.read():
                send(pulse.pid, signal.SIGKILL)  # whom an interrupted agent has left
            if watch.ending:
                return Exit(pulses=watch.pulses, ended_by_watch=watch.ending)
            raise
        finally:
            watch.stop()
    ranks = tuple(worker.global_rank for worker in agent.get_worker_group().workers)
    if not result.is_failed():
        return Exit(ranks=ranks, pulses=watch.pulses)
    rank, failure = next(iter(result.failures.items()))
    return Exit(ranks=ranks, pulses=watch.pulses, rank=rank, code=failure.exitcode, ended_by_watch=watch.ending)


def _elastic_agent(run: RunConfig, team: Team, store: TCPStore, arguments: tuple[object, ...]) -> LocalElasticAgent:
    """The agent of this node, which meets the other nodes' agents through the store."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import C10dRendezvousBackend
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import create_handler

    parameters = RendezvousParameters(
        backend="c10d",
        endpoint="",
        run_id=run.run_id,
        min_nodes=team.nodes,
        max_nodes=team.nodes,
        local_addr=team.address,
    )
    spec = WorkerSpec(
        role="worker",
        local_world_size=run.workers_per_node,
        entrypoint=_work,
        args=arguments,
        rdzv_handler=create_handler(store, C10dRendezvousBackend(store, run.run_id), parameters),
        max_restarts=0,
        monitor_interval=_POLL_S,
        local_addr=team.address,
    )
    return LocalElasticAgent(spec, DefaultLogsSpecs(), start_method="forkserver", exit_barrier_timeout=WORD_LIMIT_S)


def _work(run: RunConfig, folder: str, heartbeat_path: str) -> None:
    """The workers' entry point. Imported there, not here: the supervisor can do without most of torch."""
    from benchmarks.process.worker import work

    work(run, folder, heartbeat_path)
