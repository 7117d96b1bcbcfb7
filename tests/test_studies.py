"""Every sweep of `conf/sweep/` at its tiny size, through the real command line: it leaves its figure and its table."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.study.build import check_figure
from benchmarks.core.sweep import FULL_SIZE
from benchmarks.core.sweep_files import sweep_named
from benchmarks.core.variants import CONF_DIR
from tests.conftest import PROJECT

SWEEPS = sorted(path.stem for path in (CONF_DIR / "sweep").glob("*.yaml"))

# What a person types, one command after another in one process: torch, Hydra and matplotlib are imported once.
CHAIN = """
import os, runpy, sys
commands = os.fdopen(os.dup(0)); answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
for line in commands:
    sys.argv = line.split()
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    sys.stdout.flush()
    answers.write(f"{code}\\n")
"""


@dataclass
class Chain:
    """A process that runs commands one after another, and where their results and their output go."""

    process: subprocess.Popen[str]
    results: Path
    log: Path

    def run(self, *words: str) -> int:
        """A command's exit code."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the chain of commands broke:\n{self.told()}"
        return int(answer)

    def told(self) -> str:
        """What the commands have printed."""
        return self.log.read_text()[-4000:]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    folder = tmp_path_factory.mktemp("studies")
    # Not traced for coverage, which would take a third of the time: the tests of the parts are.
    left_out = ("SCALEBENCH_EXTRA", "COVERAGE_PROCESS_CONFIG")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", CHAIN], cwd=PROJECT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    yield Chain(process=process, results=folder / "results", log=folder / "log")
    assert process.stdin
    process.stdin.close()
    assert process.wait(30) == 0


def test_every_sweep_is_there_for_a_laptop_and_asks_a_question() -> None:
    for name in SWEEPS:
        sweep = sweep_named(name)
        assert sweep.question.endswith("?"), name
        assert "tiny" in sweep.sizes, f"{name} has no size tiny"
        assert FULL_SIZE not in sweep.sizes, f"{name}: {FULL_SIZE} is what the file itself says"


@pytest.mark.parametrize("name", SWEEPS)
def test_the_figure_can_be_drawn_as_far_as_is_known_before(name: str) -> None:
    assert check_figure(sweep_named(name).figure) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SWEEPS)
def test_a_tiny_study_leaves_its_figure_and_its_table(chain: Chain, name: str) -> None:
    code = chain.run("benchmarks.run", "--multirun", f"sweep={name}", "size=tiny", f"results={chain.results}")
    assert code == 0, chain.told()
    folder = chain.results / "local" / f"{name}-tiny"
    assert chain.run("analysis.scaling", str(folder)) == 0, chain.told()
    report = json.loads((folder / "analysis" / "scaling.json").read_text())
    assert report["problems"] == []
    assert report["runs"]["missing"] == 0
    assert report["runs"]["failed"] == {}, chain.told()
    check_files(folder / "analysis", report)


@pytest.mark.timeout(600)
def test_a_size_has_a_folder_of_its_own_and_goes_on_where_it_ended(chain: Chain) -> None:
    typed = ("benchmarks.run", "--multirun", "sweep=smoke", "size=tiny", f"results={chain.results}")
    folder = chain.results / "local" / "smoke-tiny"
    assert chain.run(*typed) == 0, chain.told()
    first = {path: path.stat().st_mtime_ns for path in folder.glob("*/record.json")}
    assert chain.run(*typed, "sweep.repeats=2") == 0, chain.told()
    both = {path: path.stat().st_mtime_ns for path in folder.glob("*/record.json")}
    assert len(both) == 2 * len(first) > 0  # what is typed counts more than the size's one repeat
    assert first.items() <= both.items()  # and what was there is not run again
    assert not (chain.results / "local" / "smoke").exists()


def check_files(folder: Path, report: dict[str, Any]) -> None:
    """What the sweep's file promises is there, and says something."""
    study = report["study"]
    if study:
        for panel in study["panels"]:
            check_panel(panel)
        with (folder / "study.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(study["rows"])
        for name in study["measures"]:
            assert any(row[name] for row in rows), f"no cell has {name}"
        check_picture(folder / "study.svg", [panel["y_label"] for panel in study["panels"]])
    if study is None or study["with_scaling"]:
        check_picture(folder / "throughput.svg", ["throughput [samples/s]"])
        assert (folder / "speedup.png").stat().st_size > 10_000
        assert report["strong"] or report["weak"]


def check_panel(panel: dict[str, Any]) -> None:
    has_unit = re.compile(r".+ \[.+\]|workers|epochs|loader processes|trials")
    assert has_unit.fullmatch(panel["y_label"] or panel["x_label"])
    assert has_unit.fullmatch(panel["x_label"]) or panel["mark"] in ("bars", "stack")
    assert panel["series"], panel["title"]
    assert all(series["points"] for series in panel["series"]), panel["title"]
    assert panel["missing"] == []


def check_picture(path: Path, labels: list[str]) -> None:
    """matplotlib writes each text as a comment beside its outlines."""
    texts = set(re.findall(r"<!-- (.*?) -->", path.read_text()))
    assert {label for label in labels if label} <= texts
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
