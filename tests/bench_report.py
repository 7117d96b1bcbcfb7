"""The report page of a large sweep: seconds, memory and size."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import synthetic
from tests.conftest import PROJECT

Row = tuple[str, str, str, str]
_PROGRAM = r"""
import contextlib, io, json, re, sys, time
from pathlib import Path
from analysis.report import main

started = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    assert main([sys.argv[1], "--no-figures"]) == 0
seconds = time.perf_counter() - started
# Not ru_maxrss: a child inherits that of the process which started it.
peak_kb = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
size = (Path(sys.argv[1]) / "analysis" / "report.html").stat().st_size
print(json.dumps([seconds, peak_kb / 1e6, size / 1e6]))
"""


def bench_report(records: int = 10_000, runs: int = 3) -> list[Row]:
    """Records of 200 steps, five repeats for each cell; figures beside the page are not drawn."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "local" / "bench"
        for number in range(records):
            cell, repeat = divmod(number, 5)
            workers = 2 ** (cell % 8)
            config = synthetic.config(workers=workers, global_batch=64 * workers * (1 + cell // 8), repeat=repeat)
            steps = [0.1 / workers + 1e-4 * (step % 7) for step in range(200)]
            synthetic.write(sweep, [synthetic.record(config, steps)])
        made = [_measured(sweep) for _ in range(runs)]
    seconds, memory_gb, size_mb = (statistics.median(values) for values in zip(*made, strict=True))
    return [
        (f"report page of {records} runs", f"{seconds:.1f} s", "< 20 s", _verdict(seconds < 20)),
        ("its peak memory", f"{memory_gb:.2f} GB", "< 1.5 GB", _verdict(memory_gb < 1.5)),
        ("its size", f"{size_mb:.1f} MB", "none", ""),
    ]


def _measured(sweep: Path) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(sweep)], cwd=PROJECT, check=True, capture_output=True, text=True
    )
    numbers: list[float] = json.loads(done.stdout)
    return numbers


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


if __name__ == "__main__":
    for row in bench_report(runs=1):
        print(*row, sep="   ")
