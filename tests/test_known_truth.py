"""One campaign whose truth is chosen: serial fraction, noise, a bottleneck, a straggler and a failure.

Everything that people read is made from its records as it is from real ones, and must give the chosen truth back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from analysis.advice.candidates import Wanted
from analysis.cells.campaign import read_campaign
from analysis.compare import compare
from analysis.recommend import choose
from analysis.runs.load import load_cells
from analysis.schema import Point, Report
from analysis.series import build_report
from analysis.tables.formats import markdown
from benchmarks.core.record import RankSummary, Record, Span, Window
from tests import synthetic

SERIAL, ALONE_S, NOISE, BATCH, STEPS = 0.1, 0.4, 0.01, 64, 20
WORKERS = (1, 2, 4, 8, 16)
DATA_WAIT, SLOW_RANK = 0.3, 1.5
"""On 4 workers this share of a step is spent waiting for data; on 8 one rank takes this many times the others' time."""


def amdahl_s(workers: int) -> float:
    """Seconds of a step: one part of it gains nothing from workers."""
    return ALONE_S * (SERIAL + (1 - SERIAL) / workers)


@dataclass
class Campaign:
    """Writes records: five worker counts that follow Amdahl's law, and cells beside them with a cause of their own."""

    folder: Path
    factor: float = 1.0
    repeats: int = 6
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(20))

    def write(self) -> Path:
        configs: list[dict[str, Any]] = []
        records: list[Record] = []
        for repeat in range(self.repeats):
            for workers in WORKERS:
                of = synthetic.config(workers, global_batch=BATCH, repeat=repeat, steps=STEPS)
                configs.append(of)
                records.append(self._record(of, amdahl_s(workers)))
            for name, workers, data, slow in (("mlp", 4, DATA_WAIT, 1.0), ("vit", 8, 0.0, SLOW_RANK)):
                of = synthetic.config(workers, global_batch=BATCH, repeat=repeat, workload={"name": name}, steps=STEPS)
                configs.append(of)
                records.append(self._record(of, 0.1, data=data, slow=slow))
            of = synthetic.config(32, global_batch=BATCH, repeat=repeat, steps=STEPS)
            configs.append(of)
            records.append(synthetic.failed(of, "oom", "rank 9: out of memory"))
        synthetic.write(self.folder, records)
        synthetic.write_manifest(self.folder, configs)
        return self.folder

    def _record(self, of: dict[str, Any], step_s: float, data: float = 0.0, slow: float = 1.0) -> Record:
        """A run in which all ranks end a step together: the last rank is `slow` times as long at its own work."""
        level = self.factor * self.rng.lognormal(0, NOISE)
        steps = step_s * level * self.rng.lognormal(0, 2 * NOISE, STEPS)
        ranks = of["workers"]
        own = np.full(ranks, (1 - data) / slow)
        own[-1] = 1 - data
        window = Window(
            clock="monotonic",
            step_time_s=steps.tolist(),
            compute_time_s=(steps * (1 - data)).tolist(),
            data_wait_s=(steps * data).tolist(),
            exposed_comm_s=None,
            samples=[BATCH] * STEPS,
            loss=[1.0] * STEPS,
            spans=[
                Span(
                    steps=STEPS,
                    samples=BATCH * STEPS,
                    wall_time_s=float(steps.sum()),
                    sync_wait_s_by_rank=[float(steps.sum() * (1 - data - share)) for share in own],
                )
            ],
        )
        middle = float(np.median(steps))
        summaries: list[RankSummary] = [
            msgspec.structs.replace(
                synthetic.rank_summary(rank, middle * (share + data)),
                data_wait_s=middle * data,
                sync_wait_s=middle * (1 - data - share),
            )
            for rank, share in enumerate(own.tolist())
        ]
        return synthetic.record(of, window=window, ranks=summaries)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Campaign(tmp_path_factory.mktemp("truth") / "local" / "first").write()


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return build_report(load_cells(folder))


def cell(report: Report, workload: str, workers: int) -> Point:
    [found] = [one for one in report.cells if (one.settings["workload"], one.workers) == (workload, workers)]
    return found


def test_ratios_hold_the_truth(report: Report) -> None:
    [series] = report.strong
    for point, workers in zip(series.points, WORKERS, strict=False):
        assert point.speedup
        truth = amdahl_s(1) / amdahl_s(workers)
        assert point.speedup.low * 0.99 <= truth <= point.speedup.high * 1.01
        assert point.speedup.value == pytest.approx(truth, rel=0.03)
        assert point.efficiency
        assert point.efficiency.value == pytest.approx(point.speedup.value / workers)


