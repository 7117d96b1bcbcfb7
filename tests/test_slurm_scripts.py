"""Job scripts: equal to committed files, and quoted so that neither sbatch nor the shell reads anything else.

After a change that is meant, `SCALEBENCH_RENEW_GOLDEN=1 .venv/bin/python -m pytest tests/test_slurm_scripts.py` writes
the files of `tests/golden/` anew; read the difference before it is committed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.core.errors import UserError
from benchmarks.core.sweep import PlannedRun
from slurm import sbatch
from slurm.sbatch import Array
from slurm.shapes import batches
from tests.fake_slurm import FakeSlurm
from tests.fake_slurm.program import script_options
from tests.slurm_cases import a_folder, a_plan, cluster_file

GOLDEN = Path(__file__).parent / "golden"
RENEW = os.environ.get("SCALEBENCH_RENEW_GOLDEN") == "1"


@dataclass(frozen=True, kw_only=True)
class Case:
    cluster: str
    axes: dict[str, Any]
    slurm: dict[str, Any] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    repeats: int = 2


CASES = {
    "greene_a100_1_node": Case(cluster="greene", axes={"workers": 4}),
    "greene_a100_2_nodes": Case(cluster="greene", axes={"workers": 8}),
    "greene_v100": Case(cluster="greene", axes={"workers": 2, "node_type": "v100"}),
    "greene_h100_single_run": Case(cluster="greene", axes={"workers": 1, "node_type": "h100"}, repeats=1),
    "onehost_cpu": Case(cluster="onehost", axes={"workers": 2}),
    "onehost_gpu": Case(cluster="onehost", axes={"workers": 2, "nodes": 2, "node_type": "gpu"}),
    "template_gpu": Case(cluster="template", axes={"workers": 6}, repeats=3),
    "template_cpu": Case(cluster="template", axes={"workers": 64, "nodes": 2, "node_type": "cpu"}),
    "exclusive": Case(cluster="template", axes={"workers": 4}, slurm={"exclusive": True}),
    "same_nodes": Case(cluster="template", axes={"workers": 8}, slurm={"same_nodes": True}, nodes=("n1", "n2", "n3")),
    "everything": Case(
        cluster="template",
        axes={"workers": 2, "memory_gb_per_worker": 1.5},
        repeats=5,
        slurm={
            **{"qos": "short", "reservation": "week 12", "constraint": "a100|h100", "nodelist": "n[1-2]"},
            **{"array_parallelism": 3, "setup": ["module purge", "module load cuda/12.4"]},
            **{"environment": {"NCCL_SOCKET_IFNAME": "ib0"}, "sbatch": {"mail-type": "END", "contiguous": True}},
        },
    ),
}


def arrays_of(case: Case, results: Path) -> list[Array]:
    cluster = cluster_file(case.cluster, **case.slurm)
    found = batches(a_plan(cluster, repeats=case.repeats, **case.axes).runs, cluster)
    nodes = {batch.site.partition: case.nodes for batch in found}
    return sbatch.arrays(results / case.cluster / "test", found, {}, 1000, nodes)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Scripts as on a machine where the project lies in /home/me/scalebench. Returns its results' folder."""
    project = Path("/home/me/scalebench")
    monkeypatch.setattr(sbatch, "PROJECT", project)
    monkeypatch.setattr(sys, "executable", str(project / ".venv" / "bin" / "python"))
    monkeypatch.setattr(Array, "token", "scalebench-0123456789ab")  # else a new key of the configuration changes all
    return project / "results"


@pytest.mark.parametrize("name", CASES)
def test_the_script_equals_the_committed_file(name: str, anywhere: Path) -> None:
    [array] = arrays_of(CASES[name], anywhere)
    path = GOLDEN / f"{name}.sh"
    if RENEW:
        path.write_text(sbatch.script(array))
    assert sbatch.script(array) == path.read_text()


def test_every_committed_script_is_compared() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {f"{name}.sh" for name in CASES}


def test_the_script_that_is_shown_is_the_one_that_sbatch_gets(slurm: FakeSlurm, tmp_path: Path) -> None:
    for repeats, task in ((1, "100"), (3, "101_0")):
        [array] = arrays_of(Case(cluster="onehost", axes={"workers": 2}, repeats=repeats), tmp_path)
        sbatch.submit(array)
        assert slurm.script(task) == sbatch.script(array)


