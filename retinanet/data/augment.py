"""Augmentation of images with boxes: flip, scale jitter with random crop, photometric changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2

from ..model.preprocess import Preprocess

COLOURS = v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03)
"""Mild: v2's RandomPhotometricDistort also swaps the colour channels, which ruins classes known by colour."""

MIN_SIDE = 2.0
"""Pixels: what a crop leaves of a box below this is no object any more."""

MIN_VISIBLE = 0.25
"""Share of a box that must remain after a crop."""


@dataclass(frozen=True)
class Augment:
    """flip, photometric: probabilities; jitter: range of the factor on the scale, drawn log-uniformly."""

    flip: float = 0.5
    jitter: tuple[float, float] = (1.0, 1.0)
    photometric: float = 0.0

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor, preprocess: Preprocess, canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """An image [3, H, W] uint8, its boxes [G, 4] and labels [G] -> the same, resized, changed and cut to
        fit `canvas` (height, width).

        Draws from torch's global generator: the caller seeds it for each sample.
        """
        low, high = self.jitter
        factor = low * (high / low) ** torch.rand(()).item() if low < high else low
        height, width = image.shape[-2:]
        image = preprocess.resized(image, preprocess.scale * factor)
        if image.is_floating_point():
            image = image.round().byte()  # training needs no more, and the colours are changed in bytes
        new_height, new_width = image.shape[-2:]
        boxes = boxes * torch.tensor([new_width / width, new_height / height] * 2)
        image, boxes, labels = crop(image, boxes, labels, canvas)
        if torch.rand(()).item() < self.flip:
            image, (left, top, right, bottom) = image.flip(-1), boxes.unbind(1)
            boxes = torch.stack([image.shape[-1] - right, top, image.shape[-1] - left, bottom], dim=1)
        if torch.rand(()).item() < self.photometric:
            image = COLOURS(image)
        return image, boxes, labels


def crop(
    image: Tensor, boxes: Tensor, labels: Tensor, canvas: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut an image that exceeds `canvas` (height, width) at a random place; boxes that all but vanish go."""
    height, width = image.shape[-2:]
    if height <= canvas[0] and width <= canvas[1]:
        return image, boxes, labels
    top = int(torch.randint(0, max(height - canvas[0], 0) + 1, ()))
    left = int(torch.randint(0, max(width - canvas[1], 0) + 1, ()))
    image = image[:, top : top + canvas[0], left : left + canvas[1]]
    moved = boxes - torch.tensor([left, top, left, top], dtype=boxes.dtype)
    limit = torch.tensor([image.shape[-1], image.shape[-2]] * 2, dtype=boxes.dtype)
    cut = torch.minimum(moved.clamp(min=0), limit)
    sides = cut[:, 2:] - cut[:, :2]
    before = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    keep = (sides >= MIN_SIDE).all(dim=1) & (sides.prod(dim=1) >= MIN_VISIBLE * before)
    return image, cut[keep], labels[keep]
