"""What an image is built on, and all that it is built from: pure functions of words and files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.core.errors import ConfigError, UserError

PROJECT = Path(__file__).resolve().parent.parent
DEFINITION = PROJECT / "containers" / "scalebench.def"
LOCK = PROJECT / "requirements.lock"

# Whose /usr/bin/python3 is of which minor version; and the pinned public images for the same.
_DEBIAN = {"3.11": "bookworm", "3.13": "trixie"}
_DOCKER = {
    "3.11": "python:3.11.10-slim-bookworm",
    "3.12": "python:3.12.7-slim-bookworm",
    "3.13": "python:3.13.0-slim-bookworm",
}
_ALLOWED = "auto, debian, thin, docker, docker://NAME:TAG[@sha256:DIGEST]"


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base with everything that the definition must be told of it."""

    bootstrap: Literal["debootstrap", "docker"]
    image: str = "none"
    """With docker: name and tag, and the digest where one is given."""
    suite: str = "none"
    """With debootstrap: Debian's release."""
    packages: Literal["lock", "none"] = "lock"
    """What is installed: all of requirements.lock; or nothing, for an image that uses the project's own .venv."""

    @property
    def title(self) -> str:
        """For people."""
        return f"docker://{self.image}" if self.bootstrap == "docker" else f"Debian {self.suite}"

    @property
    def temporary_bytes(self) -> int:
        """Disk space that the build needs besides the image's, generously; measured: 9.5 GB, 0.4 GB."""
        return 11_000_000_000 if self.packages == "lock" else 1_000_000_000

    @property
    def image_bytes(self) -> int:
        """Disk space that the image needs, generously; measured: 3.4 GB, 0.1 GB."""
        return 4_000_000_000 if self.packages == "lock" else 200_000_000


def find_base(wanted: str, python: str) -> Base:
    """The base for `make image BASE=...` that has the Python of this minor version, as 3.11.

    Raises:
        ConfigError: no such base, or none with this Python.
    """
    if wanted == "auto":  # Debian's own tools reach a Debian mirror, which is more than many machines reach
        wanted = "debian" if python in _DEBIAN and shutil.which("debootstrap") and debian_mirror() else "docker"
    if wanted.startswith("docker://"):
        return Base(bootstrap="docker", image=wanted.removeprefix("docker://"))
    if wanted == "docker" and python in _DOCKER:
        return Base(bootstrap="docker", image=_DOCKER[python])
    if wanted in ("debian", "thin") and python in _DEBIAN:
        return Base(bootstrap="debootstrap", suite=_DEBIAN[python], packages="none" if wanted == "thin" else "lock")
    if wanted in ("docker", "debian", "thin"):
        has = ", ".join(_DOCKER if wanted == "docker" else _DEBIAN)
        raise ConfigError(f"BASE={wanted}: no Python {python}, which the submitting side has; it is there for {has}")
    raise ConfigError(f"BASE={wanted}: not known; allowed: {_ALLOWED}")


def inputs_hash(base: Base) -> str:
    """A hash of all that an image is made from, but for the Debian packages that the mirror has at the time."""
    files = (DEFINITION, LOCK, PROJECT / "containers" / "selftest.py")
    content = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return hashlib.sha256(json.dumps([content, msgspec.to_builtins(base)]).encode()).hexdigest()


def debian_mirror() -> str | None:
    """The archive that this machine's own apt uses; None where there is no apt, or none of Debian itself."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Label: Debian"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.split()), None)


def commit() -> str:
    """Of the project, with `-dirty` where files are changed; `unknown` outside a clone."""
    command = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def build_arguments(base: Base, date: str) -> dict[str, str]:
    """What the definition's `{{ NAME }}` are replaced by.

    Raises:
        UserError: a Debian base on a machine without a Debian mirror.
    """
    mirror = "none"
    if base.bootstrap == "debootstrap":
        mirror = os.environ.get("MIRROR") or debian_mirror() or ""
        if not mirror:
            raise UserError(
                "BASE=debian: this machine's apt names no Debian mirror: set MIRROR=http://..., or BASE=docker"
            )
    return {
        "BOOTSTRAP": base.bootstrap,
        "FROM": base.image,
        "SUITE": base.suite,
        "MIRROR": mirror,
        "PACKAGES": base.packages,
        "COMMIT": commit(),
        "LOCK_SHA256": hashlib.sha256(LOCK.read_bytes()).hexdigest(),
        "INPUTS": inputs_hash(base),
        "DATE": date,
    }
