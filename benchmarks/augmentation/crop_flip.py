"""A random crop of the padded image, and a horizontal flip: what CIFAR-10 is trained with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.augmentation import Augment, Augmentation, augmentations
from benchmarks.augmentation.chance import below, words


@augmentations.register("crop_flip")
class CropFlip(Augmentation):
    """As He et al. 2015 (arXiv 1512.03385, section 4.2) do it.

    The image gets `padding` black pixels on each side, of which a window of its old size is kept, at a random place;
    with `flip`, every other one is mirrored left to right.
    """

    def __init__(self, *, padding: int, flip: bool) -> None:
        self.padding, self.flip = padding, flip

    def of_epoch(self, key: int, samples: int, device: torch.device) -> Augment:
        chance = words(key, samples, device)
        tops, lefts = (below(chance, field, 2 * self.padding + 1) for field in (0, 1))
        mirrored = below(chance, 2, 2).bool() if self.flip else torch.zeros_like(chance, dtype=torch.bool)

        def augment(images: Tensor, first: int, end: int) -> Tensor:
            return windows(images, self.padding, tops[first:end], lefts[first:end], mirrored[first:end])

        return augment


def windows(images: Tensor, padding: int, tops: Tensor, lefts: Tensor, mirrored: Tensor) -> Tensor:
    """A window of each image, as large as the image was before it was padded with zeros.

    Images (batch, channels, height, width) of any type; the windows' first rows and columns in the padded image and
    whether they are mirrored, (batch) each. One gather for all: its indices are those of a flat padded image.
    """
    batch, channels, height, width = images.shape
    padded = functional.pad(images, (padding,) * 4)
    padded_width = width + 2 * padding
    rows = tops[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = lefts[:, None] + torch.where(mirrored[:, None], columns.flip(0), columns)
    pixels = (rows[:, :, None] * padded_width + columns[:, None, :]).view(batch, 1, -1)
    gathered = padded.flatten(2).gather(2, pixels.expand(-1, channels, -1))
    return gathered.view(batch, channels, height, width)