def test_the_law_is_amdahls_with_its_fraction_and_foretells(report: Report) -> None:
    fit = report.strong[0].fit
    assert fit is not None
    assert fit.model == "Amdahl", fit
    assert fit.parameters["serial_fraction"] == pytest.approx(SERIAL, abs=0.015)
    [ahead] = [point for point in fit.curve if point.workers == 32]
    assert not ahead.measured
    assert ahead.step_time_s.low <= amdahl_s(32) <= ahead.step_time_s.high
    assert fit.held_out is not None
    assert abs(fit.held_out.miss) < 0.06


def test_causes_are_named_with_their_share(report: Report) -> None:
    data, straggler = cell(report, "mlp", 4).bottleneck, cell(report, "vit", 8).bottleneck
    assert data is not None
    assert straggler is not None
    assert (data.name, straggler.name) == ("data", "stragglers")
    assert data.share == pytest.approx(DATA_WAIT, abs=0.01)
    assert straggler.share == pytest.approx(1 - 1 / SLOW_RANK, abs=0.02)
    assert "Rank 7 on node0 takes 1.50 times" in straggler.sentence
    assert cell(report, "vit", 8).straggler_ratio == pytest.approx(SLOW_RANK, rel=0.01)
    quiet = cell(report, "lenet", 8).bottleneck
    assert quiet is not None
    assert quiet.name == "compute"


def test_the_failure_is_a_row_and_no_number(report: Report) -> None:
    failed = cell(report, "lenet", 32)
    assert (failed.status, failed.failed, failed.step_time_s) == ("oom", {"oom": 6}, None)
    text = markdown(report, [])
    assert "oom: 6 of 6 failed: oom (hang: rank 9: out of memory)" in text
    assert json.loads(msgspec.json.encode(report))["runs"]["failed"] == {"oom": 6}


def test_the_recommendation_is_the_fastest_and_the_cheapest(folder: Path, report: Report) -> None:
    loaded = load_cells(folder)
    fastest, cheapest = (choose(loaded, report, goal, Wanted(samples=1e6)) for goal in ("time", "cost"))
    # One answer for each model: none of them stands for another.
    assert [one.best.label for one in fastest.answers if one.best] == [
        *("lenet, 16 workers", "mlp, 4 workers", "vit, 8 workers")
    ]
    [first, *_] = fastest.answers
    assert first.best is not None
    assert first.probability_best == 1.0
    assert first.best.time_s.value == pytest.approx(amdahl_s(16) * 1e6 / BATCH, rel=0.02)
    assert next(one.best.label for one in cheapest.answers if one.best) == "lenet, 1 worker"
    # The law of 32 workers is a forecast, and nobody's best.
    assert any(choice.workers == 32 for choice in fastest.predicted)


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "no difference found"), (1.05, "B is slower")])
def test_a_second_campaign_is_the_same_or_as_much_slower(
    factor: float, verdict: str, folder: Path, tmp_path: Path
) -> None:
    second = Campaign(tmp_path / "second", factor=factor, rng=np.random.default_rng(21)).write()
    result = compare(read_campaign(folder), read_campaign(second), tolerated=0.02)
    assert result.verdict.startswith(verdict), result.verdict
    assert result.regression == (factor > 1.02)
    assert result.all_cells is not None
    assert result.all_cells.low <= factor <= result.all_cells.high


def test_intervals_of_a_simulated_sweep_cover_the_truth_as_often_as_they_promise(tmp_path: Path) -> None:
    """150 speed-ups, each of two cells with eight repeats: 2 % noise between runs, 5 % between steps."""
    rng = np.random.default_rng(5)
    records = []
    for batch in range(64, 64 + 2 * 150, 2):
        for workers, truth_s in ((1, 0.2), (2, 0.12)):
            for repeat in range(8):
                of = synthetic.config(workers, global_batch=batch, repeat=repeat)
                steps_s = truth_s * rng.lognormal(0, 0.02) * rng.gamma(400, 1 / 400, 20)
                records.append(synthetic.record(of, steps_s.tolist()))
    synthetic.write(tmp_path, records)
    report = build_report(load_cells(tmp_path))
    speedups = [series.points[1].speedup for series in report.strong]
    assert len(speedups) == 150
    covered = sum(one.low <= 0.2 / 0.12 <= one.high for one in speedups if one) / len(speedups)
    assert 0.92 <= covered <= 0.985, covered
