"""What happens to an image before the network: resize, normalise, pad."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from .resize import resize, target_size

Settings = TypeVar("Settings", bound=Any)

MEAN = (0.485, 0.456, 0.406)

STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Turns images [3, H, W] uint8 RGB into a batch.

    Attributes:
        scale: Short side in pixels after resizing (Sec. 4.1: 600 or 800).
        max_side: Limit of the long side; it wins over `scale`. None: 5/3 of the scale (1333 for 800).
        pixel_mean: Mean of red, green and blue, in 0..1.
        pixel_std: Standard deviation of red, green and blue, in 0..1.
        padding_multiple: The sides of a batch are padded to a multiple of this.
        resize: antialias, plain, pillow or opencv; see `model.resize`.
        pixel_order: rgb or bgr, the colour order that the network gets.
        canvas: Fixed height and width of every batch. Each image is fitted into it and `scale` is ignored.
            None: as large as needed.

    Example:
        >>> preprocess = Preprocess(scale=600)
        >>> image = torch.zeros(3, 480, 640, dtype=torch.uint8)
        >>> preprocess.scale
        600
    """

    scale: int = 600
    max_side: int | None = None
    pixel_mean: tuple[float, float, float] = MEAN
    pixel_std: tuple[float, float, float] = STD
    padding_multiple: int = 32
    resize: str = "antialias"
    pixel_order: str = "rgb"
    canvas: tuple[int, int] | None = None

    def size(self, height: int, width: int, scale: float | None = None) -> tuple[int, int]:
        """Height and width after resizing; `scale` overrides the short side, the limit in proportion."""
        if self.canvas is not None:
            factor = min(self.canvas[0] / height, self.canvas[1] / width)
            return max(1, round(height * factor)), max(1, round(width * factor))
        short = scale or self.scale
        limit = (self.max_side or self.scale * 1333 / 800) * short / self.scale
        return target_size(height, width, short, limit, self.resize)

    @property
    def most_bytes(self) -> int:
        """The bytes of the largest image that it makes, padded."""
        limit = self.max_side or math.ceil(self.scale * 1333 / 800)
        height, width = self.padded([(self.scale, limit)])
        return 3 * height * width * (4 if self.resize == "plain" else 1)

    def resized(self, image: Tensor, scale: float | None = None) -> Tensor:
        """[3, H, W] uint8 -> [3, h, w] uint8, bilinear; float32 in 0..255 where `resize` is plain."""
        return resize(image, self.size(image.shape[-2], image.shape[-1], scale), self.resize)

    def padded(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of a batch of images of these sizes."""
        if self.canvas is not None:
            return self.canvas
        height, width = (max(side) for side in zip(*sizes, strict=True))
        return round_up(height, self.padding_multiple), round_up(width, self.padding_multiple)

    def stack(self, images: Sequence[Tensor], shape: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Images [3, h, w] -> a batch [B, 3, H, W], padded right and below, and sizes [B, 2] (height, width).

        The batch is channels_last, as decoders give images, so whole rows are copied.
        """
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch = torch.zeros(len(images), *(shape or self.padded(sizes)), 3, dtype=images[0].dtype).permute(
            0, 3, 1, 2
        )
        for row, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            batch[row, :, :height, :width] = image
        return batch, torch.tensor(sizes, dtype=torch.float32)

    def normalize(self, batch: Tensor, sizes: Tensor) -> Tensor:
        """[B, 3, H, W] RGB of 0..255 -> float32, channels_last, in the network's order; padding is 0.

        (images - mean) / std, in place and by whole rows: pixel by pixel it took 3 to 6 times as long.
        """
        mean, std = _statistics(self.pixel_mean, self.pixel_std, batch.device)
        if self.pixel_order == "bgr":
            batch, mean, std = batch.flip(1), mean.flip(0), std.flip(0)
        height, width = batch.shape[-2:]
        images = batch.to(torch.float32, memory_format=torch.channels_last, copy=True)
        lines = images.permute(0, 2, 3, 1).view(len(batch), height, 3 * width)
        lines.sub_(mean.repeat(width)).div_(std.repeat(width))
        rows = torch.arange(height, device=batch.device) < sizes[:, 0, None]
        columns = torch.arange(width, device=batch.device) < sizes[:, 1, None]
        lines.mul_(rows[:, :, None]).mul_(columns.repeat_interleave(3, dim=1)[:, None])
        return images


def with_scale(settings: Settings, scale: int) -> Settings:
    """A `Preprocess` or `PreprocessConfig` for another short side; `max_side` changes in proportion."""
    limit = settings.max_side and round(settings.max_side * scale / settings.scale)
    changed: Settings = replace(settings, scale=scale, max_side=limit)
    return changed


@cache
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and deviation [3] of bytes; cached, since a copy to a GPU makes the step wait."""
    with torch.inference_mode(False):
        made = [torch.tensor([255 * value for value in values], device=device) for values in (mean, std)]
        return made[0], made[1]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple
