"""Sweeps through a real Slurm, each run inside a real image, as an ordinary user."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.core.record import Record
from containers.image import Image
from tests.ordinary_user import as_user
from tests.test_cluster_sweeps import SLOW, SWEEP, Sweeps, in_window, queue, refused
from tests.test_image import PLANTED, SECRET, clone
from tests.test_onehost import cluster

pytestmark = pytest.mark.cluster
__all__ = ["clone", "cluster"]  # the modules' fixtures: a clone of the user's, a cluster that is up and empty


class Boxed(Sweeps):
    """The user's shell, whose sweeps run in the image, with secrets in its environment."""

    def __init__(self, home: Path, image: Image) -> None:
        super().__init__(home)
        self.image = image

    def submit(self, results: str, settings: str) -> str:
        line = f"{SWEEP} {settings} results={results} cluster.container.image={self.image.path}"
        planted = {name: value for name, value in PLANTED.items() if not name.startswith(("SLURM_JOB_ID", "SCALE"))}
        return as_user(
            "bash", "-c", f"cd {self.home} && {line}", **planted, SCALEBENCH_EXTRA=str(self.home / "tests" / "extra")
        )


@pytest.fixture(scope="module")
def sweeps(clone: Path, cluster: None, image: Image) -> Boxed:
    return Boxed(clone, image)


@pytest.fixture(scope="module")
def submitted(sweeps: Boxed) -> None:
    """Several sweeps at once, so that their jobs share the waiting."""
    said = sweeps.submit("results/inside", "workers=1,2 steps=3")
    assert f"inside {sweeps.image.path} (sha256 {sweeps.image.sha256[:12]}...)" in said
    sweeps.submit("results/two_nodes", "workers=2 nodes=2 steps=3")
    sweeps.submit("results/memory", "workers=1 workload.fault=fill workload.rank=0 steps=100 memory_gb_per_worker=1.5")


def check_provenance(record: Record, image: Image) -> None:
    environment = record.environment
    assert (environment["image"], environment["image_sha256"]) == (image.path, image.sha256)
    assert environment["image_labels"] == {**image.labels, "scalebench.inputs": image.inputs}
    assert environment["container_runtime"] == "apptainer"
    assert environment["container_runtime_version"].startswith("apptainer version ")
    assert environment["packages"]["torch"] == image.facts.versions["torch"] if image.facts else False
    assert list(record.ledger)[:4] == ["launch", "container", "imports", "start"]
    assert 0.01 < record.ledger["container"] < 30
    assert sum(record.ledger.values()) == pytest.approx(record.wall_time_s, abs=0.01)


def test_each_record_names_the_image(submitted: None, sweeps: Boxed) -> None:
    assert sweeps.ended("results/inside") == {"ok": 2}
    printed = subprocess.run(["sha256sum", sweeps.image.path], check=True, capture_output=True, text=True).stdout
    for record in sweeps.records("results/inside"):
        check_provenance(record, sweeps.image)
        assert record.environment["image_sha256"] == printed.split()[0]


def test_ddp_over_two_nodes_inside(submitted: None, sweeps: Boxed) -> None:
    assert sweeps.ended("results/two_nodes") == {"ok": 1}
    [record] = sweeps.records("results/two_nodes")
    assert (record.workers, record.nodes) == (2, 2)
    check_provenance(record, sweeps.image)


def test_the_memory_limit_holds_inside(submitted: None, sweeps: Boxed) -> None:
    assert sweeps.ended("results/memory") == {"oom": 1}


def test_cancelled_inside(sweeps: Boxed) -> None:
    """No scontrol in there: the supervisor tells by the file that it was people who have stopped it."""
    sweeps.submit("results/cancelled", f"workers=1 {SLOW}")
    [run] = sweeps.runs("results/cancelled")
    sweeps.until("results/cancelled", lambda runs: in_window(runs, run["run_id"]))
    sweeps.shell(".venv/bin/python -m slurm.cancel --results results/cancelled")
    assert sweeps.ended("results/cancelled") == {"cancelled": 1}
    [record] = sweeps.records("results/cancelled")
    assert record.reason
    assert record.reason.kind == "signal SIGTERM"


def test_no_secret_has_come_out(submitted: None, sweeps: Boxed) -> None:
    files = [path for path in (sweeps.home / "results").rglob("*") if path.is_file()]
    assert any(path.name.endswith("_log.out") for path in files)
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


def test_on_this_machine_too(sweeps: Boxed) -> None:
    """The same sweep, made here, one run after another, inside the image."""
    line = f"{SWEEP} workers=1 steps=3 results=results/here cluster.container.image={sweeps.image.path}"
    sweeps.shell(f"HYDRA_LAUNCHER=basic {line}")
    [record] = sweeps.records("results/here")
    assert (record.status, record.environment["image_sha256"]) == ("ok", sweeps.image.sha256)


def test_the_image_that_make_image_has_made_is_taken_by_itself(sweeps: Boxed) -> None:
    """And `wait=true` stays until the run has ended."""
    built = sweeps.home / "images"
    built.mkdir()
    for name in ("scalebench.sif", "scalebench.sif.json"):
        os.link(Path(sweeps.image.path).with_name(name), built / name)
    try:
        said = sweeps.shell(f"{SWEEP} workers=1 steps=3 results=results/auto wait=true")
    finally:
        shutil.rmtree(built)
    assert f"inside {built}/scalebench.sif" in said
    [record] = sweeps.records("results/auto")
    assert (record.status, record.environment["image_sha256"]) == ("ok", sweeps.image.sha256)


def test_what_is_wrong_with_a_container_is_said_before_anything_is_submitted(sweeps: Boxed, tmp_path: Path) -> None:
    before = queue()
    truncated = sweeps.home / "results" / "truncated.sif"
    truncated.write_bytes(Path(sweeps.image.path).read_bytes()[:100_000])
    image = f"cluster.container.image={sweeps.image.path}"
    for settings, said in (
        ("cluster.container.image=/nope.sif", "container image /nope.sif: No such file"),
        (f"cluster.container.image={truncated}", f"container image {truncated}: its Python cannot be asked"),
        (f"{image} cluster.container.binds=[/nope]", "bind /nope: not there on node n"),
        (f"{image} cluster.container.runtime=singularityx", "cluster.container.runtime=singularityx"),
        (f"{image} cluster.container.imag=1", "did you mean image?"),
    ):
        done = refused(sweeps, f"{SWEEP} workers=1 steps=3 {settings} results=results/refused")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stdout + done.stderr
        assert said in done.stderr
    assert queue() <= before
