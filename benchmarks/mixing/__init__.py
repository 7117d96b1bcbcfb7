"""Mixings: how the samples of a batch are blended with each other before they are trained on.

One module for a kind, one YAML file in `conf/mixing/` for each.
"""

from __future__ import annotations

from benchmarks.registry import Registry


class Mixing:
    """Samples stay as they are: what the others change."""


mixings: Registry[Mixing] = Registry("mixing")
mixings.register("none")(Mixing)
