"""Loaders bring the same batches, bit by bit; what they cost in order, memory and bytes; and what they leave behind."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from benchmarks.core.variants import variant_file
from benchmarks.data import Split
from benchmarks.data.batches import Batch, Division, Feed, Loader
from benchmarks.loader import loaders
from benchmarks.strategy.dbs import SpeedDivision
from benchmarks.strategy.hogwild import WholeEpochs
from benchmarks.supervision.agent import preload
from tests.conftest import MakeRun

CPU = torch.device("cpu")
NONE = Variant(name="none", options={})
CROP = Variant(name="crop_flip", options={"padding": 2, "flip": True})
SAMPLES = 61

KINDS: dict[str, dict[str, Any]] = {
    "resident": {},
    "processes": {},
    "processes_one": {"workers": 1, "prefetch": 1},
    "processes_none": {"workers": 0},
    "processes_one_by_one": {"one_by_one": True, "workers": 0},
    "processes_every_epoch": {"persistent": False, "one_by_one": True, "workers": 1},
}


def split_of(samples: int = SAMPLES) -> Split:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(256, (samples, 3, 6, 6), dtype=torch.uint8, generator=generator)
    return Split(inputs=inputs, targets=torch.arange(samples))


def feed_of(kind: str, augmentation: Variant = CROP, split: Split | None = None, **options: Any) -> Feed:
    name = kind.split("_")[0]
    settings = {**variant_file("loader", name).defaults, **KINDS.get(kind, {}), **options}
    return loaders.make(Variant(name=name, options=settings), split or split_of(), CPU, augmentation)


def loader_of(feed: Feed, division: Division, global_batch: int = 16, kind: type[Loader] = Loader) -> Loader:
    return kind(feed.split, device=CPU, division=division, global_batch=global_batch, seed=3, feed=feed)


@pytest.fixture(scope="module")
def feeds() -> Iterator[dict[str, Feed]]:
    """One of each kind, for all tests that only read; processes are forked from a server that has torch."""
    preload()
    made = {kind: feed_of(kind) for kind in ["host", *KINDS]}
    yield made
    for feed in made.values():
        feed.close()


def plain(batches: Iterator[Batch], most: int | None = None) -> list[tuple[list[int], bytes, float]]:
    return [(batch.targets.tolist(), batch.inputs.numpy().tobytes(), batch.weight) for batch in islice(batches, most)]


@pytest.mark.parametrize("kind", KINDS)
def test_all_loaders_bring_the_batches_of_host(kind: str, feeds: dict[str, Feed]) -> None:
    """Short last batches in unequal shares, full ones over an epoch's end, one again and again; after half an epoch."""
    for rank in range(2):
        wanted, loader = (loader_of(feeds[name], Division(rank, 2)) for name in ("host", kind))
        for epoch in (0, 1):
            assert plain(loader.epoch(epoch)) == plain(wanted.epoch(epoch))
        next(loader.epoch(2))
        assert plain(loader.endless(7)) == plain(wanted.endless(), 9), "7 steps take three epochs of 3 full batches"
        assert plain(loader.endless(), 7) == plain(wanted.endless(7), 7)
        assert plain(loader.same(7), 3) == plain(wanted.same(7), 3)
        loader.global_batch = wanted.global_batch = 32
        assert plain(loader.epoch(3)) == plain(wanted.epoch(3))
        assert [len(batch) for batch in loader.epoch(3)] == [16, 14 + rank]


@pytest.mark.parametrize("kind", ["host", *KINDS])
def test_shares_follow_the_division_and_hogwild_its_own_epochs(kind: str, feeds: dict[str, Feed]) -> None:
    division = SpeedDivision(0, 2, 0.1, 4.0)
    loader = loader_of(feeds[kind], division)
    assert [len(batch) for batch in loader.epoch(0)] == [8, 8, 8, 7]
    division.follow([3.0, 1.0])
    assert [len(batch) for batch in loader.epoch(1)] == [12, 12, 12, 10]
    whole = loader_of(feeds[kind], Division(1, 2), global_batch=32, kind=WholeEpochs)
    alone = loader_of(feeds["host"], Division(0, 1))
    assert plain(whole.epoch(1)) == plain(alone.epoch(3)), "process 1 of 2 takes epochs 1, 3, ..."
    assert plain(whole.endless(4), 4) == [*plain(alone.epoch(1))[:3], *plain(alone.epoch(3), 1)]


@pytest.mark.parametrize("kind", ["host", *KINDS])
def test_warm_up_sees_no_training_data_and_what_comes_beside_is_the_same(kind: str, feeds: dict[str, Feed]) -> None:
    loader = loader_of(feeds[kind], Division(1, 2))
    state = torch.get_rng_state()
    batch = loader.for_warmup(7)
    assert (len(batch), batch.weight) == (4, 8 / 7)
    assert torch.equal(batch.inputs, loader_of(feeds["host"], Division(1, 2)).for_warmup(7).inputs)
    plain(loader.epoch(0))
    assert torch.equal(torch.get_rng_state(), state), "the model's random numbers are its own"
    assert plain(loader.beside(Division(0, 1), 16).epoch(0)) == plain(loader_of(feeds["host"], Division(0, 1)).epoch(0))


def test_the_order_is_the_seeds_and_augmentation_changes_pixels_only(feeds: dict[str, Feed]) -> None:
    one = Division(0, 1)
    augmented, same = loader_of(feeds["host"], one), loader_of(feed_of("host", NONE), one)
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(3 * 1_000_003 + 1))
    for loader in (augmented, same):
        targets = torch.cat([batch.targets for batch in loader.epoch(1)])
        assert torch.equal(targets, order[: len(targets)])
    images = torch.cat([batch.inputs for batch in same.epoch(1)])
    assert torch.equal(images, split_of().inputs[order[: len(images)]])
    assert not torch.equal(torch.cat([batch.inputs for batch in augmented.epoch(1)]), images)


