"""The record: the one JSON document that every run leaves, also when it fails.

Raw values only; everything else is derived from them in `analysis/`. Written to a temporary file, flushed, then
linked to its name, so a reader sees a whole record or none, and an existing record is never overwritten. Unknown is
null; numbers that are not finite do not enter.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from benchmarks.core.energy import Energy
from benchmarks.core.profile import RankProfile

Read = TypeVar("Read", "Head", "Record")

SCHEMA_VERSION = 1
RECORD_NAME = "record.json"

Status = Literal[
    "ok",
    "profiled",
    "oom",
    "diverged",
    "invalid",
    "timeout",
    "node_fail",
    "preempted",
    "comm_error",
    "error",
    "cancelled",
    "lost",
]
SampleKind = Literal["images", "text", "tokens"]
WELL: frozenset[Status] = frozenset({"ok", "profiled"})
"""States of runs that did what they were asked to; only `ok` gives times."""
OWN_FAULT: frozenset[Status] = frozenset({"oom", "diverged", "invalid"})
"""States that the configuration itself caused: the same run would end the same way, so it is not tried again."""


class RecordError(Exception):
    """A record that cannot be read: truncated, foreign, or of another schema version."""


class Reason(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why a run has no number."""

    phase: str
    """Where the run was: start, rendezvous, data, build, warmup, window, evaluation, batch_schedule, profile,
    checks, communication, ceilings or teardown, in this order."""
    kind: str
    """A short machine-readable word: the exception's class, `signal SIGKILL`, `hang`, a failed check's name, ..."""
    message: str
    rank: int | None = None
    log_tail: list[str] = []
    """The last lines that the failing rank printed."""


