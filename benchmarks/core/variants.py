"""The entries of the axes: one YAML file for each, in the project's `conf/<axis>/` or in the user's own.

A file is the whole description of its variant: its keys are the options, their defaults fix the types, `needs` holds
rules with the reason why a run that breaks them is impossible, and `traits` what other variants' rules may ask of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from benchmarks.core.errors import ConfigError, unknown

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
VARIANT_AXES = (
    *("workload", "data", "augmentation", "mixing", "loader"),
    *("strategy", "batch_schedule", "optimizer", "lr_schedule", "precision"),
)

TRAITS = {"workload": ("layers", "heads", "conv_bn"), "data": ("kind",), "optimizer": ("elementwise",)}
"""What rules may ask of any entry of an axis, as `workload.layers`; null where its file does not say."""

Scalar = str | int | float | bool | None
Option = Scalar | list[Any]


class VariantFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file `conf/<axis>/<name>.yaml`: default options, rules that a run with it must keep, and traits.

    A trait is an expression over the configuration, as rules are.
    """

    name: str
    defaults: Mapping[str, Option]
    needs: Mapping[str, str]
    traits: Mapping[str, str | int | bool]


def conf_folders() -> list[Path]:
    """The project's `conf/`, then the `conf/` of the user's own variants (see `extra_folder`)."""
    extra = extra_folder()
    return [CONF_DIR] + ([extra / "conf"] if extra else [])


def extra_folder() -> Path | None:
    """The folder of the user's own variants, which SCALEBENCH_EXTRA names.

    It holds modules (`*.py`) that register variants, and `conf/<axis>/*.yaml` that describe them.
    """
    named = os.environ.get("SCALEBENCH_EXTRA")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        raise ConfigError(f"SCALEBENCH_EXTRA={named}: no such folder")
    return folder


def names_on(axis: str) -> list[str]:
    """The names of all entries of an axis: its YAML files."""
    return sorted({path.stem for folder in conf_folders() for path in (folder / axis).glob("*.yaml")})


def variant_file(axis: str, name: str) -> VariantFile:
    """Read an axis's entry by name. Raises ConfigError if there is none, or its file is not sound."""
    return _read_variant_file(axis, name, tuple(conf_folders()))


@cache
def _read_variant_file(axis: str, name: str, folders: tuple[Path, ...]) -> VariantFile:
    path = next((path for folder in folders if (path := folder / axis / f"{name}.yaml").is_file()), None)
    if path is None or not re.fullmatch(r"[\w-]+", name):
        raise unknown(axis, name, names_on(axis))
    try:
        keys = msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])
        needs = msgspec.convert(keys.pop("needs", None) or {}, dict[str, str])
        traits = msgspec.convert(keys.pop("traits", None) or {}, dict[str, str | int | bool])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    if keys.pop("name", None) != name:
        raise ConfigError(f"{path}: the key name must be {name}, as the file's")
    for trait in traits:
        if trait not in TRAITS.get(axis, ()):
            raise unknown(f"trait of {path}:", trait, TRAITS.get(axis, ()))
    return VariantFile(
        name=name, defaults=MappingProxyType(keys), needs=MappingProxyType(needs), traits=MappingProxyType(traits)
    )
