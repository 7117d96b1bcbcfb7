"""The one-host Slurm cluster, by what an ordinary user sees of it. `pytest -m cluster`, as root."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.ordinary_user import SCRIPT, STATE, USER, as_user, script

pytestmark = pytest.mark.cluster


def submit(body: str, *options: str) -> str:
    """The id of a job with this body; its output is read by `output`."""
    return as_user("sbatch", "--parsable", "--output=%j.out", *options, f"--wrap={body}").strip()


def output(job: str) -> str:
    return (Path(pwd.getpwnam(USER).pw_dir) / f"{job}.out").read_text()


def states(job: str) -> list[str]:
    """Of the job, then of its steps, as accounting has them."""
    listed = as_user("sacct", "--noheader", "--parsable2", "--jobs", job, "--format=State")
    return [line.split()[0] for line in listed.splitlines()]


def final_states(job: str, limit_s: float = 150) -> list[str]:
    deadline_s = time.monotonic() + limit_s
    while not (seen := states(job)) or {"PENDING", "RUNNING", "COMPLETING"} & set(seen):
        assert time.monotonic() < deadline_s, f"job {job} is still {seen}"
        time.sleep(0.5)
    return seen


def wait_until_running(job: str) -> None:
    deadline_s = time.monotonic() + 30
    while states(job) != ["RUNNING", "RUNNING"]:  # the job and its batch step
        assert time.monotonic() < deadline_s, states(job)
        time.sleep(0.2)


def our_processes() -> list[str]:
    """Daemons that were started through the cluster's own links, and job steps: each is a command line."""
    lines = subprocess.run(["ps", "-eo", "args="], check=True, capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if line.startswith((f"{STATE}/bin/", "slurmstepd: ["))]


def daemons() -> dict[str, str]:
    """The process of each, as `status` shows it."""
    return dict(re.findall(r"^(\S+): pid (\d+)$", script("status").stdout, flags=re.MULTILINE))


@pytest.fixture(scope="module", autouse=True)
def cluster(slurm_is_up: None) -> None:
    """Up, and empty."""
    as_user("scancel", "--user", USER)  # what an interrupted session has left
    while as_user("squeue", "--noheader", "--user", USER):
        time.sleep(0.2)


@pytest.fixture(scope="module")
def overtime_job(cluster: None) -> str:
    """Submitted first: Slurm's shortest time limit is a minute, which passes during the other tests."""
    return submit("sleep 300", "--time=1")


def test_four_idle_nodes_in_three_partitions() -> None:
    seen = as_user("sinfo", "--noheader", "--format=%P %a %D %t").split("\n")
    assert set(seen) >= {"cpu* up 4 idle", "gpu up 4 idle", "down down 4 idle"}


def test_a_job_on_two_nodes(overtime_job: str) -> None:
    job = as_user(
        *("sbatch", "--wait", "--parsable", "--output=%j.out", "--nodes=2", "--ntasks-per-node=1"),
        "--wrap=srun printenv SLURMD_NODENAME",
    ).strip()
    ran_on = output(job).split()
    assert len(set(ran_on)) == 2
    assert set(ran_on) < {"n1", "n2", "n3", "n4"}
    assert set(final_states(job)) == {"COMPLETED"}


def test_an_array_of_twenty() -> None:
    job = as_user("sbatch", "--wait", "--parsable", "--array=0-19", "--output=/dev/null", "--wrap=true").strip()
    deadline_s = time.monotonic() + 30  # accounting lags behind the queue by seconds
    expected = {f"{job}_{index}|COMPLETED" for index in range(20)}
    while (seen := set(as_user("sacct", "-n", "-P", "-X", "--jobs", job, "--format=JobID,State").split())) != expected:
        assert time.monotonic() < deadline_s, seen
        time.sleep(0.5)


def test_names_resolve_as_torch_and_submitit_need_it() -> None:
    assert {socket.gethostbyname(f"n{index}") for index in (1, 2, 3, 4)} == {"127.0.0.1"}


