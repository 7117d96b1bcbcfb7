"""Texts and sequences of tokens drawn from known distributions: what the best of all models would reach is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.data import Dataset, Split, datasets
from benchmarks.data.vocabulary import FIRST_WORD, PADDING


@datasets.register("synthetic_text")
def synthetic_text(
    *, train_samples: int, test_samples: int, classes: int, vocabulary: int, length: int, signal: float
) -> Dataset:
    """Texts whose words say what class they are of; the same at every call.

    Words belong to the classes in turn, equally many to each; a few may be left over. A text has from a quarter of
    `length` to `length` words, each of them by a chance of `signal` one of its class, else any word there is; the rest
    is padding. So the words' order tells nothing, and Bayes' rule is the best classifier: classes are equally frequent,
    and the likelihood of a class grows by the same factor with each word that belongs to it.
    """
    generator = torch.Generator().manual_seed(0)
    words = vocabulary - FIRST_WORD
    own_words = words // classes

    def split(samples: int) -> tuple[Split, Tensor]:
        """With the chances of each class given each text (samples, classes)."""
        targets = torch.randint(classes, (samples,), generator=generator)
        drawn = torch.randint(words, (samples, length), generator=generator)
        telling = torch.rand(samples, length, generator=generator) < signal
        of_class = torch.randint(own_words, (samples, length), generator=generator) * classes + targets[:, None]
        drawn = torch.where(telling, of_class, drawn)
        lengths = torch.randint(max(1, length // 4), length + 1, (samples, 1), generator=generator)
        real = torch.arange(length) < lengths
        inputs = torch.where(real, drawn + FIRST_WORD, PADDING)
        counts = torch.zeros(samples, classes, dtype=torch.float64)
        counts.scatter_add_(1, drawn % classes, (real & (drawn < own_words * classes)).double())
        chances = _posterior(counts, words, signal)
        return Split(inputs=inputs.int(), targets=targets), chances

    train, _ = split(train_samples)
    test, chances = split(test_samples)
    return Dataset(
        train=train,
        test=test,
        classes=classes,
        vocabulary=vocabulary,
        lowest_loss=float(torch.special.entr(chances).sum(1).mean()),
        highest_accuracy=float(chances.max(1).values.mean()),
    )


def _posterior(counts: Tensor, words: int, signal: float) -> Tensor:
    """Each class's chance given a text (texts, classes), from how many of its words belong to each (texts, classes).

    A word has the probability (1 - signal) / words in a text of another class, and signal / (words of a class) more in
    one of its own.
    """
    classes = counts.shape[1]
    other = (1 - signal) / words
    own = other + signal / (words // classes)
    return (counts * torch.tensor(own / other, dtype=torch.float64).log()).softmax(1)


@datasets.register("tokens")
def tokens(
    *, train_samples: int, test_samples: int, length: int, vocabulary: int, successors: int, chain_seed: int
) -> Dataset:
    """Sequences of a random Markov chain in its stationary state; the same at every call.

    Given a token, the next one depends on nothing else. So the mean loss that can be expected of a model is the chain's
    entropy rate at least (Cover and Thomas 2006, theorem 4.2.4), at each place of a sequence alike.
    """
    generator = torch.Generator().manual_seed(chain_seed)
    chain = random_chain(vocabulary, successors, generator)
    stationary = chain.stationary()

    def split(samples: int) -> Split:
        drawn = chain.draw(stationary, samples, length + 1, generator)
        return Split(inputs=drawn[:, :-1].int(), targets=drawn[:, 1:].contiguous())

    return Dataset(
        train=split(train_samples),
        test=split(test_samples),
        classes=vocabulary,
        vocabulary=vocabulary,
        lowest_loss=float(stationary @ torch.special.entr(chain.probabilities).sum(1)),
        highest_accuracy=float(stationary @ chain.probabilities.max(1).values),
    )


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A Markov chain: the tokens that can follow each token (tokens, successors), all different, and how likely."""

    successors: Tensor
    probabilities: Tensor

    def stationary(self) -> Tensor:
        """How often each token occurs in the long run (tokens), as float64.

        By power iteration; half of the mass stays where it is, so that it converges for a periodic chain, too.

        Raises:
            ArithmeticError: it does not settle, as for no chain that `random_chain` makes.
        """
        tokens = len(self.successors)
        now = torch.full((tokens,), 1 / tokens, dtype=torch.float64)
        targets = self.successors.flatten()
        for _ in range(100_000):
            moved = torch.zeros_like(now).index_add_(0, targets, (now[:, None] * self.probabilities).flatten())
            following = (now + moved) / 2
            if float((following - now).abs().sum()) < 1e-12:
                return following / following.sum()
            now = following
        raise ArithmeticError("the chain has no stationary state that power iteration could find")

    def draw(self, start: Tensor, sequences: int, length: int, generator: torch.Generator) -> Tensor:
        """Sequences (sequences, length) of tokens as int64, the first tokens drawn by the probabilities of `start`."""
        drawn = torch.empty(length, sequences, dtype=torch.int64)
        uniform = torch.rand(length, sequences, dtype=torch.float64, generator=generator)
        cumulated = self.probabilities.cumsum(1)
        last = self.successors.shape[1] - 1
        now = torch.searchsorted(start.cumsum(0), uniform[0]).clamp_(max=len(start) - 1)
        drawn[0] = now
        for place in range(1, length):
            chosen = (uniform[place][:, None] > cumulated[now]).sum(1).clamp_(max=last)  # sums end a little below 1
            now = self.successors[now, chosen]
            drawn[place] = now
        return drawn.T.contiguous()


def random_chain(tokens: int, successors: int, generator: torch.Generator) -> Chain:
    """A chain in which each token has so many successors, with probabilities uniform over all that add up to 1.

    One successor of each is the next token of a random circle through all of them, so that every token can be reached
    from every other one. The others are drawn at random.
    """
    circle = torch.randperm(tokens, generator=generator)
    following = torch.empty(tokens, 1, dtype=torch.int64)
    following[circle, 0] = circle.roll(-1)
    offsets = _different(tokens, successors - 1, generator)
    others = (following + 1 + offsets) % tokens  # of an offset from 0 to tokens - 2, none is the circle's again
    weights = -torch.rand(tokens, successors, dtype=torch.float64, generator=generator).clamp_min(1e-300).log()
    return Chain(successors=torch.cat([following, others], dim=1), probabilities=weights / weights.sum(1, keepdim=True))


def _different(tokens: int, count: int, generator: torch.Generator) -> Tensor:
    """For each token `count` different numbers from 0 to tokens - 2 (tokens, count).

    Sorted draws with repetition from a range smaller by count - 1, spread by 0, 1, 2, ...: no number occurs twice,
    and no memory of tokens x tokens is needed.
    """
    if count == 0:
        return torch.empty(tokens, 0, dtype=torch.int64)
    drawn = torch.randint(tokens - count, (tokens, count), generator=generator).sort(1).values
    return drawn + torch.arange(count)
