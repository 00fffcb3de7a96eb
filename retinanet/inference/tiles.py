"""Large images in tiles: small objects are detected at the size at which the detector knows them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..ops.boxes import iou
from ..ops.nms import exact_nms
from ..structures import Detections

if TYPE_CHECKING:
    from .detector import Detector

TileBox = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of an image, in its pixels."""

SIZES = (32, 1 << 16)

OVERLAP = 0.25

SLACK = 0.1
"""A box is cut where it comes this near to a seam, as a fraction of its own side."""

SMALL = 1 / 6
"""Fraction of the tile side. Smaller objects are taken from tiles only; larger ones also from the whole
image, where their size may be known better."""

EQUAL = 0.5
"""What enlarges a box has at least this fraction of its score: weak boxes are around every object."""

INF = math.inf

OPEN = torch.tensor([-INF, -INF, INF, INF])
"""The lines of a box that no seam cuts."""


def in_tiles(detector: Detector, size: int | None, overlap: float = OVERLAP) -> Detector:
    """A copy of the detector that runs on tiles of large images; the detector itself when `size` is None.

    size     side of a tile in pixels of the image: each is resized as if it were an image, so small tiles
             enlarge objects
    overlap  the fraction of a tile that the next one shares: an object up to this part of a tile is whole in
             one of them

    An image no larger than a tile is detected as ever. A larger one is detected in tiles of one size, evenly
    spread, and once more as a whole, for the objects that are too large for a tile. See `Tiling.merge`.
    """
    if size is None:
        return detector
    check_tiles(size, overlap, len(detector.scales))
    tiled = copy.copy(detector)
    tiled.tiling = Tiling(size, overlap)
    return tiled


def check_tiles(size: int | None, overlap: float, scales: int = 1) -> None:
    """ConfigError for tiles that cannot be meant; `scales`: at how many the detector runs."""
    if size is None:
        if overlap != OVERLAP:
            raise ConfigError(f"--overlap {overlap:g} is that of tiles: say how large these are with --tiles")
        return
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(f"tiles must have a side of {SIZES[0]} to {SIZES[1]} pixels, not {size}")
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap must be a share of a tile, from 0 to below 1, not {overlap:g}")
    if scales > 1:
        raise ConfigError("either tiles or several scales, not both: tiles are detected at one --scale")


class Tiling(NamedTuple):
    """How images are cut into tiles, and the detections of the tiles merged."""

    size: int
    overlap: float = OVERLAP

    def grid(self, height: int, width: int) -> list[TileBox]:
        """The whole image, then its tiles, row by row; the whole alone when it is no larger than a tile."""
        size = self.size
        rows, columns = tile_offsets(height, *self), tile_offsets(width, *self)
        tiles = [(x, y, min(x + size, width), min(y + size, height)) for y in rows for x in columns]
        return [(0, 0, width, height), *(tiles if len(tiles) > 1 else [])]

    def merge(
        self,
        places: Sequence[TileBox],
        found: Sequence[Detections],
        image_size: tuple[int, int],
        threshold: float,
    ) -> Detections:
        """The detections of all parts of an image as one: every object once, and whole.

        places      where the parts lie; the whole image may be among them
        found       the detections of each part, in its own pixels
        image_size  height and width of the image
        threshold   IoU above which two boxes of one class are one object

        1. A box that a seam cuts is dropped where another tile sees all of it: that tile decides, also if it
           finds nothing. So is a small box that comes from the whole image. This settles every object that is
           smaller than the overlap.
        2. Pieces of one object, each cut where the other goes on, become one box with the best of their
           scores. See `stitch`.
        3. Pieces that stay alone are dropped if a whole box of the object has half their score.
        4. Non-maximum suppression within each class.

        All that is left is kept: there may be `max_detections` of every part.
        """
        pieces = self._pieces(places, found, image_size)
        cut = (pieces.lines != OPEN).any(dim=1)
        whole = suppressed(pieces.at(~cut), threshold)
        rest = stitch(pieces.at(cut), threshold)
        rest = rest.at(~explained(rest, whole, threshold))
        kept = Pieces(*map(torch.cat, zip(whole, rest, strict=True)))
        kept = suppressed(kept.at(kept.order.argsort()), threshold)
        return Detections(kept.boxes, kept.scores, kept.labels, found[0].names)

    def _pieces(
        self, places: Sequence[TileBox], found: Sequence[Detections], image_size: tuple[int, int]
    ) -> Pieces:
        """All boxes in pixels of the image, best first, but for those that step 1 of `merge` drops."""
        height, width = image_size
        boxes, scores, labels = (
            torch.cat([getattr(one, name) for one in found]) for name in ("boxes", "scores", "labels")
        )
        counts = torch.tensor([len(one) for one in found])
        own = torch.tensor(places).repeat_interleave(counts, dim=0).to(boxes)  # [N, 4] the part of each box
        boxes = boxes + own[:, [0, 1, 0, 1]]
        lines, elsewhere = [], torch.ones(len(boxes), dtype=torch.bool)
        for axis, side in ((0, width), (1, height)):
            lines.append(cut_lines(boxes[:, axis::2], own[:, axis::2], side))
            first = torch.tensor(tile_offsets(side, *self), dtype=boxes.dtype)
            tiles = torch.stack([first, (first + self.size).clamp(max=side)], dim=1)
            seams = cut_lines(boxes[:, None, axis::2], tiles, side)  # [N, T, 2]
            elsewhere &= (seams == OPEN[[0, 2]]).all(dim=2).any(dim=1)
        pieces = Pieces(boxes, scores, labels, torch.stack(lines, dim=2).flatten(1), torch.arange(len(boxes)))
        coarse = (own == torch.tensor([0, 0, width, height])).all(dim=1) & (len(places) > 1)
        small = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) < SMALL * self.size
        dropped = elsewhere & ((pieces.lines != OPEN).any(dim=1) | coarse & small)
        order = scores.argsort(descending=True, stable=True)
        order = order[~dropped[order]]
        return pieces.at(order)._replace(order=torch.arange(len(order)))


