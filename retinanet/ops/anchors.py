"""The boxes that predictions start from (Sec. 4, "Anchors"): nine at every cell of five pyramid levels, or
all 45 at those of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDES = (8, 16, 32, 64, 128)
"""Pixels from cell to cell on P3..P7."""

PYRAMIDS: dict[str, dict[int, tuple[int, ...]]] = {
    "fpn": {stride: (stride,) for stride in STRIDES},
    "single": {32: STRIDES},
    "hierarchy": {stride: (stride,) for stride in STRIDES},
    "finest": {8: STRIDES},
}
"""Design of the pyramid (`model.pyramid`) -> the stride of each of its maps -> the strides by which its
anchors' base sides go.
"""

SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
"""Three octave steps for the side of an anchor."""

RATIOS = (0.5, 1.0, 2.0)
"""Height over width."""


@dataclass(frozen=True)
class Grid:
    """Where the anchors of a level stand: `cells` = columns, rows, the first of them centred at `first` = x,
    y, the next `step` = across,
    down further on; around each centre the same `shapes`, xyxy. Lengths in pixels.
    """

    cells: tuple[int, int]
    first: tuple[float, float]
    step: tuple[int, int]
    shapes: tuple[tuple[float, ...], ...]


class GridAnchors(list[Tensor]):
    """Per level the anchors [HWA, 4], a list as any other, and in `grids` the `Grid` of each, so that nobody
    has to look for neighbours.
    """

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
    """The S x R anchors of a cell whose centre is (0, 0): [S * R, 4], scales outermost; a base side is `size`
    x `stride` pixels.

    rounded  sides are cut to whole pixels and then corners rounded, as torchvision has it (its
             `_default_anchorgen` and
             `AnchorGenerator.generate_anchors`, in float32): 40.3 x 40.3 becomes 40 x 40
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
    picture: tuple[int, int] | None = None,
    bases: Sequence[Sequence[int]] | None = None,
) -> GridAnchors:
    """Per level the anchors [H * W * S * R, 4] of a map of (H, W) cells: rows, columns, scales, ratios.

    Cell (i, j) has its centre at ((j + center) x stride, (i + center) x stride) pixels.
    picture  height and width: cells then stand height // H and width // W pixels apart, which is less than
             the stride where a map
             was rounded up (torchvision's rule)
    bases    of each level the strides by which its base sides go, when it is not its own alone: that many
             times S * R anchors a cell,
             bases outermost
    """
    levels, grids = [], []
    for (height, width), stride, own in zip(
        shapes, strides, bases or [(stride,) for stride in strides], strict=True
    ):
        down, across = (stride, stride) if picture is None else (picture[0] // height, picture[1] // width)
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
    """Which anchors [A, 4] have their centre in the picture and not in its padding: [B, A], from sizes [B, 2]
    = height, width.
    """
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(dim=1)
    return (x < sizes[:, 1:]) & (y < sizes[:, :1])