NASTY = [
    "two words",
    "it's",
    'say "no"',
    "$HOME",
    "`id`",
    "$(id)",
    "a;b",
    "a&b|c",
    "#tag",
    "*",
    "~",
    "a=b",
    "ünï",
    "-x",
]
OPTIONS = ("account", "partition", "qos", "reservation", "constraint", "nodelist")


@pytest.mark.parametrize("value", NASTY)
def test_values_reach_sbatch_as_they_are(value: str, tmp_path: Path) -> None:
    slurm = {**dict.fromkeys(OPTIONS, value), "sbatch": {"mail-user": value}}
    [array] = arrays_of(Case(cluster="onehost", axes={"workers": 1}, slurm=slurm), tmp_path / value)
    options = script_options(sbatch.script(array))
    assert {option: options[option] for option in (*OPTIONS, "mail-user")} == dict.fromkeys(
        (*OPTIONS, "mail-user"), value
    )
    assert options["output"] == f"{tmp_path}/{value}/onehost/test/slurm/%A_%a_0_log.out"
    assert options["job-name"] == "scalebench-test"
    assert options["hold"] == ""


@pytest.mark.parametrize("value", [*NASTY, "a\nexit 1\n#SBATCH --qos=x", "back\\slash", "tab\there", "100%", ""])
def test_the_shell_part_exports_and_calls_what_was_meant(value: str, tmp_path: Path) -> None:
    """By running it: `srun` is replaced by a program that prints its environment and its arguments."""
    folder = tmp_path / (value if "/" not in value and value and value.isprintable() and "%" not in value else "plain")
    shell_lines = ["export FROM_SETUP='set up'", "if true; then\n  export TWO=lines\nfi"]
    case = Case(cluster="onehost", axes={"workers": 1}, slurm={"environment": {"VALUE": value}, "setup": shell_lines})
    [array] = arrays_of(case, folder)
    (tmp_path / "srun").write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "names = 'VALUE', 'FROM_SETUP', 'TWO', 'SRUN_CPUS_PER_TASK', 'SUBMITIT_EXECUTOR'\n"
        "print([os.environ[name] for name in names])\n"
        "print(sys.argv[1:])\n"
    )
    (tmp_path / "srun").chmod(0o755)
    done = subprocess.run(
        ["/bin/bash"],
        input=sbatch.script(array),
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": str(tmp_path), "HOME": "/nowhere"},
    )
    jobs = f"{folder}/onehost/test/slurm"
    assert done.stdout.splitlines() == [
        repr([value, "set up", "lines", "4", "slurm"]),
        repr(
            [
                *("--unbuffered", "--output", f"{jobs}/%A_%a_%t_log.out", "--kill-on-bad-exit=0"),
                *(sys.executable, "-u", "-m", "submitit.core._submit", jobs),
            ]
        ),
    ]
    assert script_options(sbatch.script(array))["partition"] == "cpu", "a value is no option"


@pytest.mark.parametrize("name", ["100%", "back\\slash", "two\nlines", "tab\there"])
def test_results_in_a_folder_that_slurm_would_read_as_a_pattern(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="has a character that Slurm reads as a pattern"):
        sbatch.check_path(tmp_path / name / "onehost" / "test")
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match="has a character that Slurm reads as a pattern"):
        sbatch.check_path(Path("results/onehost/test"))  # the whole path counts


def test_an_array_knows_its_folder_and_its_attempts_apart(tmp_path: Path) -> None:
    """Two sweeps of the same runs in different folders must not find each other's jobs."""
    case = Case(cluster="onehost", axes={"workers": 1})
    [one], [same], [other] = (arrays_of(case, tmp_path / name) for name in ("a", "a", "b"))
    assert one.token == same.token != other.token
    cluster = cluster_file("onehost")
    found = batches(a_plan(cluster, repeats=2, workers=1).runs, cluster)
    runs: list[PlannedRun] = found[0].runs
    tried = dict.fromkeys((run.config.run_id for run in runs), 1)
    [again] = sbatch.arrays(a_folder(tmp_path / "a").path, found, tried, 1000, {})
    assert [attempt.attempt for attempt in again.attempts] == [2, 2]
    [first] = sbatch.arrays(a_folder(tmp_path / "a").path, found, {}, 1000, {})
    assert again.token != first.token
