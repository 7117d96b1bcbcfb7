"""What submission costs, against the one-machine Slurm, side by side with two other ways. Part of `make bench`."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.core.record import RECORD_NAME, read_record
from slurm.commands import SlurmError, call

PROJECT = Path(__file__).resolve().parent.parent
REPEATS = 5
PEER = "hydra-submitit-launcher==1.2.0"

Row = tuple[str, str, str, str]
"""What, measured, the bound, reached or missed."""

# Ten shapes: five numbers of workers on two kinds of node. The partition is down, so nothing starts.
GRID = (
    *("cluster=onehost", "sweep=smoke", "workload=mlp", "strategy=ddp", "batch_per_worker=16", "device=cpu"),
    *("workers=1,2,3,4,8", "node_type=cpu,gpu", "sweep.repeats=4"),
    *("cluster.slurm.partition=down", "cluster.node_types.gpu.slurm.partition=down"),
)


def bench_slurm() -> list[Row]:
    """All rows; one that says why where there is no one-machine cluster."""
    try:
        call("sinfo", "--noheader")
    except SlurmError:
        return [("submission to Slurm", "skipped: make cluster-up first", "", "")]
    return [*submission(), *_against(peer_launcher, PEER), *_against(one_by_one, "executor.submit"), start_of_a_job()]


def submission() -> list[Row]:
    """1,000 and 10,000 runs in ten shapes, and looking at them."""
    small, _ = _submitted(25)
    large, looked = _submitted(250)
    return [
        ("1,000 runs in 10 shapes submitted", f"{small:.2f} s", "< 5 s", _verdict(small < 5)),
        ("10,000 runs submitted", f"{large:.2f} s", "< 60 s", _verdict(large < 60)),
        ("status of them", f"{looked:.2f} s", "< 3 s", _verdict(looked < 3)),
    ]


def _submitted(rates: int) -> tuple[float, float]:
    """Seconds to submit 40 runs for each learning rate, and to look at them."""
    with tempfile.TemporaryDirectory() as results:
        axis = f"optimizer.lr={','.join(str(round(0.01 + 0.001 * number, 4)) for number in range(rates))}"
        took = _timed("-m", "benchmarks.run", "--multirun", *GRID, axis, f"results={results}")
        looked = statistics.median(_timed("-m", "slurm.status", "--results", results) for _ in range(REPEATS))
        _timed("-m", "slurm.cancel", "--results", results)
    return took, looked


def _against(other: Callable[[Path, int], float], name: str) -> list[Row]:
    """200 runs of one shape: another way's time over ours."""
    runs = 200
    with tempfile.TemporaryDirectory() as folder:
        try:
            theirs = other(Path(folder), runs)
        except subprocess.CalledProcessError as error:
            return [(f"{name} / ours, {runs} runs", f"skipped: {error}", "", "")]
        finally:
            subprocess.run(["scancel", "--partition=down"], check=False)
        axis = f"optimizer.lr={','.join(str(round(0.01 + 0.001 * number, 4)) for number in range(runs))}"
        ours = _timed(
            *("-m", "benchmarks.run", "--multirun", *GRID, "workers=1", "node_type=cpu", "sweep.repeats=1", axis),
            f"results={folder}/ours",
        )
        _timed("-m", "slurm.cancel", "--results", f"{folder}/ours")
    return [(f"{name} / ours, {runs} runs", f"{theirs:.2f} s / {ours:.2f} s = {theirs / ours:.1f}", "", "")]


def one_by_one(folder: Path, runs: int) -> float:
    """One `executor.submit` for each run, as scripts around submitit do. A tenth is measured, since it is slow."""
    program = (
        "import submitit, sys\n"
        "executor = submitit.SlurmExecutor(sys.argv[1])\n"
        "executor.update_parameters(partition='down', time=5)\n"
        "for number in range(int(sys.argv[2])): executor.submit(print, number)\n"
    )
    return 10 * _timed("-c", program, str(folder / "jobs"), str(runs // 10))


def peer_launcher(folder: Path, runs: int) -> float:
    """The other launcher for Hydra. It stays until its jobs have ended, so it is timed until they are in the queue."""
    packages = folder / "packages"
    pip = ["uv", "pip"] if shutil.which("uv") else [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", f"--target={packages}", PEER], check=True)
    (folder / "app.py").write_text(
        "import hydra\n"
        "@hydra.main(version_base=None, config_path=None)\n"
        "def main(cfg): pass\n"
        "if __name__ == '__main__': main()\n"
    )
    grid = f"+lr={','.join(map(str, range(runs)))}"
    options = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=down", "hydra.launcher.timeout_min=5")
    process = subprocess.Popen(
        [sys.executable, "app.py", "--multirun", *options, f"hydra.sweep.dir={folder}/sweep", grid],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(packages)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started = time.perf_counter()
    try:
        while len(call("squeue", "--noheader", "--array", "--partition=down").splitlines()) < runs:
            if process.poll() is not None:
                raise subprocess.CalledProcessError(process.returncode, PEER)
            time.sleep(0.05)
        return time.perf_counter() - started
    finally:
        process.kill()
        process.wait()


_BARE = """
import os, time
import torch, torch.distributed as dist
rank, world = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:" + os.environ["BENCH_PORT"], rank=rank, world_size=world)
dist.barrier()
if rank == 0:
    open(os.environ["BENCH_OUT"], "w").write(str(time.time()))
"""


def start_of_a_job() -> Row:
    """From the job's first line to the first timed step, over that of a bare process group, on the same two nodes."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(REPEATS):
            pairs.append((_our_start_s(Path(folder) / f"ours{turn}"), _bare_start_s(Path(folder), turn)))
    ratio = statistics.median(ours / bare for ours, bare in pairs)
    ours, bare = (statistics.median(values) for values in zip(*pairs, strict=True))
    shown = f"{ratio:.2f} ({ours:.1f} s / {bare:.1f} s)"
    return "job start to first step / bare srun", shown, "<= 1.2", _verdict(ratio <= 1.2)


def _our_start_s(results: Path) -> float:
    stamp = results.with_suffix(".started")
    _timed(
        *("-m", "benchmarks.run", "--multirun", *GRID[:4], "workers=2", "nodes=2", "batch_per_worker=16", "steps=20"),
        *("sweep.repeats=1", f"results={results}", f"cluster.slurm.setup=['date +%s.%N > {stamp}']", "evaluate=false"),
    )
    while "in_flight" in (state := _status(results)):
        time.sleep(0.5)
    assert state == ["ok"], state
    [path] = results.glob(f"*/*/*/{RECORD_NAME}")
    ledger = read_record(path).ledger
    # The record is written at the end: what came after the first step began is taken off.
    after = sum(ledger.get(phase, 0.0) for phase in ("window", "evaluation", "checks", "teardown"))
    return path.stat().st_mtime - after - float(stamp.read_text())


def _status(results: Path) -> list[str]:
    shown = json.loads(
        subprocess.run(
            [sys.executable, "-m", "slurm.status", "--json", "--results", str(results)],
            cwd=PROJECT,
            check=True,
            capture_output=True,
        ).stdout
    )
    states = [run["state"] for run in shown["runs"]]
    return ["in_flight"] if {"submitted", "running", "planned"} & set(states) else states


def _bare_start_s(folder: Path, turn: int) -> float:
    out, started = folder / f"bare{turn}", folder / f"bare{turn}.started"
    (folder / "bare.py").write_text(_BARE)
    body = f"date +%s.%N > {started}; BENCH_OUT={out} BENCH_PORT={29600 + turn} srun {sys.executable} {folder}/bare.py"
    options = ("--wait", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=5", "--output=/dev/null")
    subprocess.run(["sbatch", "--quiet", *options, f"--wrap={body}"], check=True, cwd=folder, capture_output=True)
    return float(out.read_text()) - float(started.read_text())


def _timed(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=PROJECT, check=True, capture_output=True)
    return time.perf_counter() - started


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"
