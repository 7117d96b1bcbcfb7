"""Data sets and batches: the same samples for every number of workers, and files that are not what they should be."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.core.config import Variant
from benchmarks.core.variants import variant_file
from benchmarks.data import DataError, Dataset, Split, load
from benchmarks.data.batches import Batch, Division, Loader, global_batch_sizes
from benchmarks.data.subset import subset, with_shuffled_labels

CPU = torch.device("cpu")


def variant(name: str, **options: object) -> Variant:
    return Variant(name=name, options={**variant_file("data", name).defaults, **options})  # type: ignore[dict-item]


def loader(samples: int, rank: int, workers: int, global_batch: int, seed: int = 3) -> Loader:
    numbers = torch.arange(samples)
    split = Split(inputs=numbers.reshape(-1, 1, 1, 1).to(torch.uint8), targets=numbers)
    return Loader(split, device=CPU, division=Division(rank, workers), global_batch=global_batch, seed=seed)


@given(st.integers(1, 500), st.integers(1, 16))
def test_shares_are_disjoint_complete_and_equal_to_within_one(size: int, workers: int) -> None:
    parts = [Division(rank, workers).part(size) for rank in range(workers)]
    assert [n for part in parts for n in range(part.start, part.stop)] == list(range(size))
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 1


@given(st.integers(1, 300), st.integers(1, 6), st.integers(1, 40))
def test_an_epoch_holds_every_sample_once_whatever_the_workers(samples: int, workers: int, per_worker: int) -> None:
    global_batch = per_worker * workers
    sizes = global_batch_sizes(samples, global_batch, workers)
    left_out = samples - sum(sizes)
    assert 0 <= left_out < 2 * workers or (left_out < global_batch and left_out < 2 * workers)
    ranks = [list(loader(samples, rank, workers, global_batch).epoch(0)) for rank in range(workers)]
    seen = [int(n) for step in zip(*ranks, strict=True) for batch in step for n in batch.targets]
    one = [int(n) for batch in loader(samples, 0, 1, global_batch).epoch(0) for n in batch.targets]
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert seen == one[: len(seen)]


def test_epochs_differ_and_repeat_by_seed() -> None:
    first = loader(100, 0, 1, 10)

    def targets(batches: list[Batch]) -> list[int]:
        return [int(n) for batch in batches for n in batch.targets]

    assert targets(list(first.epoch(0))) == targets(list(loader(100, 0, 1, 10).epoch(0)))
    assert targets(list(first.epoch(0))) != targets(list(first.epoch(1)))
    assert targets(list(first.epoch(0))) != targets(list(loader(100, 0, 1, 10, seed=4).epoch(0)))
    endless = first.endless()
    assert targets([next(endless) for _ in range(20)]) == targets([*first.epoch(0), *first.epoch(1)])


def test_endless_batches_are_full() -> None:
    endless = loader(25, 0, 1, 10).endless()
    assert [len(next(endless)) for _ in range(7)] == [10] * 7


def test_weights_make_the_mean_over_ranks_the_mean_over_the_batch() -> None:
    batches = [list(loader(29, rank, 4, 16).epoch(0))[-1] for rank in range(4)]
    assert [len(batch) for batch in batches] == [3, 3, 3, 4]
    means = [float(batch.targets.float().mean()) for batch in batches]
    whole = torch.cat([batch.targets for batch in batches]).float().mean()
    assert sum(w.weight * m for w, m in zip(batches, means, strict=True)) / 4 == pytest.approx(float(whole))


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    digits = load(variant("digits"), None)
    assert (len(digits.train), len(digits.test), digits.classes) == (1437, 360, 10)
    back = (digits.test.inputs.double() * 16 / 255).round().reshape(-1, 64).numpy()
    assert np.array_equal(back, images[::5])
    assert np.array_equal(digits.test.targets.numpy(), classes[::5])
    assert set(digits.train.targets.tolist()) == set(range(10))
    assert load(variant("digits"), 32).train.inputs.shape == (1437, 1, 32, 32)


def test_synthetic_data_has_any_shape_and_is_the_same_each_time() -> None:
    options = {"train_samples": 20, "test_samples": 4, "channels": 2, "size": 5, "classes": 3}
    one, two = load(variant("synthetic", **options), None), load(variant("synthetic", **options), None)
    assert one.train.inputs.shape == (20, 2, 5, 5)
    assert torch.equal(one.train.inputs, two.train.inputs)
    assert int(one.train.targets.max()) < 3


@pytest.fixture
def small_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-10 in the original format, with ten images a batch."""
    import hashlib

    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    random = np.random.default_rng(0)
    sums = {}
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        content = {"data": random.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(n) for n in range(10)]}))
    meta = hashlib.md5((folder / "batches.meta").read_bytes()).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{n}", sums[f"data_batch_{n}"]] for n in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    return tmp_path


