"""A sweep's folder: `<results>/<cluster>/<sweep>/` with its manifest, its ledger, its lock and one folder for each run.

The manifest says what was planned and what was dropped; the ledger, append-only, says what happened; the records hold
the numbers. What remains to be done is derived from these, so a sweep that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from benchmarks.core.errors import UserError
from benchmarks.core.record import (
    OWN_FAULT,
    RECORD_NAME,
    WELL,
    Head,
    Record,
    RecordError,
    naming,
    read_head,
    read_record,
    replace,
)
from benchmarks.core.repeat_target import RepeatTarget
from benchmarks.core.sweep import Dropped, Plan, PlannedRun, Settings

MANIFEST_NAME = "sweep.json"
LEDGER_NAME = "ledger.jsonl"
LOCK_NAME = "lock"
CANCEL_NAME = "cancel"
"""A file that is there while the sweep's jobs are being cancelled: so a job knows that people have stopped it."""
_LOCK_POLL_S = 0.2

NO_SWEEP = "run `make sweep` first, or name a sweep's folder"


Fact = str | int | float | list[str] | None

_decode_event = msgspec.json.Decoder(dict[str, Any]).decode


class ManifestRun(msgspec.Struct, kw_only=True):
    """A planned run: enough to show it in a table before it has a record."""

    run_id: str
    cell_id: str
    repeat: int
    settings: Settings
    config: dict[str, Any]
    place: int = 0
    """In the order of the sweep's file."""


class Manifest(msgspec.Struct, kw_only=True):
    """`sweep.json`: the union of all plans that were run in this folder, and what the last of them dropped."""

    schema_version: int = 1
    sweep: str
    cluster: str
    question: str
    figure: list[dict[str, Any]] = []
    """As in the sweep's file."""
    scaling: list[str]
    shuffle_seed: int | None
    repeat_target: RepeatTarget | None = None
    """Of the last plan."""
    axes: list[str]
    runs: list[ManifestRun]
    dropped: list[Dropped]


