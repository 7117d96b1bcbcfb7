"""Starting a node's workers through torch's elastic agent: no restarts, one attempt."""

from __future__ import annotations

import logging
import multiprocessing.forkserver
import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.config import RunConfig
from benchmarks.heartbeat import Heartbeat, Pulse
from benchmarks.team import WORD_LIMIT_S, Team

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

_POLL_S = 0.1
_STACK_DUMP_S = 0.5
_START_PATIENCE_S = 60.0


def preload() -> None:
    """Begin to import torch in the process that workers are forked from, while this one goes on.

    The fork server imports torch once for a whole sweep, and stays free of threads and of device state, so forking it
    is safe. It ends by itself when this process does.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.worker", "hydra"])
    multiprocessing.forkserver.ensure_running()


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How this node's workers ended, as the agent saw it. `rank` and `code` are those of the first that failed."""

    ranks: tuple[int, ...] = ()
    """The global ranks of this node's workers, by local rank."""
    pulses: tuple[Pulse, ...] = ()
    """Their last signs of life, by local rank."""
    rank: int | None = None
    code: int = 0
    ended_by_watch: str | None = None
    """Why the watch ended them: `hang` or `run_limit`."""


class Watch(threading.Thread):
    """Reads the workers' heartbeats; ends them when one is silent for too long, or all have taken too long."""

    def __init__(self, run: RunConfig, heartbeat: Heartbeat, started_ns: int) -> None:
        super().__init__(daemon=True, name="watch")
        self.run_config, self.heartbeat, self.started_ns = run, heartbeat, started_ns
        self.reason: str | None = None
        self.pulses: tuple[Pulse, ...] = ()
        self._over = threading.Event()

    def run(self) -> None:
        """Poll until stopped."""
        while not self.reason and not self._over.wait(_POLL_S):
            self.pulses = tuple(self.heartbeat.read())
            age_s = (time.monotonic_ns() - self.started_ns) / 1e9
            silence_s = [age_s if pulse.age_s is None else pulse.age_s for pulse in self.pulses]
            if age_s > self.run_config.run_limit_s:
                self.reason = "run_limit"
            elif max(silence_s) > self.run_config.hang_limit_s:
                self.reason = "hang"
        if not self.reason:
            return
        patience = time.monotonic() + _START_PATIENCE_S
        while not self._over.is_set():  # again and again: a worker that had not come to life yet may do so now
            self._end_workers()
            if time.monotonic() > patience:
                os.kill(os.getpid(), signal.SIGTERM)  # the agent itself is stuck, before any worker lives
                return

    def stop(self) -> None:
        """No more watching."""
        self._over.set()
        if self.is_alive():
            self.join()
        self.pulses = tuple(self.heartbeat.read())

    def _end_workers(self) -> None:
        for number in (signal.SIGUSR1, signal.SIGKILL):  # first let them print where they are
            for pulse in self.heartbeat.read():
                _signal(pulse.pid, number)
            self._over.wait(_STACK_DUMP_S)


def run_workers(run: RunConfig, team: Team, store: TCPStore, logs: Path, started_ns: int) -> Exit:
    """Start all workers of this node and wait for their end. Interrupted or not, none is alive afterwards."""
    for chatty in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(chatty).setLevel(logging.CRITICAL)  # the record says what happened
    # No handlers of the agent's: it would pass Ctrl-C on to workers that ignore it, and wait for them.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "none"
    with tempfile.TemporaryDirectory(prefix="scalebench-") as scratch:
        heartbeat_path = Path(scratch) / "heartbeat"
        heartbeat = Heartbeat(heartbeat_path, run.workers_per_node)
        agent = _elastic_agent(run, team, store, (run, str(logs), str(heartbeat_path)))
        watch = Watch(run, heartbeat, started_ns)
        watch.start()
        try:
            result = agent.run()
        except BaseException:
            for pulse in heartbeat.read():
                _signal(pulse.pid, signal.SIGKILL)  # whom an interrupted agent has left
            if watch.reason:
                return Exit(pulses=tuple(heartbeat.read()), ended_by_watch=watch.reason)
            raise
        finally:
            watch.stop()
    ranks = tuple(worker.global_rank for worker in agent.get_worker_group().workers)
    if not result.is_failed():
        return Exit(ranks=ranks, pulses=watch.pulses)
    rank, failure = next(iter(result.failures.items()))
    return Exit(ranks=ranks, pulses=watch.pulses, rank=rank, code=failure.exitcode, ended_by_watch=watch.reason)


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
        monitor_interval=_POLL_S / 2,
        local_addr=team.address,
    )
    return LocalElasticAgent(spec, DefaultLogsSpecs(), start_method="forkserver", exit_barrier_timeout=WORD_LIMIT_S)


def _work(run: RunConfig, folder: str, heartbeat_path: str) -> None:
    """The workers' entry point. Imported there, not here: the supervisor can do without most of torch."""
    from benchmarks.worker import work

    work(run, folder, heartbeat_path)


def _signal(pid: int, number: signal.Signals) -> None:
    if pid <= 0:
        return
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended
