"""The suite measured by itself: `make bench`. Each number is a median over several runs, beside what it must reach.

Not a test: the machine's noise must not fail a build. Ratios are of runs made in turns, in one process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from benchmarks.core.config import RunConfig
from benchmarks.core.record import RECORD_NAME, read_record
from benchmarks.data import load
from benchmarks.strategy import Place, strategies
from benchmarks.train import timed_span
from benchmarks.trainer import Trainer
from tests import synthetic
from tests.bench_dbs import bench_dbs
from tests.bench_ddp import ddp_ratios, median_ratio
from tests.bench_image import bench_image
from tests.bench_ladder import bench_ladder
from tests.bench_loader import bench_loader
from tests.bench_pipeline import bench_pipeline
from tests.bench_report import bench_report
from tests.bench_slurm import bench_slurm
from tests.conftest import PROJECT, base_mapping

PAIRS = 25
CPU = torch.device("cpu")
Row = tuple[str, str, str, str]


def kernel_against_bare_loop(workload: str, batch: int, steps: int) -> Row:
    """Throughput of the timed loop over that of a hand-written one: same model, batch, data, process."""
    settings = {"workload": workload, "strategy": "single", "batch_per_worker": batch, "steps": steps}
    run = RunConfig.from_mapping(base_mapping(**settings))
    torch.set_num_threads(1)
    place = Place(rank=0, workers=1, device=CPU)
    size = run.workload.options.get("input_size")
    dataset = load(run.data, size if isinstance(size, int) else None)
    strategy = strategies.make(run.strategy, place)
    loader = strategy.make_loader(dataset.train, global_batch=batch, seed=run.seed)
    trainer = Trainer(run, place, strategy, dataset)
    trainer.warm_up(loader)
    model, optimizer = trainer.bare_model, torch.optim.SGD(trainer.bare_model.parameters(), lr=0.05, momentum=0.9)

    def ours() -> float:
        clock = trainer.new_clock(steps)
        timed_span(trainer.step, loader.endless(), clock, lambda _step, _steps: None)
        return clock.wall_time_s

    def bare() -> float:
        order = torch.randperm(len(dataset.train))
        per_epoch = len(order) // batch
        started = time.perf_counter()
        for step in range(steps):
            chosen = order[batch * (step % per_epoch) : batch * (step % per_epoch + 1)]
            loss = nn.functional.cross_entropy(model(dataset.train.inputs[chosen]), dataset.train.targets[chosen])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()  # where the kernel has it: freeing gradients elsewhere changes the allocator's work
        return time.perf_counter() - started

    ours(), bare()
    ratios = []
    for turn in range(PAIRS):  # who goes first changes: a machine that warms up or throttles favours one of them
        first, second = (ours(), bare()) if turn % 2 else (bare(), ours())
        ratios.append(second / first if turn % 2 else first / second)
    ratio = statistics.median(ratios)
    spread = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
    return f"kernel / bare loop, {workload}, batch {batch}", spread, ">= 0.98", verdict(ratio >= 0.98)


def ddp_against_bare_loop(workload: str, batch: int, steps: int) -> Row:
    """The same for two workers under DistributedDataParallel."""
    ratio, spread = median_ratio(ddp_ratios(workload, batch, steps, PAIRS))
    return f"ddp / bare DDP loop, {workload}, batch {batch}", spread, ">= 0.98", verdict(ratio >= 0.98)


def launch_to_first_step() -> Row:
    """From typing a run's command to its first timed step, two workers."""
    times = []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            started = time.time()
            command = ["-m", "benchmarks.run", "workers=2", "global_batch=64", "steps=5", f"results={folder}"]
            subprocess.run([sys.executable, *command], cwd=PROJECT, check=True, capture_output=True)
            whole = time.time() - started
            [path] = Path(folder).glob(f"*/*/*/{RECORD_NAME}")
            ledger = read_record(path).ledger
            # Everything but what lies after the first step began; the interpreter's end is counted in, against us.
            times.append(whole - ledger["window"] - ledger["evaluation"] - ledger["checks"] - ledger["teardown"])
    value = statistics.median(times)
    return "launch to first step, 2 workers", f"{value:.2f} s", "< 8 s", verdict(value < 8)


def command_time(name: str, *arguments: str) -> Row:
    """Wall time of a command that people wait for."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(arguments, cwd=PROJECT, check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    value = statistics.median(times)
    return name, f"{value:.2f} s", "< 1.5 s", verdict(value < 1.5)


def analysis_of(records: int) -> tuple[float, float]:
    """Seconds and peak memory (GB) of loading and aggregating records of 200 steps, in a process of its own."""
    program = (
        "import json, re, sys, time\n"
        "from pathlib import Path\n"
        "from analysis.runs.load import load_cells\n"
        "from analysis.series import build_report\n"
        "started = time.perf_counter()\n"
        "build_report(load_cells(Path(sys.argv[1])))\n"
        "seconds = time.perf_counter() - started\n"
        # Not ru_maxrss: a child inherits that of the process which started it.
        "peak_kb = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]\n"
        "print(json.dumps([seconds, int(peak_kb)]))\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "local" / "bench"
        for number in range(records):
            cell, repeat = divmod(number, 5)
            workers = 2 ** (cell % 8)
            config = synthetic.config(workers=workers, global_batch=64 * workers * (1 + cell // 8), repeat=repeat)
            steps = [0.1 / workers + 1e-4 * (step % 7) for step in range(200)]
            synthetic.write(sweep, [synthetic.record(config, steps)])
        runs = [json.loads(_output(program, str(sweep))) for _ in range(5)]
    return statistics.median(run[0] for run in runs), max(run[1] for run in runs) / 1e6


def _output(program: str, argument: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, argument], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    return done.stdout


def analysis_rows() -> list[Row]:
    """10,000 records, and twice as many."""
    (once, memory), (twice, _) = analysis_of(10_000), analysis_of(20_000)
    return [
        ("10,000 records loaded and aggregated", f"{once:.2f} s", "< 5 s", verdict(once < 5)),
        ("its peak memory", f"{memory:.2f} GB", "< 1 GB", verdict(memory < 1)),
        ("20,000 records over 10,000", f"{twice / once:.2f}", "about 2", verdict(twice / once < 2.4)),
    ]


def verdict(reached: bool) -> str:
    """What the last column says."""
    return "reached" if reached else "missed"


def main() -> None:
    """Print a line for each number as soon as it is known."""
    benches: list[Callable[[], Row | list[Row]]] = [
        lambda: kernel_against_bare_loop("mlp", 64, 100),
        lambda: kernel_against_bare_loop("lenet", 64, 40),
        lambda: kernel_against_bare_loop("resnet18", 16, 4),
        lambda: ddp_against_bare_loop("mlp", 64, 100),
        lambda: ddp_against_bare_loop("lenet", 64, 40),
        bench_dbs,
        bench_loader,
        bench_ladder,
        bench_pipeline,
        launch_to_first_step,
        lambda: command_time("python -m analysis.scaling --help", sys.executable, "-m", "analysis.scaling", "--help"),
        lambda: command_time("make plan", "make", "plan"),
        analysis_rows,
        bench_report,
        bench_slurm,
        bench_image,
    ]
    console = Console(width=100)
    for bench in benches:
        rows = bench()
        for what, median, bound, reached in rows if isinstance(rows, list) else [rows]:
            console.print(f"{what:<42}{median:<28}{bound:<12}{reached}", highlight=False)


if __name__ == "__main__":
    main()
