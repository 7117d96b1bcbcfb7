"""From what Hydra composed to the plain mapping that `RunConfig.from_mapping` wants."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import DictConfig, OmegaConf

from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ConfigError, UserError
from benchmarks.core.sweep import PlannedRun, Sweep, at_size, read_sweep
from benchmarks.supervision.hardware import counted_here

# Keys of the composed configuration that say how to run, not what; RunConfig does not know them.
CONTROL_KEYS = (
    *("results", "plan", "wait", "budget_worker_hours", "max_attempts", "sweep", "size"),
    *("target_ci", "max_repeats"),
)


def sweep_of(cfg: DictConfig, typed: Mapping[str, Any] | None = None) -> Sweep:
    """The chosen sweep in the chosen size.

    `typed` are the command line's own keys of the sweep, such as `repeats`: they count more than the size's.

    Raises:
        ConfigError: the sweep's file is not sound, or has no such size.
    """
    definition = OmegaConf.to_container(cfg.sweep, resolve=True)
    assert isinstance(definition, dict)
    sized = at_size(read_sweep({str(key): value for key, value in definition.items()}), str(cfg.size))
    if not typed:
        return sized
    again = OmegaConf.create(msgspec.to_builtins(sized))
    for key, value in typed.items():
        OmegaConf.update(again, key, value)
    mapping = OmegaConf.to_container(again)
    assert isinstance(mapping, dict)
    return read_sweep({str(key): value for key, value in mapping.items()})


def run_mapping(cfg: DictConfig, sweep: str, here: bool = True) -> dict[str, Any]:
    """The keys of a run; for runs on this machine, its facts filled in."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    if plain.pop("batch") is not None:
        raise ConfigError("batch: an axis of sweeps only; give a single run batch_per_worker or global_batch")
    mapping = {str(key): value for key, value in plain.items() if key not in CONTROL_KEYS and key != "hydra"}
    for variant in mapping.values():
        if isinstance(variant, dict):
            variant.pop("needs", None)  # rules of the axis's entry, not options
    if here:
        mapping["cluster"] = counted_here(mapping["cluster"])
    return {**mapping, "sweep": sweep}


def check_data_folder(run: RunConfig) -> None:
    """Before anything starts on this machine: the data set's folder is there, or may be fetched.

    Raises:
        UserError: it is missing.
    """
    root = run.data.options.get("root")
    if isinstance(root, str) and not run.data.options.get("download") and not Path(root).is_dir():
        fetched = ", or set data.download=true" if "download" in run.data.options else ""
        raise UserError(f"data.root={root}: no such folder; name the one that holds {run.data.name}{fetched}")


def as_overrides(run: PlannedRun) -> list[str]:
    """What tells a planned run from the base configuration, as Hydra's overrides."""
    return [f"{key}={quoted(value)}" for key, value in run.settings.items()]


def quoted(value: object) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(quoted(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{quoted(item)}' for key, item in value.items())}}}"
    # Backslashes count only before a quotation mark: there they are doubled, elsewhere they stand for themselves.
    text = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), str(value))
    return f"'{text}'"
