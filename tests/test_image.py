"""A real image, built and used by an ordinary user with a real Apptainer. It needs no Slurm.

The image is kept between test runs and built anew when what it is made from has changed: four minutes on two cores,
or one with SCALEBENCH_TEST_BASE=thin. Tests that do without it go first; see `tests/ordinary_user.py`.
"""

from __future__ import annotations

import json
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.core.record import RECORD_NAME, Record, read_record
from containers.command import Container, python, python_string
from containers.image import Image, open_image
from tests.ordinary_user import PATH, USER, as_user, clone_with_venv, command, make_image, own, said

pytestmark = pytest.mark.cluster

SECRET = "planted-4711-secret"
PLANTED = {
    **{"PLANTED": SECRET, "SLURM_JWT": SECRET, "APPTAINERENV_PLANTED": SECRET, "http_proxy": f"http://u:{SECRET}@h:1"},
    **{"PYTHONPATH": "/planted", "SLURM_JOB_ID": "4711", "OMP_NUM_THREADS": "1", "SCALEBENCH_EXTRA": "", "PATH": PATH},
}


@pytest.fixture(scope="module")
def clone(user_home: Path, workshop: Path) -> Iterator[Path]:
    """The project in the user's home."""
    folder = user_home / "scalebench-image"
    clone_with_venv(folder, workshop)
    (folder / "results").mkdir()
    own(folder / "results")
    yield folder
    shutil.rmtree(folder)


def text(clone: Path, image: Image, setup: str | None = None) -> str:
    """What submitit gets as its `python`."""
    return python_string(command(clone, image, setup), python(Container(), image=image, repo=clone))


def test_the_digest_is_sha256sums(image: Image) -> None:
    printed = subprocess.run(["sha256sum", image.path], check=True, capture_output=True, text=True).stdout
    assert image.sha256 == printed.split()[0]


def test_unchanged_inputs_build_nothing(clone: Path, image: Image) -> None:
    started_s = time.monotonic()
    assert "up to date" in said(make_image(clone))
    assert time.monotonic() - started_s < 10
    assert open_image(image.path) == image


def test_its_labels_and_its_own_test(image: Image) -> None:
    shown = json.loads(as_user("apptainer", "inspect", "--json", image.path, PATH=PATH))
    labels = shown["data"]["attributes"]["labels"]
    assert image.labels
    assert {name: labels[name] for name in image.labels} == image.labels
    as_user("apptainer", "test", image.path, PATH=PATH)


def test_the_way_to_the_package_index_is_not_in_it(image: Image) -> None:
    search = "ls -A /mnt; find / -xdev -name pip.conf; cat /etc/apt/sources.list; env | grep PIP_ || true"
    seen = as_user("apptainer", "--quiet", "exec", "--cleanenv", image.path, "sh", "-c", search, PATH=PATH)
    assert seen == ""


def test_only_the_listed_variables_come_in(clone: Path, image: Image) -> None:
    shown = as_user("bash", "-c", f"exec {text(clone, image, 'env; exit')}", **PLANTED)
    assert SECRET not in shown
    assert "/planted" not in shown
    assert {"SLURM_JOB_ID=4711", "OMP_NUM_THREADS=1", f"SCALEBENCH_IMAGE_SHA256={image.sha256}"} <= set(shown.split())


def test_values_come_in_as_they_are(clone: Path, image: Image) -> None:
    value = "a \"b\" 'c' $HOME $(id) `id` ; \\n\nsecond line"
    program = "import os; print(os.environ['SLURM_JOB_NAME'])"
    assert (
        as_user("bash", "-c", f'{text(clone, image)} -c "{program}"', SLURM_JOB_NAME=value, PATH=PATH) == value + "\n"
    )


def test_a_run_inside_writes_its_record_and_nothing_else(clone: Path, image: Image) -> None:
    run = "-m benchmarks.run workload=mlp steps=5 warmup_steps=1 global_batch=64 results=results/inside"
    as_user("bash", "-c", f"cd / && exec {text(clone, image)} {run}", **PLANTED)
    [record] = records(clone / "results" / "inside")
    assert record.status == "ok"
    assert image.facts is not None
    assert record.environment["python"] == image.facts.python
    assert re.fullmatch(r"[0-9a-f]{40}", record.environment["commit"])
    for file in (clone / "results").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def records(folder: Path) -> list[Record]:
    return [read_record(path) for path in folder.rglob(RECORD_NAME)]


def test_the_repo_is_read_only(clone: Path, image: Image) -> None:
    write = f"touch {clone}/benchmarks/planted || touch planted || touch results/written; exit"
    as_user("bash", "-c", f"cd {clone} && exec {text(clone, image, write)}", PATH=PATH)
    assert (clone / "results" / "written").exists()
    assert not list(clone.rglob("planted"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_signals_reach_python(clone: Path, image: Image, number: signal.Signals) -> None:
    program = (
        # Not print: the signal may come while it is still at work, and it cannot be entered twice.
        "import os, signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *_: (time.sleep(0.2), os.write(1, b'caught\\n'), sys.exit(7)))\n"
        "os.write(1, b'ready\\n')\n"
        "while True: time.sleep(0.1)\n"
    )
    (clone / "results" / "wait.py").write_text(program)
    line = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "bash", "-c"]
    environment = {"PATH": PATH, "HOME": pwd.getpwnam(USER).pw_dir}
    with subprocess.Popen(
        [*line, f"exec {text(clone, image)} results/wait.py"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd="/",
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "caught\n"
        assert process.wait(20) == 7


SUBMIT = """
import os, sys, submitit
job = submitit.LocalExecutor(folder="results/jobs", python=sys.argv[1]).submit(os.path.realpath, "/opt/venv")
job.result()
print(job.stdout())
"""


def test_submitit_starts_its_job_inside(clone: Path, image: Image) -> None:
    (clone / "results" / "submit.py").write_text(SUBMIT)
    inside = text(clone, image, "env | grep ^APPTAINER_CONTAINER=")
    shown = as_user(
        "bash", "-c", f'cd {clone} && .venv/bin/python results/submit.py "$INSIDE"', INSIDE=inside, PATH=PATH
    )
    assert f"APPTAINER_CONTAINER={image.path}" in shown
    assert "completed successfully" in shown


IMPORTED = """
import os, sys, torch
found = [module for module in list(sys.modules.values()) if (getattr(module, "__file__", "") or "").startswith("/opt/")]
cached = [getattr(module, "__cached__", None) for module in found if module.__file__.endswith(".py")]
print(len(cached), sum(path is None or not os.path.exists(path) for path in cached))
"""


def test_what_is_imported_has_been_compiled(clone: Path, image: Image) -> None:
    """The image cannot be written to: what has no bytecode in it is compiled at each start. `make bench` times it."""
    (clone / "results" / "imported.py").write_text(IMPORTED)
    shown = as_user("bash", "-c", f"cd {clone} && exec {text(clone, image)} results/imported.py", PATH=PATH)
    imported, without = map(int, shown.split())
    assert imported > 500
    assert without == 0
