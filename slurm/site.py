"""How jobs are submitted at a site: the `slurm` section of a file in `conf/cluster/`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from benchmarks.core.cluster import mapping_at, node_types
from benchmarks.core.config import one_line
from benchmarks.core.errors import ConfigError, unknown

Positive = Annotated[int, msgspec.Meta(ge=1)]

_UNSET = "???"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPTION = re.compile(r"[a-z][a-z0-9-]*")

# Options that the launcher sets, or that would hide from it what sbatch has done; and what to set instead.
_OWN_OPTIONS = {
    **dict.fromkeys(
        ("account", "partition", "qos", "reservation", "constraint", "exclusive", "nodelist"), "slurm.{key}"
    ),
    **{"mem": "slurm.memory_gb_per_worker", "gres": "slurm.gpu_type", "array": "slurm.array_parallelism"},
    **{"time": "run_limit_s", "nodes": "nodes", "cpus-per-task": "threads_per_worker"},
    **dict.fromkeys(("ntasks", "ntasks-per-node", "job-name", "comment", "chdir", "hold", "no-requeue", "requeue"), ""),
    **dict.fromkeys(("output", "error", "open-mode", "signal", "wait", "quiet", "parsable", "test-only", "wrap"), ""),
}


class Site(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A site's ways, for one kind of node; `conf/cluster/template.yaml` explains each key."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    reservation: str | None = None
    constraint: str | None = None
    gpu_type: str | None = None
    memory_gb_per_worker: Annotated[float, msgspec.Meta(gt=0)] | None = None
    exclusive: bool = False
    same_nodes: bool = False
    nodelist: str | None = None
    array_parallelism: Positive | None = None
    max_array_size: Positive | None = None
    max_queued: Positive | None = None
    start_allowance_s: Annotated[float, msgspec.Meta(ge=0)] = 120.0
    shared_paths: list[str] = []
    python: str | None = None
    setup: list[str] = []
    environment: dict[str, str] = {}
    sbatch: dict[str, str | bool] = {}
    """true: an option without a value; false: left out."""


def site_of(cluster: Mapping[str, Any], node_type: str | None) -> Site:
    """A composed cluster file's `slurm` section, with what one kind of node says otherwise.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, or one that the user must set and has not.
    """
    sections = {"slurm": cluster["slurm"]} | {
        f"node_types.{name}.slurm": facts.get("slurm") or {} for name, facts in node_types(cluster).items()
    }
    for name, section in sections.items():
        for key in mapping_at(f"cluster.{name}", section):
            if key not in Site.__struct_fields__:
                raise unknown(f"key of cluster.{name}", key, Site.__struct_fields__)
    values = {**cluster["slurm"], **sections.get(f"node_types.{node_type}.slurm", {})}
    for key, value in values.items():
        if _UNSET in _parts(value):
            raise ConfigError(f"cluster.slurm.{key}: must be set for cluster={cluster['name']}; {_how_to_set(key)}")
    for key in ("environment", "sbatch"):  # YAML reads OMP_NUM_THREADS: 4 as a number
        if isinstance(values.get(key), Mapping):
            keeps_flags = key == "sbatch"
            values[key] = {
                str(name): value if keeps_flags and isinstance(value, bool) else _text(value)
                for name, value in values[key].items()
            }
    try:
        site = msgspec.convert(values, Site)
    except msgspec.ValidationError as error:
        raise one_line(error, values, prefix="cluster.slurm.") from error
    _check_texts(site)
    return site


def _how_to_set(key: str) -> str:
    example = f'ARGS="cluster.slurm.{key}=..."'
    return f"with {example}, in its file" + (", or with SCALEBENCH_ACCOUNT where it reads that" * (key == "account"))


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, list) else [value]


def _text(value: object) -> object:
    return value if isinstance(value, (str, dict, list)) or value is None else str(value)


def _check_texts(site: Site) -> None:
    for key in ("account", "partition", "qos", "reservation", "constraint", "gpu_type", "nodelist", "python"):
        check_line(f"cluster.slurm.{key}", getattr(site, key))
    for option, value in site.sbatch.items():
        if not _OPTION.fullmatch(option):
            raise ConfigError(f"cluster.slurm.sbatch.{option}: not an option of sbatch's, such as mail-type")
        if option in _OWN_OPTIONS:
            instead = _OWN_OPTIONS[option].format(key=option)
            raise ConfigError(
                f"cluster.slurm.sbatch.{option}: not here, since the launcher sets it"
                + (f"; see {'cluster.' * instead.startswith('slurm.')}{instead}" if instead else "")
            )
        if isinstance(value, str):
            check_line(f"cluster.slurm.sbatch.{option}", value)
    _check_shell_texts(site)


def _check_shell_texts(site: Site) -> None:
    for folder in site.shared_paths:
        if not folder.startswith("/"):
            raise ConfigError(f"cluster.slurm.shared_paths={folder!r}: must be absolute paths, as /scratch")
    for name, value in site.environment.items():
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"cluster.slurm.environment.{name}: not a variable's name")
        _check_shell(f"cluster.slurm.environment.{name}", value)
    for number, line in enumerate(site.setup):
        _check_shell(f"cluster.slurm.setup[{number}]", line)


def _check_shell(key: str, text: str) -> None:
    """Refuse what a job script cannot hold; sbatch takes no line breaks of DOS."""
    if set(text) & {"\0", "\r"}:
        raise ConfigError(f"{key}={text!r}: must be text without carriage returns and NUL")


def check_line(key: str, value: str | None) -> None:
    """Refuse what no `#SBATCH` line can carry; quotation marks, blanks and `$` are fine, since they are quoted."""
    if value is not None and (not value.isprintable() or not value.strip() or "\\" in value):
        raise ConfigError(f"{key}={value!r}: must be one line of printable text without backslashes")


def shared_path_problem(site: Site, path: str) -> str | None:
    """Why the nodes will not see a folder, as far as the cluster's file knows."""
    links = [os.path.realpath(folder) for folder in site.shared_paths]  # /scratch may lead to /gpfs/scratch
    if not site.shared_paths or _lies_below(path, [*site.shared_paths, *links]):
        return None
    return f"{path}: not below {', '.join(site.shared_paths)}, which the nodes see; set results=... to one that is"


def _lies_below(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder.rstrip("/") or path.startswith(folder.rstrip("/") + "/") for folder in folders)
