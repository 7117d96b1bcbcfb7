"""What people see while a sweep is planned and run. Results go to files; this is for eyes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.core.folder import SweepFolder
from benchmarks.core.record import Record
from benchmarks.core.sweep import Plan, PlannedRun, shown_keys

# Without a terminal (a log file, CI) rich assumes 80 columns and would cut tables off.
_WIDTH_OF_FILES = 120


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_WIDTH_OF_FILES)


def throughput_samples_per_s(record: Record) -> float | None:
    """Samples of all workers in the window over its wall time; None for a run without a valid window."""
    if record.window is None or record.status != "ok":
        return None
    return sum(s.samples for s in record.window.spans) / sum(s.wall_time_s for s in record.window.spans)


def outcome(record: Record) -> str:
    """A run's end in one line."""
    if record.status == "profiled":
        traces = ", ".join(profile.trace for profile in record.profile if profile.trace)
        return f"{'profiled':<10} {record.run_id}  {traces} beside its record; open them in https://ui.perfetto.dev"
    if record.status != "ok":
        why = f"{record.reason.kind}: {record.reason.message}" if record.reason else ""
        return f"{record.status:<10} {record.run_id}  {why}"
    accuracy = f", accuracy {record.evaluation[-1].accuracy:.3f}" if record.evaluation else ""
    rate = throughput_samples_per_s(record) or 0.0
    mark = "  (oversubscribed: more threads than cores)" if "oversubscribed" in record.notes else ""
    return f"{'ok':<10} {record.run_id}  {rate:,.0f} samples/s{accuracy}{mark}"


def show_plan(plan: Plan, folder: SweepFolder, remaining: list[PlannedRun]) -> None:
    """Cells, drops and worker-hours of a sweep. Writes nothing."""
    console = _console()
    keys = shown_keys(plan)
    cells: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        cells.setdefault(run.config.cell_id, []).append(run)
    profiled = {run.config.cell_id for run in plan.runs if run.config.profile}
    console.print(f"sweep {plan.sweep.name}: {plan.sweep.question}", markup=False)
    table = Table(*keys, "repeats", box=None, header_style="bold")
    flats = [(run[0].config.flat(), len(run), cell_id in profiled) for cell_id, run in cells.items()]
    for flat, runs, profile in sorted(flats, key=lambda item: [(str(type(v)), v) for v in map(item[0].get, keys)]):
        table.add_row(*[str(flat.get(key)) for key in keys], f"{runs - 1} + 1 profiled" if profile else str(runs))
    console.print(table)
    for drop in plan.dropped:
        shown = " ".join(f"{key}={value}" for key, value in drop.settings.items())
        console.print(f"dropped: {shown}: {drop.reason}", markup=False)
    threads = sorted({run.config.threads_per_worker for run in plan.runs})
    console.print(
        f"{len(cells)} cells, {len(plan.runs)} runs ({len(remaining)} to be made), {len(plan.dropped)} points dropped; "
        f"threads per worker: {', '.join(map(str, threads))}\n"
        f"at most {plan.worker_hours_limit:.2f} worker-hours (workers x run_limit_s); results in {folder.path}",
        markup=False,
    )


def counted(statuses: Sequence[str]) -> str:
    """How many runs ended in which state."""
    return ", ".join(f"{count} {status}" for status, count in Counter(statuses).items()) or "nothing to do"


class SweepProgress:
    """A progress bar with the time left, and a line for each finished run above it."""

    def __init__(self, sweep: str, runs: int) -> None:
        self.statuses: list[str] = []
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=_console(),
        )
        self._task = self._progress.add_task(sweep, total=runs)

    def __enter__(self) -> SweepProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.update(self._task, description="done")
        self._progress.stop()

    def running(self, run_id: str) -> None:
        """The run that is under way."""
        self._progress.update(self._task, description=run_id)

    def finished(self, record: Record) -> None:
        """A run has left its record."""
        self.statuses.append(record.status)
        self._progress.console.print(outcome(record), markup=False)
        self._progress.advance(self._task)
