"""Rules: true and false ones, and what they refuse to be."""

from __future__ import annotations

import pytest

from benchmarks.core.errors import ConfigError
from benchmarks.core.rules import holds

VALUES = {"workers": 4, "strategy": "ddp", "optimizer.lr": 0.1, "global_batch": 96, "parts": [0.5, 0.2]}


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ("workers == 4", True),
        ("workers > 4", False),
        ("1 < workers < 8", True),
        ("strategy == 'ddp' and optimizer.lr < 0.2", True),
        ("strategy in ['single', 'ddp']", True),
        ("not strategy == 'ddp'", False),
        ("global_batch % workers == 0", True),
        ("global_batch // workers >= 25", False),
        ("workers == 1 or global_batch == 96", True),
        ("min(parts) == 0.2 and max(parts) == 0.5", True),
        ("workers in [min([1, 4]), 2]", False),
    ],
)
def test_known_verdicts(rule: str, verdict: bool) -> None:
    assert holds(rule, VALUES) is verdict


@pytest.mark.parametrize(
    "rule",
    [
        "__import__('os').system('true')",
        "workers.__class__",
        "().__class__",
        "[x for x in strategy]",
        "lambda: 1",
        "9 ** 9 ** 9",
        "1 << 99",
        "import os",
        "workers >",
        "",
        "worker == 4",
        "strategy > 4",
        "workers / 0 == 1",
        "min([]) > 0",
        "min(parts, key=workers) > 0",
        "min(1, 2) > 0",
        "max(workers) > 0",
        "max.__self__",
        "len(parts) > 0",
    ],
)
def test_refused_with_one_line_that_names_the_rule(rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        holds(rule, VALUES)
    assert repr(rule) in str(caught.value)
    assert "\n" not in str(caught.value)
