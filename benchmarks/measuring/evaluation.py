"""Accuracy and loss over the test split, outside the window."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.core.record import Evaluation, finite
from benchmarks.data import Split
from benchmarks.fusion import foldable_pairs, folded
from benchmarks.loss import Loss
from benchmarks.measuring.timing import clock_for
from benchmarks.precision import Precision
from benchmarks.strategy import Strategy


class Evaluator:
    """Evaluates a worker's model; all ranks do so at once and alike."""

    def __init__(
        self, model: torch.nn.Module, strategy: Strategy, precision: Precision, chunk: int, *, fuse: bool = False
    ) -> None:
        """With `fuse`, batch norms are folded away for each evaluation; raises ImpossibleRunError where none can be."""
        self.model, self.strategy, self.precision = model, strategy, precision
        self._pairs = foldable_pairs(model) if fuse else []
        self.device = strategy.place.device
        self.loss = Loss()
        self.chunk = chunk
        """Samples at a time."""

    @torch.inference_mode()
    def evaluate(self, test: Split, after_steps: int, beat: Callable[[int, int], None]) -> Evaluation:
        """Accuracy and mean loss over the whole test split."""
        self.model.eval()
        clock = clock_for(self.device, 1)
        clock.start()
        with self.strategy.evaluating(self.model):
            model = folded(self.model, self._pairs) if self._pairs else self.model
            accuracy, loss = self._score(model, test, beat)
        clock.stop()
        self.model.train()
        return Evaluation(
            after_steps=after_steps,
            time_s=clock.wall_time_s,
            samples=len(test),
            accuracy=accuracy,
            loss=finite(loss),
        )

    def _score(self, model: torch.nn.Module, test: Split, beat: Callable[[int, int], None]) -> tuple[float, float]:
        """Accuracy and mean loss."""
        starts = range(0, len(test), self.chunk)
        correct, loss = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for number, start in enumerate(starts):
            inputs = test.inputs[start : start + self.chunk].to(self.device)
            targets = test.targets[start : start + self.chunk].to(self.device)
            with self.precision.autocast():
                logits = self.strategy.predict(model, inputs)
                loss += self.loss(logits, targets) * len(targets)
            correct += (logits.argmax(-1) == targets).sum()
            beat(number + 1, len(starts))
        return correct.item() / test.targets.numel(), loss.item() / len(test)
