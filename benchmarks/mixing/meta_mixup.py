"""Meta mixup: how much of a sample is its own is learned, from what it does to the loss on held-out samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.data import Split
from benchmarks.data.batches import Batch
from benchmarks.loss import Loss
from benchmarks.mixing import Setting, mixings
from benchmarks.mixing.blend import Blend, MixedLoss
from benchmarks.mixing.mixup import Pairwise
from benchmarks.precision import Precision


@mixings.register("meta_mixup")
class MetaMixup(Pairwise):
    """MetaMixUp (Mai et al. 2019, arXiv 1908.10059): lambda is not drawn, but learned while the model is.

    Before a step, the model takes a virtual one, by plain gradient descent on the mixed batch. The loss that it then
    has on held-out samples is a function of lambda, and lambda descends its gradient, which is of second order: it
    passes through the virtual step's gradient. Then the real step is taken with the new lambda, on the same pairs. It
    is the online approximation of Ren et al. 2018 (arXiv 1803.09050, section 3.2) with lambda in place of weights.

    Otherwise than in the paper, where each pair of a batch gets its own lambda, there is a policy that outlives the
    batch: a lambda for each pair of classes (`policy` classes), or one for all (`policy` one). It is a sigmoid's value,
    so that it stays between 0 and 1, and it takes Adam's steps, since its gradient is very small and shrinks during
    training. The virtual step's length is an option, so that it means the same with every optimiser; no momentum.

    Both forward passes normalise by the batch's own statistics where the model has batch norm; its running averages
    are left alone. On a CPU a step costs three (LeNet) to six plain ones (a transformer, whose attention is then not
    fused); with `every`, only one in so many does.
    """

    def __init__(
        self, setting: Setting, /, *, policy: str, start: float, lr: float, every: int, virtual_lr: float
    ) -> None:
        super().__init__(setting)
        assert setting.dataset.held_out is not None, "the training split is divided before anything is built"
        self.split = _on(setting.dataset.held_out, setting.device)
        self.train_samples = len(setting.dataset.train)
        self.policy = Policy({"one": 1, "classes": setting.dataset.classes}[policy], start, lr, setting.device)
        self.every, self.virtual_lr = every, virtual_lr
        self.held_out_loss = Loss()
        self.steps = 0

    def built(self, model: nn.Module, precision: Precision, /) -> None:
        """Whoever watches the model's passes by hooks, as some optimisers do, must not see virtual ones.

        So those are made by a twin without values of its own, whom no hook will be given.
        """
        self.model, self.precision = model, precision
        self.twin = copy.deepcopy(model).to("meta")
        self.twin_blend = next(module for module in self.twin.modules() if isinstance(module, Blend))
        self.mixed_loss = MixedLoss(self.twin_blend, label_smoothing=self.setting.label_smoothing)

    def before_forward(self, batch: Batch, /) -> None:
        partners = self.draws.partners(len(batch))
        if self.steps % self.every == 0:
            self.policy.descend(self.loss_after_virtual_step(batch, partners, self._held_out_batch(len(batch))))
        self.steps += 1
        self.blend.pairs = partners, self.policy.lambdas(batch.targets, partners).detach()

    def loss_after_virtual_step(self, batch: Batch, partners: Tensor, held_out: Split) -> Tensor:
        """The loss on held-out samples, as a function of the policy; parameters and buffers stay as they are."""
        parameters = dict(self.model.named_parameters())
        trained = {name: value for name, value in parameters.items() if value.requires_grad}
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention cannot be differentiated twice
            self.twin_blend.pairs = partners, self.policy.lambdas(batch.targets, partners)
            mixed = self._loss(parameters, batch.inputs, batch.targets, self.mixed_loss)
            gradients = torch.autograd.grad(mixed, list(trained.values()), create_graph=True, materialize_grads=True)
            moved = {
                name: value - self.virtual_lr * gradient
                for (name, value), gradient in zip(trained.items(), gradients, strict=True)
            }
            return self._loss({**parameters, **moved}, held_out.inputs, held_out.targets, self.held_out_loss)

    def _loss(self, parameters: Mapping[str, Tensor], inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
        """With copies of the buffers, which the forward pass may write to."""
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        with self.precision.autocast():
            value: Tensor = loss(functional_call(self.twin, {**parameters, **buffers}, (inputs,)), targets)
        return value

    def _held_out_batch(self, samples: int) -> Split:
        """As many as the training batch has, or all."""
        chosen = self.draws.held_out(min(samples, len(self.split)), len(self.split))
        return Split(inputs=self.split.inputs[chosen], targets=self.split.targets[chosen])

    def forget(self) -> None:
        super().forget()
        self.policy.restart()
        self.steps = 0

    def facts(self) -> dict[str, Any]:
        """What was held out, and the lambda that came of it: over all pairs of classes, or the one."""
        lambdas = self.policy.logits.detach().sigmoid()
        return {
            "mixing": {
                "train_samples": self.train_samples,
                "held_out_samples": len(self.split),
                "lambda_start": self.policy.start,
                "lambda_mean": float(lambdas.mean()),
                "lambda_min": float(lambdas.min()),
                "lambda_max": float(lambdas.max()),
            }
        }


class Policy:
    """Lambda by the classes of a sample and of its partner, or one for all: sigmoids of learned numbers."""

    def __init__(self, classes: int, start: float, lr: float, device: torch.device) -> None:
        self.start = start
        self._first = math.log(start / (1 - start))
        self.logits = torch.full((classes, classes), self._first, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.logits], lr=lr, eps=1e-12)  # gradients are far smaller than its 1e-8

    def lambdas(self, targets: Tensor, partners: Tensor) -> Tensor:
        """Of all samples of a batch (batch), from their classes (batch) and their partners' numbers (batch)."""
        if len(self.logits) == 1:
            return self.logits.sigmoid().expand(1, len(targets))[0]
        return self.logits.sigmoid()[targets, targets[partners]]

    def descend(self, loss: Tensor) -> None:
        """A step against the gradient of a loss that is a function of the policy."""
        [self.logits.grad] = torch.autograd.grad(loss, [self.logits])
        self.optimizer.step()

    @torch.no_grad()
    def restart(self) -> None:
        """As at the beginning; the optimiser's tensors stay where they are."""
        self.logits.fill_(self._first)
        for value in self.optimizer.state[self.logits].values():
            value.zero_()


def _on(split: Split, device: torch.device) -> Split:
    return Split(inputs=split.inputs.to(device), targets=split.targets.to(device))