class SweepFolder:
    """Paths, lock, manifest and ledger of one sweep."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, results: Path, cluster: str, sweep: str) -> SweepFolder:
        """Make the folder. Raises UserError where it cannot be written."""
        path = results / cluster / sweep
        try:
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"results={results}: {path} cannot be written ({error.strerror}); name another folder with results=..."
            ) from error
        return cls(path)

    def run_folder(self, run_id: str) -> Path:
        """The folder of one run."""
        return self.path / run_id

    def record(self, run_id: str) -> Record | None:
        """The record of a run's last attempt, if there is one that can be read."""
        try:
            return read_record(self.run_folder(run_id) / RECORD_NAME)
        except RecordError:
            return None

    def head(self, run_id: str) -> Head | None:
        """How a run's last attempt ended, if it left a record that can be read."""
        try:
            return read_head(self.run_folder(run_id) / RECORD_NAME)
        except RecordError:
            return None

    def events(self) -> Iterator[dict[str, Any]]:
        """The ledger's lines, in order. A line that a crash has cut off is left out."""
        try:
            content = (self.path / LEDGER_NAME).read_bytes()
        except FileNotFoundError:
            return
        for line in content.splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                yield _decode_event(line)

    def remaining(self, plan: Plan, max_attempts: int) -> list[PlannedRun]:
        """The runs that have no result yet: never made, cancelled, or failed in a way that may pass."""

        def is_done(run: PlannedRun) -> bool:
            head = self.head(run.config.run_id)
            if head is None or head.status == "cancelled":
                return False
            return head.status in WELL | OWN_FAULT or head.attempt >= max_attempts

        return [run for run in plan.runs if not is_done(run)]

    @contextlib.contextmanager
    def lock(self, patience_s: float = 0.0, name: str = LOCK_NAME) -> Iterator[None]:
        """Hold the sweep for this process. Raises UserError where another process holds it for longer."""
        with (self.path / name).open("a+") as file:
            deadline_s = time.monotonic() + patience_s
            while not (held := _try_lock(file)) and time.monotonic() < deadline_s:
                time.sleep(_LOCK_POLL_S)
            if not held:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(
                    f"{self.path}: this sweep is being run already, by {holder}; wait for it, or stop it first"
                )
            with naming(self.path / name):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()} since {now()}")
                file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def write_manifest(self, plan: Plan, axes: list[str]) -> Manifest:
        """Add a plan to the manifest. Runs of earlier plans stay, since their records do."""
        cluster = self.path.parent.name
        planned = {
            run.config.run_id: ManifestRun(
                run_id=run.config.run_id,
                cell_id=run.config.cell_id,
                repeat=run.config.repeat,
                settings=run.settings,
                config=run.config.as_dict(),
                place=run.place,
            )
            for run in plan.runs
        }
        earlier = self.manifest()
        if earlier:
            planned = {run.run_id: run for run in earlier.runs} | planned
            axes = list(dict.fromkeys([*earlier.axes, *axes]))
        manifest = Manifest(
            sweep=plan.sweep.name,
            cluster=cluster,
            question=plan.sweep.question,
            figure=plan.sweep.figure,
            scaling=list(plan.sweep.scaling),
            shuffle_seed=plan.sweep.shuffle_seed,
            repeat_target=plan.repeat_target,
            axes=axes,
            runs=list(planned.values()),
            dropped=plan.dropped,
        )
        replace(self.path / MANIFEST_NAME, msgspec.json.encode(manifest))
        return manifest

    def manifest(self) -> Manifest | None:
        """The manifest, if there is one that can be read."""
        try:
            return msgspec.json.decode((self.path / MANIFEST_NAME).read_bytes(), type=Manifest)
        except (OSError, msgspec.MsgspecError):
            return None

    def note(self, event: str, run_id: str | None = None, **facts: Fact) -> None:
        """Append one line to the ledger."""
        self.note_all(event, [{"run_id": run_id, **facts}])

    def note_all(self, event: str, facts: Iterable[Mapping[str, Fact]]) -> None:
        """Append a line for each; either all of them get there or, on a full disk, the first ones."""
        at = now()
        lines = b"".join(msgspec.json.encode({"at": at, "event": event, **each}) + b"\n" for each in facts)
        descriptor = os.open(self.path / LEDGER_NAME, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with naming(self.path / LEDGER_NAME):
                if (size := os.fstat(descriptor).st_size) and os.pread(descriptor, 1, size - 1) != b"\n":
                    lines = b"\n" + lines  # a crash has cut off the last line: let it not take the next one with it
                _write_whole(descriptor, lines)
                os.fsync(descriptor)  # jobs are released on the strength of what is written here
        finally:
            os.close(descriptor)


def newest_sweep(results: Path) -> Path:
    """The sweep of `results/<cluster>/<sweep>` whose manifest or record was written last.

    A folder of single runs, which has no manifest, is taken only where there is no sweep.

    Raises:
        UserError: there is none.
    """
    sweeps = [(stamp, folder) for folder in results.glob("*/*") if (stamp := _last_written(folder)) is not None]
    if not sweeps:
        raise UserError(f"{results}: no sweep's results here; {NO_SWEEP}")
    planned = [sweep for sweep in sweeps if (sweep[1] / MANIFEST_NAME).is_file()]
    return max(planned or sweeps)[1]


def _last_written(folder: Path) -> float | None:
    return max((path.stat().st_mtime for path in sweep_files(folder)), default=None)


def sweep_files(folder: Path) -> Iterator[Path]:
    """The manifest and the records of a folder, those that exist, in a fixed order."""
    if (manifest := folder / MANIFEST_NAME).is_file():
        yield manifest
    yield from record_files(folder)


def record_files(folder: Path) -> list[Path]:
    """The records of a sweep's folder, one of each run, by name."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [path for entry in entries if (path := entry / RECORD_NAME).is_file()]


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_whole(descriptor: int, content: bytes) -> None:
    """One write as a rule, so that lines of several writers do not mix; the system may take less of a large one."""
    while content:
        content = content[os.write(descriptor, content) :]


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
