"""What a number must be read with: versions, devices, commit, job. Environment variables by allow-list only."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "submitit", "msgspec")
_VARIABLES = re.compile(r"(OMP|MKL|KMP|NCCL|GLOO|CUDA|HIP|ROCR|TORCH|PYTORCH|SLURM)_[A-Z0-9_]+")
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|KEY|CREDENTIAL|JWT|HASH")
_SLURM_JOB = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_PARTITION", "SLURM_JOB_NODELIST")


@functools.cache
def host_environment() -> dict[str, Any]:
    """Facts that the supervisor finds without torch. Unknown is None."""
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "cpu": _cpu_model(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "driver": _driver_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "image": os.environ.get("SCALEBENCH_IMAGE"),
        "image_sha256": os.environ.get("SCALEBENCH_IMAGE_SHA256"),
        "image_labels": _image_labels(),
        "container_runtime": os.environ.get("SCALEBENCH_CONTAINER_RUNTIME"),
        "container_runtime_version": os.environ.get("SCALEBENCH_CONTAINER_VERSION"),
        "slurm_job": {name: os.environ[name] for name in _SLURM_JOB if name in os.environ} or None,
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if _VARIABLES.fullmatch(name) and not _SECRET.search(name)
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _image_labels() -> dict[str, str] | None:
    """What the image's builder has written on it; Apptainer and Singularity keep it in this place inside."""
    if "SCALEBENCH_IMAGE" not in os.environ:
        return None
    try:
        labels = json.loads(Path("/.singularity.d/labels.json").read_text())
    except (OSError, ValueError):
        return None
    return {str(name): str(value) for name, value in labels.items() if str(name).startswith("scalebench.")}


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    match = re.search(r"^model name\s*: (.*)$", text, flags=re.MULTILINE)
    return match[1] if match else platform.machine()


def _driver_version() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    match = re.search(r"Kernel Module\D+([\d.]+)", text)
    return match[1] if match else None


def _git(*command: str) -> str | None:
    project = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            ["git", "-C", str(project), *command], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