class Pieces(NamedTuple):
    """Boxes of an image, some of which a seam cuts; best first."""

    boxes: Tensor
    """[N, 4] xyxy in pixels of the image."""
    scores: Tensor
    """[N]"""
    labels: Tensor
    """[N]"""
    lines: Tensor
    """[N, 4] the seams that cut each box, like its sides; -inf and inf where none does."""
    order: Tensor
    """[N] position among all boxes of the image, best first."""

    def at(self, index: Tensor) -> Pieces:
        """Those at a mask or at positions."""
        return Pieces(*(column[index] for column in self))


def tile_offsets(length: int, size: int, overlap: float = OVERLAP) -> list[int]:
    """Where tiles begin along a side: evenly spread, neighbours share `overlap` of a tile or more."""
    if length <= size:
        return [0]
    step = max(1, size - math.ceil(size * overlap))
    gaps = math.ceil((length - size) / step)
    return [number * (length - size) // gaps for number in range(gaps + 1)]


def cut_lines(sides: Tensor, tiles: Tensor, length: int) -> Tensor:
    """The seams that cut boxes, along one axis of an image of this length: [..., 2], or -inf and inf.

    sides  [..., 2] begin and end of boxes
    tiles  [..., 2] begin and end of tiles. The image's own borders are no seams.
    """
    slack = SLACK * (sides[..., 1] - sides[..., 0])
    low = (tiles[..., 0] > 0) & (sides[..., 0] - tiles[..., 0] <= slack)
    high = (tiles[..., 1] < length) & (tiles[..., 1] - sides[..., 1] <= slack)
    return torch.stack([torch.where(low, tiles[..., 0], -INF), torch.where(high, tiles[..., 1], INF)], dim=-1)


def suppressed(pieces: Pieces, threshold: float) -> Pieces:
    """What non-maximum suppression within each class leaves."""
    return pieces.at(exact_nms(pieces.boxes, pieces.labels, threshold, len(pieces.boxes)))


def same_object(piece: Pieces, others: Pieces, threshold: float) -> Tensor:
    """[N] whether a piece (of shapes [4], []) and others [N] show one object: by the IoU of their boxes, each
    cut where its tile has cut the other.

    For boxes that no seam cuts, whose `lines` are OPEN, this is the condition of NMS.
    """
    return iou(_cut(piece.boxes, others.lines), _cut(others.boxes, piece.lines)) > threshold


def _cut(boxes: Tensor, lines: Tensor) -> Tensor:
    low, high = torch.maximum(boxes[..., :2], lines[..., :2]), torch.minimum(boxes[..., 2:], lines[..., 2:])
    return torch.cat([low, high], dim=-1)


def stitch(pieces: Pieces, threshold: float) -> Pieces:
    """Pieces of objects -> a box for each object, with the lines that still cut it.

    Each piece in turn takes its cut sides from the best piece of the same object that goes on there. The
    other pieces of the object are dropped.
    """
    pieces = pieces._replace(boxes=pieces.boxes.clone(), lines=pieces.lines.clone())
    alive = torch.ones(len(pieces.boxes), dtype=torch.bool)
    for number in range(len(alive)):
        if not alive[number]:
            continue
        piece = Pieces(*(column[number] for column in pieces))  # views: what changes below changes here
        others = alive & (pieces.labels == piece.labels)
        others[: number + 1] = False
        same = others & same_object(piece, pieces, threshold)
        while grown := _longer(piece, same & (pieces.scores >= EQUAL * piece.scores), pieces.lines):
            side, other = grown
            piece.boxes[side], piece.lines[side] = pieces.boxes[other, side], pieces.lines[other, side]
            same |= others & same_object(piece, pieces, threshold)
        alive &= ~same
    return pieces.at(alive)


def _longer(piece: Pieces, others: Tensor, lines: Tensor) -> tuple[int, int] | None:
    """A side at which a piece is cut, and the first of the `others` [N] that goes on there, or None."""
    low, high = lines[:, :2] < piece.lines[:2], lines[:, 2:] > piece.lines[2:]
    further = torch.cat([low, high], dim=1) & others[:, None]
    for side in range(4):
        if further[:, side].any():
            return side, int(further[:, side].nonzero()[0])
    return None


def explained(pieces: Pieces, whole: Pieces, threshold: float) -> Tensor:
    """[N] whether a piece that a seam still cuts belongs to an object that has a whole box."""
    found = torch.zeros(len(pieces.boxes), dtype=torch.bool)
    for number in (pieces.lines != OPEN).any(dim=1).nonzero()[:, 0].tolist():
        piece = Pieces(*(column[number] for column in pieces))
        rivals = (whole.labels == piece.labels) & (whole.scores >= EQUAL * piece.scores)
        found[number] = same_object(piece, whole.at(rivals), threshold).any()
    return found
