"""Images and the command that starts them; the runtime is a script on PATH."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.core import record
from benchmarks.core.errors import ConfigError, UserError
from containers import bases, build, image, index, selftest
from containers.command import Container, Folders, find_runtime, prefix, python, python_string
from containers.image import Facts, Image, manifest_path, open_image, read_manifest, verify
from tests.conftest import PROJECT

SHA256 = "ab" * 32
IMAGE = Image(path="/images/x.sif", sha256=SHA256, size_bytes=4, mtime_ns=1)
THIN = Image(path="/images/x.sif", sha256=SHA256, size_bytes=4, mtime_ns=1, labels={"scalebench.packages": "none"})
FOLDERS = Folders(repo=Path("/home/u/scalebench"), results=Path("/home/u/scalebench/results"))
HERE = platform.python_version()

Fake = Callable[[str, str], Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Puts a program in place of one on PATH; the first line of its text may be the interpreter."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def make(name: str, text: str) -> Path:
        (folder / name).write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
        return folder / name

    return make


def words(container: Container, gpus: bool = False, folders: Folders = FOLDERS) -> str:
    return " ".join(prefix(container, runtime="apptainer", image=IMAGE, folders=folders, gpus=gpus))


# ---- the command

BEFORE = (
    f"env SCALEBENCH_IMAGE=/images/x.sif SCALEBENCH_IMAGE_SHA256={SHA256} SCALEBENCH_CONTAINER_RUNTIME=apptainer "
    "bash /home/u/scalebench/containers/run.sh"
)
EXEC = "apptainer --quiet exec --cleanenv"
BINDS = "--bind /home/u/scalebench:/home/u/scalebench:ro --bind /home/u/scalebench/results"
AFTER = "--pwd /home/u/scalebench /images/x.sif"


@pytest.mark.parametrize(
    ("container", "gpus", "expected"),
    [
        (Container(), False, f"{BEFORE} {EXEC} {BINDS} {AFTER}"),
        (Container(), True, f"{BEFORE} {EXEC} --nv {BINDS} {AFTER}"),
        (Container(gpu="amd"), False, f"{BEFORE} {EXEC} {BINDS} {AFTER}"),
        (Container(gpu="amd"), True, f"{BEFORE} {EXEC} --rocm {BINDS} {AFTER}"),
        (
            Container(binds=["/scratch", "/a:/b", "/c:/d:ro"]),
            False,
            f"{BEFORE} {EXEC} {BINDS} --bind /scratch --bind /a:/b --bind /c:/d:ro {AFTER}",
        ),
        (Container(overlay="/o.ext3"), False, f"{BEFORE} {EXEC} {BINDS} --overlay /o.ext3:ro {AFTER}"),
        (Container(overlay="/o.ext3:rw"), False, f"{BEFORE} {EXEC} {BINDS} --overlay /o.ext3 {AFTER}"),
        (
            Container(environment=["WANDB_*", "HF_HOME"]),
            False,
            f"{BEFORE} --allow WANDB_* --allow HF_HOME {EXEC} {BINDS} {AFTER}",
        ),
        (
            Container(setup="source /ext3/env.sh"),
            False,
            f'{BEFORE} {EXEC} {BINDS} {AFTER} /bin/bash -c source /ext3/env.sh\nexec "$0" "$@"',
        ),
    ],
)
def test_the_command(container: Container, gpus: bool, expected: str) -> None:
    assert words(container, gpus) == expected


def test_a_folder_that_is_named_twice_is_bound_once() -> None:
    folders = Folders(repo=Path("/r"), results=Path("/s/results"), others=(Path("/data"), Path("/s/results")))
    assert "--bind /r:/r:ro --bind /s/results --bind /data --pwd" in words(Container(), folders=folders)


def test_which_python() -> None:
    repo = Path("/r")
    assert python(Container(), image=IMAGE, repo=repo) == "python"
    assert python(Container(), image=THIN, repo=repo) == "/r/.venv/bin/python"
    assert python(Container(python="/ext3/bin/python"), image=THIN, repo=repo) == "/ext3/bin/python"


@pytest.mark.parametrize(
    ("container", "said"),
    [
        (Container(binds=["scratch"]), "container.binds=scratch: "),
        (Container(binds=["/a,/b"]), "container.binds=/a,/b: "),
        (Container(binds=["/a:/b:rx"]), "container.binds=/a:/b:rx: "),
        (Container(overlay="/o:wr"), "container.overlay=/o:wr: "),
        (Container(overlay="o.ext3"), "container.overlay=o.ext3: "),
    ],
)
def test_what_no_runtime_could_be_told(container: Container, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        words(container)


@pytest.mark.parametrize("name", ["/a:b", "/a,b", "relative"])
def test_folders_that_cannot_be_bound(name: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(name)):
        words(Container(), folders=Folders(repo=Path("/r"), results=Path(name)))


def test_the_runtime_is_whichever_there_is(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fake("singularity", "").parent))
    assert find_runtime().endswith("/singularity")
    with pytest.raises(UserError, match="apptainer is not on PATH"):
        find_runtime("apptainer")
    fake("apptainer", "")
    assert find_runtime().endswith("/apptainer")
    assert find_runtime("singularity").endswith("/singularity")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"neither apptainer nor singularity is on PATH: .*container.image=none"):
        find_runtime()


SHOW = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("fake version 9.9"))
print(json.dumps(dict(words=sys.argv[1:], environment=dict(os.environ), pid=os.getpid())))
"""


