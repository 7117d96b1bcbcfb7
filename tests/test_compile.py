"""Compiled steps: the same training, compiled before the window and never in it, or a reason why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks import compiling
from benchmarks.compiling import Compilation
from benchmarks.core.config import RunConfig
from benchmarks.core.errors import ConfigError, UserError
from benchmarks.strategy import Place, strategies
from benchmarks.train import Report, measure
from benchmarks.trainer import Trainer
from tests.conftest import MakeRun, base_mapping
from tests.crew import Case, Crews, Outcome, take_together

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# The model is small since its size costs time: the C++ compiler takes seconds for each graph.
SETTINGS: dict[str, Any] = {
    **{"workload": "mlp", "workload__hidden_size": 16, "workload__hidden_layers": 1, "global_batch": 64},
    **{"warmup_steps": 2, "run_limit_s": 60},
}
# 1437 samples make five full batches and one of 17.
EPOCHS = {"global_batch": 284, "steps": None, "epochs": 2}
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "ddp_static_graph": {"strategy": "ddp", "strategy__static_graph": True},
    "ddp_accumulate": {"strategy": "ddp", "strategy__accumulate": 2},
    "zero1": {"strategy": "zero1"},
    "fsdp": {"strategy": "fsdp", "strategy__group_mb": 0.01},
    "local_sgd": {"strategy": "local_sgd", "strategy__every": 2},
    "parameter_server": {"strategy": "parameter_server"},
}
MODES = ("none", "default")


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    """As in a process of its own: torch shares compiled code between equal models."""
    torch._dynamo.reset()
    counters.clear()
    torch.set_num_threads(1)


def make(**settings: Any) -> RunConfig:
    return RunConfig.from_mapping(base_mapping(**{**SETTINGS, **settings}))


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What two workers made of each strategy, in each mode."""
    cases = {
        f"{name}/{mode}": Case(run=make(workers=2, compile=mode, **settings), steps=6)
        for name, settings in STRATEGIES.items()
        for mode in MODES
    }
    cases["hogwild/default"] = Case(run=make(workers=2, compile="default", strategy="hogwild"), steps=6)
    crews = Crews(lambda workers, folder: take_together(cases, workers, folder), tmp_path_factory)
    return lambda name: crews(2)[name]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_compiled_strategy_trains_the_same_model(strategy: str, outcome: Callable[[str], Outcome]) -> None:
    """After a warm-up that is undone, with an evaluation halfway."""
    plain, compiled = (outcome(f"{strategy}/{mode}") for mode in MODES)
    assert largest_difference(plain.parameters, compiled.parameters) < 1e-5
    assert compiled.accuracy == pytest.approx(plain.accuracy, abs=0.01)
    assert len(compiled.checks) == len(plain.checks) + 1, "that nothing was compiled after warm-up"
    assert all(compiled.checks)


def test_compiled_processes_train_one_shared_model(outcome: Callable[[str], Outcome]) -> None:
    """Who of two lock-free processes comes first is chance: no run equals another, but both see the same parameters."""
    compiled = outcome("hogwild/default")
    assert len(compiled.checks) == 2
    assert all(compiled.checks)
    assert all(0 < loss < 10 for loss in compiled.losses)


def measured(run: RunConfig, frames: dict[str, int] | None = None) -> Any:
    """What `measure` returns; `frames`: how often torch had begun to compile when each phase began, the last time."""
    place = Place(rank=0, workers=1, device=CPU)

    def enter(phase: str) -> None:
        if frames is not None:
            frames[phase] = counters["frames"]["total"]

    report = Report(phase=enter, beat=lambda _step, _steps: None)
    return measure(run, place, strategies.make(run.strategy, place), report)


def test_all_that_is_compiled_is_compiled_in_warm_up() -> None:
    """Two sizes of batches, two epochs, each with an evaluation: a graph for each size, and none later."""
    frames: dict[str, int] = {}
    compiled = measured(make(strategy="single", compile="default", **EPOCHS), frames)
    assert frames["warmup"] == 0
    assert frames["window"] == frames["evaluation"] == frames["checks"] > 0
    assert [check.passed for check in compiled.checks if check.name == "nothing_compiled"] == [True]
    facts = compiled.strategy_facts["compile"]
    assert (facts["mode"], facts["graphs"], facts["graph_breaks"]) == ("default", 2, 0)
    assert facts["compile_s"] > 0
    plain = measured(make(strategy="single", **EPOCHS))
    assert compiled.losses == pytest.approx(plain.losses, abs=1e-5)
    assert "compile" not in plain.strategy_facts
    assert "nothing_compiled" not in [check.name for check in plain.checks]


