"""From a cluster's file to the command that makes runs inside its image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.core.cluster import mapping_at
from benchmarks.core.config import RunConfig, one_line
from benchmarks.core.errors import ConfigError, UserError, unknown
from benchmarks.core.variants import extra_folder
from containers.command import RUNTIMES, Container, Folders, find_runtime, prefix, python, python_string
from containers.image import Image, open_image, verify

REPO = Path(__file__).resolve().parent.parent
NONE, AUTO = "none", "auto"
BUILT = REPO / "images" / "scalebench.sif"
"""Where `make image` leaves it."""
_UNSET = "???"
_UNKNOWN = "(unknown: the image is not here)"


def read_container(cluster: Mapping[str, Any]) -> Container | None:
    """The `container` section of a composed cluster file; None where runs are made without one.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, or one that the user must set and has not.
    """
    values = mapping_at("cluster.container", cluster.get("container") or {})
    for key, value in values.items():
        if key not in Container.__struct_fields__:
            raise unknown("key of cluster.container", key, Container.__struct_fields__)
        if value == _UNSET:
            raise ConfigError(
                f"cluster.container.{key}: must be set for cluster={cluster.get('name')}; with "
                f'ARGS="cluster.container.{key}=...", or in its file' + "; none runs without" * (key == "image")
            )
    try:
        container = msgspec.convert(values, Container)
    except msgspec.ValidationError as error:
        raise one_line(error, values, prefix="cluster.container.") from error
    if container.image == AUTO:
        container = msgspec.structs.replace(container, image=str(BUILT) if BUILT.exists() else NONE)
    return None if container.image == NONE else container


class Inside(msgspec.Struct, frozen=True, kw_only=True):
    """An image, the program that starts it, and what runs see of the host."""

    container: Container
    runtime: str
    image: Image
    folders: Folders
    problem: str | None = None
    """Why no run could be made here now; a plan is made all the same."""

    def words(self, gpus: bool) -> list[str]:
        """The words before a command that make it run inside; `gpus`: whether the shape has any."""
        return prefix(self.container, runtime=self.runtime, image=self.image, folders=self.folders, gpus=gpus)

    def interpreter(self) -> str:
        """The Python inside."""
        return python(self.container, image=self.image, repo=REPO)

    def python(self, gpus: bool) -> str:
        """What submitit takes as `python`."""
        return python_string(self.words(gpus), self.interpreter())

    def verified(self) -> Inside:
        """With what is known of the image's inside.

        Raises:
            UserError: runs cannot be made in it.
        """
        if self.problem:
            raise UserError(self.problem)
        asked = bool(self.container.overlay or self.container.setup)
        return msgspec.structs.replace(self, image=verify(self.image, self.words(False), repo=REPO, ask=asked))


def inside(container: Container, results: Path, runs: Iterable[RunConfig]) -> Inside:
    """What is needed to make these runs inside an image. What is missing here is noted, and refused by `verified`."""
    folders = Folders(repo=REPO, results=results.resolve(), others=_others(runs))
    runtime, problem = container.runtime if container.runtime != "auto" else RUNTIMES[0], None
    image = Image(path=str(Path(container.image).expanduser().absolute()), sha256=_UNKNOWN, size_bytes=0, mtime_ns=0)
    try:
        image = open_image(container.image)
        runtime = find_runtime(container.runtime)
    except UserError as error:
        problem = str(error)
    return Inside(container=container, runtime=runtime, image=image, folders=folders, problem=problem)


def _others(runs: Iterable[RunConfig]) -> tuple[Path, ...]:
    """Folders of data and of the user's own variants."""
    roots = {root for run in runs if isinstance(root := run.data.options.get("root"), str)}
    extra = extra_folder()
    return tuple(Path(root).resolve() for root in sorted(roots)) + ((extra,) if extra else ())


def is_inside() -> bool:
    """Whether this process runs in an image that this project has started."""
    return "SCALEBENCH_IMAGE" in os.environ
