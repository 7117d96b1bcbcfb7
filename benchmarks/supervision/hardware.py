"""What this machine offers, found without torch."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def count_cores() -> int:
    """CPU cores that this process may use: its affinity, a container's quota (cgroup v2), and what Slurm granted."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(KeyError, ValueError):
        cores = min(cores, int(os.environ["SLURM_CPUS_PER_TASK"]))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def count_gpus() -> int:
    """NVIDIA GPUs that this process may use, by `nvidia-smi` and CUDA_VISIBLE_DEVICES."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    present = sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if visible is None else min(present, len([item for item in visible.split(",") if item]))


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether this CPU has what oneDNN needs to compute with bfloat16 in vectors; None where nobody says.

    On x86 AVX-512 (its byte, word and double-word parts) or AVX-NE-CONVERT; on Arm the extension of this name.
    Elsewhere it is imitated number by number: measured, some hundred times slower than fp32.
    """
    flags: set[str] = set()
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            name, _, words = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = set(words.split())
                break
    if not flags:
        return None
    return bool(flags & {"bf16", "avx_ne_convert"}) or {"avx512bw", "avx512vl", "avx512dq"} <= flags


def counted_here(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """A cluster's facts for runs on this machine: what its file leaves open is counted.

    The file of a cluster with Slurm describes the nodes that jobs get, which this machine need not be.
    """
    here = dict(cluster)
    if here.pop("slurm", None):
        here |= {"device": "auto", "cores_per_node": None, "gpus_per_node": None, "max_nodes": None, "cpu_bf16": None}
        here["node_types"] = {name: {} for name in here.get("node_types") or {}}
    if here["cores_per_node"] is None:
        here["cores_per_node"] = count_cores()
    if here["gpus_per_node"] is None:
        here["gpus_per_node"] = count_gpus()
    if here.get("cpu_bf16") is None:
        here["cpu_bf16"] = has_bf16()
    return here


def count_oom_kills() -> int:
    """How often the kernel has killed a process of this control group for want of memory; 0 where it does not say."""
    for path in _cgroup_files():
        with contextlib.suppress(OSError):
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


def _cgroup_files() -> list[Path]:
    """The files that may hold this process's count of out-of-memory kills, for control groups v2 and v1."""
    files = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files.append(Path(f"/sys/fs/cgroup{path}/memory.events"))
            elif "memory" in controllers.split(","):
                files.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    return files
