"""An image file: its digest, what is inside, and whether runs can be made in it.

The manifest beside an image, `<image>.json`, is written by who builds it and travels with it. It names the digest
that the file must have, so a truncated copy or another file is found before a sweep and not by strange numbers after.
The digest is computed once for a file; afterwards its size and its time of change stand for it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.record import replace

PACKAGES = ("torch", "torchvision", "numpy", "submitit", "cloudpickle", "hydra-core", "msgspec", "nvidia-nccl-cu13")
PROBE_LIMIT_S = 120

_PROBE = f"""
import importlib.metadata, json, os, platform, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps(dict(python=platform.python_version(), executable=os.path.realpath(sys.executable),
                      versions={{name: version(name) for name in {PACKAGES}}})))
"""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the Python of an image says of itself."""

    python: str
    """Its version, as 3.11.2."""
    executable: str
    """Its path in the image, links followed."""
    versions: dict[str, str | None]
    """Of `PACKAGES`; None where one is not installed."""


class Image(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An image, and at the same time the content of its manifest."""

    schema_version: int = 1
    path: str
    sha256: str
    size_bytes: int
    mtime_ns: int
    facts: Facts | None = None
    """None where nobody has asked yet: an image that was made elsewhere, without a manifest."""
    labels: dict[str, str] = {}
    inputs: str | None = None
    """Hash of all that the image was built from; None for an image that was made elsewhere."""
    build_time_s: float | None = None

    @property
    def thin(self) -> bool:
        """Whether the image has Python alone, and the packages are those of the project's .venv."""
        return self.labels.get("scalebench.packages") == "none"

    def as_json(self) -> bytes:
        """The manifest's text."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def manifest_path(path: Path) -> Path:
    """Where an image's manifest lies."""
    return path.with_name(path.name + ".json")


def open_image(path: str | Path) -> Image:
    """Check an image's file and find its digest, computing it only where the file is not known yet.

    Raises:
        UserError: there is no such file, anybody may write to it, or it is not the file that its manifest describes.
    """
    if "://" in str(path):
        raise UserError(
            f"container image {path}: a file is needed, whose digest goes into each record: pull it to one first"
        )
    path = Path(path).expanduser().absolute()
    status = _status(path)
    manifest = read_manifest(manifest_path(path))
    if manifest is not None and status.st_size != manifest.size_bytes:
        if manifest.inputs is not None:
            raise UserError(
                f"container image {path}: {status.st_size} bytes, but its manifest says {manifest.size_bytes}: "
                "truncated, or another file; copy both again, or `make image`"
            )
        manifest = None  # only a memory of ours, of an image that was made elsewhere: there is a new one now
    for known in (manifest, read_manifest(_cache_path(path))):
        if known is not None and (known.size_bytes, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
            _check_digest(path, known.sha256, manifest)  # the manifest may be younger than what the cache knows
            return msgspec.structs.replace(known, path=str(path))
    sha256 = file_sha256(path)
    _check_digest(path, sha256, manifest)
    if manifest is None or manifest.sha256 != sha256:
        manifest = Image(path=str(path), sha256=sha256, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    image = msgspec.structs.replace(manifest, path=str(path), mtime_ns=status.st_mtime_ns)
    remember(image)
    return image


def verify(image: Image, prefix: Sequence[str], *, repo: Path, ask: bool = False) -> Image:
    """Check before a sweep that runs can be made in this image; returns it with what is known of its inside.

    Args:
        image: what `open_image` has found.
        prefix: the command that runs what follows it inside the image, as `command.prefix` composes it.
        repo: the project's folder; a thin image takes its packages from the .venv there.
        ask: ask the Python inside, even if the manifest answers: with an overlay or a setup line it may be another.

    Raises:
        UserError: the image does not start, or its Python or submitit does not fit this side's.
    """
    if ask or image.facts is None:
        image = msgspec.structs.replace(image, facts=probe(image.path, prefix))
        if not ask:
            remember(image)
    check_python(image, repo)
    return image


def check_python(image: Image, repo: Path) -> None:
    """Raise UserError unless the Python in the image, and what it can import, fits the submitting side."""
    assert image.facts is not None
    name, here, inside = f"container image {image.path}", platform.python_version(), image.facts.python
    if inside.split(".")[:2] != here.split(".")[:2]:
        raise UserError(
            f"{name}: has Python {inside}, but the submitting side has {here}: both need the same minor version"
        )
    if not image.thin:
        if image.facts.versions.get("submitit") is None:
            raise UserError(f"{name}: has no submitit, which starts each run; `make image` builds one that has")
        return
    python = repo / ".venv" / "bin" / "python"
    if os.path.realpath(python) != image.facts.executable:
        raise UserError(
            f"{name}: is thin, so {python} must be made by {image.facts.executable} "
            f"(it is {os.path.realpath(python)}): make .venv anew with PYTHON_FOR_VENV=/usr/bin/python3"
        )


def probe(image: str, prefix: Sequence[str], python: str = "python3") -> Facts:
    """Ask the Python inside an image for its version and its packages'; costs a start of the container.

    Raises:
        UserError: the image does not start, or there is no Python in it.
    """
    command = [*prefix, python, "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=True)
        return msgspec.json.decode(done.stdout.strip().rpartition("\n")[2], type=Facts)
    except subprocess.TimeoutExpired:
        reason = f"no answer in {PROBE_LIMIT_S} s"
    except subprocess.CalledProcessError as error:
        reason = last_line(error.stderr) or f"exit code {error.returncode}"
    except (OSError, msgspec.MsgspecError) as error:
        reason = str(error)
    raise UserError(f"container image {image}: its Python cannot be asked ({reason})")


def last_line(text: str) -> str:
    """The last line that is not empty, without what colours it and without the runtime's own `FATAL:`."""
    lines = [line.strip() for line in text.replace("\x1b[31m", "").replace("\x1b[0m", "").splitlines() if line.strip()]
    return lines[-1].removeprefix("FATAL:").strip() if lines else ""


def read_manifest(path: Path) -> Image | None:
    """A manifest, or None where there is none.

    Raises:
        UserError: it cannot be read, or is of a version that this program does not know.
    """
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Image)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise UserError(f"{path}: not a readable image manifest ({error}); remove it, or copy it again") from error
    if manifest.schema_version != 1:
        raise UserError(f"{path}: schema version {manifest.schema_version}, this program reads version 1")
    return manifest


def remember(image: Image) -> None:
    """Keep what is known of an image beside it, or in the user's cache where that folder is read-only."""
    cached = _cache_path(Path(image.path))
    for place in (manifest_path(Path(image.path)), cached):
        try:
            if place == cached:
                cached.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace(place, image.as_json())
            return
        except OSError:
            continue  # nowhere to write: the digest is then computed again next time


def file_sha256(path: Path) -> str:
    """The digest of a file's content, as sha256sum prints it; about 1 GB/s."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"container image {path}: cannot be read ({error.strerror})") from error


def _status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"container image {path}: {error.strerror}; `make image` builds one") from error
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"container image {path}: not a file; only a file (.sif) has a digest")
    if status.st_mode & stat.S_IWOTH:
        raise UserError(
            f"container image {path}: anybody may change it (mode {stat.S_IMODE(status.st_mode):o}): chmod o-w {path}"
        )
    return status


def _check_digest(path: Path, sha256: str, manifest: Image | None) -> None:
    """Only a build's own manifest says what the digest must be."""
    if manifest is not None and manifest.inputs is not None and sha256 != manifest.sha256:
        raise UserError(
            f"container image {path}: its sha256 is {sha256[:12]}..., but its manifest says {manifest.sha256[:12]}...: "
            "damaged, or another file; copy both again, or `make image`"
        )


def _cache_path(path: Path) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scalebench" / "images"
    return folder / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"
