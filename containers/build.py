"""`make image`: build the image, as an ordinary user, if what it is made from has changed.

The image and its manifest get their names when all is done and tested: an interrupted build leaves the old ones.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.record import replace
from containers.bases import DEFINITION, PROJECT, Base, build_arguments, find_base, inputs_hash
from containers.command import find_runtime
from containers.image import Image, file_sha256, last_line, manifest_path, open_image, probe, read_manifest
from containers.index import write_index_folder

NAME = "scalebench.sif"
_ELSEWHERE = f"; or build on another machine and copy {NAME} and {NAME}.json"
# Measured on two cores: `import torch` from an image takes 2 s with it, 3 s with gzip or with larger blocks.
_COMPRESSION = "-comp zstd -Xcompression-level 3"
_KEPT_VARIABLES = ("HOME", "USER", "LOGNAME", "LANG", "TERM", "TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
_KEPT_PREFIXES = ("APPTAINER_", "SINGULARITY_")


def main(arguments: list[str] | None = None) -> int:
    """Build an image, or say in one line why not; the exit code is 2 then."""
    parser = argparse.ArgumentParser(prog="make image", description="Build the image that runs can be made in.")
    parser.add_argument("--base", default="auto", help="auto, debian, thin, docker, docker://NAME:TAG[@sha256:DIGEST]")
    parser.add_argument("--images", default="images", type=Path, help="folder for the image and its manifest")
    options = parser.parse_args(arguments)
    try:
        base = find_base(options.base, ".".join(platform.python_version_tuple()[:2]))
        path = options.images.absolute() / NAME
        image, how = made_already(path, inputs_hash(base)), "up to date"
        if image is None:
            print(f"building {path} from {base.title}; its log is {path.with_name('build.log')} ...", flush=True)
            image = build(base, path)
            how = f"built in {image.build_time_s:.0f} s"
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # for example a full disk
        print(f"error: the image is not built: {error.filename or options.images}: {error.strerror}", file=sys.stderr)
        return 2
    print(f"{image.path}: {how}, {image.size_bytes / 1e6:.0f} MB, sha256 {image.sha256}")
    return 0


def build(base: Base, path: Path) -> Image:
    """Build, test and name the image. Between manifest and image there is only the renaming of the latter.

    Raises:
        UserError: something that building needs is missing, or the build failed; nothing of it is left.
    """
    runtime = find_runtime()
    check_machine(base, path.parent)
    started_s = time.monotonic()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        image = _build(base, runtime, temporary)
        temporary.chmod(0o644)
        image = msgspec.structs.replace(image, path=str(path), build_time_s=round(time.monotonic() - started_s, 1))
        replace(manifest_path(path), image.as_json())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return image


def made_already(path: Path, inputs: str) -> Image | None:
    """The image, if it was made from the same inputs and is the file that its manifest describes."""
    try:
        manifest = read_manifest(manifest_path(path))
        return open_image(path) if manifest is not None and manifest.inputs == inputs else None
    except UserError:
        return None  # a damaged one is built again


def _build(base: Base, runtime: str, target: Path) -> Image:
    arguments = build_arguments(base, datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
    log = target.parent / "build.log"
    with _index_folder() as index, log.open("w") as output:
        command = build_command(runtime, arguments, target, index)
        done = subprocess.run(
            command, cwd=PROJECT, env=_environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    if done.returncode != 0:
        reason = next((line for line in log.read_text(errors="replace").splitlines() if "No space left" in line), "")
        reason = reason.strip() or last_line(log.read_text(errors="replace"))
        raise UserError(f"the image is not built ({reason}); see {log}")
    labels = {
        "scalebench.base": f"{base.bootstrap} {base.image} {base.suite}",
        "scalebench.packages": base.packages,
        "scalebench.commit": arguments["COMMIT"],
        "scalebench.lock_sha256": arguments["LOCK_SHA256"],
        "scalebench.date": arguments["DATE"],
    }
    return Image(
        path=str(target),
        sha256=file_sha256(target),
        size_bytes=target.stat().st_size,
        mtime_ns=target.stat().st_mtime_ns,
        facts=probe(str(target), [runtime, "--quiet", "exec", "--cleanenv", str(target)]),
        labels=labels,
        inputs=arguments["INPUTS"],
    )


def build_command(runtime: str, arguments: dict[str, str], target: Path, index: Path) -> list[str]:
    """The words that start the build; `index` is for the way to a package index, and does not stay in the image."""
    words = [runtime, "build", "--force", f"--mksquashfs-args={_COMPRESSION}"]
    if os.geteuid() == 0 and not _has_all_capabilities():
        words += ["--userns", "--fakeroot"]  # as it does for others: this root is none that could build otherwise
    for name, value in arguments.items():
        words += ["--build-arg", f"{name}={value}"]
    # A build can make no mount points, so it is a folder that each system has.
    return [*words, "--bind", f"{index}:/mnt:ro", str(target), str(DEFINITION)]


def check_machine(base: Base, images: Path) -> None:
    """Raise UserError if something is missing that the build would find out late, or say darkly."""
    programs = ["mksquashfs", "newuidmap"] + (["debootstrap"] if base.bootstrap == "debootstrap" else [])
    for program in programs:
        if shutil.which(program, path=_environment()["PATH"]) is None:
            raise UserError(
                f"building an image needs {program}: not on PATH "
                f"(in Debian: squashfs-tools, uidmap, debootstrap){_ELSEWHERE}"
            )
    user = _user()
    if not (os.geteuid() == 0 and _has_all_capabilities()) and not _has_subordinate_ids(user):
        raise UserError(
            f"building an image needs a range of user ids: {user} has none in /etc/subuid and /etc/subgid; an "
            f"administrator gives one: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
            f"{_ELSEWHERE}"
        )
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise UserError(
            "an image is mounted by FUSE: /dev/fuse is missing or closed to you; as root: chmod 666 /dev/fuse"
        )
    try:
        images.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder for images {images}: {error.strerror}") from error
    check_disk_space(base, images)


def check_disk_space(base: Base, images: Path) -> None:
    """Raise UserError if there is too little of it, counting what is on one disk together."""
    temporary, needed = temporary_folder(), {images: base.image_bytes}
    if not temporary.is_dir():
        raise UserError(f"TMPDIR={temporary}: no such folder")
    place = images if temporary.stat().st_dev == images.stat().st_dev else temporary
    needed[place] = needed.get(place, 0) + base.temporary_bytes
    for folder, size_bytes in needed.items():
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < size_bytes:
            raise UserError(
                f"building an image needs {size_bytes / 1e9:.1f} GB in {folder}, where {free_bytes / 1e9:.1f} GB are "
                "free: name another folder by IMAGES, and by TMPDIR for what is there during the build"
            )


def temporary_folder() -> Path:
    """Where the runtime unpacks what it builds."""
    named = (os.environ.get(name) for name in ("APPTAINER_TMPDIR", "SINGULARITY_TMPDIR", "TMPDIR"))
    return Path(next((folder for folder in named if folder), "/tmp"))


def _environment() -> dict[str, str]:
    """Of the build: nothing of the user's Python or pip, which would work inside; `container`: see below."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT_VARIABLES or name.startswith(_KEPT_PREFIXES) or name.lower().endswith("_proxy")
    }
    # debootstrap makes no device nodes in a container, and a user namespace permits none.
    return {**kept, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "container": "lxc"}


@contextlib.contextmanager
def _index_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="scalebench-index-") as name:
        write_index_folder(Path(name), os.environ)
        yield Path(name)


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name  # not $LOGNAME, which `su` and others leave as it was
    except KeyError:
        return str(os.geteuid())


def _has_subordinate_ids(user: str) -> bool:
    """By getsubids, which also knows of what is not in the files, and else by the files."""
    names = (f"{user}:", f"{os.geteuid()}:")
    for file, option in (("/etc/subuid", []), ("/etc/subgid", ["-g"])):
        try:
            found = any(line.startswith(names) for line in Path(file).read_text().splitlines())
        except OSError:
            found = False
        if not found and shutil.which("getsubids"):
            asked = subprocess.run(["getsubids", *option, user], capture_output=True, text=True)
            found = asked.returncode == 0 and bool(asked.stdout.strip())
        if not found:
            return False
    return True


def _has_all_capabilities() -> bool:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    return int(status["CapEff"], 16) == (1 << (last + 1)) - 1


if __name__ == "__main__":
    sys.exit(main())