def run_as_submitit_does(container: Container, runtime: Path, repo: Path) -> dict[str, object]:
    """By the one text, in a shell, with the arguments that submitit appends."""
    folders = Folders(repo=repo, results=repo)
    text = python_string(prefix(container, runtime=str(runtime), image=IMAGE, folders=folders, gpus=False), "my python")
    done = subprocess.run(
        ["bash", "-c", f"exec {text} -u -m it 'a folder'"], capture_output=True, text=True, check=True
    )
    return dict(json.loads(done.stdout))


NASTY = "echo \"$HOME\" 'it''s'; x=$(id) # and\nexport A=`b`;"


def test_every_word_arrives_as_it_was(fake: Fake) -> None:
    seen = run_as_submitit_does(Container(setup=NASTY), fake("apptainer", SHOW), PROJECT)
    assert seen["words"] == [
        *("--quiet", "exec", "--cleanenv", "--bind", f"{PROJECT}:{PROJECT}:ro", "--bind", str(PROJECT)),
        *("--pwd", str(PROJECT), "/images/x.sif", "/bin/bash", "-c", f'{NASTY}\nexec "$0" "$@"'),
        *("my python", "-u", "-m", "it", "a folder"),
    ]


def test_the_setup_line_comes_first_and_python_gets_its_arguments(tmp_path: Path) -> None:
    container = Container(setup="export GREETING='a b'; # a comment")
    command = prefix(container, runtime="apptainer", image=IMAGE, folders=FOLDERS, gpus=False)
    shell = command[command.index("/bin/bash") :]
    program = "import os, sys; print(os.environ['GREETING'], sys.argv[1:])"
    done = subprocess.run(
        [*shell, sys.executable, "-c", program, "x y", "$z"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "a b ['x y', '$z']\n"


# ---- the environment


def inside(runtime: Path, *allow: str, **environment: str) -> dict[str, str]:
    """The variables that the runtime is told to set, without their prefix."""
    command = ["bash", str(PROJECT / "containers" / "run.sh"), *allow, str(runtime), "exec"]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, check=True)
    seen = json.loads(done.stdout)["environment"]
    marker = f"{runtime.name.upper()}ENV_"
    return {name.removeprefix(marker): value for name, value in seen.items() if name.startswith(marker)}


def test_only_what_is_on_the_list_comes_in(fake: Fake) -> None:
    wanted = {
        "SLURM_JOB_ID": "12",
        "SUBMITIT_EXECUTOR": "slurm",
        "NCCL_DEBUG": "INFO",
        "OMP_NUM_THREADS": "4",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "GLOO_SOCKET_IFNAME": "lo",
        "SCALEBENCH_EXTRA": "",
    }
    unwanted = {
        "PYTHONPATH": "/x",
        "AWS_SECRET_ACCESS_KEY": "s",
        "SLURM_JWT": "s",
        "SUBMITIT_TOKEN": "s",
        "LD_PRELOAD": "",
        "CUDA_HOME": "/cuda",
        "APPTAINERENV_PLANTED": "s",
        "SINGULARITYENV_PLANTED": "s",
    }
    seen = inside(fake("apptainer", SHOW), **wanted, **unwanted)
    assert float(seen.pop("SCALEBENCH_CONTAINER_START")) > 1.7e9
    assert seen.pop("SCALEBENCH_CONTAINER_VERSION") == "fake version 9.9"
    assert seen == wanted


def test_what_a_site_adds(fake: Fake) -> None:
    variables = {"WANDB_MODE": "offline", "WANDB_API_KEY": "s", "HF_TOKEN": "wanted", "MINE": "1"}
    seen = inside(fake("singularity", SHOW), "--allow", "WANDB_*", "--allow", "HF_TOKEN", **variables)
    del seen["SCALEBENCH_CONTAINER_START"], seen["SCALEBENCH_CONTAINER_VERSION"]
    assert seen == {"WANDB_MODE": "offline", "HF_TOKEN": "wanted"}


def test_values_are_not_touched(fake: Fake) -> None:
    value = "a b \"c\" 'd' $HOME ; $(id) `id` \\n \n second line é"
    assert inside(fake("apptainer", SHOW), SLURM_JOB_NAME=value)["SLURM_JOB_NAME"] == value


def test_the_runtimes_own_doors_are_shut(fake: Fake) -> None:
    doors = {
        "http_proxy": "http://user:password@host",
        "HTTPS_PROXY": "x",
        "APPTAINER_ENV_FILE": "/f",
        "APPTAINER_ENV": "A=b",
    }
    command = ["bash", str(PROJECT / "containers" / "run.sh"), str(fake("apptainer", SHOW)), "exec"]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **doors}, capture_output=True, check=True)
    seen = json.loads(done.stdout)["environment"]
    assert not doors.keys() & seen.keys()
    assert seen["APPTAINER_NO_EVAL"] == "1"


