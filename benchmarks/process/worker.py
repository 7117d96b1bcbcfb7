"""The process boundary: one worker, forked by the supervisor, that measures and leaves its result in a file.

It answers for being a good child: it dies when its parent dies, says where it is, and turns every exception into a
typed failure.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

# torch imports it at an optimiser's first step, which takes seconds: here it is paid once, before the fork
import torch._dynamo
import torch.distributed as dist

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import UserError
from benchmarks.core.record import Status, finite
from benchmarks.data import DataError
from benchmarks.meters import Meter, open_meter
from benchmarks.process.heartbeat import Heartbeat
from benchmarks.process.partial import ResultFile, SoFar, block_request
from benchmarks.process.pinning import near_device, pci_address, pin_worker
from benchmarks.strategy import Place, strategies
from benchmarks.supervision.merge import CANNOT_WRITE, Failure, RankResult, log_path, result_path
from benchmarks.train import Measured, Report, measure

_PR_SET_PDEATHSIG = 1
_GRACE_S = 1.0

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
_LOST_PEER = ("gloo", "connection closed by peer", "connection reset", "broken pipe", "nccl", "timed out")


def work(run: RunConfig, folder: str, heartbeat_path: str) -> None:
    """A worker's whole life. Its place among the workers comes from the agent's environment variables."""
    _be_a_good_child()
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    _redirect_output(log_path(Path(folder), rank))
    heartbeat = Heartbeat(Path(heartbeat_path), int(os.environ["LOCAL_WORLD_SIZE"]))
    result = RankResult(
        rank=rank, host=socket.gethostname(), device=run.device, threads=run.threads_per_worker, phases=[]
    )

    def enter(phase: str) -> None:
        result.phases.append((phase, time.monotonic_ns()))
        heartbeat.enter(local_rank, phase, run.steps or 0)

    def beat(step: int, steps: int) -> None:
        heartbeat.beat(local_rank, step, steps)

    so_far = SoFar()
    file = ResultFile(result_path(Path(folder), rank), result, so_far, lambda: heartbeat.leave(local_rank))
    file.leave_when_asked()
    failure: Failure | None = None
    try:
        enter("rendezvous")
        if run.pin_cores:
            result.cores = _pin(run, local_rank)
        place = _take_place(run, rank, local_rank)
        _describe(result, place)
        meter = _meter(result, place, local_rank)
        strategy = strategies.make(run.strategy, place)
        if strategy.communicates:
            _join_group(run, place)
        report = Report(phase=enter, beat=beat, meter=meter, so_far=so_far, folder=Path(folder).parent)
        measured = measure(run, place, strategy, report)
        _fill(result, measured)
        strategy.close()
        if strategy.communicates:
            dist.destroy_process_group()
    except Exception as error:  # noqa: BLE001 - whatever it was becomes a failed record
        traceback.print_exc()
        failure = _classify(error, result.phases[-1][0])
    try:
        file.leave(failure)
    except OSError:
        os._exit(CANNOT_WRITE)  # a full disk takes no log line either
    if failure:
        _fail(failure)


def _be_a_good_child() -> None:
    block_request()
    # No orphans, even if the fork server or the supervisor is killed.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_outlive_no_supervisor, daemon=True, name="outlive-no-supervisor").start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the supervisor decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _outlive_no_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    if supervisor is not None:
        supervisor.join()  # sleeps on a pipe that the supervisor's end closes
        os.kill(os.getpid(), signal.SIGKILL)


def _redirect_output(path: Path) -> None:
    """Standard output and error go to the worker's log, those of C libraries too; SIGUSR1 prints all stacks there."""
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def _pin(run: RunConfig, local_rank: int) -> list[int]:
    """Bind this worker to cores of its own, before it has any thread that computes; returns what the kernel made of it.

    Workers with GPUs get cores near these; the local rank is the device's index, as below.
    """
    gpus = min(torch.cuda.device_count(), run.workers_per_node) if run.device == "cuda" else 0
    near = [near_device(_address(index)) for index in range(gpus)]
    pin_worker(local_rank, run.workers_per_node, run.threads_per_worker, near)
    return sorted(os.sched_getaffinity(0))


