"""The commands as people type them: one line for a mistake, Ctrl-C, kill, resume, two at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import RECORD_NAME, read_record
from benchmarks.core.variants import names_on
from tests.conftest import PROJECT, WORKERS_UNTRACED

SLOW_SWEEP = (
    "--multirun",
    "sweep=smoke",
    "workload=faulty",
    "workload.fault=sleep",
    "workload.sleep_s=0.05",
    "workload.rank=0",
    "strategy=ddp",
    "workers=1,2",
    "batch_per_worker=16",
    "sweep.repeats=1",
    "warmup_steps=1",
    "evaluate=false",
)


class Shell:
    """Runs commands in the project, and finds every process that they have left."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.mark = f"scalebench-test-{uuid.uuid4().hex}"
        self.environment = {
            **os.environ,
            **WORKERS_UNTRACED,
            "SCALEBENCH_TEST_MARK": self.mark,
            "HYDRA_LAUNCHER": "basic",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.run", *arguments, f"results={self.results}"],
            cwd=PROJECT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a terminal's foreground job has
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def alive(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def none_alive_within(self, seconds: float) -> bool:
        return wait_until(lambda: not self.alive(), seconds)

    @property
    def sweep(self) -> SweepFolder:
        return SweepFolder(self.results / "local" / "smoke")

    def statuses(self) -> list[str]:
        return sorted(read_record(path).status for path in self.sweep.path.glob(f"*/{RECORD_NAME}"))

    def in_window(self) -> bool:
        """Whether a worker is at work: two workers have a log, and enough time has passed for the first steps."""
        return bool(list(self.sweep.path.glob("*/attempt*/rank*.log")))


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    one = Shell(tmp_path / "results")
    yield one
    assert one.none_alive_within(10), "a command left processes behind"


MISTAKES: list[tuple[list[str], str]] = [
    (["--multirun", "sweep=smok"], "sweep=smok: not known (did you mean smoke?); allowed: "),
    (["strategy=dpp"], "strategy=dpp: not known (did you mean ddp?); allowed: dbs, ddp, "),
    (["--multirun", "strategy=single,dpp"], "strategy=dpp: not known (did you mean ddp?); allowed: dbs, ddp, "),
    (["wrkers=2"], "configuration key=wrkers: not known (did you mean workers?); allowed: "),
    (["optimizer.lrr=2"], "configuration key=optimizer.lrr: not known (did you mean optimizer.lr?); allowed: "),
    (["workers=0", "batch_per_worker=8"], "workers=0: must be a whole number from 1"),
    (["--multirun", "workers=0,1"], "workers=0: must be a whole number from 1"),
    (["batch_per_worker=9999"], "global_batch=9999: larger than the data set"),
    (["batch_per_worker=8", "data=cifar10", "data.root=/nowhere"], "data.root=/nowhere: no such folder"),
    (["--multirun", "data=cifar10", "data.root=/nowhere"], "data.root=/nowhere: no such folder"),
    (["batch=64"], "batch: an axis of sweeps only; give a single run batch_per_worker or global_batch"),
    (["workers=["], "no viable alternative at input '['"),
    (["cluster=grene", "batch_per_worker=8"], "cluster=grene: not known"),
    (["batch_per_worker=8", "plan=true"], "plan=true: only a sweep has a plan"),
    (["--multirun", "results=a,b"], "results=a,b: cannot be an axis of a sweep"),
]
PLANS = {sweep: ["--multirun", f"sweep={sweep}", "plan=true", "device=cpu"] for sweep in names_on("sweep")}
# Commands that start nothing, in one process: what takes a second of each is to import Hydra.
ONE_AFTER_ANOTHER = """
import contextlib, io, json, runpy, sys
ends = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["benchmarks.run", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module("benchmarks.run", run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    ends.append((code, out.getvalue(), err.getvalue()))
json.dump(ends, sys.stdout)
"""
End = tuple[int, str, str]
Ends = Callable[[Sequence[str]], End]


def one_after_another(shell: Shell, commands: list[list[str]], *, traced: bool = True) -> dict[tuple[str, ...], End]:
    """How each command ends. Planning is all Python: traced it takes three times as long, and one plan would do."""
    environment = shell.environment if traced else shell.environment | {"COVERAGE_PROCESS_CONFIG": ""}
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER],
        input=json.dumps([[*arguments, f"results={shell.results}"] for arguments in commands]),
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return {tuple(one): tuple(end) for one, end in zip(commands, json.loads(done.stdout), strict=True)}


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Ends:
    """How each of the mistakes and plans ends: its exit code, what it prints and what it says of errors."""
    shell = Shell(tmp_path_factory.mktemp("ends") / "results")
    mistakes = [arguments for arguments, _ in MISTAKES]
    known = one_after_another(shell, mistakes) | one_after_another(shell, [*PLANS.values()], traced=False)
    assert not shell.results.exists(), "nothing may have been started or written"
    return lambda arguments: known[tuple(arguments)]


@pytest.mark.parametrize(("arguments", "line"), MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(ends: Ends, arguments: Sequence[str], line: str) -> None:
    code, out, err = ends(arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1


def test_a_mistake_ends_a_process_of_its_own_as_well(shell: Shell) -> None:
    arguments, line = MISTAKES[0]
    code, out, err = shell.run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
    assert not shell.results.exists()


@pytest.mark.parametrize("sweep", PLANS)
def test_every_sweep_has_a_plan_and_planning_writes_nothing(ends: Ends, sweep: str) -> None:
    code, out, err = ends(PLANS[sweep])
    assert (code, err) == (0, "")
    assert "worker-hours" in out
    assert "runs (" in out


def test_more_workers_than_gpus_are_refused(shell: Shell) -> None:
    code, _, err = shell.run("device=cuda", "workers=64", "batch_per_worker=8")
    assert code == 2
    assert "error: workers=64: more than the" in err


def test_a_results_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    shell = Shell(tmp_path / "results")
    code, _, err = shell.run("--multirun", "sweep=smoke")
    assert code == 2
    assert "cannot be written (Not a directory); name another folder with results=" in err


def test_a_single_run_says_what_it_measured_and_can_be_made_again(shell: Shell) -> None:
    arguments = ("workload=mlp", "workers=2", "global_batch=64", "steps=5")
    for attempt in (1, 2):
        code, out, err = shell.run(*arguments)
        assert (code, err) == (0, "")
        assert "samples/s, accuracy" in out
        [path] = shell.results.glob(f"local/single_runs/*/{RECORD_NAME}")
        assert read_record(path).attempt == attempt
    assert (path.parent / "record.attempt1.json").exists()


def test_a_failed_run_is_exit_code_1_with_its_reason(shell: Shell) -> None:
    code, out, _ = shell.run(
        "workload=faulty", "workload.fault=raise", "workload.rank=0", "strategy=single", "batch_per_worker=8"
    )
    assert code == 1
    assert "ZeroDivisionError: broken on purpose" in out


def test_ctrl_c_leaves_a_cancelled_record_and_the_same_command_goes_on(shell: Shell) -> None:
    sweep = shell.start(*SLOW_SWEEP, "steps=100")
    assert wait_until(shell.in_window, 60)
    time.sleep(1.0)
    os.killpg(sweep.pid, signal.SIGINT)  # what a terminal does
    _, err = sweep.communicate(timeout=20)
    assert sweep.returncode == 130
    assert "stopped; the same command goes on from here" in err
    assert "Traceback" not in err
    assert shell.statuses() == ["cancelled"]
    assert shell.none_alive_within(5)

    code, out, _ = shell.run(*SLOW_SWEEP, "steps=100")
    assert code == 0
    assert shell.statuses() == ["ok", "ok"]
    assert "2 ok" in out
    code, out, _ = shell.run(*SLOW_SWEEP, "steps=100")
    assert (code, shell.statuses()) == (0, ["ok", "ok"])
    assert "nothing to do" in out


def test_a_polite_kill_is_like_ctrl_c(shell: Shell) -> None:
    sweep = shell.start(*SLOW_SWEEP, "steps=400")
    assert wait_until(shell.in_window, 60)
    time.sleep(0.5)
    sweep.terminate()
    sweep.communicate(timeout=20)
    assert sweep.returncode == 128 + signal.SIGTERM
    assert shell.statuses() == ["cancelled"]


def test_a_killed_sweep_leaves_no_worker_and_is_resumed(shell: Shell) -> None:
    sweep = shell.start(*SLOW_SWEEP, "steps=100")
    assert wait_until(shell.in_window, 60)
    time.sleep(0.5)
    sweep.kill()
    sweep.communicate(timeout=20)
    assert shell.none_alive_within(10)
    assert shell.statuses() == []
    assert shell.run(*SLOW_SWEEP, "steps=100")[0] == 0
    assert shell.statuses() == ["ok", "ok"]


def test_the_same_sweep_twice_at_once(shell: Shell) -> None:
    first = shell.start(*SLOW_SWEEP, "steps=100")
    assert wait_until(shell.in_window, 60)
    code, _, err = shell.run(*SLOW_SWEEP, "steps=100")
    assert code == 2
    assert f"being run already, by process {first.pid} on" in err
    first.communicate(timeout=60)
    assert (first.returncode, shell.statuses()) == (0, ["ok", "ok"])


def test_one_failure_does_not_spoil_a_sweep(shell: Shell) -> None:
    faults = [argument for argument in SLOW_SWEEP if not argument.startswith("workload.fault")]
    code, out, err = shell.run(*faults, "workload.fault=none,raise", "workers=2", "steps=5", "max_attempts=2")
    assert (code, err) == (1, "")
    assert "1 error" in out
    assert "1 ok" in out
    assert shell.statuses() == ["error", "ok"]
    events = [json.loads(line) for line in (shell.sweep.path / "ledger.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["running", "ended", "running", "ended"]
    for expected_attempt in (2, 2):  # tried again once, then no more
        shell.run(*faults, "workload.fault=none,raise", "workers=2", "steps=5", "max_attempts=2")
        attempts = [read_record(path).attempt for path in shell.sweep.path.glob(f"*/{RECORD_NAME}")]
        assert sorted(attempts) == [1, expected_attempt]
