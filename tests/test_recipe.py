"""A recipe that the README can promise: the small network on the data set that needs no files, in seconds."""

from __future__ import annotations

import pytest

from benchmarks.core.config import RunConfig
from tests.conftest import base_mapping
from tests.crew import Case, take

EPOCHS, BATCH, TRAIN_SAMPLES = 20, 64, 1437


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lenet_reads_97_of_100_digits(seed: int) -> None:
    """98.1, 98.9 and 98.3 %; of eight seeds the worst has 97.2 %."""
    settings = {"strategy": "single", "workload": "lenet", "data": "digits", "steps": None, "epochs": EPOCHS}
    run = RunConfig.from_mapping(base_mapping(**settings, global_batch=BATCH, optimizer__lr=0.02, seed=seed))
    assert take(Case(run=run, steps=EPOCHS * -(-TRAIN_SAMPLES // BATCH)), 0).accuracy >= 0.97