def test_cifar10_in_its_original_format(small_cifar10: Path) -> None:
    data = load(variant("cifar10", root=str(small_cifar10), train_samples=50), None)
    assert (data.train.inputs.shape, data.test.inputs.shape) == ((50, 3, 32, 32), (10, 3, 32, 32))
    raw = pickle.loads((small_cifar10 / "cifar-10-batches-py" / "data_batch_1").read_bytes())["data"][3]
    assert np.array_equal(data.train.inputs[3].numpy().reshape(-1), raw)
    assert data.train.targets[:10].tolist() == list(range(10))


def test_a_set_of_another_size_than_described_is_refused(small_cifar10: Path) -> None:
    with pytest.raises(DataError, match="data=cifar10: holds 50 training samples, conf/data/ says 50000"):
        load(variant("cifar10", root=str(small_cifar10)), None)


def test_corrupt_and_missing_files_end_in_advice(small_cifar10: Path, tmp_path: Path) -> None:
    victim = small_cifar10 / "cifar-10-batches-py" / "data_batch_3"
    victim.write_bytes(victim.read_bytes()[:100])
    for name, root in (("cifar10", small_cifar10), ("cifar10", tmp_path / "none"), ("mnist", tmp_path / "none")):
        with pytest.raises(
            DataError, match=rf"data={name}: no sound copy in data.root=.*set data.download=true"
        ) as caught:
            load(variant(name, root=str(root)), None)
        assert "\n" not in str(caught.value)


def test_mnist_in_its_original_format(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(1).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    for part, count in (("train", 12), ("t10k", 5)):
        header, labels = struct.pack(">IIII", 0x803, count, 28, 28), struct.pack(">II", 0x801, count)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images[:count].tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels + bytes(range(count)))
    data = load(variant("mnist", root=str(tmp_path), train_samples=12), 32)
    assert (data.train.inputs.shape, data.test.inputs.shape) == ((12, 1, 32, 32), (5, 1, 32, 32))
    assert data.test.targets.tolist() == [0, 1, 2, 3, 4]
    unscaled = load(variant("mnist", root=str(tmp_path), train_samples=12), None)
    assert np.array_equal(unscaled.train.inputs[:, 0].numpy(), images)


def test_a_truncated_mnist_file(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 12, 28, 28) + b"short")
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(gzip.compress(b"not this format"))
    with pytest.raises(DataError, match="data=mnist: no sound copy"):
        load(variant("mnist", root=str(tmp_path), train_samples=12), None)


def classes_of(sizes: list[int]) -> Dataset:
    """Samples of these classes, mixed; a sample's only pixels are its number."""
    targets = torch.cat([torch.full((size,), one) for one, size in enumerate(sizes)])
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(len(targets)).reshape(-1, 1, 1, 1)
    train = Split(inputs=numbers, targets=targets[order])
    return Dataset(train=train, test=train, classes=len(sizes))


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        (10, [5, 3, 2]),  # 5, 3 and 2 exactly
        (7, [4, 2, 1]),  # 3.5, 2.1, 1.4: the largest remainder is the first one's
        (5, [3, 1, 1]),  # 2.5, 1.5, 1.0: a tie goes to the lower class
        (1, [1, 0, 0]),
    ],
)
def test_a_part_of_the_data_keeps_the_classes_proportions(kept: int, wanted: list[int]) -> None:
    whole = classes_of([50, 30, 20])
    part = subset(whole, kept).train
    numbers = part.inputs.flatten()
    assert torch.bincount(part.targets, minlength=3).tolist() == wanted
    assert torch.equal(numbers, numbers.unique()), "no sample twice, and in the old order"
    assert torch.equal(whole.train.targets[numbers], part.targets), "targets stay with their inputs"


def test_parts_are_the_same_for_all_and_lie_within_each_other() -> None:
    whole = classes_of([50, 30, 20])
    torch.manual_seed(1)
    small = subset(whole, 20)
    torch.manual_seed(2)
    assert torch.equal(subset(whole, 20).train.inputs, small.train.inputs)
    large = set(subset(whole, 50).train.inputs.flatten().tolist())
    assert set(small.train.inputs.flatten().tolist()) < large
    assert max(small.train.inputs.flatten().tolist()) > 50, "not the first ones"
    assert small.test is whole.test
    assert subset(whole, 100) is whole


def test_a_part_of_samples_with_many_targets_is_of_any() -> None:
    tokens = torch.arange(400).reshape(100, 4)
    split = Split(inputs=tokens, targets=tokens + 1)
    part = subset(Dataset(train=split, test=split, classes=500), 30).train
    assert part.inputs.shape == (30, 4)
    assert torch.equal(part.inputs + 1, part.targets)


def test_shuffled_labels_are_the_same_labels_on_other_samples() -> None:
    whole = classes_of([50, 30, 20])
    control = with_shuffled_labels(whole)
    assert torch.equal(control.train.inputs, whole.train.inputs)
    assert torch.bincount(control.train.targets).tolist() == [50, 30, 20]
    agree = float((control.train.targets == whole.train.targets).float().mean())
    assert agree == pytest.approx(0.5**2 + 0.3**2 + 0.2**2, abs=0.15), "as two independent draws"
    assert control.test is whole.test
    assert torch.equal(with_shuffled_labels(whole).train.targets, control.train.targets)
