"""What is known before anything is submitted: whether there is a Slurm, room, money, and a view of the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.core.errors import UserError
from benchmarks.core.folder import SweepFolder
from slurm.commands import SlurmError
from slurm.launch import describe, launch, planned
from tests.fake_slurm import FakeSlurm, idle_node
from tests.slurm_cases import a_folder, an_order, cluster_file, folder, ids, refused, runs_in_queue

__all__ = ["folder"]  # fixtures


@pytest.mark.parametrize("command", ["sinfo", "sbatch", "srun"])
def test_no_slurm_here(command: str, slurm: FakeSlurm, folder: SweepFolder) -> None:
    order = an_order()
    for program in slurm.bin.iterdir():
        if command == "sinfo" or program.name == command:
            program.unlink()
    assert refused(order, folder).startswith(
        f"{command}: not on PATH, so there is no Slurm here; go to a login node, or run here with HYDRA_LAUNCHER=basic"
    )
    assert not (folder.path / "sweep.json").exists() or command != "sinfo"
    assert slurm.tasks() == []


def test_results_that_the_clusters_file_says_no_node_sees(slurm: FakeSlurm, folder: SweepFolder) -> None:
    order = an_order(cluster_file("onehost", shared_paths=["/scratch", "/vast"]))
    assert refused(order, folder) == (
        f"{folder.path}: not below /scratch, /vast, which the nodes see; set results=... to one that is"
    )
    assert describe(planned(order, folder)).startswith(f"warning: {folder.path}: not below /scratch, /vast")


def test_a_node_that_does_not_see_the_results(slurm: FakeSlurm, folder: SweepFolder) -> None:
    slurm.set(nodes_see_nothing=True, nodes=[idle_node("n1")])
    order = an_order()
    assert refused(order, folder) == (
        f"results: a node of the cluster does not see {folder.path}; name a folder on a shared file system with "
        "results=..."
    )
    assert (slurm.tasks(), (folder.path / "sweep.json").exists()) == ([], False)
    slurm.set(nodes_see_nothing=False)
    for repeats in (1, 2, 3):
        launch(an_order(workers=1, repeats=repeats), folder)
    assert len(slurm.calls("srun")) == 2, "asked until it was seen once"


@pytest.mark.parametrize("name", ["it's", "two words", "$HOME", "a;b", 'say "no"'])
def test_nodes_see_a_folder_whatever_its_name(name: str, slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.set(nodes=[idle_node("n1")])
    folder, order = a_folder(tmp_path / name), an_order()
    launch(order, folder)
    assert next(event["event"] for event in folder.events()) == "probed"
    assert runs_in_queue(slurm) == ids(order)


@pytest.mark.parametrize("setting", [{"busy": True, "nodes": [idle_node("n1")]}, {"nodes": []}])
def test_a_busy_cluster_is_not_waited_for(setting: dict[str, Any], slurm: FakeSlurm, folder: SweepFolder) -> None:
    slurm.set(**setting)
    launch(an_order(), folder)
    assert len(runs_in_queue(slurm)) == 2
    assert not any(event["event"] == "probed" for event in folder.events())


def test_a_budget(slurm: FakeSlurm, folder: SweepFolder) -> None:
    order = an_order(workers=2, repeats=3)  # 3 runs x 2 workers x 15 minutes
    too_small = msgspec.structs.replace(order, budget_worker_hours=1.49)
    assert refused(too_small, folder) == (
        "budget_worker_hours=1.49: the 3 runs may take 1.50; nothing was submitted. Lower run_limit_s, or take fewer "
        "cells"
    )
    assert (slurm.tasks(), (folder.path / "sweep.json").exists()) == ([], False)
    launch(msgspec.structs.replace(order, budget_worker_hours=1.5), folder)
    assert len(runs_in_queue(slurm)) == 3


def test_a_shape_larger_than_its_partition_is_refused_before_submission(slurm: FakeSlurm, folder: SweepFolder) -> None:
    said = refused(an_order(workers=[1, 2], memory_gb_per_worker=3), folder)
    assert "6144 MB" in said
    assert said.endswith("is larger than partition cpu: its nodes have 4 cores, 5423 MB, GPUs: 1")
    assert slurm.calls("sbatch") == []


def test_the_same_nodes_for_all_cells(slurm: FakeSlurm, folder: SweepFolder) -> None:
    cluster = cluster_file("onehost", same_nodes=True)
    slurm.set(nodes=[idle_node("n1"), idle_node("n2")], busy=True)
    launch(an_order(cluster, workers=1, nodes=1), folder)
    assert "--nodelist=n1\n" in slurm.script("100")
    slurm.set(nodes=[idle_node("n3"), idle_node("n4")])
    launch(an_order(cluster, workers=3, nodes=3), folder)
    assert "--nodelist=n1,n3,n4\n" in slurm.script("101"), "the one chosen before, and more"
    with pytest.raises(UserError, match=r"same_nodes=true: 4 nodes are needed and 3 are up and not fully in use"):
        launch(an_order(cluster, workers=4, nodes=4), folder)


def test_each_partition_has_its_own_same_nodes(slurm: FakeSlurm, folder: SweepFolder) -> None:
    slurm.set(nodes=[idle_node("cpu1"), idle_node("cpu2"), idle_node("gpu1", "gpu")], busy=True)
    launch(an_order(cluster_file("onehost", same_nodes=True), workers=1, node_type=["cpu", "gpu"]), folder)
    scripts = [slurm.script(job) for job in ("100", "101")]
    assert ["--nodelist=cpu1\n" in scripts[0], "--nodelist=gpu1\n" in scripts[1]] == [True, True]


def test_a_plan_without_slurm_shows_every_script(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    cluster = cluster_file("template", array_parallelism=2)
    cluster["node_types"]["gpu"]["price_per_worker_hour"] = 2.0
    text = describe(planned(an_order(cluster, workers=[1, 4], repeats=1003), folder))
    assert text.startswith("4 job arrays, at most 1253.75 worker-hours, 2507.50 USD (workers x the time asked for):\n")
    assert "  1000 x (1 gpu node, 4 workers each, 64 cores, 4 GPUs, 15 min): at most 1000.00 worker-hours\n" in text
    assert "  3 x (1 gpu node, 1 worker each, 16 cores, 1 GPU, 15 min): at most 0.75 worker-hours\n" in text
    assert text.count("#!/bin/bash") == 4
    assert "#SBATCH --array=0-999%2\n" in text
    assert list(folder.path.iterdir()) == []


def test_slurms_words_are_said_once() -> None:
    from slurm.commands import words

    assert words("sbatch: error: no\nsbatch: error: no\n\nsbatch: error: never") == "no; never"
    assert isinstance(SlurmError("x"), UserError)
