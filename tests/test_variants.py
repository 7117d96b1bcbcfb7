"""YAML and code agree: every entry composes, is registered, and its options are its maker's keywords."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from benchmarks.augmentation import augmentations
from benchmarks.batch_schedule import batch_schedules
from benchmarks.command_line.composed import as_overrides, quoted, run_mapping
from benchmarks.core.config import RunConfig, Variant
from benchmarks.core.sweep import plan, read_sweep
from benchmarks.core.variants import CONF_DIR, VARIANT_AXES, names_on, variant_file
from benchmarks.data import datasets
from benchmarks.loader import loaders
from benchmarks.lr_schedule import lr_schedules
from benchmarks.mixing import mixings
from benchmarks.optimizer import optimizers
from benchmarks.precision import precisions
from benchmarks.registry import Registry
from benchmarks.strategy import strategies
from benchmarks.workload import workloads

REGISTRIES: dict[str, Registry[Any]] = {
    "workload": workloads,
    "data": datasets,
    "augmentation": augmentations,
    "mixing": mixings,
    "loader": loaders,
    "strategy": strategies,
    "batch_schedule": batch_schedules,
    "optimizer": optimizers,
    "lr_schedule": lr_schedules,
    "precision": precisions,
}
# Options that are used before the maker is called, by what prepares the data.
PREPARED = {"workload": {"input_size"}, "data": {"train_samples"}, "mixing": {"held_out"}}
# What an entry needs of other keys.
COMPOSED_WITH: dict[str, list[str]] = {
    "dbs": ["workers=2", "steps=null", "epochs=2"],
    "growing": ["steps=null", "epochs=2"],
    "noise": ["steps=null", "epochs=2"],
    "meta_mixup": ["strategy=single"],
    "model_parallel": ["workers=2"],
    "pipeline": ["workers=2"],
    "tensor_parallel": ["workers=2", "workload=vit"],
    "gpt": ["data=tokens"],
    "text_transformer": ["data=synthetic_text"],
    "tokens": ["workload=gpt"],
    "text_file": ["workload=gpt"],
    "synthetic_text": ["workload=text_transformer"],
    "agnews": ["workload=text_transformer"],
}
ENTRIES = [(axis, name) for axis in VARIANT_AXES for name in names_on(axis)]


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return run_mapping(compose("config", overrides=list(overrides)), "test")


@pytest.mark.parametrize("axis", VARIANT_AXES)
def test_every_entry_has_code_and_all_code_an_entry(axis: str) -> None:
    assert REGISTRIES[axis].names() == names_on(axis)


@pytest.mark.parametrize(("axis", "name"), ENTRIES)
def test_options_are_the_makers_keywords(axis: str, name: str) -> None:
    signature = inspect.signature(REGISTRIES[axis][name])
    keywords = {key for key, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}
    options = set(variant_file(axis, name).defaults)
    assert keywords <= options
    assert options - keywords <= PREPARED.get(axis, set())


@pytest.mark.parametrize(
    ("axis", "name"), [(axis, name) for axis, name in ENTRIES if (CONF_DIR / axis / f"{name}.yaml").exists()]
)
def test_every_entry_composes(axis: str, name: str) -> None:
    mapping = composed(f"{axis}={name}", "batch_per_worker=8", "threads_per_worker=1", *COMPOSED_WITH.get(name, []))
    if name == "tf32":
        mapping |= {"device": "cuda", "cluster": mapping["cluster"] | {"gpus_per_node": 1}}
    run = RunConfig.from_mapping(mapping)
    assert getattr(run, axis).name == name
    assert getattr(run, axis).options == variant_file(axis, name).defaults


@pytest.mark.parametrize("sweep", names_on("sweep"))
def test_a_planned_run_is_what_hydra_composes_from_its_overrides(sweep: str) -> None:
    definition = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "sweep" / f"{sweep}.yaml"))
    assert isinstance(definition, dict)
    runs = plan(read_sweep({str(k): v for k, v in definition.items()}), composed("device=cpu")).runs
    for run in (runs[0], runs[len(runs) // 2], runs[-1]):
        assert RunConfig.from_mapping(composed("device=cpu", *as_overrides(run))).run_id == run.config.run_id


@pytest.mark.parametrize(
    "value", [1, 1.5, -2, 1e-07, True, None, "ddp", "it's", 'a "b"', "a,b=c {d} [e] $f", " x ", ""]
)
def test_every_value_survives_the_grammar_of_overrides(value: object) -> None:
    assert_survives(value)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=12))
def test_every_text_survives_the_grammar_of_overrides(text: str) -> None:
    assert_survives(text)


@given(st.lists(st.sampled_from(["\\", "'", '"', "a"]), max_size=6))
def test_backslashes_and_quotation_marks_survive_in_any_order(characters: list[str]) -> None:
    assert_survives("".join(characters))


def assert_survives(value: object) -> None:
    parsed = OverridesParser.create().parse_override(f"key={quoted(value)}").value()
    parsed = parsed.text if isinstance(parsed, QuotedString) else parsed
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_variant_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md shows it: a module and a YAML file in a folder outside the project."""
    (tmp_path / "conf" / "optimizer").mkdir(parents=True)
    (tmp_path / "conf" / "optimizer" / "mine.yaml").write_text("name: mine\nlr: 0.5\n")
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "from benchmarks.optimizer import optimizers\n"
        "@optimizers.register('mine')\n"
        "def mine(parameters, *, lr):\n"
        "    return torch.optim.Adagrad(parameters, lr=lr)\n"
    )
    monkeypatch.setenv("SCALEBENCH_EXTRA", str(tmp_path))
    assert "mine" in names_on("optimizer")
    file = variant_file("optimizer", "mine")
    made = optimizers.make(Variant(name="mine", options=file.defaults), [torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.Adagrad)
    assert made.defaults["lr"] == 0.5
