"""Texts and tokens as data: files word by word and byte by byte, and distributions whose best model is known."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.core.config import Variant
from benchmarks.core.errors import ConfigError
from benchmarks.core.variants import variant_file
from benchmarks.data import DataError, Dataset, load
from benchmarks.data.batches import Division, Loader
from benchmarks.data.synthetic_text import Chain, random_chain
from benchmarks.trainer import _evaluated_at_once
from tests.conftest import MakeRun


def made(name: str, **options: Any) -> Dataset:
    return load(Variant(name=name, options={**variant_file("data", name).defaults, **options}), None)


# As in the corpus: quoted fields without a header, doubled quotation marks, a backslash for a line's end, `#39;` for an
# apostrophe; a comma and a line's end within a field.
TRAIN = '''"3","Oil, Oil!","The price of oil isn #39;t\\falling"
"1","THE ""talks""","in
Ähnlich talks 2004"
"4","...","--"
'''
TEST = '"2","Oil talks unheard","of the oil"\n'


@pytest.fixture
def news(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "test.csv").write_text(TEST, encoding="utf-8")
    return tmp_path


def test_ag_news_word_by_word(news: Path) -> None:
    """In training oil occurs 3 times, the and talks twice, price, of, isn, t, falling, in, hnlich, 2004 once."""
    data = made("agnews", root=str(news), train_samples=3, test_samples=1, vocabulary=8, length=10)
    oil, the, talks, price, of, isn = range(2, 8)
    assert data.train.inputs.tolist() == [
        [oil, oil, the, price, of, oil, isn, 1, 1, 0],
        [the, talks, 1, 1, talks, 1, 0, 0, 0, 0],
        [1, *[0] * 9],
    ]
    assert data.test.inputs.tolist() == [[oil, talks, 1, of, the, oil, 0, 0, 0, 0]]
    assert (data.train.targets.tolist(), data.test.targets.tolist()) == ([2, 0, 3], [1])
    assert (data.classes, data.vocabulary, data.train.inputs.dtype) == (4, 8, torch.int32)
    short = made("agnews", root=str(news), train_samples=3, test_samples=1, vocabulary=3, length=4)
    assert short.train.inputs.tolist() == [[oil, oil, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_words_of_the_test_texts_are_no_part_of_the_vocabulary(news: Path) -> None:
    data = made("agnews", root=str(news), train_samples=3, test_samples=1, vocabulary=1000, length=10)
    assert int(data.train.inputs.max()) == 12, "eleven different words from 2 on"
    assert data.test.inputs[0].tolist()[2] == 1


DAMAGED: dict[str, tuple[str, str]] = {
    "missing": ("", r"test.csv: No such file"),
    "class": ('"5","a","b"\n', "line 1 is not a class from 1 to 4, title, description"),
    "header": ('"class","title","description"\n', "line 1 is not a class from 1 to 4"),
    "columns": ('"1","a","b"\n"1","a"\n', "line 2 is not a class from 1 to 4"),
    "cut": ('"1","a","b"\n"2","c', "unexpected end of data"),
    "short": ('"1","a","b"\n' * 2, "holds 2 test samples, data.test_samples says 1"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_ag_news_that_is_missing_or_damaged(damage: str, news: Path) -> None:
    content, reason = DAMAGED[damage]
    (news / "test.csv").unlink()
    if content:
        (news / "test.csv").write_text(content)
    with pytest.raises(DataError, match=reason) as caught:
        made("agnews", root=str(news), train_samples=3, test_samples=1)
    assert "\n" not in str(caught.value)
    assert "data=agnews" in str(caught.value)


def test_ag_news_that_is_no_text(news: Path) -> None:
    (news / "train.csv").write_bytes(b'"1","\xff\xfe","b"\n')
    with pytest.raises(DataError, match=r"put the corpus's train.csv and test.csv there \(train.csv: 'utf-8' codec"):
        made("agnews", root=str(news), train_samples=3, test_samples=1)


def test_a_large_corpus_takes_seconds_not_minutes(tmp_path: Path) -> None:
    """A tenth of AG News's size; by processor time, which other processes do not lengthen."""
    lines = (
        f'"{n % 4 + 1}","Title {n}","{" ".join(f"word{n * k % 9973}" for k in range(40))}"\n' for n in range(12000)
    )
    (tmp_path / "train.csv").write_text("".join(lines))
    (tmp_path / "test.csv").write_text(TEST)
    started = time.process_time()
    data = made("agnews", root=str(tmp_path), train_samples=12000, test_samples=1)
    assert time.process_time() - started < 2.0
    assert int((data.train.inputs != 0).sum()) == 12000 * 42


def test_a_file_byte_by_byte(tmp_path: Path) -> None:
    content = bytes(range(200, 240))
    (tmp_path / "text.bin").write_bytes(content)
    options = {"root": str(tmp_path), "file": "text.bin", "train_samples": 3, "test_samples": 2, "length": 5}
    data = made("text_file", **options)
    assert data.train.inputs.tolist() == [[*range(200, 205)], [*range(205, 210)], [*range(210, 215)]]
    assert data.train.targets.tolist() == [[*range(201, 206)], [*range(206, 211)], [*range(211, 216)]]
    assert data.test.inputs.tolist() == [[*range(229, 234)], [*range(234, 239)]]
    assert data.test.targets.tolist() == [[*range(230, 235)], [*range(235, 240)]]
    (tmp_path / "text.bin").write_bytes(content[:27])
    tight = made("text_file", **options)
    assert int(tight.train.targets.max()) + 1 == int(tight.test.inputs.min()), "the splits are neighbours and no more"
    (tmp_path / "text.bin").write_bytes(content[:26])
    with pytest.raises(DataError, match="has 26 bytes, and 5 sequences of 5 take 27"):
        made("text_file", **options)
    with pytest.raises(DataError, match=r"data.file=none: cannot be read in data.root=.* \(No such file"):
        made("text_file", **{**options, "file": "none"})


def hand_made(probabilities: list[list[float]]) -> Chain:
    count = len(probabilities)
    return Chain(
        successors=torch.arange(count).repeat(count, 1), probabilities=torch.tensor(probabilities, dtype=torch.float64)
    )


@pytest.mark.parametrize(("leave", "come_back"), [(0.1, 0.3), (1.0, 1.0), (0.02, 0.9)])
def test_the_stationary_state_of_two_tokens(leave: float, come_back: float) -> None:
    """It is (b, a) / (a + b) for chances a and b of a change (Cover and Thomas 2006, section 4.1)."""
    stationary = hand_made([[1 - leave, leave], [come_back, 1 - come_back]]).stationary()
    wanted = torch.tensor([come_back, leave], dtype=torch.float64) / (leave + come_back)
    assert torch.allclose(stationary, wanted, atol=1e-9)


def test_a_chain_that_never_rests_has_a_stationary_state() -> None:
    """From the first token to one of the others, and back: by powers alone, a start that is off stays off."""
    stationary = hand_made([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).stationary()
    assert torch.allclose(stationary, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(("count", "successors"), [(2, 1), (5, 5), (40, 3), (40, 39)])
def test_a_random_chain_reaches_every_token(count: int, successors: int) -> None:
    chain = random_chain(count, successors, torch.Generator().manual_seed(1))
    assert chain.successors.sort(1).values.diff(dim=1).gt(0).all(), "all different"
    assert (int(chain.successors.min()), int(chain.successors.max())) == (0, count - 1)
    assert torch.allclose(chain.probabilities.sum(1), torch.ones(count, dtype=torch.float64))
    reached = {0}
    for _ in range(count):
        reached |= {int(token) for one in reached for token in chain.successors[one]}
    assert reached == set(range(count))
    matrix = torch.zeros(count, count, dtype=torch.float64).scatter_(1, chain.successors, chain.probabilities)
    stationary = chain.stationary()
    assert torch.allclose(stationary @ matrix, stationary, atol=1e-10)
    assert float(stationary.min()) > 0


def best_prediction(train: Tensor, following: Tensor, vocabulary: int) -> Tensor:
    """How often each token follows each in the data (vocabulary, vocabulary), as chances."""
    counts = torch.zeros(vocabulary, vocabulary, dtype=torch.float64)
    pairs = (train.long() * vocabulary + following).flatten()
    counts.view(-1).index_add_(0, pairs, torch.ones(len(pairs), dtype=torch.float64))
    return counts / counts.sum(1, keepdim=True)


def test_tokens_follow_a_chain_whose_lowest_loss_is_known() -> None:
    """Chances counted in training predict the test split with the loss and the accuracy that the data set promises.

    The bounds are four standard errors of a mean over 32,000 tokens; the next token predicts itself no better.
    """
    options = {"train_samples": 8000, "test_samples": 1000, "length": 32, "vocabulary": 12, "successors": 3}
    data = made("tokens", **options)
    assert torch.equal(data.train.inputs[:, 1:].long(), data.train.targets[:, :-1])
    chances = best_prediction(data.train.inputs, data.train.targets, 12)
    assert int((chances > 0).sum()) == 36
    chosen = chances[data.test.inputs.long(), data.test.targets]
    assert data.lowest_loss is not None
    assert float(-chosen.log().mean()) == pytest.approx(
        data.lowest_loss, abs=4 * float(chosen.log().std()) / 32000**0.5
    )
    right = (chances[data.test.inputs.long()].argmax(-1) == data.test.targets).double().mean()
    assert float(right) == pytest.approx(data.highest_accuracy, abs=4 * 0.5 / 32000**0.5)
    first, last = (data.train.inputs[:, place].long().bincount(minlength=12) / 8000 for place in (0, -1))
    assert float((first - last).abs().max()) < 0.03, "as many of each token at the beginning as at the end"
    assert torch.equal(made("tokens", **options).test.inputs, data.test.inputs)
    assert not torch.equal(made("tokens", **options, chain_seed=1).test.inputs, data.test.inputs)


def test_a_chain_without_choice_can_be_predicted() -> None:
    data = made("tokens", successors=1, vocabulary=5, train_samples=3, test_samples=2)
    assert (data.lowest_loss, data.highest_accuracy) == (0.0, 1.0)
    assert torch.equal(data.train.inputs[:, :-5], data.train.inputs[:, 5:]), "it goes round and round"


def bayes(text: Tensor, classes: int, words: int, signal: float) -> list[float]:
    """The chance of each class given a text, word by word from the definition of how texts are drawn."""
    own = words // classes
    likelihoods = []
    for wanted in range(classes):
        likelihood = 1.0
        for word in (int(number) - 2 for number in text if number):
            of_class = word % classes == wanted and word < own * classes
            likelihood *= signal * of_class / own + (1 - signal) / words
        likelihoods.append(likelihood)
    return [one / sum(likelihoods) for one in likelihoods]


def test_the_best_classifier_of_synthetic_texts_is_known() -> None:
    """Bayes' rule for each test text, of 25 words for 3 classes, one of which belongs to none; and it is that right."""
    options = {"test_samples": 2000, "classes": 3, "vocabulary": 27, "length": 12, "signal": 0.4}
    data = made("synthetic_text", **options)
    chances = torch.tensor([bayes(text, 3, 25, 0.4) for text in data.test.inputs])
    assert data.highest_accuracy == pytest.approx(float(chances.max(1).values.mean()), abs=1e-6)
    entropies = -(chances * chances.log()).sum(1)
    assert data.lowest_loss == pytest.approx(float(entropies.mean()), abs=1e-6)
    assert data.highest_accuracy is not None
    assert 0.5 < data.highest_accuracy < 0.95
    right = (chances.argmax(1) == data.test.targets).double().mean()
    assert float(right) == pytest.approx(data.highest_accuracy, abs=4 * 0.5 / 2000**0.5)


def test_synthetic_texts_have_padding_behind_their_words() -> None:
    inputs = made("synthetic_text", length=12, vocabulary=27, classes=3).train.inputs
    real = inputs != 0
    assert torch.equal(real, torch.arange(12) < real.sum(1, keepdim=True))
    assert set(real.sum(1).tolist()) == set(range(3, 13))
    assert (int(inputs[real].min()), int(inputs.max())) == (2, 26)


def test_no_signal_is_no_better_than_chance() -> None:
    data = made("synthetic_text", signal=0.0, classes=4)
    assert data.highest_accuracy == pytest.approx(0.25)
    assert data.lowest_loss == pytest.approx(math.log(4))


@pytest.mark.parametrize(("name", "vocabulary"), [("tokens", 7), ("tokens", 1000), ("synthetic_text", 20)])
def test_the_warm_up_draws_from_the_vocabulary(name: str, vocabulary: int) -> None:
    """Bytes would be no tokens of a small vocabulary, and not those of a large one."""
    train = made(name, vocabulary=vocabulary).train
    division = Division(0, 1)
    loader = Loader(train, device=torch.device("cpu"), division=division, global_batch=500, seed=1)
    batch = loader.for_warmup(500)
    assert batch.inputs.shape == (500, *train.inputs.shape[1:])
    assert batch.targets.shape == (500, *train.targets.shape[1:])
    assert int(batch.inputs.max()) == int(train.inputs.max()) < vocabulary
    assert not torch.equal(batch.inputs, train.inputs[:500])


def test_as_many_predictions_at_once_as_of_images(make_run: MakeRun) -> None:
    """An evaluation holds logits for each token of a vocabulary: of 256 long sequences they would fill a GPU."""

    def at_once(length: int, batch: int) -> int:
        run = make_run(workload="gpt", data="tokens", data__length=length, strategy="single", batch_per_worker=batch)
        return _evaluated_at_once(run, load(run.data, None))

    assert (at_once(16, 4), at_once(64, 8), at_once(1, 8)) == (16, 8, 256)


def test_text_is_not_scaled() -> None:
    with pytest.raises(ConfigError, match=r"workload.input_size=32: data=tokens holds no images"):
        load(Variant(name="tokens", options=variant_file("data", "tokens").defaults), 32)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data": "tokens", "data__successors": 65}, "these are the tokens that there are"),
    ({"data": "tokens", "data__successors": 0}, "these are the tokens that there are"),
    ({"data": "tokens", "data__vocabulary": 1}, "with one token there is nothing to predict"),
    ({"data": "tokens", "data__test_samples": 0}, "both splits hold something"),
    ({"data": "text_file", "data__length": 0}, "a sequence has bytes"),
    ({"data": "synthetic_text", "data__signal": 1.0}, "words of other classes must be possible"),
    ({"data": "synthetic_text", "data__vocabulary": 5}, "each class has a word of its own"),
    ({"data": "agnews", "data__vocabulary": 2}, "one word at least"),
]


@pytest.mark.parametrize(("settings", "reason"), REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(make_run: MakeRun, settings: dict[str, Any], reason: str) -> None:
    workload = "gpt" if settings["data"] in ("tokens", "text_file") else "text_transformer"
    with pytest.raises(ConfigError, match=reason):
        make_run(workload=workload, strategy="single", **settings)
