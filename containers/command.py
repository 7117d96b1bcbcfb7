"""The command that runs another one inside an image: for Apptainer or Singularity, whichever a site has.

Pure functions of their arguments, but for `find_runtime`, which looks at PATH. What they return is a list of words;
`python_string` makes of it the one text that submitit wants.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from benchmarks.core.errors import ConfigError, UserError
from containers.image import Image

RUNTIMES = ("apptainer", "singularity")
_GPU_OPTIONS = {"none": [], "nvidia": ["--nv"], "amd": ["--rocm"]}


class Container(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a cluster's file says about containers."""

    image: str = "none"
    """The image's file; `auto`: the one that `make image` has made, if it has; `none`: runs are made without one."""
    runtime: Literal["auto", "apptainer", "singularity"] = "auto"
    gpu: Literal["nvidia", "amd"] = "nvidia"
    """Whose libraries of the host come in where a shape has GPUs."""
    binds: list[str] = []
    """More folders: `source`, `source:target` or `source:target:ro`."""
    overlay: str | None = None
    """A file system laid over the image, as at NYU; read-only, since many jobs share it, unless it ends in `:rw`."""
    setup: str | None = None
    """A line for the shell inside, before Python starts, as `source /ext3/env.sh`."""
    environment: list[str] = []
    """More variables of the host to let in, by name or by pattern; see `containers/run.sh`."""
    python: str | None = None
    """Python inside; null: that of the image, or the .venv's with a thin image."""


class Folders(msgspec.Struct, frozen=True, kw_only=True):
    """What runs see of the host besides the home folder and /tmp; each at its own path."""

    repo: Path
    """Read-only."""
    results: Path
    """May lie inside the repo."""
    others: tuple[Path, ...] = ()
    """Data, scratch, and whatever else the runs write to or read."""


def find_runtime(wanted: str = "auto") -> str:
    """The program's path.

    Raises:
        UserError: it is not on PATH.
    """
    for name in RUNTIMES if wanted == "auto" else (wanted,):
        if path := shutil.which(name):
            return path
    missing = "neither apptainer nor singularity is" if wanted == "auto" else f"{wanted} is not"
    raise UserError(
        f"container: {missing} on PATH: load its module, install it (containers/install-apptainer.sh on Debian), "
        "or set container.image=none"
    )


def prefix(container: Container, *, runtime: str, image: Image, folders: Folders, gpus: bool) -> list[str]:
    """The words before `python ...` that make it run inside the image.

    Args:
        container: what the cluster's file says; not for `image: none`, which needs no prefix.
        runtime: the program's path; the nodes may have it elsewhere, so a bare name is as good.
        image: the verified image.
        folders: what to bind.
        gpus: whether the shape has GPUs.

    Raises:
        ConfigError: a bind or an overlay that no runtime could be told.
    """
    repo = _plain("container: the project's folder", folders.repo)
    words = ["env", *(f"{name}={value}" for name, value in provenance(runtime, image).items())]
    words += ["bash", f"{repo}/containers/run.sh"]
    for name in container.environment:
        words += ["--allow", name]
    words += [runtime, "--quiet", "exec", "--cleanenv", *_GPU_OPTIONS[container.gpu if gpus else "none"]]
    for bind in _binds(container.binds, folders):
        words += ["--bind", bind]
    if container.overlay:
        words += ["--overlay", _overlay(container.overlay)]
    words += ["--pwd", repo, _plain("container.image", image.path)]
    if container.setup:
        # A line of its own: whatever it ends in, a comment or a `;`, what follows stays a command.
        words += ["/bin/bash", "-c", f'{container.setup}\nexec "$0" "$@"']
    return words


def python(container: Container, *, image: Image, repo: Path) -> str:
    """The Python to run behind the prefix."""
    return container.python or (str(repo / ".venv" / "bin" / "python") if image.thin else "python")


def python_string(words: Sequence[str], interpreter: str) -> str:
    """What submitit takes as `python`: a text for the shell of the batch script, as many words as there are."""
    return shlex.join([*words, interpreter])


def provenance(runtime: str, image: Image) -> dict[str, str]:
    """Variables that tell the runs inside what to write into their records."""
    return {
        "SCALEBENCH_IMAGE": image.path,
        "SCALEBENCH_IMAGE_SHA256": image.sha256,
        "SCALEBENCH_CONTAINER_RUNTIME": Path(runtime).name,
    }


def _binds(more: Iterable[str], folders: Folders) -> list[str]:
    """In the order in which they are mounted: what lies inside the repo comes after it."""
    repo = _plain("container: the project's folder", folders.repo)
    own = [_plain("container: a folder to bind", folder) for folder in (folders.results, *folders.others)]
    for bind in more:
        source, *target = bind.split(":")
        if not source.startswith("/") or "," in bind or len(target) > 2 or target[1:] not in ([], ["ro"], ["rw"]):
            raise ConfigError(
                f"container.binds={bind}: write /source, /source:/target or /source:/target:ro, without commas"
            )
    return [f"{repo}:{repo}:ro", *dict.fromkeys(own), *more]


def _overlay(overlay: str) -> str:
    path, _, mode = overlay.partition(":")
    if mode not in ("", "ro", "rw") or not path.startswith("/"):
        raise ConfigError(f"container.overlay={overlay}: write /path or /path:ro, or /path:rw for one job alone")
    return path if mode == "rw" else f"{path}:ro"


def _plain(what: str, path: str | Path) -> str:
    """The path, if the runtimes can be told it: in their options a comma and a colon have a meaning."""
    text = str(path)
    if not text.startswith("/") or "," in text or ":" in text:
        raise ConfigError(f"{what} {text}: containers need an absolute path without colons and commas")
    return text
