"""Workers bound to cores of their own, so that the kernel does not move them and no two share a core.

What Linux says of the machine is read from /sys; torch is not needed. Only cores that the process may use are given
out, so what Slurm or a container has granted stays granted.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from benchmarks.core.errors import ImpossibleRunError

SYS = Path("/sys")


def pin_worker(local_rank: int, local_workers: int, threads: int, near: Sequence[Collection[int]] = ()) -> list[int]:
    """Bind the calling thread, and all that it starts from now on, to `threads` cores of its own; returns these.

    To be called before the process has made threads for its computations. All workers of a node come to the same
    division by themselves: each gets the next `threads` cores by its local rank. `near` are the cores near each
    worker's GPU, by local rank.

    Raises:
        ImpossibleRunError: there are too few cores that this process may use.
    """
    allowed = os.sched_getaffinity(0)
    if local_workers * threads > len(allowed):
        raise ImpossibleRunError(
            f"pin_cores=True: {local_workers} workers of {threads} threads each need {local_workers * threads} cores "
            f"of this node, and {len(allowed)} may be used"
        )
    order = physical_first(sorted(allowed), siblings(SYS), numa_nodes(SYS))
    cores = blocks(order, local_workers, threads, near)[local_rank]
    os.sched_setaffinity(0, cores)
    return cores


def blocks(order: Sequence[int], workers: int, threads: int, near: Sequence[Collection[int]] = ()) -> list[list[int]]:
    """Each worker's cores, `threads` of them, as `order` has them: near ones first, then whatever is left.

    No core is given twice; `order` must have `workers` x `threads` of them.
    """
    free = list(order)
    given = []
    for worker in range(workers):
        wanted = near[worker] if worker < len(near) else ()
        mine = sorted(free, key=lambda core: core not in wanted)[:threads]  # stable: else in the order they have
        free = [core for core in free if core not in mine]
        given.append(sorted(mine))
    return given


def physical_first(cores: Sequence[int], sharing: Sequence[tuple[int, ...]], node_of: Mapping[int, int]) -> list[int]:
    """One hardware thread of each physical core, then their second ones, and so on; each time node by node of memory.

    `sharing` has the hardware threads of each physical core, `node_of` the NUMA node of each. A physical core's first
    thread is the first of it that may be used. Of cores that nothing is known of, each is a physical one, on node 0.
    """
    index_of = {
        core: index for threads in sharing for index, core in enumerate(core for core in threads if core in cores)
    }
    return sorted(cores, key=lambda core: (index_of.get(core, 0), node_of.get(core, 0), core))


def siblings(sys: Path) -> list[tuple[int, ...]]:
    """The hardware threads of each physical core, by the kernel's numbers; empty where it does not say."""
    lists = set()
    for path in sys.glob("devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list"):
        with contextlib.suppress(OSError, ValueError):
            lists.add(tuple(core_numbers(path.read_text())))
    return sorted(lists)


def numa_nodes(sys: Path) -> dict[int, int]:
    """The NUMA node of each core; empty where the kernel does not say."""
    nodes: dict[int, int] = {}
    for path in sys.glob("devices/system/node/node[0-9]*/cpulist"):
        with contextlib.suppress(OSError, ValueError):
            node = int(path.parent.name.removeprefix("node"))
            nodes |= dict.fromkeys(core_numbers(path.read_text()), node)
    return nodes


def pci_address(domain: int, bus: int, device: int) -> str:
    """A PCI device's name in the kernel, such as "0000:17:00.0"."""
    return f"{domain:04x}:{bus:02x}:{device:02x}.0"


def near_device(address: str, sys: Path = SYS) -> list[int]:
    """The cores near a PCI device, by its `pci_address`; empty where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError):
        return core_numbers((sys / "bus/pci/devices" / address / "local_cpulist").read_text())
    return []


def core_numbers(listed: str) -> list[int]:
    """The kernel's way to list cores, "0-3,8,10-11", as numbers. Raises ValueError for other texts."""
    numbers: list[int] = []
    for part in listed.strip().split(","):
        first, _, last = part.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