def _address(index: int) -> str:
    gpu: Any = torch.cuda.get_device_properties(index)
    return pci_address(gpu.pci_domain_id, gpu.pci_bus_id, gpu.pci_device_id)


def _meter(result: RankResult, place: Place, local_rank: int) -> Meter:
    """What counts this worker's energy; made before the device has anything to do, for its idle power."""
    gpu = _address(place.device.index) if place.device.type == "cuda" else None
    return open_meter(result.rank, result.host, gpu, reads_host=local_rank == 0)


def _take_place(run: RunConfig, rank: int, local_rank: int) -> Place:
    torch.set_num_threads(run.threads_per_worker)
    if run.device == "cpu":
        return Place(rank=rank, workers=run.workers, nodes=run.nodes, device=torch.device("cpu"))
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"workers={run.workers}: more than the {torch.cuda.device_count()} GPUs here; each worker needs its own"
        )
    torch.cuda.set_device(local_rank)
    return Place(rank=rank, workers=run.workers, nodes=run.nodes, device=torch.device("cuda", local_rank))


def _join_group(run: RunConfig, place: Place) -> None:
    if run.workers == int(os.environ["LOCAL_WORLD_SIZE"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one node: its own name need not resolve
    dist.init_process_group(
        "nccl" if place.device.type == "cuda" else "gloo",
        rank=place.rank,
        world_size=place.workers,
        timeout=timedelta(seconds=run.run_limit_s),
        device_id=place.device if place.device.type == "cuda" else None,
    )
    dist.barrier()


def _fill(result: RankResult, measured: Measured) -> None:
    result.clock = measured.clock
    result.spans = measured.spans
    result.samples = measured.samples
    result.losses = [finite(loss) for loss in measured.losses]
    result.evaluations = measured.evaluations
    result.checks = measured.checks
    result.communication = measured.communication
    result.model = measured.model
    result.data = measured.data
    result.strategy_facts = measured.strategy_facts
    result.stopped_after_epochs = measured.stopped_after_epochs
    result.profile = measured.profile
    result.ceilings = measured.ceilings
    result.energy = measured.energy
    result.peak_host_bytes = measured.memory.host_bytes
    result.peak_device_bytes = measured.memory.device_bytes
    result.loaded_bytes_per_step = measured.loaded_bytes_per_step


def _describe(result: RankResult, place: Place) -> None:
    """What is known before anything is measured, and must be there if nothing ever is."""
    result.device = torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "cpu"
    result.environment = _torch_environment(place)


def _torch_environment(place: Place) -> dict[str, Any]:
    on_gpu = place.device.type == "cuda"
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None,
        "device": torch.cuda.get_device_name(place.device) if on_gpu else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _classify(error: Exception, phase: str) -> Failure:
    """Which of the typed states an exception stands for."""
    text = str(error)
    lowered = text.lower()
    status: Status = "error"
    if isinstance(error, DataError):
        status = "error"  # the files may be there next time
    elif isinstance(error, UserError):
        status = "invalid"
    elif isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in lowered for words in _OUT_OF_MEMORY):
        status = "oom"
    elif isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in lowered for words in _LOST_PEER)
    ):
        status = "comm_error"
    message = text.splitlines()[0] if text else type(error).__name__
    return Failure(status=status, phase=phase, kind=type(error).__name__, message=message)


def _fail(failure: Failure) -> None:
    if failure.status == "comm_error":
        # This worker lost a peer. Let the agent notice the peer's death first: that is the cause, this its echo.
        time.sleep(_GRACE_S)
    sys.stderr.flush()
    os._exit(1)  # not through the interpreter's end, where a broken process group can hang
