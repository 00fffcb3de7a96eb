"""Anchors, the boxes that predictions start from (Sec. 4, "Anchors"): nine at every cell of five levels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
"""Pixels from cell to cell on P3..P7."""

SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Three octave steps for the side of an anchor."""

RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


@dataclass(frozen=True)
class Grid:
    """Places of the anchors of a level, in pixels."""

    cells: tuple[int, int]
    """Columns and rows."""
    first: tuple[float, float]
    """x and y of the first centre."""
    step: tuple[int, int]
    """From one centre to the next, across and down."""
    shapes: tuple[tuple[float, ...], ...]
    """xyxy of the anchors of a cell around its centre."""


class GridAnchors(list[Tensor]):
    """A list with the anchors [HWA, 4] of each level, and the `Grid` of each in `grids`."""

    def __init__(self, levels: Iterable[Tensor] = (), grids: Iterable[Grid] = ()) -> None:
        super().__init__(levels)
        self.grids = tuple(grids)


def cell_anchors(
    stride: int,
    size: float = 4.0,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
    rounded: bool = False,
) -> Tensor:
    """The S x R anchors of a cell whose centre is (0, 0): [S * R, 4], scales outermost.

    A base side is `size` x `stride` pixels. `rounded` cuts sides to whole pixels and then rounds corners, in
    float32, as torchvision's `_default_anchorgen` and `AnchorGenerator.generate_anchors` do.
    """
    kind = torch.float32 if rounded else torch.float64
    sides = torch.tensor(
        [int(size * stride * scale) if rounded else size * stride * scale for scale in scales], dtype=kind
    )[:, None]
    root = torch.tensor(list(ratios), dtype=kind).sqrt()[None]
    # torchvision multiplies by the reciprocal, and rounding halves makes the last bit count
    half_width, half_height = (sides * (1 / root) / 2).flatten(), (sides * root / 2).flatten()
    anchors = torch.stack([-half_width, -half_height, half_width, half_height], dim=1)
    return (anchors.round() if rounded else anchors).float()


def grid_anchors(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int] = STRIDES,
    size: float = 4.0,
    scales: Sequence[float] = SCALES,
    ratios: Sequence[float] = RATIOS,
    center: float = 0.5,
    device: torch.device | None = None,
    rounded: bool = False,
    image: tuple[int, int] | None = None,
    bases: Sequence[Sequence[int]] | None = None,
) -> GridAnchors:
    """Per level the anchors [H * W * S * R, 4] of a map of (H, W) cells: rows, columns, scales, ratios.

    Cell (i, j) has its centre at ((j + center) x stride, (i + center) x stride) pixels.

    Args:
        shapes: Rows and columns of each map.
        strides: Stride of each map.
        size: Base side of an anchor, in strides.
        scales: S factors on the base side.
        ratios: R ratios of height over width.
        center: Place of an anchor in its cell.
        device: Where the anchors are made.
        rounded: See `cell_anchors`.
        image: Height and width of the padded image. Cells then stand height // H and width // W pixels apart,
            less than the stride where a map was rounded up (torchvision's rule).
        bases: For each level the strides that its base sides follow, outermost in a cell; None: its own.
    """
    levels, grids = [], []
    for (height, width), stride, own in zip(
        shapes, strides, bases or [(stride,) for stride in strides], strict=True
    ):
        down, across = (stride, stride) if image is None else (image[0] // height, image[1] // width)
        y = (torch.arange(height, device=device) + center) * down
        x = (torch.arange(width, device=device) + center) * across
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack([grid_x, grid_y, grid_x, grid_y], dim=-1)  # [H, W, 4]
        cell = torch.cat([cell_anchors(base, size, scales, ratios, rounded) for base in own])
        levels.append((centers[:, :, None] + cell.to(centers)).reshape(-1, 4))
        grids.append(
            Grid(
                (width, height),
                (center * across, center * down),
                (across, down),
                tuple(map(tuple, cell.tolist())),
            )
        )
    return GridAnchors(levels, grids)


def inside(anchors: Tensor, sizes: Tensor) -> Tensor:
    """[B, A]: whether the centre of each anchor [A, 4] lies in the image, of sizes [B, 2] = height, width."""
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(dim=1)
    return (x < sizes[:, 1:]) & (y < sizes[:, :1])
