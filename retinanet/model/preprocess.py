"""What happens to a picture before the network: resize, normalise, pad. A property of the model, the same in training and answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Pictures [3, H, W] uint8 RGB -> a batch.

    scale     pixels of the short side after resizing (Sec. 4.1: 600 or 800) ...
    max_side  ... unless the long side would exceed this: then that one decides. None: 5/3 of the scale (1333 for 800)
    mean, std of RGB in 0..1
    multiple  batches are padded to a multiple of this
    resize    antialias: on bytes with antialiasing (as Pillow does it); plain: on floats without, sides rounded down (torchvision)
    """

    scale: int = 600
    max_side: int | None = None
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    multiple: int = 32
    resize: str = "antialias"

    def size(self, height: int, width: int, scale: float | None = None) -> tuple[int, int]:
        """Height and width after resizing; `scale` overrides the short side (scale jitter), the long limit going along."""
        short = scale or self.scale
        limit = (self.max_side or self.scale * 1333 / 800) * short / self.scale
        factor = min(short / min(height, width), limit / max(height, width))
        half = 0.0 if self.resize == "plain" else 0.5
        return max(1, int(height * factor + half)), max(1, int(width * factor + half))

    def resized(self, image: Tensor, scale: float | None = None) -> Tensor:
        """[3, H, W] uint8 -> [3, h, w] uint8, bilinear; float32 in 0..255 where `resize` is plain."""
        size = self.size(image.shape[-2], image.shape[-1], scale)
        if self.resize == "plain":
            plain: Tensor = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
            return plain
        if size == tuple(image.shape[-2:]):
            return image
        smaller: Tensor = transforms.resize(image, list(size), antialias=True)
        return smaller

    def padded(self, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """The batch's height and width for pictures of these sizes."""
        height, width = (max(side) for side in zip(*sizes, strict=True))
        return round_up(height, self.multiple), round_up(width, self.multiple)

    def stack(self, images: Sequence[Tensor], shape: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
        """Pictures [3, h, w] -> a batch [B, 3, H, W] of their kind, padded right and below, and their sizes [B, 2] (height, width)."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        batch = torch.zeros(len(images), 3, *(shape or self.padded(sizes)), dtype=images[0].dtype)
        for row, (image, (height, width)) in enumerate(zip(images, sizes, strict=True)):
            batch[row, :, :height, :width] = image
        return batch, torch.tensor(sizes, dtype=torch.float32)

    def normalize(self, batch: Tensor, sizes: Tensor) -> Tensor:
        """[B, 3, H, W] of 0..255 -> float32, channels_last; the padding becomes 0, the mean colour, whatever it was."""
        mean, std = _statistics(self.mean, self.std, batch.device)
        images = (batch.to(memory_format=torch.channels_last).float() - mean) / std
        rows = torch.arange(batch.shape[-2], device=batch.device)
        columns = torch.arange(batch.shape[-1], device=batch.device)
        inside = (rows[None, :, None] < sizes[:, 0, None, None]) & (columns[None, None] < sizes[:, 1, None, None])
        return images.mul_(inside[:, None])


@cache
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation [3, 1, 1] of bytes; kept, since a copy to a GPU makes the step wait."""
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device)[:, None, None] * 255 for values in (mean, std))  # type: ignore[return-value]


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is at least `value`."""
    return -(-value // multiple) * multiple
