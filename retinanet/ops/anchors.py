"""The boxes that predictions start from (Sec. 4, "Anchors"): nine at every cell of five pyramid levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
"""Pixels from cell to cell on P3..P7."""
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Three octave steps for the side of an anchor."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


def cell_anchors(stride: int, size: float = 4.0, scales: Sequence[float] = SCALES, ratios: Sequence[float] = RATIOS) -> Tensor:
    """The S x R anchors of a cell whose centre is (0, 0): [S * R, 4], scales outermost; a base side is `size` x `stride` pixels."""
    sides = torch.tensor([size * stride * scale for scale in scales], dtype=torch.float64)[:, None]
    root = torch.tensor(list(ratios), dtype=torch.float64).sqrt()[None]
    half_width, half_height = (sides / root / 2).flatten(), (sides * root / 2).flatten()
    return torch.stack([-half_width, -half_height, half_width, half_height], dim=1).float()


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int] = STRIDES,
    size: float = 4.0,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
    center: float = 0.5,
    device: torch.device | None = None,
) -> list[Tensor]:
    """Per level the anchors [H * W * S * R, 4] of a map of (H, W) cells: rows, columns, scales, ratios.

    Cell (i, j) has its centre at ((j + center) x stride, (i + center) x stride) pixels.
    """
    levels = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y = (torch.arange(height, device=device) + center) * stride
        x = (torch.arange(width, device=device) + center) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)  # [H, W, 4]
        levels.append((centers[:, :, None] + cell_anchors(stride, size, scales, ratios).to(centers)).reshape(-1, 4))
    return levels


def inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """Which anchors [A, 4] have their centre in the picture and not in its padding: [B, A], from sizes [B, 2] = height, width."""
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    return (centers[None] < sizes.flip(-1)[:, None]).all(dim=-1)
