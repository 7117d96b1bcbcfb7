"""Workers on cores of their own: real affinity masks, and the division on machines that are not here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from benchmarks.core.errors import ConfigError, ImpossibleRunError
from benchmarks.process import pinning
from benchmarks.process.pinning import (
    blocks,
    core_numbers,
    near_device,
    numa_nodes,
    pci_address,
    physical_first,
    pin_worker,
    siblings,
)
from benchmarks.supervision.supervisor import supervise
from tests.conftest import MakeRun

Made = TypeVar("Made")
CORES = sorted(os.sched_getaffinity(0))
two_cores = pytest.mark.skipif(len(CORES) < 2, reason="only one core may be used here")


def in_a_thread(work: Callable[[], Made]) -> Made:
    """What it returns, or raises, in a thread of its own: an affinity mask is a thread's, and ends with it."""
    made: list[Made] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            made.append(work())
        except Exception as error:  # noqa: BLE001 - raised again
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


def machine(folder: Path, *, sharing: list[str], nodes: Sequence[str] = ()) -> Path:
    """A faked /sys: the hardware threads of each physical core, the cores of each NUMA node, in the kernel's lists."""
    for listed in sharing:
        for core in core_numbers(listed):
            topology = folder / f"devices/system/cpu/cpu{core}/topology"
            topology.mkdir(parents=True)
            (topology / "thread_siblings_list").write_text(f"{listed}\n")
    for number, listed in enumerate(nodes):
        node = folder / f"devices/system/node/node{number}"
        node.mkdir(parents=True)
        (node / "cpulist").write_text(f"{listed}\n")
    return folder


def order_on(sys: Path, cores: list[int]) -> list[int]:
    return physical_first(cores, siblings(sys), numa_nodes(sys))


@two_cores
def test_each_worker_is_bound_to_a_core_of_its_own_and_so_are_its_threads() -> None:
    def pinned(rank: int) -> tuple[list[int], list[int], list[int]]:
        cores = pin_worker(rank, 2, 1)
        return cores, sorted(os.sched_getaffinity(0)), in_a_thread(lambda: sorted(os.sched_getaffinity(0)))

    masks = [in_a_thread(lambda rank=rank: pinned(rank)) for rank in (0, 1)]  # type: ignore[misc]
    for asked, own, child in masks:
        assert asked == own == child
        assert len(own) == 1
    assert masks[0][0] != masks[1][0]
    assert sorted(os.sched_getaffinity(0)) == CORES, "no other thread of the process is bound"


@two_cores
def test_what_was_not_granted_is_not_taken() -> None:
    """As Slurm, or a container, has bound the process to one core."""

    def bound(workers: int) -> list[int]:
        os.sched_setaffinity(0, CORES[-1:])
        return pin_worker(0, workers, 1)

    assert in_a_thread(lambda: bound(1)) == CORES[-1:]
    with pytest.raises(ImpossibleRunError, match="2 workers of 1 threads each need 2 cores of this node, and 1 may be"):
        in_a_thread(lambda: bound(2))


def test_pinned_on_a_machine_with_two_threads_on_each_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel is asked for, on a machine of which this process may use a part."""
    asked: list[list[int]] = []
    monkeypatch.setattr(pinning, "SYS", machine(tmp_path, sharing=["0,4", "1,5", "2,6", "3,7"]))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _thread: {1, 2, 3, 5, 6, 7})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _thread, cores: asked.append(cores))
    pinned = [pin_worker(rank, 3, 2) for rank in range(3)]
    assert pinned == asked == [[1, 2], [3, 5], [6, 7]]


@pytest.mark.parametrize(
    ("sharing", "nodes", "cores", "order"),
    [
        (["0,4", "1,5", "2,6", "3,7"], [], range(8), [0, 1, 2, 3, 4, 5, 6, 7]),
        (["0-1", "2-3", "4-5"], [], range(6), [0, 2, 4, 1, 3, 5]),
        (["0-1", "2-3", "4-5"], [], [1, 2, 3, 5], [1, 2, 5, 3]),
        (["0", "1", "2", "3"], ["0,2", "1,3"], range(4), [0, 2, 1, 3]),
        (["0,4", "1,5", "2,6", "3,7"], ["0,2,4,6", "1,3,5,7"], range(8), [0, 2, 1, 3, 4, 6, 5, 7]),
        ([], [], [3, 1, 2], [1, 2, 3]),
    ],
)
def test_physical_cores_come_first_node_by_node(
    tmp_path: Path, sharing: list[str], nodes: list[str], cores: Any, order: list[int]
) -> None:
    assert order_on(machine(tmp_path, sharing=sharing, nodes=nodes), list(cores)) == order


def test_blocks_follow_the_order() -> None:
    assert blocks([0, 2, 4, 1, 3, 5], 2, 2) == [[0, 2], [1, 4]]
    assert blocks([0, 2, 4, 1, 3, 5], 3, 2) == [[0, 2], [1, 4], [3, 5]]
    assert blocks([7, 5], 1, 1) == [[7]]


def test_gpu_workers_get_cores_near_their_gpu_and_none_twice() -> None:
    near = [[4, 5, 6, 7], [4, 5, 6, 7], [0, 1, 2, 3], []]
    assert blocks(range(8), 4, 2, near) == [[4, 5], [6, 7], [0, 1], [2, 3]]
    assert blocks(range(8), 2, 3, near) == [[4, 5, 6], [0, 1, 7]], "one near core is left for the second"


def test_the_kernel_says_which_cores_are_near_a_gpu(tmp_path: Path) -> None:
    device = tmp_path / "bus/pci/devices/0000:1b:00.0"
    device.mkdir(parents=True)
    (device / "local_cpulist").write_text("0-3,8-9\n")
    assert near_device(pci_address(0, 0x1B, 0), tmp_path) == [0, 1, 2, 3, 8, 9]
    assert near_device("0000:1c:00.0", tmp_path) == []
    (device / "local_cpulist").write_text("\n")
    assert near_device("0000:1b:00.0", tmp_path) == []


def test_lists_of_cores() -> None:
    assert core_numbers("0-3,8,10-11\n") == [0, 1, 2, 3, 8, 10, 11]
    assert core_numbers("5") == [5]


def test_threads_for_which_there_are_no_cores_are_refused(make_run: MakeRun) -> None:
    """The test machine has two cores."""
    assert make_run(workers=2, pin_cores=True).pin_cores
    for settings in ({"workers": 3}, {"workers": 2, "threads_per_worker": 2}):
        with pytest.raises(ConfigError, match=r"pin_cores=True needs .*: each worker is bound to as many cores"):
            make_run(pin_cores=True, **settings)
    with pytest.raises(ConfigError, match="a server is started by a worker, and would share that worker's cores"):
        make_run(pin_cores=True, strategy="parameter_server")


@two_cores
def test_the_record_says_which_cores(make_run: MakeRun, tmp_path: Path) -> None:
    """Two workers: one core each, as the kernel tells them, none in common; and none where nobody asked."""
    pinned = supervise(make_run(workers=2, pin_cores=True), tmp_path / "pinned")
    assert pinned is not None
    assert pinned.status == "ok", pinned.reason
    first, second = (rank.cores for rank in pinned.ranks)
    assert first is not None
    assert second is not None
    assert len(first) == len(second) == 1
    assert first != second
    assert {*first, *second} <= {*CORES}
    free = supervise(make_run(strategy="single"), tmp_path / "free")
    assert free is not None
    assert [rank.cores for rank in free.ranks] == [None]
