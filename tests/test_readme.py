"""The README's and CONTRIBUTING's commands, links and lists, taken at their word."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.core.variants import CONF_DIR, VARIANT_AXES, names_on
from tests.conftest import PROJECT, WORKERS_UNTRACED

README = (PROJECT / "README.md").read_text()
CONTRIBUTING = (PROJECT / "CONTRIBUTING.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]

# Run by CI itself, around these tests, or by the cluster tests; `make bench` takes minutes and judges nothing.
RUN_ELSEWHERE = {"make test", "make check", "make bench", "make test-cluster", "make cluster-up", "make cluster-down"}
RUN_ELSEWHERE |= {"make image"}
ON_THE_CLUSTER = [
    *[command for command in COMMANDS if "CLUSTER=onehost" in command],
    *["make status", "make status ARGS=--watch", "make report", "make cancel"],
]
RUN_ELSEWHERE |= {command for command in COMMANDS if command.startswith("srun")} | set(ON_THE_CLUSTER)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as a newcomer has it, but for its .venv, which is this one."""
    folder = tmp_path_factory.mktemp("clone") / "scalebench"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (PROJECT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((PROJECT / name).read_bytes())
    (folder / ".venv").symlink_to(PROJECT / ".venv")
    # As an environment just made from this lock file: make must not renew what it shares with others.
    os.utime(folder / "requirements.lock", (0, 0))
    return folder


def test_the_readme_has_commands() -> None:
    assert "make sweep" in COMMANDS
    assert len(COMMANDS) >= 8
    assert set(COMMANDS) >= RUN_ELSEWHERE


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUN_ELSEWHERE])
def test_commands_run(clone: Path, command: str) -> None:
    """In the README's order, in one clone, so that later commands find the results of earlier ones."""
    environment = {key: value for key, value in os.environ.items() if key != "SCALEBENCH_EXTRA"} | WORKERS_UNTRACED
    done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout


def test_the_first_command_leaves_tables_and_figures(clone: Path) -> None:
    left = {path.name for path in (clone / "results" / "local" / "smoke" / "analysis").iterdir()}
    assert left >= {"scaling.md", "strong.csv", "weak.csv", "speedup.png", "speedup.svg", "efficiency.svg"}


@pytest.mark.parametrize(("name", "text"), [("README.md", README), ("CONTRIBUTING.md", CONTRIBUTING)])
def test_links_lead_somewhere(name: str, text: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert all((PROJECT / link).exists() for link in links if "://" not in link), name
    paths = re.findall(r"`((?:benchmarks|analysis|conf|containers|slurm|tests|hydra_plugins)/[\w./]+)`", text)
    missing = [path for path in paths if not (PROJECT / path).exists()]
    assert set(missing) <= {"conf/optimizer/rmsprop.yaml", "benchmarks/optimizer/rmsprop.py"}, name


@pytest.mark.parametrize("axis", [*VARIANT_AXES, "sweep"])
def test_every_entry_is_listed(axis: str) -> None:
    for name in names_on(axis):
        own = (CONF_DIR / axis / f"{name}.yaml").exists()  # the tests' own workloads need no line
        assert f"`{name}`" in README or not own, f"{axis} {name} is missing in the README"


def test_every_make_target_explains_itself() -> None:
    done = subprocess.run(["make", "help"], cwd=PROJECT, check=True, capture_output=True, text=True)
    makefile = (PROJECT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert targets
    for target in targets[1].split():
        assert re.search(rf"^  make {target}\s+\w", done.stdout, flags=re.MULTILINE), target
