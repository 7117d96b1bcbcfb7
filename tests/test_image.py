"""A real image, built and used by an ordinary user with a real Apptainer. It needs no Slurm.

The image is kept between test runs and built anew when what it is made from has changed: four minutes on two cores,
or one with SCALEBENCH_TEST_BASE=thin.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.record import RECORD_NAME, Record, read_record
from containers.command import Container, Folders, find_runtime, prefix, python, python_string
from containers.image import Image, open_image, verify
from tests.conftest import PROJECT
from tests.test_onehost import USER, as_user

pytestmark = pytest.mark.cluster

BASE = os.environ.get("SCALEBENCH_TEST_BASE", "debian")
IMAGES = Path(os.environ.get("SCALEBENCH_TEST_IMAGES", "/var/tmp/scalebench-test-images"))
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
SECRET = "planted-4711-secret"
PLANTED = {
    **{"PLANTED": SECRET, "SLURM_JWT": SECRET, "APPTAINERENV_PLANTED": SECRET, "http_proxy": f"http://u:{SECRET}@h:1"},
    **{"PYTHONPATH": "/planted", "SLURM_JOB_ID": "4711", "OMP_NUM_THREADS": "1", "SCALEBENCH_EXTRA": "", "PATH": PATH},
}


@pytest.fixture(scope="module")
def clone() -> Iterator[Path]:
    """The project in the user's home, with a .venv by a Python that the user can run."""
    assert os.geteuid() == 0, "cluster tests need root"
    subprocess.run([PROJECT / "containers" / "install-apptainer.sh"], check=True, timeout=300)
    if USER not in {entry.pw_name for entry in pwd.getpwall()}:
        subprocess.run(["useradd", "-m", USER], check=True)
    folder = Path(pwd.getpwnam(USER).pw_dir) / "scalebench-image"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(folder)], check=True)
    make = ["make", ".venv/.requirements.lock", "PYTHON_FOR_VENV=/usr/bin/python3"]
    subprocess.run(make, cwd=folder, check=True, timeout=1200)
    (folder / "results").mkdir()
    subprocess.run(["chown", "-R", f"{USER}:", str(folder)], check=True)
    yield folder
    shutil.rmtree(folder)


def make_image(clone: Path) -> str:
    """What `make image` says, as the user."""
    IMAGES.mkdir(exist_ok=True)
    shutil.chown(IMAGES, USER, USER)
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_BUNDLE")}
    done = subprocess.run(
        ["runuser", "-u", USER, "--", "make", "--silent", "image", f"BASE={BASE}", f"IMAGES={IMAGES}"],
        cwd=clone,
        env={**kept, "HOME": pwd.getpwnam(USER).pw_dir, "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def image(clone: Path) -> Image:
    print(make_image(clone))
    found = open_image(IMAGES / "scalebench.sif")
    return verify(found, command(clone, found), repo=clone)


def command(clone: Path, image: Image, setup: str | None = None) -> list[str]:
    folders = Folders(repo=clone, results=clone / "results")
    container = Container(image=image.path, setup=setup)
    return prefix(container, runtime=find_runtime(), image=image, folders=folders, gpus=False)


def text(clone: Path, image: Image, setup: str | None = None) -> str:
    """What submitit gets as its `python`."""
    return python_string(command(clone, image, setup), python(Container(), image=image, repo=clone))


def test_the_digest_is_sha256sums(image: Image) -> None:
    printed = subprocess.run(["sha256sum", image.path], check=True, capture_output=True, text=True).stdout
    assert image.sha256 == printed.split()[0]


def test_unchanged_inputs_build_nothing(clone: Path, image: Image) -> None:
    started_s = time.monotonic()
    assert "up to date" in make_image(clone)
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


def test_import_torch_takes_at_most_twice_as_long(clone: Path, image: Image) -> None:
    """From the start of the process to its end, in turns, since the machine is shared."""
    commands = {"bare": ".venv/bin/python", "image": text(clone, image)}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(3):
        for name, start in commands.items():
            started_s = time.monotonic()
            as_user("bash", "-c", f"cd {clone} && exec {start} -c 'import torch'", PATH=PATH)
            seconds[name].append(time.monotonic() - started_s)
    print(f"import torch, seconds: {seconds}")
    assert statistics.median(seconds["image"]) <= 2 * statistics.median(seconds["bare"])
