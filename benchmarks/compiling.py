"""torch.compile of the model as the training step runs it.

What a mode means is torch's matter (see `torch.compile`); `cudagraphs` is its backend of that name, which replays the
plain kernels as CUDA graphs and generates none. Every batch size is compiled by itself, without symbolic sizes: a short
last batch does not change the code of the full ones, and a CUDA graph has one size anyway. All this is done in warm-up,
the window only runs what is there; `nothing_compiled` checks that. Evaluation runs the model as it is.
"""

from __future__ import annotations

import os
import shutil
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.core.config import CompileMode
from benchmarks.core.errors import UserError
from benchmarks.core.record import Check

_MANY = 1_000_000
_OF_GRAPHS = ("reduce-overhead", "cudagraphs")


class Compilation:
    """How a worker's model is compiled; with mode `none`, not at all."""

    def __init__(self, mode: CompileMode, device: torch.device) -> None:
        """Raises UserError where this machine lacks what the mode needs."""
        self.mode, self.device = mode, device
        self._frames_of_warm_up = 0
        self._facts: dict[str, Any] = {}
        if mode != "none":
            _check_tools(mode, device)

    def apply(self, model: nn.Module) -> nn.Module:
        """The model to be called by the step; it shares all parameters and buffers. Its first call compiles."""
        if self.mode == "none":
            return model
        _never_give_up()
        if self.mode == "cudagraphs":
            compiled = torch.compile(model, backend="cudagraphs", dynamic=False)
        else:
            compiled = torch.compile(model, mode=self.mode, dynamic=False)
        assert isinstance(compiled, nn.Module)
        if self.device.type == "cpu" or self.mode == "default":
            return compiled
        # A graph that torch skips would run as in another mode, and its number would be sold as this one's.
        torch._inductor.config.triton.cudagraph_or_error = self.mode in _OF_GRAPHS
        return NewGraphStep(compiled)

    def warmed_up(self) -> None:
        """All batch sizes of the window have been compiled; from here on, whatever compiles is in somebody's way."""
        if self.mode == "none":
            return
        self._frames_of_warm_up = _frames()
        self._facts = {"compile": {"mode": self.mode, **_facts_so_far()}}
        _end_idle_compilers()

    def checks(self) -> list[Check]:
        """That the window holds no compilation."""
        return [nothing_compiled(_frames() - self._frames_of_warm_up)] if self.mode != "none" else []

    def facts(self) -> dict[str, Any]:
        """Of warm-up: seconds of compilation, how many graphs, where they break, how many came from torch's cache."""
        return self._facts


class NewGraphStep(nn.Module):
    """A compiled model that tells torch of each new step, so that the memory of the last one's graphs is used again.

    The batch, a new tensor in each step, is copied into the graph's own input by torch; parameters and buffers stay
    where they are, and are not. What the graphs return must not outlive the step: the loss is computed outside of them,
    and gradients are used up by the update.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """As the model."""
        torch.compiler.cudagraph_mark_step_begin()
        outputs: Tensor = self.model(inputs)
        return outputs


def nothing_compiled(frames: int) -> Check:
    """The window ran what warm-up had compiled; `frames` is how often torch began to compile since then."""
    return Check(name="nothing_compiled", passed=frames == 0, detail=f"{frames} compilations in the window")


def _never_give_up() -> None:
    """Without this, torch would go on without compiling, and say so in the log only, after so many batch sizes."""
    torch._dynamo.config.recompile_limit = _MANY
    torch._dynamo.config.accumulated_recompile_limit = _MANY
    torch._dynamo.config.suppress_errors = False


def _check_tools(mode: CompileMode, device: torch.device) -> None:
    """What generated code is built with: a C++ compiler for a CPU's, Triton and a C compiler for a GPU's."""
    if mode == "cudagraphs":
        return  # generates none
    if device.type == "cpu":
        variable, language, usual = "CXX", "C++", ["g++"]
    else:
        from torch.utils._triton import has_triton

        variable, language, usual = "CC", "C", ["gcc", "clang"]
        if not has_triton():
            raise UserError(f"compile={mode}: needs Triton, which does not work here; take compile=none or cudagraphs")
    given = os.environ.get(variable)
    wanted = given.split()[:1] if given and given.strip() else usual
    if not any(map(shutil.which, wanted)):
        raise UserError(
            f"compile={mode}: needs a {language} compiler on this machine, and there is no {' or '.join(wanted)}; "
            f"install one, name it in {variable}, or take compile=none"
        )


def _frames() -> int:
    """How often torch has begun to compile a function in this process."""
    return int(torch._dynamo.utils.counters["frames"]["total"])


def _facts_so_far() -> dict[str, Any]:
    """What this process has compiled, as torch counts it."""
    counters, spent = torch._dynamo.utils.counters, torch._dynamo.utils.calculate_time_spent()
    return {
        "compile_s": spent["total_wall_time"],
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "cache_hits": counters["inductor"]["fxgraph_cache_hit"],
    }


def _end_idle_compilers() -> None:
    """The processes that built the code are of no more use, and would hold memory during the window."""
    from torch._inductor.async_compile import shutdown_compile_workers

    shutdown_compile_workers()
