"""The energy in a record: which counters count, when they add up, and what a whole run leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from benchmarks.core.config import RunConfig
from benchmarks.core.energy import CounterReading, RankEnergy, Source, merge_energy, precision_notes
from benchmarks.core.record import Record, RecordError, read_record, write_record
from benchmarks.measuring.step_times import StepTimes
from benchmarks.meters import Meter
from benchmarks.meters.counter import Counter, Sample
from benchmarks.strategy import Place, strategies
from benchmarks.supervision.agent import preload
from benchmarks.supervision.merge import RankResult, energy_of, steps_of_all
from benchmarks.supervision.supervisor import supervise
from benchmarks.train import Report, measure
from tests.conftest import POWERCAP, MakeRun
from tests.fake_power import burning, domain
from tests.test_record import a_record


def counted(source: Source, name: str, rank: int, *span_j: float | None, host: str = "n1") -> CounterReading:
    return CounterReading(source=source, name=name, host=host, rank=rank, span_j=[*span_j], idle_w=None, series=None)


def of_gpu(rank: int, *span_j: float | None) -> RankEnergy:
    return RankEnergy(rank=rank, host="n1", counters=[counted("nvml", f"0000:0{rank}:00.0", rank, *span_j)])


def test_gpus_add_up_span_by_span() -> None:
    energy = merge_energy([of_gpu(0, 1.0, 2.0), of_gpu(1, 10.0, 20.0)], "nvml")
    assert energy is not None
    assert energy.joules_by_span() == [11.0, 22.0]
    assert "without their hosts" in energy.scope


def test_one_gpu_without_a_counter_leaves_no_sum() -> None:
    blind = RankEnergy(rank=1, host="n1", unknown={"nvml": "no energy counter: MIG"})
    energy = merge_energy([of_gpu(0, 1.0), blind], "nvml")
    assert energy is not None
    assert energy.joules_by_span() is None
    assert energy.unknown["nvml"] == "rank 1: no energy counter: MIG"
    both = merge_energy([msgspec.structs.replace(blind, rank=0), blind], "nvml")
    assert both is not None
    assert both.unknown["nvml"] == "no energy counter: MIG", "the same of all ranks needs no rank"


def test_packages_stand_beside_gpus_and_are_not_added_to_them() -> None:
    first = of_gpu(0, 5.0)
    first.counters.append(counted("rapl", "package-0", 0, 100.0))
    energy = merge_energy([first, of_gpu(1, 7.0)], "nvml")
    assert energy is not None
    assert energy.joules_by_span() == [12.0]
    assert energy.joules_by_span("rapl") == [100.0]


def test_a_host_counts_once_whoever_reads_it() -> None:
    """Two supervisors on one host have a first worker each; two packages are two."""
    packages = [counted("rapl", f"package-{number}", 0, 3.0, 4.0) for number in (0, 1)]
    again = [msgspec.structs.replace(one, rank=2) for one in packages]
    other = [counted("rapl", "package-0", 4, 10.0, 20.0, host="n2")]
    parts = [
        RankEnergy(rank=0, host="n1", counters=packages),
        RankEnergy(rank=1, host="n1"),
        RankEnergy(rank=2, host="n1", counters=again),
        RankEnergy(rank=4, host="n2", counters=other),
    ]
    energy = merge_energy(parts, "rapl")
    assert energy is not None
    assert energy.joules_by_span() == [16.0, 28.0]
    assert energy.unknown == {}


def test_a_host_that_nobody_could_read_leaves_no_sum() -> None:
    parts = [
        RankEnergy(rank=0, host="n1", counters=[counted("rapl", "package-0", 0, 3.0)]),
        RankEnergy(rank=1, host="n2", unknown={"rapl": "not readable"}),
    ]
    energy = merge_energy(parts, "rapl")
    assert energy is not None
    assert energy.joules_by_span() is None
    assert energy.unknown == {"rapl": "n2: not readable"}


def test_a_worker_that_left_nothing_makes_it_unknown() -> None:
    assert merge_energy([of_gpu(0, 1.0), None], "nvml") is None
    assert merge_energy([], "nvml") is None


def times(steps: int) -> StepTimes:
    return StepTimes(step_s=[1.0] * steps, data_wait_s=[0.0] * steps, sync_wait_s=None, wall_time_s=float(steps))


def test_of_a_span_that_is_cut_the_energy_is_unknown() -> None:
    """One rank has finished the second span, the other is in it; the host's reader is the one that has finished."""

    def result(rank: int, steps: list[int], energy: RankEnergy) -> RankResult:
        total = sum(steps)
        return RankResult(
            rank=rank, host="n1", device="cpu", threads=1, phases=[], spans=[times(one) for one in steps],
            samples=[8] * total, losses=[None] * total, energy=energy,
        )  # fmt: skip

    ahead = result(0, [4, 4, 1], RankEnergy(rank=0, host="n1", counters=[counted("rapl", "package-0", 0, 40.0, 41.0)]))
    behind = result(1, [4, 3], RankEnergy(rank=1, host="n1"))
    energy = energy_of(steps_of_all([ahead, behind]), "cpu")
    assert energy is not None
    assert energy.joules_by_span() == [40.0, None]
    level = result(1, [4, 4], RankEnergy(rank=1, host="n1"))
    energy = energy_of(steps_of_all([ahead, level]), "cpu")
    assert energy is not None
    assert energy.joules_by_span() == [40.0, 41.0]