class Span(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A stretch of the window between two device synchronisations; with epochs, one for each."""

    steps: int
    samples: int
    """Samples processed by all workers."""
    wall_time_s: float
    """The longest over ranks."""
    samples_by_rank: list[int] = []
    """Their sum is `samples`; 0 for a rank whose samples another one counts."""
    sync_wait_s_by_rank: list[float] | None = None
    """How long each rank waited for others or for communication, in all steps; null where the strategy cannot tell."""


class Window(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The timed steps, one entry each, over all spans; evaluation and warm-up are outside."""

    clock: Literal["cuda_event", "monotonic"]
    step_time_s: list[float]
    """The maximum over ranks."""
    compute_time_s: list[float]
    """Step time less the rank's waits for data and for other ranks; the maximum over ranks."""
    data_wait_s: list[float]
    """Time in which the loop waited for its next batch, by the host's clock; the maximum over ranks."""
    exposed_comm_s: list[float] | None
    """Step time less that of the same ranks without gradient synchronisation; null where it was not measured."""
    samples: list[int]
    """Samples of the global batch."""
    loss: list[float | None]
    """Mean over the global batch, before the step; null where it was not finite, or the run was cut short."""
    spans: list[Span]


class Communication(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What the workers send each other; null is unknown."""

    bytes_per_step: int | None
    """Sent by a worker in a step, as a mean over workers; counted by the strategy's formula, without headers."""
    unsynchronised_step_s: dict[int, float] | None
    """Step time of the slowest rank with gradient synchronisation off, by the size of the global batch; medians of
    steps after the window. Null where the strategy has no such switch, or without warm-up."""
    allreduce_bytes: int | None
    """The fp32 vector that was all-reduced by itself, after the window: the gradients' bytes, up to 64 MiB."""
    allreduce_s: float | None
    """How long that took on the slowest rank, as a median."""
    allreduce_gb_per_s: float | None
    """Bus bandwidth in 1e9 bytes per second: what a worker sends, 2 (N-1)/N x `allreduce_bytes`, over `allreduce_s`."""


class RankSummary(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One worker; medians over the window's steps."""

    rank: int
    host: str
    device: str
    threads: int
    cores: list[int] | None = None
    """The cores that it was bound to; null where it was not."""
    step_time_s: float
    own_time_s: float
    """Step time less the wait for other ranks: what makes a straggler visible where all ranks move in step."""
    data_wait_s: float
    sync_wait_s: float | None
    """From the rank's last gradient to the end of the backward pass: communication not hidden, and waiting for
    slower ranks. Null where the strategy has no such point."""
    peak_host_bytes: int
    """Of the worker, and of the processes that load for it."""
    peak_device_bytes: int | None
    loaded_bytes_per_step: float | None = None
    """Inputs and targets, as they are stored, that the rank's loader handed to a step, as a mean; over `data_wait_s`,
    bytes per second that were waited for. Null where the run was cut short."""


class Evaluation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One pass over the test data, outside the window."""

    after_steps: int
    time_s: float
    samples: int
    accuracy: float
    loss: float | None


class Check(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A sanity check and its verdict. No sanity, no number."""

    name: str
    passed: bool
    detail: str


class ModelSize(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Of the whole model, whatever a strategy makes of it; see `benchmarks/measuring/flops.py` for what is counted."""

    parameters: int
    forward_flops_per_sample: int | None = None
    """Floating point operations; null where torch cannot count them, as the two below."""
    step_flops_per_sample: int | None = None
    """Of forward and backward pass."""
    flops_unknown_because: str | None = None


class DataFacts(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What was trained on."""

    kind: SampleKind
    train_samples: int
    test_samples: int
    tokens_per_sample: int | None
    """Null for images."""
    lowest_loss: float | None
    """The least mean loss on the test data, in nats, that can be expected of any model; null where it is unknown."""
    highest_accuracy: float | None
    """The largest accuracy on the test data that can be expected of any model; null where it is unknown."""


class Memory(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The largest over ranks."""

    peak_host_bytes: int
    peak_device_bytes: int | None


class Record(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """See the module's text; `config` is `RunConfig.as_dict()`."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    cell_id: str
    sweep: str
    repeat: int
    attempt: int
    status: Status
    reason: Reason | None
    config: dict[str, Any]
    workers: int
    nodes: int
    started_at: str
    """UTC, ISO 8601."""
    wall_time_s: float
    """From the job's first line, or the supervisor's start of this run where there is no job of its own, to its end."""
    window: Window | None
    ranks: list[RankSummary]
    evaluation: list[Evaluation]
    memory: Memory | None
    model: ModelSize | None = None
    """Null where the run ended before it was counted; as `data`."""
    data: DataFacts | None = None
    communication: Communication | None = None
    strategy_facts: dict[str, Any] = {}
    """What the strategy, the schedules, the mixing and the compiler decided and observed, such as a pipeline's stages
    or a server's load."""
    stopped_after_epochs: int | None = None
    """The epochs that were trained until the evaluation that reached the target to stop at; null where none did."""
    profile: list[RankProfile] = []
    """One for each rank of a profiled run, which has no window."""
    energy: Energy | None
    """Of the window; null where there is none, and in records made before energy was measured."""
    ledger: dict[str, float]
    """Seconds by phase, in order; their sum is `wall_time_s`. A job's begin with `launch` (Slurm's step), `container`
    and `imports` (those of the supervisor; the workers' are in `start`)."""
    ceilings: dict[str, float | None] | None
    """As `benchmarks/measuring/ceilings.py` names them, means over workers; null where they were not asked for."""
    sanity: list[Check]
    notes: list[str]
    """What a reader of the number must know, for example `oversubscribed`, or `imitated`: a precision for
    which the CPU has no instructions."""
    environment: dict[str, Any]


class Head(msgspec.Struct, kw_only=True):
    """What most readers of many records need; reading it alone is much faster."""

    schema_version: int
    status: Status
    attempt: int
    wall_time_s: float
    reason: Reason | None


class _Version(msgspec.Struct):
    schema_version: int


_decode_version = msgspec.json.Decoder(_Version).decode
_decode_head = msgspec.json.Decoder(Head).decode
_decode_record = msgspec.json.Decoder(Record).decode


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        RecordError: it is truncated, no record at all, or of a schema version that this program does not know.
    """
    return _read(path, _decode_record)


def read_head(path: Path) -> Head:
    """How a run ended. Raises RecordError as `read_record`."""
    return _read(path, _decode_head)


def _read(path: Path, decode: Callable[[bytes], Read]) -> Read:
    try:
        content = path.read_bytes()
        try:
            found = decode(content)
        except msgspec.ValidationError:
            _check_version(path, _decode_version(content).schema_version)  # then that is why
            raise
        _check_version(path, found.schema_version)
        return found
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: not a readable record ({error})") from error


def _check_version(path: Path, version: int) -> None:
    if version != SCHEMA_VERSION:
        raise RecordError(f"{path}: schema version {version}, this program reads version {SCHEMA_VERSION}")


def write_record(folder: Path, record: Record) -> Path:
    """Write a run's record into its folder, whole or not at all.

    Raises:
        FileExistsError: there is one already; records are never overwritten.
        OSError: the folder cannot be written, or the disk is full; no partial file is left.
    """
    return write_once(folder / RECORD_NAME, msgspec.json.format(msgspec.json.encode(record), indent=0))


def write_once(path: Path, content: bytes) -> Path:
    """Create a file whole or not at all; raises FileExistsError where it exists."""
    temporary = _write_temporary(path, content)
    try:
        os.link(temporary, path)
    finally:
        temporary.unlink()
    return path


def replace(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, in place of the one that may be there."""
    temporary = _write_temporary(path, content)
    temporary.replace(path)
    return path


def _write_temporary(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within: an error of the operating system names this file. A full disk's error by itself names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def archive(folder: Path, attempt: int) -> None:
    """Move the record of an earlier attempt aside, so that a new attempt can leave its own."""
    (folder / RECORD_NAME).rename(folder / f"record.attempt{attempt}.json")


def finite(value: float) -> float | None:
    """The value, or None where it is infinite or not a number."""
    return value if math.isfinite(value) else None