def test_a_resident_loader_draws_nothing_once_the_clock_runs(
    feeds: dict[str, Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = loader_of(feeds["resident"], Division(0, 1))
    spans = [loader.epoch(0), loader.endless(10)]

    def forbidden(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("inside the window")

    for name in ("randperm", "full"):  # an epoch's order, and its augmentation's chance
        monkeypatch.setattr(torch, name, forbidden)
    assert [len(list(span)) for span in spans] == [4, 12]
    with pytest.raises(AssertionError, match="inside the window"):
        next(loader_of(feeds["host"], Division(0, 1)).epoch(0))


def test_what_goes_to_a_gpu_is_pinned_after_it_was_augmented(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs and targets, once each; a CPU has nothing to pin, so the call is watched only."""
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = next(loader_of(Feed(split_of(), CPU, CROP, pin_memory=True, non_blocking=True), Division(0, 1)).epoch(0))
    assert [id(tensor) for tensor in pinned] == [id(batch.inputs), id(batch.targets)]


def test_bytes_of_a_sample() -> None:
    assert loader_of(feed_of("host"), Division(0, 1)).sample_bytes == 3 * 6 * 6 + 8


def test_helper_processes_are_weighed_without_what_they_share() -> None:
    """A set of 64 MB that two processes and this one map: it counts once for all, not once for each."""
    preload()
    split = Split(inputs=torch.zeros(64, 1, 1000, 1000, dtype=torch.uint8), targets=torch.arange(64))
    feed = feed_of("processes", NONE, split)
    assert feed.helpers_bytes == 0
    loader_of(feed, Division(0, 1)).for_warmup(32)
    feed.close()
    assert 64e6 * 2 / 3 < feed.helpers_bytes < 64e6 * 2 / 3 + 2 * 150e6 + 4 * 32e6


def helpers() -> set[int]:
    """Processes that this one has started, by their ids."""
    return {child.pid for child in multiprocessing.active_children() if child.pid}


def test_persistent_processes_start_once_before_the_window_and_others_in_each_epoch() -> None:
    preload()
    others = helpers()
    lasting, passing = feed_of("processes", workers=2), feed_of("processes", workers=2, persistent=False)
    loader = loader_of(lasting, Division(0, 1))
    loader.for_warmup(16)
    started = helpers() - others
    assert len(started) == 2
    for epoch in range(2):
        plain(loader.epoch(epoch))
    assert helpers() - others == started
    lasting.close()
    assert helpers() == others

    loader = loader_of(passing, Division(0, 1))
    loader.for_warmup(16)
    assert helpers() == others, "they ended with the rehearsal"
    seen = set(others)
    for epoch in range(2):
        batches = loader.epoch(epoch)
        assert len(list(islice(batches, 3))) == 3
        assert len(helpers() - seen) == 2
        seen |= helpers()
        next(batches)
        assert helpers() == others, "a loop over a DataLoader pays for their end, too"
    passing.close()


@pytest.mark.alone
def test_batches_are_made_ahead_of_time() -> None:
    """Samples take 20 ms each, and the training process 100 ms for each batch of 4: with two processes, no waiting."""
    preload()
    feed = feed_of("processes", Variant(name="slow", options={"sleep_s": 0.02, "fault": "none"}), workers=2)
    loader = loader_of(feed, Division(0, 1), global_batch=4)
    loader.for_warmup(4)
    batches = loader.endless()
    next(batches)
    waits = []
    for _ in range(8):
        time.sleep(0.1)
        started = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - started)
    assert sorted(waits)[4] < 0.04
    feed.close()
    feed = feed_of("host", Variant(name="slow", options={"sleep_s": 0.02, "fault": "none"}))
    batches = loader_of(feed, Division(0, 1), global_batch=4).endless()
    started = time.perf_counter()
    next(batches)
    assert time.perf_counter() - started >= 0.08


def test_an_error_in_a_loader_process_is_raised_here() -> None:
    preload()
    feed = feed_of("processes", Variant(name="slow", options={"sleep_s": 0.0, "fault": "raise"}), workers=1)
    with pytest.raises(ZeroDivisionError, match=r"^Caught ZeroDivisionError in DataLoader worker process 0\."):
        plain(loader_of(feed, Division(0, 1)).epoch(0))
    feed.close()


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"loader": "processes", "loader__workers": -1}, r"loader=processes needs loader.workers >= 0: .*"),
        ({"loader": "processes", "loader__prefetch": 0}, r"loader=processes needs loader.prefetch >= 1: .*"),
        ({"loader__pin_memory": True}, r"loader=host needs not loader.pin_memory or device == 'cuda': .*"),
        (
            {"loader": "processes", "loader__non_blocking": True},
            r"loader=processes needs not loader.non_blocking or loader.pin_memory: .*",
        ),
    ],
)
def test_what_cannot_be_is_refused(make_run: MakeRun, settings: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ImpossibleRunError) as caught:
        make_run(**settings)
    assert re.fullmatch(pattern, str(caught.value))


@pytest.mark.parametrize("name", ["host", "processes"])
def test_with_a_gpu_batches_may_be_pinned(make_run: MakeRun, name: str) -> None:
    cluster = {"name": "local", "device": "auto", "cores_per_node": 2, "gpus_per_node": 1}
    run = make_run(cluster=cluster, device="cuda", loader=name, loader__pin_memory=True, loader__non_blocking=True)
    assert run.loader.options["non_blocking"] is True
