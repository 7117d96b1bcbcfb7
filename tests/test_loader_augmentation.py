"""Augmentation against torchvision, and its chance: the same wherever and however a batch is put together."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from benchmarks.augmentation import augmentations
from benchmarks.augmentation.chance import below, words
from benchmarks.augmentation.crop_flip import windows
from benchmarks.core.config import Variant
from benchmarks.core.errors import ImpossibleRunError
from tests.conftest import MakeRun

CPU = torch.device("cpu")
SAMPLES = 4000


def images(count: int, channels: int = 3, height: int = 7, width: int = 9) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padding", [0, 1, 4, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_torchvisions_crop_and_flip(padding: int, channels: int) -> None:
    """Each offset once, mirrored and not; images that are not square, padding larger than the image."""
    offsets = range(2 * padding + 1)
    cases = [(top, left, mirrored) for top in offsets for left in offsets for mirrored in (False, True)]
    given = images(len(cases), channels)
    tops, lefts = (torch.tensor([case[index] for case in cases]) for index in (0, 1))
    made = windows(given, padding, tops, lefts, torch.tensor([case[2] for case in cases]))
    assert made.is_contiguous()
    for image, result, (top, left, mirrored) in zip(given, made, cases, strict=True):
        wanted = reference.crop(reference.pad(image, [padding]), top, left, 7, 9)
        assert torch.equal(result, reference.hflip(wanted) if mirrored else wanted)


def crop_flip(padding: int, flip: bool, key: int = 5) -> Tensor:
    """One small image, augmented as all samples of an epoch: (SAMPLES, 1, 3, 3)."""
    variant = Variant(name="crop_flip", options={"padding": padding, "flip": flip})
    augment = augmentations.make(variant).of_epoch(key, SAMPLES, CPU)
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3)
    return augment(image.expand(SAMPLES, -1, -1, -1), 0, SAMPLES)


def test_all_offsets_and_flips_are_equally_frequent() -> None:
    """The corner pixel and its neighbour tell an image of distinct numbers from its window: 3 x 3 x 2 ways."""
    made = crop_flip(padding=1, flip=True)
    ways = Counter(tuple(one.flatten().tolist()) for one in made)
    assert len(ways) == 18
    expected = SAMPLES / 18
    chi_square = sum((count - expected) ** 2 / expected for count in ways.values())
    assert chi_square < 40.8, "17 degrees of freedom: one in a thousand is above"
    assert len(Counter(tuple(one.flatten().tolist()) for one in crop_flip(padding=1, flip=False))) == 9
    assert len(Counter(tuple(one.flatten().tolist()) for one in crop_flip(padding=0, flip=True))) == 2


def test_chance_is_of_the_key_and_the_place_alone() -> None:
    variant = Variant(name="crop_flip", options={"padding": 4, "flip": True})
    augment = augmentations.make(variant).of_epoch(7, SAMPLES, CPU)
    given = images(100)
    whole = augment(given, 50, 150)
    assert torch.equal(torch.cat([augment(given[n : n + 1], 50 + n, 51 + n) for n in range(100)]), whole)
    assert torch.equal(torch.cat([augment(given[:30], 50, 80), augment(given[30:], 80, 150)]), whole)
    assert not torch.equal(augment(given, 51, 151), whole)
    again = augmentations.make(variant)
    assert torch.equal(again.of_epoch(7, SAMPLES, CPU)(given, 50, 150), whole)
    assert not torch.equal(again.of_epoch(8, SAMPLES, CPU)(given, 50, 150), whole)


def test_words_are_splitmix64s() -> None:
    """Against the algorithm in Python's own whole numbers, and its widely published first numbers from 1234567."""
    mask = 2**64 - 1

    def split_mix(state: int, count: int) -> list[int]:
        numbers = []
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) & mask
            mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
            numbers.append(mixed ^ (mixed >> 31))
        return numbers

    assert split_mix(1234567, 2) == [6457827717110365317, 3203168211198807973]
    for key in (0, 1, 2**40):
        begin = split_mix((key * 0x9E3779B97F4A7C15) & mask, 1)[0]
        wanted = split_mix(begin, 50)
        assert [int(word) % 2**64 for word in words(key, 50, CPU)] == wanted


def test_fields_are_uniform_and_independent() -> None:
    """Nine offsets, as of padding 4; within five standard deviations of what is expected."""
    drawn = [below(words(3, 81_000, CPU), field, 9) for field in range(3)]
    for one in drawn:
        assert (int(one.min()), int(one.max())) == (0, 8)
        assert torch.bincount(one).float().sub(9_000).abs().max() < 450
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert torch.bincount(9 * drawn[first] + drawn[second]).float().sub(1_000).abs().max() < 160


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"augmentation__padding": -1}, r"augmentation=crop_flip needs augmentation.padding >= 0: .*"),
        (
            {"augmentation__padding": 0, "augmentation__flip": False},
            r"augmentation=crop_flip needs augmentation.padding > 0 or augmentation.flip: .*",
        ),
    ],
)
def test_what_would_do_nothing_is_refused(make_run: MakeRun, settings: dict[str, object], pattern: str) -> None:
    with pytest.raises(ImpossibleRunError) as caught:
        make_run(augmentation="crop_flip", **settings)
    assert re.fullmatch(pattern, str(caught.value))


def test_data_that_are_no_images_are_refused(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As their file says it; one that says nothing is taken."""
    folder = tmp_path / "conf" / "data"
    folder.mkdir(parents=True)
    for name, traits in (
        ("words", "traits: {kind: \"'text'\"}"),
        ("pictures", "traits: {kind: \"'images'\"}"),
        ("else", ""),
    ):
        (folder / f"{name}.yaml").write_text(f"name: {name}\ntrain_samples: 100\n{traits}\n")
    monkeypatch.setenv("SCALEBENCH_EXTRA", str(tmp_path))
    for name in ("pictures", "else"):
        assert make_run(data=name, augmentation="crop_flip").data.name == name
    with pytest.raises(ImpossibleRunError, match=r"augmentation=crop_flip needs data.kind in \[None, 'images'\]: .*"):
        make_run(data="words", workload="text_transformer", augmentation="crop_flip")