def test_a_compilation_in_the_window_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if warm-up had forgotten the short last batch."""
    monkeypatch.setattr(Trainer, "_batch_sizes", lambda trainer, _loader: [trainer.run.global_batch])
    compiled = measured(make(strategy="single", compile="default", **EPOCHS))
    [check] = [check for check in compiled.checks if check.name == "nothing_compiled"]
    assert not check.passed
    assert check.detail == "1 compilations in the window"


def test_each_batch_size_has_its_own_graph_however_many_there_are() -> None:
    """More than the eight after which torch, left to itself, goes on uncompiled."""
    model = nn.Linear(4, 2)
    step = Compilation("default", CPU).apply(model)
    for size in range(2, 12):
        images = torch.randn(size, 4)
        assert torch.allclose(step(images), model(images), atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 10


@pytest.mark.parametrize(
    ("mode", "device", "variable", "words"),
    [
        ("default", CPU, "CXX", r"compile=default: needs a C\+\+ compiler on this machine, and there is no g\+\+"),
        ("max-autotune", CPU, "CXX", r"compile=max-autotune: needs a C\+\+ compiler"),
        ("reduce-overhead", CUDA, "CC", "needs a C compiler on this machine, and there is no gcc or clang"),
    ],
)
def test_a_missing_compiler_is_said_in_one_line(
    mode: Any, device: torch.device, variable: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match=words) as caught:
        Compilation(mode, device)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv(variable, "/nowhere/compiler -O2")
    with pytest.raises(UserError, match="there is no /nowhere/compiler;"):
        Compilation(mode, device)
    monkeypatch.setenv(variable, "/bin/sh -c")
    Compilation(mode, device)
    Compilation("cudagraphs", CUDA)
    Compilation("none", device)


def test_a_gpu_needs_triton_for_generated_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match="compile=default: needs Triton"):
        Compilation("default", CUDA)


def test_the_run_says_what_is_missing_before_it_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    frames: dict[str, int] = {}
    with pytest.raises(UserError, match="needs a C"):
        measured(make(strategy="single", compile="default", **EPOCHS), frames)
    assert list(frames) == ["data", "build"]


def test_steps_of_cuda_graphs_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark comes before each call of the model: what the last step's graphs returned may then be overwritten."""
    order: list[str] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: order.append("mark"))

    class Noted(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            order.append("model")
            return images + 1

    step = compiling.NewGraphStep(Noted())
    assert torch.equal(step(torch.zeros(2)), torch.ones(2))
    step(torch.zeros(2))
    assert order == ["mark", "model"] * 2


def test_a_cuda_graph_that_torch_skips_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on the host are one of torch's reasons for going on without a graph."""
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    monkeypatch.setattr(torch._inductor.config.triton, "cudagraph_or_error", False)
    step = Compilation("cudagraphs", CUDA).apply(nn.Linear(4, 2))
    assert isinstance(step, compiling.NewGraphStep)
    with pytest.raises(Exception, match="skipping cudagraphs due to cpu device"):
        step(torch.zeros(2, 4))


GPU = {"device": "cuda", "cluster": {"name": "local", "device": "cuda", "cores_per_node": 8, "gpus_per_node": 4}}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"compile": "cudagraphs"}, "CUDA graphs replay a GPU's kernels"),
        ({"compile": "reduce-overhead"}, "on a CPU, reduce-overhead would be default"),
        ({"compile": "default", "warmup_steps": 0}, "the window would hold the compilation"),
        ({"compile": "default", "strategy": "ddp", "warmup_steps": 1}, "buckets anew in its second step"),
        ({"compile": "cudagraphs", "warmup_steps": 2, **GPU}, "recorded in the second step"),
        ({"compile": "max-autotune", "warmup_steps": 2, **GPU}, "recorded in the second step"),
        ({"compile": "default", "strategy": "dbs", "workers": 2, **EPOCHS}, "each new size of them would be compiled"),
        (
            {"compile": "cudagraphs", "warmup_steps": 3, "workers": 2, "strategy__accumulate": 2, **GPU},
            "the next micro-batch replays it",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_at_the_door(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(**settings)


def test_what_a_gpu_can_compile_is_allowed(make_run: MakeRun) -> None:
    for mode in ("default", "reduce-overhead", "max-autotune", "cudagraphs"):
        assert make(compile=mode, warmup_steps=3, **GPU).compile == mode
    assert make_run(compile="max-autotune", strategy="single").compile == "max-autotune"
    assert make(compile="default", workers=2, strategy__accumulate=2, **GPU).compile == "default"
