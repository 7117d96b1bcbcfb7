"""Imported by the process that workers are forked from: all that each worker would else import for itself.

Modules start no thread and touch no device when they are imported, so forking stays safe. The user's own variants are
left to the workers: an error in them is the run's, with its reason in the record.
"""

from __future__ import annotations

import benchmarks.process.worker  # noqa: F401
from benchmarks.core.variants import VARIANT_AXES
from benchmarks.registry import import_variants

for _axis in VARIANT_AXES:
    import_variants(_axis)
