"""A command on this machine goes on inside the image that the cluster's file names."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from benchmarks.command_line.composed import quoted
from benchmarks.core.config import RunConfig
from containers.inside import inside, is_inside, read_container


def go_inside(cfg: DictConfig, runs: Sequence[RunConfig]) -> None:
    """Replace this process by the same command inside the image; returns where there is none, or in it already.

    Raises:
        UserError: runs cannot be made in that image.
    """
    cluster = OmegaConf.to_container(cfg.cluster, resolve=True)
    assert isinstance(cluster, dict)
    container = read_container({str(key): value for key, value in cluster.items()})
    if container is None or is_inside():
        return
    results = Path(cfg.results).resolve()
    box = inside(container, results, runs).verified()
    words = box.words(gpus=any(run.device == "cuda" for run in runs))
    # The runtime starts in the project's folder, wherever this command was typed.
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("results=")]
    command = [*words, box.interpreter(), "-m", "benchmarks.run", *arguments, f"results={quoted(str(results))}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execvp(command[0], command)
