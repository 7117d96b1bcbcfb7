"""The report of a large sweep, with all its files: seconds and memory; the page: its size, and how soon it answers."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from analysis.report import main
from tests import synthetic
from tests.browser import CHROMIUM, browser
from tests.conftest import PROJECT

Row = tuple[str, str, str, str]
_PROGRAM = r"""
import contextlib, io, json, multiprocessing, os, re, sys, time
from pathlib import Path
from analysis.report import main

started = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    assert main(sys.argv[1:]) == 0
seconds = time.perf_counter() - started
# Of this process and of those that help it. Not ru_maxrss: a child inherits that of the process which started it.
pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
peak_kb = sum(int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) for pid in pids)
files = {path.name: path.stat().st_size / 1e6 for path in (Path(sys.argv[1]) / "analysis").iterdir()}
assert {"report.html", "results.csv", "results.parquet", "scaling.json"} <= set(files)
print(json.dumps([seconds, peak_kb / 1e6, files["report.html"]]))
"""


def bench_report(records: int = 10_000, runs: int = 3) -> list[Row]:
    """Records of 200 steps, five repeats for each cell."""
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
        (f"full report of {records} runs", f"{seconds:.1f} s", "< 20 s", _verdict(seconds < 20)),
        ("its peak memory", f"{memory_gb:.2f} GB", "< 1.5 GB", _verdict(memory_gb < 1.5)),
        ("its page", f"{size_mb:.1f} MB", "none", ""),
        *bench_page(runs),
    ]


def bench_page(runs: int) -> list[Row]:
    """The page of 500 runs: four workloads, five worker counts, five batch sizes, five repeats."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "local" / "bench"
        for cell in range(100):
            for repeat in range(5):
                size = 64 * 2 ** (cell % 5)
                of = synthetic.config(
                    2 ** (cell // 5 % 5), global_batch=size, repeat=repeat, workload={"name": f"model{cell // 25}"}
                )
                synthetic.write(sweep, [synthetic.record(of, [0.1 + 0.001 * (cell + repeat)] * 200)])
        with contextlib.redirect_stdout(io.StringIO()):
            assert main([str(sweep), "--no-figures"]) == 0
        page = sweep / "analysis" / "report.html"
        size_mb = page.stat().st_size / 1e6
        rows = [("page of 500 runs", f"{size_mb:.2f} MB", "< 6 MB", _verdict(size_mb < 6))]
        if CHROMIUM is None:
            return [*rows, ("until it answers", "skipped: no Chromium here", "", "")]
        measured = [_answered_s(page) for _ in range(runs)]
    answered_s, drawn_s = (statistics.median(values) for values in zip(*measured, strict=True))
    return [
        *rows,
        ("until it answers", f"{answered_s:.2f} s", "< 2 s", _verdict(answered_s < 2)),
        ("until it shows a chart, if asked at once", f"{drawn_s:.2f} s", "none", ""),
    ]


def _answered_s(path: Path) -> tuple[float, float]:
    """From asking a new browser for the page to a table sorted by a click, and drawn; and then to the first chart."""
    click = (
        "new Promise((done) => { const head = document.querySelector('#table-strong th');"
        "head.querySelector('button').click();"
        "requestAnimationFrame(() => setTimeout(() => done(head.getAttribute('aria-sort')), 0)); })"
    )
    with browser() as page:
        page.size(1280, 900)
        started = time.perf_counter()
        page.open(path)
        assert page.run(click) == "ascending"
        answered_s = time.perf_counter() - started
        page.run("document.querySelector('figure[data-chart]').scrollIntoView()")
        while not page.run("document.querySelector('figure[data-drawn]') !== null"):
            time.sleep(0.02)
        return answered_s, time.perf_counter() - started


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
