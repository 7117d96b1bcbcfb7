"""CIFAR-10 and MNIST, read by torchvision from the original files in a folder that the user names."""

from __future__ import annotations

import fcntl
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import DataError, Dataset, Split, datasets


@datasets.register("cifar10")
def cifar10(*, root: str, download: bool) -> Dataset:
    """60,000 colour images of 32x32 pixels in 10 classes (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10  # slow to import: only runs that need it pay

    return _read(
        _fetching_into(root) if download else nullcontext(),
        lambda train: CIFAR10(root, train=train, download=download),
        f"data=cifar10: no sound copy in data.root={Path(root).resolve()}; unpack cifar-10-python.tar.gz there, "
        "so that cifar-10-batches-py/data_batch_1 lies in it, or set data.download=true",
        lambda images: torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).contiguous(),
    )


@datasets.register("mnist")
def mnist(*, root: str, download: bool) -> Dataset:
    """70,000 handwritten digits of 28x28 pixels (LeCun et al. 1998)."""
    from torchvision.datasets import MNIST

    return _read(
        _fetching_into(root) if download else nullcontext(),
        lambda train: MNIST(root, train=train, download=download),
        f"data=mnist: no sound copy in data.root={Path(root).resolve()}; put train-images-idx3-ubyte and the other "
        "three files into MNIST/raw/ there, or set data.download=true",
        lambda images: images.unsqueeze(1).contiguous(),
    )


def _read(
    turn: AbstractContextManager[None],
    open_split: Callable[[bool], Any],
    advice: str,
    to_images: Callable[[Any], Tensor],
) -> Dataset:
    """Both splits of a torchvision set; whatever is wrong with its files becomes one line of advice."""
    try:
        with turn:
            splits = [open_split(train) for train in (True, False)]
        train, test = (
            Split(inputs=to_images(split.data), targets=torch.as_tensor(split.targets).long()) for split in splits
        )
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, AssertionError, pickle.UnpicklingError) as error:
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{advice} ({detail})") from error
    return Dataset(train=train, test=test, classes=10)


@contextmanager
def _fetching_into(root: str) -> Iterator[None]:
    """Within: no other worker of this node fetches; the first one leaves nothing to fetch for the others."""
    Path(root).mkdir(parents=True, exist_ok=True)
    with (Path(root) / ".scalebench.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
