"""Targets: what may be asked, when training stops at one, and that only learning reaches it."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from analysis.cells.target import attempts
from analysis.runs.load import load_cells
from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ConfigError
from benchmarks.core.record import Evaluation
from benchmarks.core.target import Target
from benchmarks.strategy import Place, strategies
from benchmarks.supervision.agent import preload
from benchmarks.supervision.supervisor import supervise
from benchmarks.train import Measured, Report, measure
from benchmarks.trainer import Trainer
from tests.conftest import MakeRun, base_mapping

QUIET = Report(phase=lambda _phase: None, beat=lambda _step, _steps: None)
EPOCHS = {"steps": None, "epochs": 8}


def measured_here(run: RunConfig) -> Measured:
    torch.set_num_threads(1)
    place = Place(rank=0, workers=1, device=torch.device("cpu"))
    return measure(run, place, strategies.make(run.strategy, place), QUIET)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stop_at_target": True}, "stop_at_target=true, target_value=null: give the value"),
        ({"target_metric": "loss"}, "target_metric=loss, target_value=null: give the value"),
        ({"target_value": 0.9}, "target_value=0.9, epochs=null: a target is looked for after each epoch"),
        ({"target_value": 0.9, "evaluate": False, **EPOCHS}, "target_value=0.9, evaluate=false: only an evaluation"),
        ({"target_value": 1.01, **EPOCHS}, "target_value=1.01: must be a number above 0, at most 1"),
        ({"target_value": 0, **EPOCHS}, "target_value=0.0: must be a number above 0, at most 1"),
        ({"target_value": -1, "target_metric": "loss", **EPOCHS}, "target_value=-1.0: must be a number above 0, as"),
        ({"target_value": float("inf"), "target_metric": "loss", **EPOCHS}, "must be a number above 0"),
        ({"target_value": "high", **EPOCHS}, "target_value=high: must be a number or null"),
        ({"target_metric": "acuracy", "target_value": 0.9, **EPOCHS}, "did you mean accuracy?"),
        ({"stop_at_target": 1, "target_value": 0.9, **EPOCHS}, "stop_at_target=1: must be true or false"),
    ],
)
def test_a_target_that_cannot_be_found_is_refused(make_run: MakeRun, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_run(**settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("settings", [{"target_value": 1.0}, {"target_value": 2.5, "target_metric": "loss"}])
def test_a_target_that_can_be_found(make_run: MakeRun, settings: dict[str, Any]) -> None:
    assert make_run(**settings, **EPOCHS).target_value == settings["target_value"]


def evaluation(accuracy: float, loss: float | None) -> Evaluation:
    return Evaluation(after_steps=1, time_s=0.1, samples=10, accuracy=accuracy, loss=loss)


def test_at_the_target_is_there() -> None:
    accuracy, loss = Target(metric="accuracy", value=0.5), Target(metric="loss", value=0.5)
    assert [accuracy.reached_by(evaluation(value, None)) for value in (0.49, 0.5, 0.51)] == [False, True, True]
    assert [loss.reached_by(evaluation(0.9, value)) for value in (0.49, 0.5, 0.51, None)] == [True, True, False, False]


def test_training_stops_at_the_first_evaluation_that_is_there(make_run: MakeRun) -> None:
    """And what it did until then is what a run without a target does; where none is there, it trains all epochs."""
    settings = {"strategy": "single", "global_batch": 128, **EPOCHS}
    whole = measured_here(make_run(**settings))
    accuracies = [one.accuracy for one in whole.evaluations]
    assert len(whole.spans) == 8
    value = accuracies[3]
    first = next(number for number, accuracy in enumerate(accuracies, start=1) if accuracy >= value)
    assert 1 < first < 8, "the target must lie on the way"
    stopped = measured_here(make_run(**settings, target_value=value, stop_at_target=True))
    assert stopped.stopped_after_epochs == first == len(stopped.spans) == len(stopped.evaluations)
    assert [one.accuracy for one in stopped.evaluations] == accuracies[:first]
    assert stopped.losses == whole.losses[: len(stopped.losses)]
    assert all(check.passed for check in stopped.checks), "the samples that are expected are those of its epochs"
    watched = measured_here(make_run(**settings, target_value=value))
    assert (len(watched.spans), watched.stopped_after_epochs) == (8, None)


def test_a_model_of_shuffled_labels_does_not_get_there(make_run: MakeRun) -> None:
    """It can learn its training data by heart, but not what the test asks: so a target says that something was learnt.

    Chance is 0.1; the same training on true labels is past 0.9.
    """
    run = make_run(strategy="single", global_batch=64, target_value=0.85, stop_at_target=True, **EPOCHS)
    honest = measured_here(run)
    assert honest.stopped_after_epochs is not None
    lying = measured_here(msgspec.structs.replace(run, shuffle_labels=True))
    assert lying.stopped_after_epochs is None
    assert len(lying.spans) == 8
    assert max(one.accuracy for one in lying.evaluations) < 0.4


def _stop_together(rank: int, run: RunConfig, rendezvous: str, result: str) -> None:
    """Rank 1 believes to be there after the first epoch, rank 0 after the second."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    limit = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2, timeout=limit)
    true_evaluate = Trainer.evaluate
    calls = 0

    def evaluate(*arguments: Any, **more: Any) -> Evaluation:
        nonlocal calls
        calls += 1
        there = calls >= 2 - rank
        return msgspec.structs.replace(true_evaluate(*arguments, **more), accuracy=float(there))

    Trainer.evaluate = evaluate  # type: ignore[method-assign]
    place = Place(rank=rank, workers=2, device=torch.device("cpu"))
    measured = measure(run, place, strategies.make(run.strategy, place), QUIET)
    checks = [check.passed for check in measured.checks]
    both: list[Any] = [None, None]
    dist.all_gather_object(both, (measured.stopped_after_epochs, len(measured.spans), checks))
    if rank == 0:
        torch.save(both, result)
    dist.destroy_process_group()


