"""Checks that decide whether a run's numbers may be shown. No sanity, no number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from benchmarks.core.record import Check
from benchmarks.measuring.step_times import StepTimes
from benchmarks.strategy import Copies


def finite_loss(losses: Sequence[float]) -> Check:
    """The loss was finite at every step; a diverged model can be faster or slower than one that trains."""
    bad = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), None)
    detail = f"finite at all {len(losses)} steps" if bad is None else f"loss is {losses[bad]} at step {bad}"
    return Check(name="finite_loss", passed=bad is None, detail=detail)


def expected_samples(counted: int, expected: int) -> Check:
    """The window processed as many samples as the configuration asks for."""
    return Check(name="expected_samples", passed=counted == expected, detail=f"{counted} of {expected} samples")


def clocks_agree(times: Sequence[StepTimes]) -> Check:
    """The steps add up to the window: within 2 % and one millisecond, on the device's clock against the host's."""
    steps = sum(sum(span.step_s) for span in times)
    wall = sum(span.wall_time_s for span in times)
    passed = abs(steps - wall) <= 0.02 * wall + 1e-3 * len(times)
    return Check(name="clocks_agree", passed=passed, detail=f"steps add up to {steps:.6f} s of {wall:.6f} s")


def replicas_equal(copies: Copies) -> Check:
    """After a synchronous run every rank holds the same parameters, bit by bit.

    Each tensor is reduced to two 64-bit sums: of its bytes, and of its bytes weighted by position. Ranks compare
    the sums.
    """
    differences = [_difference(part) for part in (copies, *copies.others)]
    differ = "; ".join(text for text in differences if text)
    ranks = dist.get_process_group_ranks(copies.group or dist.group.WORLD)
    return Check(name="replicas_equal", passed=not differ, detail=differ or f"equal on {len(ranks)} ranks")


def _difference(copies: Copies) -> str:
    """On which ranks of the group the tensors differ from its first rank's; nothing where they are equal."""
    sums = torch.stack([_fingerprint(tensor.detach()) for tensor in copies.tensors]).cpu()
    if dist.is_initialized() and dist.get_backend() == "nccl":
        sums = sums.cuda()
    ranks = dist.get_process_group_ranks(copies.group or dist.group.WORLD)
    gathered = [torch.empty_like(sums) for _ in ranks]
    dist.all_gather(gathered, sums, group=copies.group)
    different = [rank for rank, other in zip(ranks, gathered, strict=True) if not torch.equal(other, gathered[0])]
    return f"parameters differ from rank {ranks[0]}'s on ranks {different}" if different else ""


def _fingerprint(values: torch.Tensor) -> torch.Tensor:
    as_bytes = values.contiguous().reshape(-1).view(torch.uint8).to(torch.int64)
    position = torch.arange(1, len(as_bytes) + 1, device=values.device)
    return torch.stack([as_bytes.sum(), (as_bytes * position).sum()])
