"""The door: what gets in, and the one line that everything else gets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.core.config import RunConfig, flatten
from benchmarks.core.errors import ConfigError, ImpossibleRunError
from benchmarks.core.variants import variant_file
from tests.conftest import MakeRun, base_mapping


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"workers": 0}, "workers=0: must be a whole number from 1"),
        ({"workers": -1}, "workers=-1: must be a whole number from 1"),
        ({"workers": True}, "workers=True: must be a whole number from 1"),
        ({"workers": "two"}, "workers=two: must be a whole number from 1"),
        ({"workers": None}, "workers=null: must be a whole number from 1"),
        ({"batch_per_worker": 0}, "batch_per_worker=0: must be a whole number from 1"),
        ({"batch_per_worker": None}, "batch_per_worker=null, global_batch=null: give one of them"),
        ({"optimizer__lr": "fast"}, "optimizer.lr=fast: must be a number"),
        ({"optimizer__weight_decay": float("nan")}, "optimizer.weight_decay=nan: must be finite"),
        ({"strategy__static_graph": 1}, "strategy.static_graph=1: must be true or false"),
        ({"device": "tpu"}, "device=tpu: not known (did you mean cpu?); allowed: auto, cpu, cuda"),
        ({"seed": -1}, "seed=-1: must be a whole number >= 0"),
        ({"steps": 0}, "steps=0: must be a whole number >= 1"),
        ({"data_fraction": 0}, "data_fraction=0: must be a number > 0.0"),
        ({"data_fraction": 1.5}, "data_fraction=1.5: must be a number <= 1.0"),
        ({"shuffle_labels": 1}, "shuffle_labels=1: must be true or false"),
        (
            {"compile": True},
            "compile=True: not known; allowed: cudagraphs, default, max-autotune, none, reduce-overhead",
        ),
        ({"hang_limit_s": 0}, "hang_limit_s=0: must be a number > 0.0"),
        ({"epochs": 2}, "steps=5, epochs=2: give one of them and set the other to null"),
    ],
)
def test_bad_values_end_in_one_line(make_run: MakeRun, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_run(**settings)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"strategy": "single", "workers": 2}, r"strategy=single needs workers == 1: .*"),
        ({"workers": 2, "global_batch": 33}, r"global_batch=33: cannot be shared equally by workers=2"),
        (
            {"batch_per_worker": 1438},
            r"global_batch=1438: larger than the data set \(digits has 1437 training samples\)",
        ),
        (
            {"batch_per_worker": 400, "data_fraction": 0.25},
            r"global_batch=400: larger than the data set "
            r"\(digits has 1437 training samples, data_fraction=0.25 keeps 359\)",
        ),
        (
            {"data_fraction": 0.5, "steps": None, "epochs": 2, "global_batch": 100, "batch_schedule": "growing"},
            r"batch_schedule=growing needs global_batch \* batch_schedule.most <= data.train_samples: .*",
        ),
        ({"precision": "tf32"}, r"precision=tf32 needs device == 'cuda': .*"),
        ({"device": "cuda"}, r"workers=1: more than the 0 GPUs of cluster=local, nodes=1; each worker needs its own"),
        ({"workers": 3, "nodes": 2}, r"workers=3: cannot be spread equally over nodes=2"),
        ({"optimizer__lr": 0}, r"optimizer=sgd needs optimizer.lr > 0: .*"),
        (
            {"optimizer": "sgd_nesterov", "optimizer__momentum": 0.0},
            r"optimizer=sgd_nesterov needs 0 < optimizer.momentum < 1: .*",
        ),
        ({"workload": "lenet", "workload__input_size": 8}, r"workload=lenet needs workload.input_size >= 16: .*"),
    ],
)
def test_impossible_combinations_say_why(make_run: MakeRun, settings: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ImpossibleRunError) as caught:
        make_run(**settings)
    assert re.fullmatch(pattern, str(caught.value))


def test_a_fraction_of_the_data_is_rounded_to_the_nearest(make_run: MakeRun) -> None:
    """0.29 x 100 is a little less than 29 in binary; a half is rounded up."""
    assert make_run(data_fraction=0.29).samples_kept(100) == 29
    assert make_run(data_fraction=0.25).samples_kept(10) == 3
    assert make_run(data_fraction=0.25).samples_kept(9) == 2
    assert make_run().samples_kept(1437) == 1437


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"configuration key=wrkers: not known \(did you mean workers\?\)"):
        RunConfig.from_mapping(base_mapping(batch_per_worker=8) | {"wrkers": 2})
    mapping = base_mapping(batch_per_worker=8)
    mapping["optimizer"]["lrr"] = 1
    with pytest.raises(ConfigError, match=r"key of optimizer=sgd=lrr: not known \(did you mean lr\?\)"):
        RunConfig.from_mapping(mapping)
    mapping = base_mapping(batch_per_worker=8)
    mapping["cluster"]["nodes"] = 1
    with pytest.raises(ConfigError, match=r"key of cluster=nodes: not known"):
        RunConfig.from_mapping(mapping)


def test_unknown_variants_list_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"strategy=dpp: not known \(did you mean ddp\?\); allowed: dbs, ddp, "):
        variant_file("strategy", "dpp")
    with pytest.raises(ConfigError, match="not known"):
        variant_file("strategy", "../strategy/ddp")


@pytest.mark.parametrize(
    "given", [{"batch_per_worker": 24}, {"global_batch": 96}, {"batch_per_worker": 24, "global_batch": 96}]
)
def test_either_batch_size_gives_the_other(given: dict[str, int]) -> None:
    run = RunConfig.from_mapping(base_mapping(workers=4) | given)
    assert (run.batch_per_worker, run.global_batch) == (24, 96)


def test_contradicting_batch_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="global_batch=97: must be batch_per_worker x workers = 24 x 4"):
        RunConfig.from_mapping(base_mapping(workers=4) | {"batch_per_worker": 24, "global_batch": 97})


def test_identity_is_what_is_measured_and_nothing_else(make_run: MakeRun) -> None:
    run = make_run()
    assert make_run(sweep="other", run_limit_s=9, hang_limit_s=9).run_id == run.run_id
    assert make_run(repeat=1).run_id != run.run_id
    assert make_run(repeat=1, seed=7).cell_id == run.cell_id
    others: list[dict[str, Any]] = [{"data_fraction": 0.5}, {"shuffle_labels": True}, {"loader": "resident"}]
    assert len({make_run(**settings).cell_id for settings in others} | {run.cell_id}) == 4
    for settings in ({"steps": 6}, {"optimizer__lr": 0.01}, {"threads_per_worker": 2}, {"batch_per_worker": 8}):
        assert make_run(**settings).cell_id != run.cell_id
    assert make_run(optimizer__lr=0.020).run_id == run.run_id


def test_configuration_survives_json(make_run: MakeRun) -> None:
    run = make_run(workers=2)
    plain = msgspec.json.decode(msgspec.json.encode(run.as_dict()))
    assert RunConfig.from_mapping(plain).run_id == run.run_id
    assert flatten(plain)["optimizer"] == "sgd"
    assert flatten(plain)["optimizer.momentum"] == 0.9


def test_configuration_cannot_be_changed(make_run: MakeRun) -> None:
    with pytest.raises(AttributeError):
        make_run().workers = 2  # type: ignore[misc]


def test_oversubscription_is_allowed_and_marked(make_run: MakeRun) -> None:
    assert not make_run(workers=2).oversubscribed
    assert make_run(workers=4).oversubscribed
    assert not make_run(loader="processes", loader__workers=1).oversubscribed
    assert make_run(loader="processes", loader__workers=2).oversubscribed


def test_a_variant_of_ones_own_needs_its_name_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "conf" / "strategy"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("name: yours\n")
    monkeypatch.setenv("SCALEBENCH_EXTRA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"mine.yaml: the key name must be mine, as the file's"):
        variant_file("strategy", "mine")
    monkeypatch.setenv("SCALEBENCH_EXTRA", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"SCALEBENCH_EXTRA=.*: no such folder"):
        variant_file("strategy", "mine")
