"""What the cluster tests share: a Slurm that is up, an ordinary user, that user's clones and the image they build.

Starting Slurm, a .venv of 5 GB and an image each take minutes, so each is made once for a session. The image is built
while other tests wait for Slurm.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from containers.command import Container, Folders, find_runtime, prefix
from containers.image import Image, open_image, verify

PROJECT = Path(__file__).resolve().parent.parent
SCRIPT = PROJECT / "slurm" / "onehost.sh"
STATE = Path(os.environ.get("ONEHOST_DIR", "/var/tmp/scalebench-onehost"))
USER = "scalebench-test"
USERS_PYTHON = "/usr/bin/python3"
"""The one that runs the tests may lie where only root can go."""
BASE = os.environ.get("SCALEBENCH_TEST_BASE", "debian")
IMAGES = Path(os.environ.get("SCALEBENCH_TEST_IMAGES", "/var/tmp/scalebench-test-images"))
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
BUILD_LIMIT_S = 1500


def script(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The one-host cluster's script."""
    return subprocess.run(
        ["bash", SCRIPT, command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )


def as_user(*command: str, **environment: str) -> str:
    """What a command of the user's prints."""
    done = subprocess.run(
        ["runuser", "-u", USER, "--", *command],
        cwd=pwd.getpwnam(USER).pw_dir,
        env={**os.environ, "HOME": pwd.getpwnam(USER).pw_dir, **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def user_home() -> Path:
    """The user's."""
    assert os.geteuid() == 0, "cluster tests need root"
    if USER not in {entry.pw_name for entry in pwd.getpwall()}:
        subprocess.run(["useradd", "-m", USER], check=True)
    return Path(pwd.getpwnam(USER).pw_dir)


@pytest.fixture(scope="session")
def slurm_is_up(user_home: Path) -> Iterator[None]:
    """As the session has found it, it leaves it: what was not there is removed again."""
    was_there, was_up = STATE.exists(), script("status").returncode == 0
    done = script("up")
    assert done.returncode == 0, done.stdout + done.stderr
    yield
    if not was_up:
        assert script("down" if was_there else "clean").returncode == 0
        assert was_there or not STATE.exists()


def own(folder: Path) -> None:
    """Give a folder to the user."""
    subprocess.run(["chown", "-R", f"{USER}:", str(folder)], check=True)


def fresh_clone(folder: Path) -> None:
    """The project as it is committed, without a .venv."""
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(folder)], check=True)


@pytest.fixture(scope="session")
def workshop(user_home: Path) -> Iterator[Path]:
    """A clone of the user's, with a .venv of a Python that the user can run."""
    folder = user_home / "scalebench-workshop"
    fresh_clone(folder)
    own(folder)
    packages = Path(sysconfig.get_path("purelib"))
    if _version_of(USERS_PYTHON) == sys.version_info[:2] and packages.stat().st_dev == folder.stat().st_dev:
        _lend(packages, folder / ".venv")
    else:
        make = ["make", ".venv/.requirements.lock", f"PYTHON_FOR_VENV={USERS_PYTHON}"]
        subprocess.run(make, cwd=folder, check=True, timeout=1200)
    yield folder
    shutil.rmtree(folder)


def _version_of(python: str) -> tuple[int, ...]:
    command = [python, "-c", "import sys; print(*sys.version_info[:2])"]
    return tuple(map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()))


def _lend(packages: Path, venv: Path) -> None:
    """Make a .venv whose packages are links to these: to install them anew takes minutes."""
    subprocess.run([USERS_PYTHON, "-m", "venv", "--without-pip", venv], check=True)
    [theirs] = venv.glob("lib/python*/site-packages")
    theirs.rmdir()
    subprocess.run(["cp", "-al", packages, theirs], check=True)
    (venv / ".requirements.lock").touch()


def clone_with_venv(folder: Path, workshop: Path) -> None:
    """One more clone, whose .venv has the workshop's files: linked, since a copy takes longer and 5 GB more."""
    fresh_clone(folder)
    own(folder)
    subprocess.run(["cp", "-al", workshop / ".venv", folder / ".venv"], check=True)
    (folder / ".venv" / ".requirements.lock").touch()  # for make: not older than the clone's own lock file


def make_image(clone: Path) -> subprocess.Popen[str]:
    """`make image`, as the user, giving way to everything else."""
    IMAGES.mkdir(exist_ok=True)
    shutil.chown(IMAGES, USER, USER)
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_BUNDLE")}
    return subprocess.Popen(
        [
            "runuser",
            "-u",
            USER,
            "--",
            "nice",
            "-n",
            "19",
            "make",
            "--silent",
            "image",
            f"BASE={BASE}",
            f"IMAGES={IMAGES}",
        ],
        cwd=clone,
        env={**kept, "HOME": pwd.getpwnam(USER).pw_dir, "PATH": PATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(making: subprocess.Popen[str]) -> str:
    """What `make image` says, once it is done."""
    text, _ = making.communicate(timeout=BUILD_LIMIT_S)
    assert making.returncode == 0, text
    return text


@pytest.fixture(scope="session")
def image_in_making(workshop: Path, slurm_is_up: None) -> Iterator[subprocess.Popen[str]]:
    """It begins here; `image` waits for it.

    After Slurm's packages are there: while apt renews its lists, it names no mirror to build from.
    """
    subprocess.run([PROJECT / "containers" / "install-apptainer.sh"], check=True, timeout=300)
    making = make_image(workshop)
    yield making
    if making.poll() is None:
        making.terminate()


@pytest.fixture(scope="session", autouse=True)
def _image_in_the_background(request: pytest.FixtureRequest) -> None:
    """If any test of the session wants the image, it is begun before the first one."""
    if any("image_in_making" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("image_in_making")


@pytest.fixture(scope="session")
def image(workshop: Path, image_in_making: subprocess.Popen[str]) -> Image:
    """As sweeps find it."""
    print(said(image_in_making))
    found = open_image(IMAGES / "scalebench.sif")
    return verify(found, command(workshop, found), repo=workshop)


def command(clone: Path, image: Image, setup: str | None = None) -> list[str]:
    """What starts a command in the image, with the user's clone bound."""
    folders = Folders(repo=clone, results=clone / "results")
    container = Container(image=image.path, setup=setup)
    return prefix(container, runtime=find_runtime(), image=image, folders=folders, gpus=False)
