"""Optimisers: makers take the parameters and the options of the YAML file."""

from __future__ import annotations

from torch.optim import Optimizer

from benchmarks.registry import Registry

optimizers: Registry[Optimizer] = Registry("optimizer")
