"""A workload that goes wrong on purpose, on one rank and from one step on: what the suite must survive and name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.workload import ImageShape, workloads


@workloads.register("faulty")
def faulty(image: ImageShape, *, fault: str, rank: int, call: int, sleep_s: float) -> nn.Module:
    """A linear classifier with one fault."""
    return _Faulty(image, fault if rank in (-1, int(os.environ.get("RANK", "0"))) else "none", call, sleep_s)


class _Faulty(nn.Module):
    def __init__(self, image: ImageShape, fault: str, call: int, sleep_s: float) -> None:
        super().__init__()
        self.linear = nn.Linear(image.channels * image.size**2, image.classes)
        self.hoard: list[Tensor] = []
        self.first_call, self.calls, self.sleep_s = call, 0, sleep_s
        self.faults: dict[str, Callable[[], None]] = {
            "none": lambda: None,
            "sleep": lambda: time.sleep(self.sleep_s),
            "work": lambda: None,
            "raise": self._raise,
            "exhaust": self._exhaust,
            "fill": self._fill,
            "hang": lambda: time.sleep(3600),
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "orphan": self._orphan,
            "nan": lambda: None,
            "late": lambda: None,
            "leave": self._leave,
            "perturb": self._perturb,
            "stall": lambda: None,
            "freeze": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        }
        self.fault = fault
        if fault == "stall":
            register_optimizer_step_pre_hook(self._stall)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        if self.fault == "late":  # between warm-up and window: the parameters are put back to their initial values
            time.sleep(self.sleep_s)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        if self.fault == "work":  # known work: so long for each sample, and no load of the machine
            time.sleep(self.sleep_s * len(images))
        if self.calls >= self.first_call:
            self.faults[self.fault]()
            if self.fault == "nan":
                logits = logits * float("nan")
        self.calls += 1
        return logits

    def _raise(self) -> None:
        raise ZeroDivisionError("broken on purpose")

    def _stall(self, *_: Any) -> None:
        """After the backward pass, so that the other ranks still finish this step and this one does not."""
        if self.calls > self.first_call:
            time.sleep(3600)

    @staticmethod
    def _exhaust() -> None:
        torch.empty(2**60)

    def _fill(self) -> None:
        """Take memory that is really there, step by step, until there is none."""
        self.hoard.append(torch.ones(2**26))

    @staticmethod
    def _orphan() -> None:
        """The fork server goes with its worker, and nobody is left to say how that ended."""
        for pid in (os.getppid(), os.getpid()):
            os.kill(pid, signal.SIGKILL)

    @staticmethod
    def _leave() -> None:
        """Gone without a word and without an error, as a node that loses its power is for the others."""
        os._exit(0)

    @torch.no_grad()
    def _perturb(self) -> None:
        self.linear.weight[0, 0] += 1e-6
