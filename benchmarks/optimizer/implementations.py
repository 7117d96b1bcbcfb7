"""How torch goes through the parameters: one by one, in a few calls for lists of tensors, or in one kernel."""

from __future__ import annotations

from typing import Any

_FLAGS: dict[str, dict[str, bool]] = {
    "auto": {},  # torch's own choice: foreach on a GPU, a loop on a CPU and for DTensors
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def flags(implementation: str) -> Any:
    """What torch's optimisers call the option `implementation`, as keywords; all give the same step but for rounding.

    `foreach` takes as much memory as the gradients besides, for what lies between two of its kernels.
    """
    return _FLAGS[implementation]
