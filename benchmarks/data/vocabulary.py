"""Texts as the numbers of their words."""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

PADDING = 0
"""The number that fills up texts that are shorter than others: a model looks at what comes before it only."""
UNKNOWN = 1
"""The number of all words that the vocabulary does not hold."""
FIRST_WORD = 2

_WORD = re.compile(r"[a-z0-9]+")


def words_of(text: str) -> list[str]:
    """A text's words: runs of letters a to z and digits, in lower case. All else separates words."""
    return _WORD.findall(text.lower())


@dataclass(kw_only=True)
class WordNumbers:
    """Numbers of words in the order in which they are first seen: a large corpus's words are held once each."""

    seen: defaultdict[str, int] = field(default_factory=defaultdict)

    def __post_init__(self) -> None:
        self.seen.default_factory = self.seen.__len__

    def read(self, texts: Iterable[str]) -> Numbered:
        """Texts by these numbers; new words get the next ones."""
        words, lengths, number_of = array("i"), array("i"), self.seen.__getitem__
        for text in texts:
            before = len(words)
            words.extend(map(number_of, words_of(text)))
            lengths.append(len(words) - before)
        return Numbered(words=np.array(words, dtype=np.int32), lengths=np.array(lengths, dtype=np.int32))


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """The words of some texts, one text after another (words), and how many each text has (texts), both as int32."""

    words: np.ndarray[tuple[int], np.dtype[np.int32]]
    lengths: np.ndarray[tuple[int], np.dtype[np.int32]]

    def encoded(self, final: np.ndarray[tuple[int], np.dtype[np.int32]], length: int) -> Tensor:
        """Texts by their words' final numbers (texts, length) as int32, cut or filled up to `length`.

        A text without words is one unknown word.
        """
        starts = np.cumsum(self.lengths) - self.lengths
        place = np.arange(len(self.words)) - np.repeat(starts, self.lengths)
        text = np.repeat(np.arange(len(self.lengths)), self.lengths)
        kept = place < length
        table = np.full((len(self.lengths), length), PADDING, dtype=np.int32)
        table[text[kept], place[kept]] = final[self.words[kept]]
        table[self.lengths == 0, 0] = UNKNOWN
        return torch.from_numpy(table)


def most_frequent(training: Numbered, words: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """A vocabulary: the final number of each of `words` words (words), by how frequent it is in the training texts.

    From 2 on, the most frequent word first, and of equally frequent ones the one that was seen first. With the numbers
    of padding and of unknown words there are `size` of them at most; a word that does not occur in training is unknown.
    """
    counts = np.bincount(training.words, minlength=words)
    order = np.argsort(-counts, kind="stable")[: size - FIRST_WORD]
    chosen = order[counts[order] > 0]
    final = np.full(words, UNKNOWN, dtype=np.int32)
    final[chosen] = np.arange(FIRST_WORD, FIRST_WORD + len(chosen))
    return final