def test_no_process_stands_between_a_signal_and_the_runtime(fake: Fake) -> None:
    command = ["bash", str(PROJECT / "containers" / "run.sh"), str(fake("apptainer", SHOW)), "exec"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        out, _ = process.communicate()
    assert json.loads(out)["pid"] == process.pid


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["apptainer", "exec", "--bind", "/:/x", "--bind", "/no/such:/y:ro", "x.sif"],
            "container: bind /no/such: not there on node ",
        ),
        (
            ["apptainer", "exec", "--overlay", "/no/o.ext3:ro", "x.sif"],
            "container: overlay /no/o.ext3: not there on node ",
        ),
        (["/no/such/apptainer", "exec", "x.sif"], "container: no program /no/such/apptainer on node "),
        ([], "usage: run.sh"),
        (["--allow"], "--allow needs a name"),
    ],
)
def test_run_refuses_in_one_line(arguments: list[str], said: str, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without Apptainer, too: the runtime's stand-in is never started."""
    monkeypatch.setenv("PATH", f"{fake('apptainer', 'exit 9').parent}:/usr/bin:/bin")
    command = ["bash", str(PROJECT / "containers" / "run.sh"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


# ---- the image's file


@pytest.fixture
def sif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with its manifest, as a build leaves them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "x.sif"
    path.write_bytes(b"SIF!")
    path.chmod(0o644)
    facts = Facts(python=HERE, executable="/usr/bin/python3.11", versions={"submitit": "1.5.4"})
    status = path.stat()
    image.remember(
        Image(
            path=str(path),
            sha256=image.file_sha256(path),
            size_bytes=4,
            mtime_ns=status.st_mtime_ns,
            facts=facts,
            inputs="i",
        )
    )
    return path


def no_digest(path: Path) -> str:
    raise AssertionError(f"the digest of {path} is computed again")


def test_the_digest_is_sha256sums(sif: Path) -> None:
    expected = subprocess.run(["sha256sum", str(sif)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert open_image(sif).sha256 == expected


def test_the_digest_is_computed_once(sif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest_path(sif).unlink()
    first = open_image(sif)
    monkeypatch.setattr(image, "file_sha256", no_digest)
    assert open_image(sif) == first
    os.utime(sif, ns=(0, 0))
    with pytest.raises(AssertionError):
        open_image(sif)


@pytest.mark.parametrize("content", [b"GIF!", b"longer"])
def test_an_image_made_elsewhere_may_be_replaced(sif: Path, content: bytes) -> None:
    manifest_path(sif).unlink()
    before = open_image(sif)
    sif.write_bytes(content)
    os.utime(sif, ns=(0, 0))
    assert (open_image(sif).sha256 != before.sha256, open_image(sif).mtime_ns) == (True, 0)


def test_a_copy_is_checked_once_and_its_manifest_moves_on(sif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(sif, ns=(0, 0))
    open_image(sif)
    monkeypatch.setattr(image, "file_sha256", no_digest)
    assert open_image(sif).mtime_ns == 0
    assert json.loads(manifest_path(sif).read_bytes())["facts"]["python"] == HERE


def test_where_nothing_can_be_written_beside_it(sif: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = record.replace

    def read_only(path: Path, content: bytes) -> Path:
        if path == manifest_path(sif):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, content)

    monkeypatch.setattr(image, "replace", read_only)
    os.utime(sif, ns=(0, 0))
    first = open_image(sif)
    monkeypatch.setattr(image, "file_sha256", no_digest)
    assert open_image(sif) == first
    monkeypatch.setattr(image, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    image.remember(first)  # nowhere to write is no reason to stop


def damage(path: Path) -> None:
    path.write_bytes(b"SIG!")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (Path.unlink, "x.sif: No such file or directory; `make image` builds one"),
        (lambda path: path.chmod(0o666), "x.sif: anybody may change it (mode 666): chmod o-w"),
        (lambda path: path.write_bytes(b"SI"), "x.sif: 2 bytes, but its manifest says 4: truncated"),
        (damage, "x.sif: its sha256 is "),
        (lambda path: manifest_path(path).write_text("{"), "x.sif.json: not a readable image manifest"),
        (lambda path: manifest_path(path).write_text("{}"), "x.sif.json: not a readable image manifest"),
        (lambda path: (path.unlink(), path.mkdir()), "x.sif: not a file"),
    ],
)
def test_a_wrong_file_is_refused(sif: Path, change: Callable[[Path], object], said: str) -> None:
    change(sif)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        open_image(sif)
    assert "\n" not in str(caught.value)


def test_a_manifest_of_the_future_and_an_address(sif: Path) -> None:
    content = json.loads(manifest_path(sif).read_bytes())
    manifest_path(sif).write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(UserError, match="schema version 2, this program reads version 1"):
        open_image(sif)
    with pytest.raises(UserError, match="docker://python: a file is needed"):
        open_image("docker://python")


# ---- what is inside


def answer(**changes: object) -> str:
    facts = {"python": HERE, "executable": "/usr/bin/python3.11", "versions": {"submitit": "1.5.4"}}
    return f"echo 'a line of the setup'; echo {shlex.quote(json.dumps(facts | changes))}"


def test_a_manifest_answers_without_starting_the_image(sif: Path) -> None:
    found = verify(open_image(sif), ["/no/such/program"], repo=PROJECT)
    assert found.facts is not None
    assert found.facts.versions == {"submitit": "1.5.4"}


def test_an_image_without_a_manifest_is_asked_once(sif: Path, fake: Fake) -> None:
    manifest_path(sif).unlink()
    runtime = str(fake("apptainer", answer()))
    assert verify(open_image(sif), [runtime], repo=PROJECT).facts is not None
    assert verify(open_image(sif), ["/no/such/program"], repo=PROJECT).facts is not None


def test_an_overlay_is_asked_each_time(sif: Path, fake: Fake) -> None:
    runtime = str(fake("apptainer", answer(versions={"submitit": "9"})))
    found = verify(open_image(sif), [runtime], repo=PROJECT, ask=True)
    assert found.facts is not None
    assert found.facts.versions == {"submitit": "9"}
    assert open_image(sif).facts != found.facts


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (answer(python="3.4.1"), f"has Python 3.4.1, but the submitting side has {HERE}"),
        (answer(versions={"submitit": None}), "has no submitit"),
        (answer(versions={}), "has no submitit"),
        (
            "echo INFO: x >&2; echo -e '\\e[31mFATAL:   no loop device\\e[0m' >&2; exit 255",
            "cannot be asked (no loop device)",
        ),
        ("exit 3", "cannot be asked (exit code 3)"),
        ("echo hello", "cannot be asked (JSON is malformed"),
    ],
)
def test_an_image_that_does_not_fit(sif: Path, fake: Fake, program: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        verify(open_image(sif), [str(fake("apptainer", program))], repo=PROJECT, ask=True)
    assert "\n" not in str(caught.value)


def test_a_thin_image_needs_a_venv_of_its_own_python(sif: Path, tmp_path: Path) -> None:
    content = json.loads(manifest_path(sif).read_bytes())
    content["labels"] = {"scalebench.packages": "none"}
    content["facts"] |= {"versions": {}, "executable": os.path.realpath("/bin/sh")}
    manifest_path(sif).write_text(json.dumps(content))
    python = tmp_path / ".venv" / "bin" / "python"
    with pytest.raises(UserError, match=r"is thin, so .* must be made by"):
        verify(open_image(sif), [], repo=tmp_path)
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/sh")
    assert verify(open_image(sif), [], repo=tmp_path).thin


# ---- the build

BUILD = """
case "$1" in
  build)
    image=${@: -2:1}
    echo "$*" >>"$STATE/builds"
    env >"$STATE/environment"
    for word in "$@"; do
      case $word in *:/mnt:ro) echo "${word%%:*}" >"$STATE/index"; cp "${word%%:*}"/* "$STATE" ;; esac
    done
    echo half >"$image"
    [[ ! -e $STATE/fail ]] || { echo "FATAL:   $(cat "$STATE/fail")" >&2; exit 255; } ;;
  *) """


def fuse(is_open: bool) -> Callable[..., bool]:
    access = os.access
    return lambda path, *more, **others: is_open if path == "/dev/fuse" else access(path, *more, **others)


@pytest.fixture
def machine(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake runtime keeps what it saw; this machine has all that a build needs."""
    state = tmp_path / "state"
    state.mkdir()
    fake("apptainer", f"STATE={state}\n{BUILD}{answer()} ;;\nesac")
    for name in ("mksquashfs", "newuidmap", "debootstrap"):
        fake(name, "")
    fake("apt-get", "echo http://mirror.example/debian/")
    monkeypatch.setattr(build, "_has_subordinate_ids", lambda user: True)
    monkeypatch.setattr(build, "_has_all_capabilities", lambda: False)
    monkeypatch.setattr(os, "access", fuse(True))
    monkeypatch.setattr(bases, "_DEBIAN", {HERE.rpartition(".")[0]: "bookworm"})
    return state


def test_an_image_is_built_once(machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "new" / "images"
    assert build.main(["--images", str(images), "--base", "debian"]) == 0
    path = images / "scalebench.sif"
    made = open_image(path)
    assert made.inputs == bases.inputs_hash(bases.find_base("debian", HERE.rpartition(".")[0]))
    assert made.labels["scalebench.lock_sha256"] == image.file_sha256(PROJECT / "requirements.lock")
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", made.labels["scalebench.commit"])
    assert made.build_time_s is not None
    assert build.main(["--images", str(images), "--base", "debian"]) == 0
    assert (machine / "builds").read_text().count("\n") == 1
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert (": built in 0 s, 0 MB, sha256 " in first, ": up to date, " in second) == (True, True)
    assert made.sha256 in first
    assert build.main(["--images", str(images), "--base", "thin"]) == 0, "other inputs"
    path.write_bytes(b"hurt")
    assert build.main(["--images", str(images), "--base", "thin"]) == 0, "damaged"
    assert (machine / "builds").read_text().count("\n") == 3
    assert sorted(entry.name for entry in images.iterdir()) == ["build.log", "scalebench.sif", "scalebench.sif.json"]


def test_what_the_definition_is_told(machine: Path, tmp_path: Path) -> None:
    build.main(["--images", str(tmp_path), "--base", "thin"])
    told = (machine / "builds").read_text()
    for words in (
        "--mksquashfs-args=-comp zstd -Xcompression-level 3",
        "--build-arg BOOTSTRAP=debootstrap --build-arg FROM=none --build-arg SUITE=bookworm",
        "--build-arg MIRROR=http://mirror.example/debian/ --build-arg PACKAGES=none",
    ):
        assert words in told
    given = set(re.findall(r"--build-arg (\w+)=", told))
    assert given == set(re.findall(r"\{\{ (\w+) \}\}", bases.DEFINITION.read_text()))


def test_a_failed_build_leaves_what_was_there(
    machine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    build.main(["--images", str(images), "--base", "debian"])
    before = open_image(images / "scalebench.sif")
    for said in ("while running %post section", "write /tmp/x: No space left on device"):
        (machine / "fail").write_text(said)
        capsys.readouterr()
        assert build.main(["--images", str(images), "--base", "thin"]) == 2
        error = capsys.readouterr().err
        assert (error.count("\n"), said in error, str(images / "build.log") in error) == (1, True, True)
        assert open_image(images / "scalebench.sif") == before
        assert not list(images.glob(".*"))


def test_a_full_disk_at_the_very_end(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, content: bytes) -> Path:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(build, "replace", full)
    assert build.main(["--images", str(tmp_path / "images"), "--base", "debian"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: the image is not built: {tmp_path}/images/scalebench.sif.json: No space left on device\n"
    assert [entry.name for entry in (tmp_path / "images").iterdir()] == ["build.log"]


def test_the_way_to_the_index_comes_in_and_does_not_stay(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = tmp_path / "ca.pem"
    certificates.write_text("certificates")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:password@index.example/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/some/wheels https://more.example/")
    monkeypatch.setenv("PIP_CERT", str(certificates))
    monkeypatch.setenv("PYTHONPATH", "/x")
    build.main(["--images", str(tmp_path / "images"), "--base", "debian"])
    assert (machine / "certificates.pem").read_text() == "certificates"
    lines = (machine / "pip.conf").read_text().splitlines()
    assert lines[:2] == ["[global]", "index-url = https://user:password@index.example/simple"]
    assert "find-links = https://more.example/" in lines
    assert not Path((machine / "index").read_text().strip()).exists()
    assert "password" not in (machine / "builds").read_text()
    environment = (machine / "environment").read_text()
    assert "container=lxc\n" in environment
    assert not re.search(r"^(PIP_|PYTHONPATH)", environment, flags=re.MULTILINE)


def test_pips_own_rule(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[global]\nindex-url = a\ntimeout = 1\n[install]\ntimeout = 2\n[list]\nformat = x\n")
    (tmp_path / "b").write_text("[global]\nindex_url = b%20c\n")
    (tmp_path / "broken").write_text("[global\n")
    files = [tmp_path / name for name in ("a", "b", "broken", "absent")]
    seen = index.pip_settings(files, {"PIP_EXTRA_INDEX_URL": "d", "OTHER": "x"})
    assert seen == {"index-url": "b%20c", "timeout": "2", "extra-index-url": "d"}


def absent(program: str) -> Callable[[pytest.MonkeyPatch], None]:
    def change(patch: pytest.MonkeyPatch) -> None:
        found = shutil.which
        patch.setattr(shutil, "which", lambda name, **more: None if name == program else found(name, **more))

    return change


def one_full_disk(patch: pytest.MonkeyPatch) -> None:
    """Enough for either, too little for both."""
    patch.setattr(build, "temporary_folder", lambda: Path(tempfile.gettempdir()))
    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=12_000_000_000))


def full_disk(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("APPTAINER_TMPDIR", "/dev/shm")
    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000_000))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (absent("mksquashfs"), "needs mksquashfs"),
        (absent("newuidmap"), "needs newuidmap"),
        (absent("debootstrap"), "needs debootstrap"),
        (lambda patch: patch.setattr(build, "_has_subordinate_ids", lambda user: False), "usermod --add-subuids"),
        (lambda patch: patch.setattr(os, "access", fuse(False)), "/dev/fuse is missing or closed to you"),
        (
            lambda patch: patch.setattr(bases, "debian_mirror", lambda: None),
            "this machine's apt names no Debian mirror",
        ),
        (lambda patch: patch.setenv("TMPDIR", "/no/such"), "TMPDIR=/no/such: no such folder"),
        (one_full_disk, "needs 15.0 GB in /"),
        (full_disk, "needs 11.0 GB in /dev/shm, where 5.0 GB are free: "),
    ],
)
def test_what_is_missing_is_said(
    machine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[pytest.MonkeyPatch], None],
    said: str,
) -> None:
    change(monkeypatch)
    assert build.main(["--images", str(tmp_path / "images"), "--base", "debian"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (machine / "builds").exists()


def test_bases() -> None:
    assert bases.find_base("docker", "3.12").image == "python:3.12.7-slim-bookworm"
    assert bases.find_base("debian", "3.13").suite == "trixie"
    assert bases.find_base("thin", "3.11").packages == "none"
    assert bases.find_base("docker://a/b:1@sha256:0", "3.99").image == "a/b:1@sha256:0"
    with pytest.raises(ConfigError, match=r"BASE=debian: no Python 3.12, .* it is there for 3.11, 3.13"):
        bases.find_base("debian", "3.12")
    with pytest.raises(ConfigError, match=r"BASE=alpine: not known; allowed: auto, debian, thin, docker"):
        bases.find_base("alpine", "3.11")


def test_without_debians_tools_the_base_is_dockers(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minor = HERE.rpartition(".")[0]
    assert bases.find_base("auto", minor).bootstrap == "debootstrap"
    monkeypatch.setattr(bases, "debian_mirror", lambda: None)
    assert bases.find_base("auto", "3.11").bootstrap == "docker"


def test_subordinate_ids_are_found_by_name_or_number(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/etc/subuid": "a:1:2\n", "/etc/subgid": f"{os.geteuid()}:1:2\n"}
    monkeypatch.setattr(Path, "read_text", lambda self: texts[str(self)])
    fake("getsubids", "exit 1")
    assert build._has_subordinate_ids("a")
    assert not build._has_subordinate_ids("b")
    fake("getsubids", "echo 0: c 1 2")
    assert build._has_subordinate_ids("c")


def test_the_selftest_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    selftest.main("none")
    selftest.training_step()
    monkeypatch.setattr(selftest, "LOCKED", ("json", "no_such_module"))
    with pytest.raises(ImportError, match="no_such_module"):
        selftest.main("lock")


# ---- the installer

INSTALLER = PROJECT / "containers" / "install-apptainer.sh"


@pytest.mark.parametrize(
    ("environment", "arguments", "said"),
    [
        ({"SCALEBENCH_APPTAINER": "relative"}, [], "an absolute path"),
        ({"PATH": ""}, [], "needs Debian"),
        ({}, ["upgrade"], "usage: install-apptainer.sh"),
    ],
)
def test_the_installer_refuses_in_one_line(environment: dict[str, str], arguments: list[str], said: str) -> None:
    if os.geteuid() != 0 and not arguments:
        said = "needs root"
    command = ["/bin/bash", str(INSTALLER), *arguments]
    done = subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert said in done.stderr


def test_no_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "absent.json") is None
