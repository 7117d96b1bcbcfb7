"""Transformers, layers of equal shape whose heads and hidden units can be computed apart; and the one for images.

A model is a sequence of stem, trunk and head, the trunk one of blocks, so that it can be cut between any two of them.
There is no dropout: it would draw other numbers on each worker, and no two strategies could be compared exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.core.errors import ImpossibleRunError
from benchmarks.workload import ImageShape, workloads

NORM_EPS = 1e-6


@workloads.register("vit")
def vit(
    image: ImageShape,
    *,
    patch_size: int,
    hidden_size: int,
    depth: int,
    heads: int,
    mlp_ratio: int,
    class_token: bool,
) -> nn.Module:
    """A vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1).

    ViT-B/16 is images of 224 pixels, patches of 16, hidden size 768, depth 12, 12 heads, MLP ratio 4, a class token:
    86.6 million parameters for 1000 classes. Without a class token, the logits are of the mean over patches (Beyer et
    al. 2022, arXiv 2205.01580).

    Raises ImpossibleRunError where patches do not fill the image.
    """
    if image.size % patch_size:
        raise ImpossibleRunError(
            f"workload.patch_size={patch_size}: patches do not fill images of {image.size} x {image.size} pixels; "
            "give a divisor, or workload.input_size a multiple"
        )
    blocks = [Block(hidden_size, heads, mlp_ratio) for _ in range(depth)]
    return nn.Sequential(
        Stem(image, patch_size, hidden_size, class_token=class_token),
        Trunk(*blocks),
        Head(hidden_size, image.classes, class_token=class_token),
    )


class Stem(nn.Module):
    """Images to tokens: each patch's pixels through one linear layer, plus a learned vector for the patch's place.

    The layer is a matrix product, not the convolution that it equals: a GPU adds up a convolution's gradients in an
    order of its own each time, and workers that hold the same weights would drift apart.
    """

    def __init__(self, image: ImageShape, patch_size: int, hidden_size: int, *, class_token: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        patches = (image.size // patch_size) ** 2
        self.projection = nn.Linear(image.channels * patch_size**2, hidden_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, hidden_size)) if class_token else None
        positions = torch.empty(1, patches + class_token, hidden_size)
        self.position = nn.Parameter(positions.normal_(std=hidden_size**-0.5))

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, channels, size, size) to tokens (batch, patches, hidden), the class token first of all."""
        tokens: Tensor = self.projection(_patches(images, self.patch_size))
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        return tokens + self.position


def _patches(images: Tensor, size: int) -> Tensor:
    """Images (batch, channels, height, width) to patches (batch, number, channels x size x size), row by row."""
    batch, channels, height, width = images.shape
    rows, columns = height // size, width // size
    cut = images.reshape(batch, channels, rows, size, columns, size)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * size**2)


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762, section 3.2).

    Query, key and value have layers of their own, whose rows are head after head: a worker that has some of the rows
    has whole heads.
    """

    column_parallel = ("query", "key", "value")
    row_parallel = ("output",)

    def __init__(self, hidden_size: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        """Whether each token attends to itself and those before it only."""
        self.head_size = hidden_size // heads
        self.query, self.key, self.value, self.output = (nn.Linear(hidden_size, hidden_size) for _ in range(4))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, hidden) to as many; the heads are those that the layers have here."""
        query, key, value = (self._by_head(layer(tokens)) for layer in (self.query, self.key, self.value))
        attended = self.attended(tokens)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attended, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def attended(self, _tokens: Tensor) -> Tensor | None:
        """Which tokens are attended to: truth values that broadcast to (batch, heads, tokens, tokens); None is all."""
        return None

    def _by_head(self, values: Tensor) -> Tensor:
        """(batch, tokens, heads x size) to (batch, heads, tokens, size)."""
        by_head: Tensor = values.unflatten(-1, (-1, self.head_size)).transpose(1, 2)
        return by_head


class Mlp(nn.Module):
    """Two linear layers around a GELU, token by token."""

    column_parallel = ("up",)
    row_parallel = ("down",)

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, inner_size)
        self.down = nn.Linear(inner_size, hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, hidden) to as many."""
        return self.down(functional.gelu(self.up(tokens)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm block: attention, then the MLP, each added to what comes in."""

    def __init__(self, hidden_size: int, heads: int, mlp_ratio: int, *, causal: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.attention = Attention(hidden_size, heads, causal=causal)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.mlp = Mlp(hidden_size, mlp_ratio * hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, tokens, hidden) to as many; all but attention and MLP looks at each token by itself."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.mlp(self.mlp_norm(tokens))  # type: ignore[no-any-return]


class Trunk(nn.Sequential):
    """The blocks, one after another."""

    sequence_dim = 1


class Head(nn.Module):
    """Tokens (batch, tokens, hidden) to logits (batch, classes), by the class token or the mean of all."""

    def __init__(self, hidden_size: int, classes: int, *, class_token: bool) -> None:
        super().__init__()
        self.class_token = class_token
        self.norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.logits = nn.Linear(hidden_size, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Norm, one token of all, logits."""
        normed = self.norm(tokens)
        return self.logits(normed[:, 0] if self.class_token else normed.mean(1))  # type: ignore[no-any-return]