def test_short_spans_are_imprecise_by_the_counters_steps() -> None:
    gpus = merge_energy([of_gpu(0, 1.0, 2.0)], "nvml")
    assert precision_notes(gpus, [1.0, 2.0]) == []
    (note,) = precision_notes(gpus, [0.9, 2.0])
    assert note == "energy is imprecise: spans of less than 1 s, and the counter moves in steps of up to 100 ms"
    packages = RankEnergy(rank=0, host="n1", counters=[counted("rapl", "package-0", 0, 1.0)])
    assert precision_notes(merge_energy([packages], "rapl"), [0.9]) == []
    assert precision_notes(None, [0.1]) == []


class Told(Counter):
    """Counts what the measurement tells of itself: a joule for a step of the window, a million for anything else."""

    source = "rapl"
    period_s = 1.0
    name = "package-0"

    def __init__(self) -> None:
        self.now_j, self.phase = 0.0, ""

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.now_j += 0.0 if phase == "window" else 1e6

    def beat(self, _step: int, _steps: int) -> None:
        self.now_j += 1.0 if self.phase == "window" else 1e6

    def joules(self) -> float:
        return self.now_j

    def sample(self) -> Sample:
        return Sample(None)


def test_warm_up_and_evaluation_are_not_counted(make_run: MakeRun) -> None:
    torch.set_num_threads(1)
    run = make_run(strategy="single", steps=None, epochs=3, batch_per_worker=64, warmup_steps=2)
    counter = Told()
    report = Report(phase=counter.enter, beat=counter.beat, meter=Meter([counter]))
    place = Place(rank=0, workers=1, device=torch.device("cpu"))
    measured = measure(run, place, strategies.make(run.strategy, place), report)
    assert measured.energy is not None
    assert len(measured.evaluations) == 3
    assert measured.energy.counters[0].span_j == [float(len(span.step_s)) for span in measured.spans]


@pytest.fixture
def powercap() -> Iterator[Path]:
    """The folder that workers look into: their fork server took its name from the environment when it started."""
    yield POWERCAP
    shutil.rmtree(POWERCAP, ignore_errors=True)


def run_here(run: RunConfig, folder: Path) -> Record:
    preload()
    record = supervise(run, folder)
    assert record is not None
    assert record.status == "ok", record.reason
    return record


def test_a_run_records_what_its_hosts_packages_used(make_run: MakeRun, tmp_path: Path, powercap: Path) -> None:
    """Two workers, two packages of 40 W by the clock: joules are 80 times the window's seconds, counted once."""
    range_uj = 200_000_000
    packages = [domain(powercap, str(number), f"package-{number}", 0, range_uj) for number in (0, 1)]
    with burning(packages[0], 40.0, range_uj), burning(packages[1], 40.0, range_uj):
        record = run_here(make_run(workload="sleeping", workers=2, batch_per_worker=16, steps=20), tmp_path)
    assert record.energy is not None
    assert record.window is not None
    assert (record.energy.source, record.energy.unknown) == ("rapl", {})
    assert [(one.name, one.rank) for one in record.energy.counters] == [("package-0", 0), ("package-1", 0)]
    joules_by_span, [span] = record.energy.joules_by_span(), record.window.spans
    assert joules_by_span is not None
    [joules] = joules_by_span
    assert joules == pytest.approx(80 * span.wall_time_s, rel=0.25)
    assert span.wall_time_s > 1.0, "so that a late stand-in does not matter"


def test_a_run_without_counters_says_why(make_run: MakeRun, tmp_path: Path) -> None:
    record = run_here(make_run(strategy="single", steps=3), tmp_path)
    assert record.energy is not None
    assert record.energy.counters == []
    assert record.energy.unknown == {"rapl": f"no energy counter: {POWERCAP} is not there"}
    assert record.energy.joules_by_span() is None


def test_old_records_stay_readable_and_foreign_energies_are_refused(make_run: MakeRun, tmp_path: Path) -> None:
    path = write_record(tmp_path, a_record(make_run))
    old = json.loads(path.read_text())
    assert old["energy"] is None
    assert read_record(path).energy is None
    path.write_text(json.dumps(old | {"energy": {"gpu": 3.0}}))
    with pytest.raises(RecordError, match="not a readable record"):
        read_record(path)
