"""The sizes of sweeps, and the list of all sweeps with what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from benchmarks import catalogue
from benchmarks.command_line.composed import quoted, sweep_of
from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ConfigError
from benchmarks.core.folder import SweepFolder
from benchmarks.core.sweep import at_size, plan, read_sweep
from benchmarks.core.variants import CONF_DIR, names_on
from tests.conftest import base_mapping

SIZED: dict[str, Any] = {
    "name": "sized",
    "axes": {"workers": [1, 2], "strategy.bucket_mb": [1.0, 2.0], "optimizer.lr": [0.1]},
    "zip": [{"seed": [1, 2]}],
    "where": ["workers < 9"],
    "fixed": {"steps": 100, "data": "mnist"},
    "repeats": 5,
    "sizes": {
        "tiny": {
            "axes": {"workers": [1], "strategy.bucket_mb": None, "data": ["digits", "synthetic"]},
            "fixed": {"steps": None, "epochs": 2, "optimizer.lr": 0.2},
            "repeats": 1,
        },
        "ruled": {"zip": [{"seed": [3, 4, 5]}], "where": []},
    },
}


def composed(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return hydra.compose("config", overrides=list(overrides))


def test_a_size_replaces_what_it_names_and_leaves_the_rest() -> None:
    full = read_sweep(SIZED)
    assert at_size(full, "full") is full
    tiny = at_size(full, "tiny")
    assert tiny.name == "sized-tiny"
    assert tiny.axes == {"workers": [1], "data": ["digits", "synthetic"]}  # one left out, one now fixed, one no longer
    assert tiny.fixed == {"steps": None, "epochs": 2, "optimizer.lr": 0.2}
    assert (tiny.zip, tiny.where, tiny.repeats) == ([{"seed": [1, 2]}], ["workers < 9"], 1)
    ruled = at_size(full, "ruled")
    assert (ruled.zip, ruled.where, ruled.repeats) == ([{"seed": [3, 4, 5]}], [], 5)
    assert ruled.axes == full.axes
    with pytest.raises(
        ConfigError, match=r"size of sweep=sized:=tinny: not known \(did you mean tiny\?\); allowed: full,"
    ):
        at_size(full, "tinny")
    with pytest.raises(ConfigError, match=r"sweep\.sizes"):
        read_sweep({**SIZED, "sizes": {"tiny": {"repeats": 0}}})


def test_the_command_line_counts_more_than_the_size() -> None:
    cfg = composed("sweep=smoke", "size=tiny")
    assert (sweep_of(cfg).repeats, sweep_of(cfg).name) == (1, "smoke-tiny")
    assert sweep_of(cfg, {"repeats": 7, "fixed.steps": 3}).repeats == 7
    assert sweep_of(cfg, {"repeats": 7, "fixed.steps": 3}).fixed["steps"] == 3
    assert sweep_of(composed("sweep=smoke")).name == "smoke"


def test_a_mapping_can_be_the_value_of_an_axis(tmp_path: Path) -> None:
    """`slowdown` is one: it is planned, dropped with its reason, kept in the manifest, and typed for each run."""
    axes = {"slowdown": [{}, {1: 2.0}, {1: 2.0, 2: 1.5}], "workers": 2, "batch_per_worker": 8}
    the_plan = plan(read_sweep({"name": "slow", "axes": axes}), base_mapping())
    assert [run.config.slowdown for run in the_plan.runs] == [{}, {1: 2.0}]
    (dropped,) = the_plan.dropped
    assert "there is no rank 2 of workers=2" in dropped.reason
    assert dropped.settings == {"slowdown.1": 2.0, "slowdown.2": 1.5, "workers": 2, "batch_per_worker": 8}
    folder = SweepFolder.create(tmp_path, "local", "slow")
    written = folder.write_manifest(the_plan, [])
    read = folder.manifest()
    assert read is not None
    assert [RunConfig.from_mapping(run.config).slowdown for run in read.runs] == [{}, {1: 2.0}]
    assert read.dropped == written.dropped
    for run in the_plan.runs:
        typed = composed(f"slowdown={quoted(run.settings['slowdown'])}")
        assert OmegaConf.to_container(typed.slowdown) == run.config.slowdown


def test_every_sweep_is_listed_with_its_question_and_its_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["device=cpu"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    starts = {line.split()[0]: line for line in lines if line[:1].strip()}
    assert set(starts) == {"sweep", *names_on("sweep")}
    # 1, 2, 4 and 8 workers at two batches, five repeats of at most 600 s: 40 runs, 25 worker-hours; tiny: 2 x 2 runs.
    # Weak scaling drops 8 x 256 samples, of which the digits have 1437.
    for name, cost in (("strong", ["40", "25.0", "4"]), ("weak", ["35", "18.3", "4"])):
        assert starts[name].split()[-3:] == cost
        question = starts[name].removeprefix(name).strip()
        assert question.startswith("How ")
    assert "runs, tiny" in lines[0]
    assert len({len(line) <= 120 for line in lines}) == 1


def test_mistakes_on_the_lists_command_line_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["cluster=grene"]) == 2
    assert catalogue.main(["wrkers=2"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    first, second = captured.err.splitlines()
    assert first.startswith("error: cluster=grene: not known")
    assert second.startswith("error: configuration key=wrkers: not known (did you mean workers?)")
