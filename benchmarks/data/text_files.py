"""Text from files in a folder that the user names: AG News, and any text as bytes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.data import DataError, Dataset, Split, datasets
from benchmarks.data.vocabulary import Numbered, WordNumbers, most_frequent

_AG_NEWS_CLASSES = 4


@datasets.register("agnews")
def agnews(*, root: str, test_samples: int, vocabulary: int, length: int) -> Dataset:
    """Titles and first sentences of 127,600 news in 4 classes: world, sports, business, science and technology.

    AG's corpus as Zhang, Zhao and LeCun chose of it (2015, arXiv 1509.01626, section 4), in their files train.csv and
    test.csv: class from 1, title, description, without a header. A backslash stands where the web page had a line's
    end, and `#39;` for an apostrophe whose `&` was lost. The vocabulary is that of the training texts.
    """
    numbers = WordNumbers()
    texts, classes = _read_news(Path(root) / "train.csv", numbers)
    test_texts, test_classes = _read_news(Path(root) / "test.csv", numbers)
    if len(test_classes) != test_samples:
        raise DataError(f"data=agnews: holds {len(test_classes)} test samples, data.test_samples says {test_samples}")
    final = most_frequent(texts, len(numbers.seen), vocabulary)
    return Dataset(
        train=Split(inputs=texts.encoded(final, length), targets=classes),
        test=Split(inputs=test_texts.encoded(final, length), targets=test_classes),
        classes=_AG_NEWS_CLASSES,
        vocabulary=vocabulary,
    )


def _read_news(path: Path, numbers: WordNumbers) -> tuple[Numbered, Tensor]:
    """The texts, and their classes from 0 (texts)."""
    classes: list[int] = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            texts = numbers.read(_texts(file, classes))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        detail = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise DataError(
            f"data=agnews: no sound copy in data.root={path.parent.resolve()}; "
            f"put the corpus's train.csv and test.csv there ({path.name}: {detail})"
        ) from error
    return texts, torch.tensor(classes, dtype=torch.int64)


def _texts(file: Iterable[str], classes: list[int]) -> Iterator[str]:
    """Titles with descriptions, while their classes from 0 are added to `classes`.

    Raises csv.Error at a row that is not class, title, description.
    """
    allowed = {str(number): number - 1 for number in range(1, _AG_NEWS_CLASSES + 1)}
    reader = csv.reader(file, strict=True)
    for row in reader:
        if len(row) != 3 or row[0] not in allowed:
            raise csv.Error(f"line {reader.line_num} is not a class from 1 to {_AG_NEWS_CLASSES}, title, description")
        classes.append(allowed[row[0]])
        yield f"{row[1]} {row[2]}".replace("#39;", "'")


@datasets.register("text_file")
def text_file(*, root: str, file: str, train_samples: int, test_samples: int, length: int) -> Dataset:
    """Any file as a sequence of bytes, each of which is to be predicted from those before it.

    Training sequences follow each other from the file's beginning on, test sequences end with its end; the two splits
    have no byte in common.

    Raises DataError where the file cannot be read, or is too short for all of them.
    """
    path = Path(root) / file
    samples = train_samples + test_samples
    needed = samples * length + 2  # either split has one more target than inputs
    try:
        size = path.stat().st_size
        if size < needed:
            raise DataError(
                f"data.file={file}: has {size} bytes, and {samples} sequences of {length} take {needed}; "
                "give smaller data.train_samples, test_samples or length"
            )
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise DataError(f"data.file={file}: cannot be read in data.root={root} ({error.strerror})") from error
    split = train_samples * length + 1
    return Dataset(
        train=_sequences(content[:split], length),
        test=_sequences(content[size - test_samples * length - 1 :], length),
        classes=256,
        vocabulary=256,
    )


def _sequences(content: np.ndarray[tuple[int], np.dtype[np.uint8]], length: int) -> Split:
    """All sequences of a stretch of bytes that is one longer than a multiple of their length."""
    inputs = torch.from_numpy(content[:-1].astype(np.int32)).reshape(-1, length)
    targets = torch.from_numpy(content[1:].astype(np.int64)).reshape(-1, length)
    return Split(inputs=inputs, targets=targets)
