"""The files of `conf/sweep/`, the project's and the user's own, read without Hydra."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.core.errors import ConfigError, unknown
from benchmarks.core.sweep import Sweep, read_sweep
from benchmarks.core.variants import conf_folders, names_on


def sweep_named(name: str) -> Sweep:
    """A sweep as its file describes it. Raises ConfigError where there is none, or its file is not sound."""
    if name not in names_on("sweep"):
        raise unknown("sweep", name, names_on("sweep"))
    path = next(path for folder in conf_folders() if (path := folder / "sweep" / f"{name}.yaml").is_file())
    try:
        return read_sweep(msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any]))
    except (msgspec.MsgspecError, ConfigError) as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
