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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.errors import UserError
from benchmarks.record import OWN_FAULT, RECORD_NAME, Record, RecordError, naming, read_record, replace
from benchmarks.sweep import Dropped, Plan, PlannedRun, Settings

MANIFEST_NAME = "sweep.json"
LEDGER_NAME = "ledger.jsonl"
LOCK_NAME = "lock"


class ManifestRun(msgspec.Struct, kw_only=True):
    """A planned run: enough to show it in a table before it has a record."""

    run_id: str
    cell_id: str
    repeat: int
    settings: Settings
    config: dict[str, Any]


class Manifest(msgspec.Struct, kw_only=True):
    """`sweep.json`: the union of all plans that were run in this folder, and what the last of them dropped."""

    schema_version: int = 1
    sweep: str
    cluster: str
    question: str
    scaling: list[str]
    shuffle_seed: int | None
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

    def remaining(self, plan: Plan, max_attempts: int) -> list[PlannedRun]:
        """The runs that have no result yet: never made, cancelled, or failed in a way that may pass."""

        def is_done(run: PlannedRun) -> bool:
            record = self.record(run.config.run_id)
            if record is None or record.status == "cancelled":
                return False
            return record.status in OWN_FAULT or record.status == "ok" or record.attempt >= max_attempts

        return [run for run in plan.runs if not is_done(run)]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep for this process. Raises UserError where another process holds it."""
        with (self.path / LOCK_NAME).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(
                    f"{self.path}: this sweep is being run already, by {holder}; wait for it, or stop it first"
                ) from None
            with naming(self.path / LOCK_NAME):
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
            scaling=list(plan.sweep.scaling),
            shuffle_seed=plan.sweep.shuffle_seed,
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

    def note(self, event: str, run_id: str, **facts: str | int | float | None) -> None:
        """Append one line to the ledger."""
        line = msgspec.json.encode({"at": now(), "event": event, "run_id": run_id, **facts}) + b"\n"
        descriptor = os.open(self.path / LEDGER_NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            with naming(self.path / LEDGER_NAME):
                os.write(descriptor, line)  # one write: lines of several writers do not mix
        finally:
            os.close(descriptor)


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
