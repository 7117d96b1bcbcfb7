"""Where a job's time went before its supervisor began."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from benchmarks.supervision.launch_times import CONTAINER_START
from tests.conftest import PROJECT

pytestmark = pytest.mark.alone

PROGRAM = (
    "import json, sys, time\n"
    "time.sleep(0.3)\n"
    "from benchmarks.supervision.launch_times import before_supervisor\n"
    "print(json.dumps(before_supervisor(sys.argv[1] if len(sys.argv) > 1 else None)))\n"
)


def told(*arguments: str, container: str | None = None) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=PROJECT,
        env={CONTAINER_START: container} if container is not None else {},
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout))


def test_each_phase_by_its_moment() -> None:
    now_s = time.time()
    phases = told(str(now_s - 5), container=str(now_s - 1))
    assert list(phases) == ["launch", "container", "imports"]
    assert phases["launch"] == pytest.approx(4.0, abs=0.001)
    assert 0.98 <= phases["container"] < 2.0  # the kernel notes a start to 10 ms
    assert 0.3 <= phases["imports"] < 3.0


def test_without_a_container_the_launch_lasts_until_python_begins() -> None:
    phases = told(str(time.time() - 5))
    assert list(phases) == ["launch", "imports"]
    assert 4.9 <= phases["launch"] < 6.0


@pytest.mark.parametrize(("arguments", "container"), [((), None), (("soon",), "")])
def test_what_is_not_known_is_left_out(arguments: tuple[str, ...], container: str | None) -> None:
    assert list(told(*arguments, container=container)) == ["imports"]