def test_over_the_memory_limit() -> None:
    # tail keeps what has no newline, and the sleep keeps tail: polling must have the time to see it.
    job = submit("(head -c 500M /dev/zero; sleep 8) | tail > /dev/null", "--mem=100M")
    seen = final_states(job)
    if "memory limits: cgroup" in script("status").stdout:
        assert "OUT_OF_MEMORY" in seen
    else:
        assert seen[0] in {"FAILED", "OUT_OF_MEMORY"}


def test_gpus_are_counted() -> None:
    options = ("--partition=gpu", "--gres=gpu:1", "--nodelist=n3", "--cpus-per-task=1")
    body = "date +%s.%N; echo gpu=$CUDA_VISIBLE_DEVICES; sleep 2; date +%s.%N"
    outputs = [(final_states(job), output(job).split())[1] for job in [submit(body, *options), submit(body, *options)]]
    (start_a, gpu_a, end_a), (start_b, gpu_b, end_b) = outputs
    assert (gpu_a, gpu_b) == ("gpu=0", "gpu=0")
    assert float(end_a) <= float(start_b) or float(end_b) <= float(start_a)


def test_partition_down_takes_jobs_and_starts_none() -> None:
    job = submit("true", "--partition=down")
    time.sleep(7)  # longer than the scheduler's interval
    shown = as_user("squeue", "--noheader", "--jobs", job, "--format=%T %r")
    as_user("scancel", job)
    assert shown.split() == ["PENDING", "PartitionDown"]


def test_over_the_time_limit(overtime_job: str) -> None:
    assert final_states(overtime_job)[0] == "TIMEOUT"


def test_up_again_changes_nothing() -> None:
    before = daemons()
    assert len(before) == 8
    assert script("up").returncode == 0
    assert daemons() == before


def test_up_after_a_crash() -> None:
    """Everything is killed at once, under a running job; the job is then known to have ended, one way or another."""
    job = submit("sleep 300")
    wait_until_running(job)
    time.sleep(7)  # slurmctld writes its state every few seconds; it forgets a younger job, as every Slurm does
    for pid_file in (STATE / "run").glob("*.pid"):
        os.kill(int(pid_file.read_text()), 9)
    assert script("status").returncode == 1
    done = script("up")
    assert done.returncode == 0, done.stdout + done.stderr
    as_user("scancel", job)
    assert final_states(job)[0] in {"CANCELLED", "NODE_FAIL"}


def test_down_leaves_nothing_and_up_goes_on() -> None:
    before, pending = int(submit("sleep 300")), submit("true", "--partition=down")
    wait_until_running(str(before))  # else it just stays in the queue
    done = script("down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert our_processes() == []
    assert not re.search(r"\bn1\b", Path("/etc/hosts").read_text())
    assert {path.name for path in Path("/etc/slurm").glob("*.conf")} <= {"plugstack.conf"}  # Debian's own
    assert script("down").returncode == 0
    with socket.create_server(("127.0.0.1", 17003)):
        refused = script("up")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "17003" in refused.stderr
    assert script("up").returncode == 0
    assert int(submit("true")) > before
    assert final_states(str(before))[0] == "CANCELLED"
    assert states(pending) == ["PENDING"]
    as_user("scancel", pending)


def test_another_slurm_is_left_alone(tmp_path: Path) -> None:
    for command, code in (("up", 2), ("down", 0)):
        done = script(command, ONEHOST_DIR=str(tmp_path))
        assert done.returncode == code
        assert done.stderr.count("\n") == (code == 2)
    assert not list(tmp_path.iterdir())
    assert script("status").returncode == 0


def test_an_ordinary_user_and_another_system_are_told_so(tmp_path: Path) -> None:
    bash = str(shutil.which("bash"))
    # By standard input, as that user may not be able to read this folder.
    commands = {"root": ["runuser", "-u", USER, "--", bash, "-s", "up"], "apt-get": [bash, "-s", "up"]}
    for word, command in commands.items():
        path = str(tmp_path) if word == "apt-get" else os.environ["PATH"]
        done = subprocess.run(
            [str(shutil.which(command[0])), *command[1:]],
            stdin=SCRIPT.open(),
            env={"PATH": path},
            cwd="/",
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert word in done.stderr
