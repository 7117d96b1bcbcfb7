"""What a container costs, for the image that `make image` has made. Part of `make bench`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.core.errors import UserError
from containers.command import Container, Folders, find_runtime, prefix, python
from containers.image import open_image, verify
from containers.inside import BUILT, REPO

PAIRS = 5

Row = tuple[str, str, str, str]


def bench_image() -> list[Row]:
    """Size, build time, and start-up against the bare one; one row that says why where there is no image."""
    try:
        container = Container(image=str(BUILT))
        image, runtime = open_image(BUILT), find_runtime()
        folders = Folders(repo=REPO, results=Path.home())
        words = prefix(container, runtime=runtime, image=image, folders=folders, gpus=False)
        image = verify(image, words, repo=REPO)
    except UserError as error:
        return [("the image", f"skipped: {error}", "", "")]
    inside = [*words, python(container, image=image, repo=REPO)]
    pairs = [(_seconds([*inside, *_IMPORT]), _seconds([sys.executable, *_IMPORT])) for _ in range(PAIRS)]
    ratio = statistics.median(one / other for one, other in pairs)
    start_s = statistics.median(_seconds([*words, "true"]) for _ in range(PAIRS))
    built = f", built in {image.build_time_s:.0f} s" if image.build_time_s else ""
    return [
        ("the image", f"{image.size_bytes / 1e6:,.0f} MB{built}", "", ""),
        ("a container's start", f"{start_s:.2f} s", "", ""),
        ("import torch, image / bare", f"{ratio:.2f}", "<= 2", "reached" if ratio <= 2 else "missed"),
    ]


_IMPORT = ("-c", "import torch")


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=REPO, check=True, capture_output=True)
    return time.perf_counter() - started
