"""Shared by all tests: a base configuration, and runs made from it."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

PROJECT = Path(__file__).resolve().parent.parent

# Before the fork server starts: workers inherit its environment.
os.environ["SCALEBENCH_EXTRA"] = str(PROJECT / "tests" / "extra")
# Nowhere, unless a test makes it: what a machine's own counters say must change no test.
POWERCAP = Path(tempfile.gettempdir()) / f"scalebench-powercap-{os.getpid()}"
os.environ["SCALEBENCH_POWERCAP"] = str(POWERCAP)

from benchmarks.command_line.composed import CONTROL_KEYS  # noqa: E402
from benchmarks.core.config import RunConfig  # noqa: E402
from benchmarks.core.sweep import apply  # noqa: E402
from benchmarks.core.variants import CONF_DIR, VARIANT_AXES, variant_file  # noqa: E402
from tests.fake_slurm import FakeSlurm  # noqa: E402
from tests.ordinary_user import (  # noqa: E402, F401 - fixtures: for a session, so not those of one module
    _image_in_the_background,
    image,
    image_in_making,
    slurm_is_up,
    user_home,
    workshop,
)

MakeRun = Callable[..., RunConfig]

# Files that take longest: with several processes (`pytest -n`) they begin first, or the others wait for them at last.
LONGEST_FIRST = ("test_studies", "test_text_strategies", "test_compile", "test_command_line")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; last what waits for the image to be built."""

    def place(item: pytest.Item) -> tuple[bool, int]:
        waits = "image_in_making" in getattr(item, "fixturenames", ())
        stem = item.path.stem
        return waits, LONGEST_FIRST.index(stem) if stem in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


WORKERS_UNTRACED = {"PYTHONPATH": str(PROJECT / "tests" / "untraced")}
"""For the environment of commands that train: see there."""


def start_untraced(start: Callable[[], None] = multiprocessing.forkserver.ensure_running) -> None:
    """Workers inherit the fork server's trace function, which slows what they time; they leave no coverage anyway."""
    tracing = os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    try:
        start()
    finally:
        if tracing is not None:
            os.environ["COVERAGE_PROCESS_CONFIG"] = tracing


multiprocessing.forkserver.ensure_running = start_untraced


def base_mapping(**settings: Any) -> dict[str, Any]:
    """What Hydra composes of `conf/config.yaml` for a CPU of two cores, with dotted settings (`__` for the dot)."""
    keys = msgspec.yaml.decode((CONF_DIR / "config.yaml").read_bytes(), type=dict[str, Any])
    choices = {
        axis: name for default in keys.pop("defaults") if isinstance(default, dict) for axis, name in default.items()
    }
    for key in {"hydra", "batch", *CONTROL_KEYS} - {"sweep"}:
        del keys[key]
    base = {axis: {"name": choices[axis], **variant_file(axis, choices[axis]).defaults} for axis in VARIANT_AXES}
    cluster = {"name": "local", "device": "auto", "cores_per_node": 2, "gpus_per_node": 0}
    plain = {**keys, **base, "cluster": cluster, "device": "cpu", "threads_per_worker": 1, "sweep": "test"}
    return apply(plain, {key.replace("__", "."): value for key, value in settings.items()})


@pytest.fixture
def make_run() -> MakeRun:
    """A run of the smallest kind, with settings."""

    def make(**settings: Any) -> RunConfig:
        defaults = {"workload": "mlp", "batch_per_worker": 16, "steps": 5, "warmup_steps": 1, "run_limit_s": 60}
        if "global_batch" in settings:
            del defaults["batch_per_worker"]
        return RunConfig.from_mapping(base_mapping(**defaults | settings))

    return make


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A faked Slurm whose commands are all that is on PATH: a real one is out of reach."""
    fake = FakeSlurm(tmp_path / "fake_slurm")
    monkeypatch.setenv("PATH", str(fake.bin))
    return fake
