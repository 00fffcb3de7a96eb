"""Four ways to resize an image, a few grey levels or one pixel apart; a model keeps that of its training."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms


def target_size(
    height: int, width: int, short: float, limit: float, kind: str = "antialias"
) -> tuple[int, int]:
    """Rounded height and width: the short side becomes `short`, but the long one at most `limit`.

    plain   cut instead of rounded (torchvision's GeneralizedRCNNTransform)
    pillow  the second factor on top of the first, which shows in one size of 7,000 (Detectron2)
    """
    low, high = min(height, width), max(height, width)
    if kind == "pillow":
        sides = [short if side == low else short / low * side for side in (height, width)]
        shrink = limit / max(sides) if max(sides) > limit else 1.0
        sides = [side * shrink for side in sides]
    else:
        factor = min(short / low, limit / high)
        sides = [side * factor for side in (height, width)]
    half = 0.0 if kind == "plain" else 0.5
    return max(1, int(sides[0] + half)), max(1, int(sides[1] + half))


def resize(image: Tensor, size: tuple[int, int], kind: str = "antialias") -> Tensor:
    """[3, H, W] uint8 -> [3, h, w] bilinear: uint8, or float32 in 0..255 where `kind` is plain.

    antialias  torch's, on bytes; as Pillow's to one grey level, six times as fast
    plain      on floats, without antialiasing (torchvision)
    pillow     Pillow's own (Detectron2)
    opencv     cv2.INTER_LINEAR to the bit, without antialiasing (MMDetection)
    """
    if kind == "plain":
        plain: Tensor = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        return plain
    if size == tuple(image.shape[-2:]):
        return image
    if kind == "opencv":
        return opencv(image, size)
    if kind == "pillow":
        pillow = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        return (
            torch.from_numpy(np.array(pillow.resize(size[::-1], Image.Resampling.BILINEAR)))
            .permute(2, 0, 1)
            .contiguous()
        )
    smooth: Tensor = transforms.resize(image, list(size), antialias=True)
    return smooth


def opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """cv2.resize of bytes by INTER_LINEAR, [3, H, W] -> [3, h, w], in the same whole numbers.

    Weights are of 1/2048, sums are cut by 4 and 16 bits (OpenCV's imgproc/src/resize.cpp; the same in 4.14
    and 5.0).
    """
    left, right, near, far = _taps(size[1], image.shape[-1], inside=True)
    values = image.int()
    rows = (values[..., left] * near + values[..., right] * far) >> 4
    top, bottom, near, far = _taps(size[0], image.shape[-2], inside=False)
    total = ((rows[:, top] * near[:, None]) >> 16) + ((rows[:, bottom] * far[:, None]) >> 16)
    return ((total + 2) >> 2).clamp(0, 255).byte()


def _taps(length: int, source: int, inside: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each of `length` pixels: the two source pixels that it lies between, and their weights in 1/2048.

    inside  beyond the first and last centre the whole weight is on one pixel; else it is split between two
            that are the same one, which
            rounds otherwise
    """
    place = ((torch.arange(length, dtype=torch.float64) + 0.5) * (source / length) - 0.5).float()
    first = place.floor()
    share = place - first
    if inside:
        share = torch.where((first < 0) | (first >= source - 1), torch.zeros_like(share), share)
    first = first.long()
    far, near = (share * 2048).round().int(), ((1 - share) * 2048).round().int()
    return first.clamp(0, source - 1), (first + 1).clamp(0, source - 1), near, far
