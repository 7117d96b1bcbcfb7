"""Where a run happens: the cluster, the kind of node that the run asks for, and how many nodes it takes.

A file of `conf/cluster/` describes one cluster. `node_types` names its kinds of node, each with facts that replace the
cluster's own; `slurm` says how jobs are submitted there, and `container` in which image they run: no
facts of a run's, whose record names what was used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from benchmarks.core.errors import ConfigError, unknown

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]

# What a kind of node may say otherwise than its cluster.
NODE_FACTS = ("device", "cores_per_node", "gpus_per_node", "max_nodes", "cpu_bf16", "price_per_worker_hour")


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine that runs are made on, with the facts of the kind of node that was asked for.

    `cores_per_node` and `gpus_per_node` are what one node offers; null means: count them here.
    """

    name: str
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cores_per_node: Positive | None = None
    gpus_per_node: NonNegative | None = None
    max_nodes: Positive | None = None
    cpu_bf16: bool | None = None
    """Whether the CPUs compute with bfloat16; where they do not, it is imitated. Null means: look here."""
    price_per_worker_hour: Annotated[float, msgspec.Meta(ge=0)] | None = None
    currency: str = "USD"


def placed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A run's mapping with its place settled: kind of node, device, number of nodes. Settled ones stay as they are.

    Raises:
        ConfigError: the kind of node is not one of the cluster's, or the cluster's file lacks a needed fact.
    """
    if not isinstance(values.get("cluster"), Mapping):
        return dict(values)
    node_type = chosen_node_type(values)
    cluster = node_facts(values["cluster"], node_type)
    submitted = bool(mapping_at("cluster.slurm", values["cluster"].get("slurm") or {}))
    if submitted and cluster.get("cores_per_node") is None:
        raise ConfigError(f"cluster.cores_per_node=null: must be given in the file of cluster={cluster.get('name')}")
    device = values.get("device")
    if device == "auto":
        device = cluster.get("device")
    if device == "auto":
        device = "cuda" if cluster.get("gpus_per_node") else "cpu"
    nodes = values.get("nodes")
    if nodes is None:
        nodes = _fewest_nodes(values, cluster, device) if submitted else 1
    return {**values, "cluster": cluster, "node_type": node_type, "device": device, "nodes": nodes}


def threads_share(place: Mapping[str, Any]) -> int | None:
    """CPU threads of one worker of a placed run: its node's cores, shared by the workers there.

    On a node with GPUs each of them has a share, used or not: a job for one GPU leaves the others theirs. None where
    the place is not sound; such a run is refused, in better words than could be said here.
    """
    cores, workers, nodes = place["cluster"].get("cores_per_node"), place.get("workers"), place.get("nodes")
    if not (isinstance(cores, int) and isinstance(workers, int) and isinstance(nodes, int) and workers >= nodes > 0):
        return None
    gpus = (place["cluster"].get("gpus_per_node") or 0) if place["device"] == "cuda" else 0
    return max(1, cores // max(workers // nodes, gpus))


def chosen_node_type(values: Mapping[str, Any]) -> str | None:
    """The kind of node: the one asked for, else the cluster's first; None where the cluster names none."""
    kinds, asked = node_types(values["cluster"]), values.get("node_type")
    if kinds and asked is None:
        return str(next(iter(kinds)))
    if values["cluster"].get("node_types") is not None and asked is not None and asked not in kinds:
        raise unknown("node_type", asked, kinds)
    return asked


def node_types(cluster: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The kinds of node that a cluster's file names, with what each says otherwise than the cluster.

    Raises:
        ConfigError: an entry is no mapping, or has an unknown key.
    """
    kinds = mapping_at("cluster.node_types", cluster.get("node_types") or {})
    for kind, facts in kinds.items():
        for key in mapping_at(f"cluster.node_types.{kind}", facts or {}):
            if key not in (*NODE_FACTS, "slurm"):
                raise unknown(f"key of cluster.node_types.{kind}", key, (*NODE_FACTS, "slurm"))
    return {str(kind): facts or {} for kind, facts in kinds.items()}


def mapping_at(key: str, value: object) -> Mapping[str, Any]:
    """The value of a key that holds others. Raises ConfigError where it holds something else."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value}: must be a mapping, as in conf/cluster/template.yaml")
    return value


def node_facts(cluster: Mapping[str, Any], node_type: str | None) -> dict[str, Any]:
    """The cluster's facts, those of one kind of node in place of its own; without what concerns other kinds."""
    facts = {key: value for key, value in cluster.items() if key not in ("node_types", "slurm", "container")}
    own = node_types(cluster).get(node_type or "", {})
    return facts | {key: value for key, value in own.items() if key != "slurm"}


def _fewest_nodes(values: Mapping[str, Any], cluster: Mapping[str, Any], device: object) -> int:
    """As few nodes as hold the workers and share them equally: each has a GPU of its own, or its threads a core."""
    workers, threads = values.get("workers"), values.get("threads_per_worker")
    per_node = cluster.get("gpus_per_node") if device == "cuda" else cluster.get("cores_per_node")
    if not isinstance(workers, int) or not isinstance(per_node, int):
        return 1
    if device != "cuda" and isinstance(threads, int) and threads > 0:
        per_node //= threads
    fewest = math.ceil(workers / max(1, per_node))
    return next((nodes for nodes in range(fewest, workers) if workers % nodes == 0), max(1, workers))