def test_ranks_that_disagree_stop_together_where_rank_0_says(tmp_path: Path) -> None:
    settings = {"workload": "mlp", "workers": 2, "global_batch": 256, "warmup_steps": 1, "target_value": 0.5}
    run = RunConfig.from_mapping(base_mapping(**settings, **EPOCHS, stop_at_target=True))
    preload()
    arguments = (run, str(tmp_path / "rendezvous"), str(tmp_path / "result"))
    start_processes(_stop_together, arguments, nprocs=2, start_method="forkserver")
    for epochs, spans, checks in torch.load(tmp_path / "result", weights_only=False):
        assert (epochs, spans) == (2, 2)
        assert len(checks) >= 4
        assert all(checks)


def test_the_record_says_where_it_stopped(make_run: MakeRun, tmp_path: Path) -> None:
    """Two processes that take whole epochs each: a span is two epochs. Analysis takes it as whole."""
    run = make_run(
        strategy="hogwild",
        strategy__split="epochs",
        workers=2,
        global_batch=64,
        target_value=0.3,
        stop_at_target=True,
        **EPOCHS,
    )
    record = supervise(run, tmp_path / "local" / "test" / run.run_id)
    assert record is not None
    assert record.status == "ok", record.reason
    assert record.window is not None
    spans = len(record.window.spans)
    assert record.stopped_after_epochs == 2 * spans < 8
    assert record.evaluation[-1].accuracy >= 0.3
    (cell,) = load_cells(tmp_path / "local" / "test").cells
    (one,) = attempts(cell)
    assert one.reached
    assert one.epochs == 2 * spans
    assert one.samples == record.stopped_after_epochs * 1437
    measured = cell.runs[0].measured
    assert measured is not None
    assert measured.epoch_time_s == pytest.approx(one.train_time_s / record.stopped_after_epochs)
