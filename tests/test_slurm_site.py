"""A cluster's file: every mistake is one line that names key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.core.errors import ConfigError
from slurm.site import Site, shared_path_problem, site_of
from tests.slurm_cases import a_plan, cluster_file

ONE_LINE = "must be one line of printable text without backslashes"


def error_of(cluster: dict[str, Any], node_type: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        site_of(cluster, node_type)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("acount", "x", "key of cluster.slurm=acount: not known (did you mean account?); allowed: account, array_"),
        ("account", 5, "cluster.slurm.account=5: must be text or null"),
        ("account", "", f"cluster.slurm.account='': {ONE_LINE}"),
        ("account", " ", f"cluster.slurm.account=' ': {ONE_LINE}"),
        ("account", "a\nb", f"cluster.slurm.account='a\\nb': {ONE_LINE}"),
        ("account", "a\\b", f"cluster.slurm.account='a\\\\b': {ONE_LINE}"),
        ("partition", ["a", "b"], "cluster.slurm.partition=['a', 'b']: must be text or null"),
        ("qos", "a\tb", f"cluster.slurm.qos='a\\tb': {ONE_LINE}"),
        ("reservation", "a\x1bb", f"cluster.slurm.reservation='a\\x1bb': {ONE_LINE}"),
        ("constraint", "a\u2028b", f"cluster.slurm.constraint='a\\u2028b': {ONE_LINE}"),
        ("gpu_type", True, "cluster.slurm.gpu_type=True: must be text or null"),
        ("nodelist", "n1\r\nn2", f"cluster.slurm.nodelist='n1\\r\\nn2': {ONE_LINE}"),
        ("memory_gb_per_worker", 0, "cluster.slurm.memory_gb_per_worker=0: must be "),
        ("memory_gb_per_worker", "16G", "cluster.slurm.memory_gb_per_worker=16G: must be a number or null"),
        ("exclusive", "maybe", "cluster.slurm.exclusive=maybe: must be true or false"),
        ("same_nodes", 1, "cluster.slurm.same_nodes=1: must be true or false"),
        ("array_parallelism", 0, "cluster.slurm.array_parallelism=0: must be a whole number >= 1"),
        ("max_array_size", 1.5, "cluster.slurm.max_array_size=1.5: must be a whole number or null"),
        ("max_queued", -3, "cluster.slurm.max_queued=-3: must be a whole number >= 1"),
        ("start_allowance_s", -1, "cluster.slurm.start_allowance_s=-1: must be a number >= 0"),
        ("shared_paths", "/scratch", "cluster.slurm.shared_paths=/scratch: must be a list"),
        ("shared_paths", ["scratch"], "cluster.slurm.shared_paths='scratch': must be absolute paths, as /scratch"),
        ("shared_paths", [""], "cluster.slurm.shared_paths='': must be absolute paths, as /scratch"),
        ("setup", "module load cuda", "cluster.slurm.setup=module load cuda: must be a list"),
        ("setup", ["true\r\n"], "cluster.slurm.setup[0]='true\\r\\n': must be text without carriage returns and NUL"),
        ("environment", {"A B": "x"}, "cluster.slurm.environment.A B: not a variable's name"),
        ("environment", {"A;rm": "x"}, "cluster.slurm.environment.A;rm: not a variable's name"),
        ("environment", {"A": "x\0y"}, "cluster.slurm.environment.A='x\\x00y': must be text without carriage returns"),
        ("environment", {"A": ["x"]}, "cluster.slurm.environment"),
        ("sbatch", {"mail type": "END"}, "cluster.slurm.sbatch.mail type: not an option of sbatch's"),
        ("sbatch", {"--mail-type": "END"}, "cluster.slurm.sbatch.--mail-type: not an option of sbatch's"),
        ("sbatch", {"mail-user": "a\n#SBATCH --x"}, f"cluster.slurm.sbatch.mail-user='a\\n#SBATCH --x': {ONE_LINE}"),
        ("sbatch", {"parsable": True}, "cluster.slurm.sbatch.parsable: not here, since the launcher sets it"),
        ("sbatch", {"comment": "x"}, "cluster.slurm.sbatch.comment: not here, since the launcher sets it"),
        ("sbatch", {"time": 5}, "cluster.slurm.sbatch.time: not here, since the launcher sets it; see run_limit_s"),
        (
            "sbatch",
            {"qos": "x"},
            "cluster.slurm.sbatch.qos: not here, since the launcher sets it; see cluster.slurm.qos",
        ),
    ],
)
def test_a_bad_value_is_one_line(key: str, value: Any, line: str) -> None:
    assert error_of(cluster_file("onehost", **{key: value})).startswith(line)


def test_every_key_of_the_template_is_a_sites_and_the_other_way_round() -> None:
    assert set(cluster_file("template")["slurm"]) == set(Site.__struct_fields__)


@pytest.mark.parametrize("name", ["greene", "onehost", "template"])
def test_the_projects_own_files_are_sound_for_every_kind_of_node(name: str) -> None:
    cluster = cluster_file(name)
    for node_type in cluster["node_types"]:
        site_of(cluster, node_type)
        assert a_plan(cluster, node_type=node_type, workers=1).runs


def test_an_account_that_is_not_set() -> None:
    cluster = cluster_file("template", account="???")
    expected = 'cluster.slurm.account: must be set for cluster=template; with ARGS="cluster.slurm.account=..."'
    assert error_of(cluster, "gpu").startswith(expected)


def test_unset_values_inside_lists_and_mappings_are_found() -> None:
    assert error_of(cluster_file("onehost", shared_paths=["???"])).startswith("cluster.slurm.shared_paths: must be set")
    assert error_of(cluster_file("onehost", environment={"A": "???"})).startswith("cluster.slurm.environment: must be")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"slurm": 5}, "cluster.slurm=5: must be a mapping"),
        ({"slurm": ["partition"]}, "cluster.slurm=['partition']: must be a mapping"),
        ({"node_types": ["cpu"]}, "cluster.node_types=['cpu']: must be a mapping"),
        ({"node_types": {"cpu": 4}}, "cluster.node_types.cpu=4: must be a mapping"),
        (
            {"node_types": {"cpu": {"cores_node": 4}}},
            "key of cluster.node_types.cpu=cores_node: not known (did you mean cores_per_node?); allowed: ",
        ),
        (
            {"node_types": {"cpu": {"cores_per_node": 4}, "gpu": {"gpus_node": 4}}},
            "key of cluster.node_types.gpu=gpus_node: not known (did you mean gpus_per_node?); allowed: ",
        ),
        ({"cores_node": 4}, "key of cluster=cores_node: not known (did you mean cores_per_node?); allowed: "),
        ({"device": "tpu"}, "device=tpu: not known"),
        ({"max_nodes": 0, "node_types": {}, "cores_per_node": 4}, "cluster.max_nodes=0: must be a whole number >= 1"),
        ({"node_types": {}}, "cluster.cores_per_node=null: must be given in the file of cluster=onehost"),
    ],
)
def test_unknown_keys_and_wrong_kinds_at_the_top_and_in_a_kind_of_node(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        a_plan(cluster_file("onehost") | change, workers=1)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("own", "line"),
    [
        ({"partitoin": "x"}, "key of cluster.node_types.gpu.slurm=partitoin: not known (did you mean partition?)"),
        (7, "cluster.node_types.gpu.slurm=7: must be a mapping"),
    ],
)
def test_a_kind_of_nodes_own_slurm_section(own: Any, line: str) -> None:
    cluster = cluster_file("onehost")
    cluster["node_types"]["gpu"]["slurm"] = own
    for node_type in ("gpu", "cpu"):  # a mistake shows before that kind of node is used
        assert error_of(cluster, node_type).startswith(line)


def test_a_kind_of_node_that_the_cluster_does_not_have() -> None:
    with pytest.raises(ConfigError, match=r"node_type=h100: not known; allowed: cpu, gpu"):
        a_plan(cluster_file("onehost"), workers=1, node_type="h100")


def test_a_kind_of_node_replaces_the_clusters_own_values() -> None:
    cluster = cluster_file("onehost", partition="cpu", qos="short")
    assert (site_of(cluster, "cpu").partition, site_of(cluster, "gpu").partition) == ("cpu", "gpu")
    assert site_of(cluster, "gpu").qos == "short"


def test_yaml_reads_numbers_where_text_is_meant() -> None:
    site = site_of(cluster_file("onehost", environment={"OMP_NUM_THREADS": 4}, sbatch={"nice": 5}), "cpu")
    assert (site.environment, site.sbatch) == ({"OMP_NUM_THREADS": "4"}, {"nice": "5"})


@pytest.mark.parametrize(
    ("path", "seen"),
    [("/scratch/me", True), ("/scratch", True), ("/scratchy/me", False), ("/home/me", False), ("/tmp", False)],
)
def test_results_below_a_shared_path(path: str, seen: bool) -> None:
    problem = shared_path_problem(Site(shared_paths=["/scratch/", "/vast"]), path)
    assert (problem is None) is seen
    if problem:
        assert problem.startswith(f"{path}: not below /scratch/, /vast, which the nodes see; set results=")


def test_a_shared_path_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "gpfs" / "scratch").mkdir(parents=True)
    (tmp_path / "scratch").symlink_to(tmp_path / "gpfs" / "scratch")
    site = Site(shared_paths=[str(tmp_path / "scratch")])
    assert shared_path_problem(site, str(tmp_path / "gpfs" / "scratch" / "results")) is None
    assert shared_path_problem(site, str(tmp_path / "gpfs" / "home")) is not None
