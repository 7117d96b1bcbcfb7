"""Transformers for text: an encoder that tells texts apart, and a decoder that predicts the next token.

As the vision transformer's, a model is a sequence of stem, trunk and head. The stem makes vectors of tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.data.vocabulary import PADDING
from benchmarks.workload import TextShape, TokenShape, workloads
from benchmarks.workload.transformer import NORM_EPS, Attention, Block, Mlp, Trunk

_INITIAL_STD = 0.02


@workloads.register("text_transformer")
def text_transformer(
    text: TextShape, *, hidden_size: int, depth: int, heads: int, mlp_ratio: int, class_token: bool
) -> nn.Module:
    """A transformer's encoder (Vaswani et al. 2017, arXiv 1706.03762), pre-norm, with learned positions.

    The logits are of the mean over a text's words, or of a class token that stands before them.
    """
    blocks = [PaddedBlock(hidden_size, heads, mlp_ratio) for _ in range(depth)]
    return nn.Sequential(
        TextStem(text, hidden_size, class_token=class_token),
        Trunk(*blocks),
        TextHead(hidden_size, text.classes, class_token=class_token),
    )


@workloads.register("gpt")
def gpt(tokens: TokenShape, *, hidden_size: int, depth: int, heads: int, mlp_ratio: int, tied: bool) -> nn.Module:
    """A decoder in the sizes and with the first weights of GPT-2 (Radford et al. 2019, sections 2.2 and 2.3).

    Pre-norm blocks with causal attention, a last norm, learned positions; no dropout, and the exact GELU. With `tied`,
    the tokens' vectors are the last layer's weights, too (Press and Wolf 2017, arXiv 1608.05859).
    """
    blocks = [Block(hidden_size, heads, mlp_ratio, causal=True) for _ in range(depth)]
    stem, head = TokenStem(tokens, hidden_size), TokenHead(hidden_size, tokens.vocabulary)
    model = nn.Sequential(stem, Trunk(*blocks), head)
    _initialise(model, depth)
    if tied:
        head.logits.weight = stem.embedding.weight
    return model


def _initialise(model: nn.Module, depth: int) -> None:
    """Normal weights of standard deviation 0.02, and no biases.

    Those of the layers that add to the stream of tokens, of which there are two in each block, are divided by the root
    of their number, so that the sum does not grow with depth.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=_INITIAL_STD)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, TokenStem):
            nn.init.normal_(module.position, std=_INITIAL_STD)
    for module in model.modules():
        if isinstance(module, (Attention, Mlp)):
            for name in module.row_parallel:
                nn.init.normal_(module.get_parameter(f"{name}.weight"), std=_INITIAL_STD / math.sqrt(2 * depth))


class TokenStem(nn.Module):
    """Tokens to vectors: a learned one for each token of the vocabulary, plus one for its place."""

    def __init__(self, tokens: TokenShape, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens.vocabulary, hidden_size)
        nn.init.normal_(self.embedding.weight, std=hidden_size**-0.5)
        self.position = nn.Parameter(torch.empty(1, tokens.length, hidden_size).normal_(std=hidden_size**-0.5))

    def forward(self, numbers: Tensor) -> Tensor:
        """Tokens (batch, tokens) as whole numbers to (batch, tokens, hidden)."""
        vectors: Tensor = self.embedding(numbers)
        return vectors + self.position


class TextStem(TokenStem):
    """The same for texts with padding, whose vectors are zero: from the stem to the head that is how it is known.

    So it is with the samples wherever they go, in parts of a batch, or from one worker to the next. The first token
    counts as a word in any case, so that no text is empty.
    """

    def __init__(self, text: TextShape, hidden_size: int, *, class_token: bool) -> None:
        super().__init__(TokenShape(length=text.length, vocabulary=text.vocabulary), hidden_size)
        first = torch.empty(1, 1, hidden_size).normal_(std=hidden_size**-0.5)
        self.class_token = nn.Parameter(first) if class_token else None

    def forward(self, numbers: Tensor) -> Tensor:
        """Tokens (batch, tokens) as whole numbers to (batch, tokens, hidden), the class token first of all."""
        real = numbers != PADDING
        real[:, 0] = True
        vectors = super().forward(numbers) * real.unsqueeze(-1)
        if self.class_token is None:
            return vectors
        return torch.cat([self.class_token.expand(len(vectors), -1, -1).to(vectors.dtype), vectors], dim=1)


class Real(nn.Module):
    """Which tokens are none of padding: those whose vectors are not zero."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, hidden) to truth values (batch, tokens)."""
        return (tokens.detach() != 0).any(-1)


class PaddedAttention(Attention):
    """Attention to all tokens but padding."""

    replicated = ("real",)

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__(hidden_size, heads)
        self.real = Real()

    def attended(self, tokens: Tensor) -> Tensor:
        """The same ones for all heads and all tokens (batch, 1, 1, tokens)."""
        return self.real(tokens)[:, None, None]  # type: ignore[no-any-return]


class PaddedBlock(Block):
    """A pre-norm block that leaves padding at zero, on the way into its attention, too."""

    def __init__(self, hidden_size: int, heads: int, mlp_ratio: int) -> None:
        super().__init__(hidden_size, heads, mlp_ratio)
        self.attention = PaddedAttention(hidden_size, heads)
        self.real = Real()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, hidden) to as many."""
        real = self.real(tokens).unsqueeze(-1)
        tokens = tokens + real * self.attention(real * self.attention_norm(tokens))
        return tokens + real * self.mlp(self.mlp_norm(tokens))  # type: ignore[no-any-return]


class TextHead(nn.Module):
    """Tokens (batch, tokens, hidden) to logits (batch, classes), by the class token or the mean of all but padding."""

    def __init__(self, hidden_size: int, classes: int, *, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.real = Real()
        self.norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.logits = nn.Linear(hidden_size, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Norm, one token of all, logits."""
        normed = self.norm(tokens)
        if self.class_token:
            return self.logits(normed[:, 0])  # type: ignore[no-any-return]
        real = self.real(tokens).unsqueeze(-1)
        return self.logits((normed * real).sum(1) / real.sum(1))  # type: ignore[no-any-return]


class TokenHead(nn.Module):
    """Tokens (batch, tokens, hidden) to logits (batch, tokens, vocabulary)."""

    def __init__(self, hidden_size: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.logits = nn.Linear(hidden_size, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Norm and logits."""
        return self.logits(self.norm(tokens))  # type: ignore[no-any-return]
