"""`assign` for a whole batch at once, without ever computing the IoU of most pairs."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from .anchors import Grid, GridAnchors
from .assign import BACKGROUND, IGNORE, assign
from .boxes import iou

ROUNDING = 2.0**-19
"""More than the relative float32 error of an overlap, of a coordinate or a side of an anchor."""


@dataclass(frozen=True)
class Windows:
    """The S shapes of anchors of all levels, each on its grid, before any box is known. In pixels; [S, 2] is
    across, down.

    first, step, cells  [S, 2]  centre of the shape's first anchor, from one to the next, how many there are
    sides, areas        [S, 2], [S]  a little more than its sides, a little less than its area
    start, jump         [S], [S, 2]  index of the first anchor, and how much greater the next one's is
    reach, spans        [S, 2]  how far from a box's centre anchors can matter, and how many cells that takes,
                        at most
    shape, offset       [M]     each cell of such a window for each shape: its shape, and its index less that
                        of the window's first
    share               []      of the sum of the areas, the least intersection that matters
    slack               []      how far a centre may be from its place
    """

    first: Tensor
    step: Tensor
    cells: Tensor
    sides: Tensor
    areas: Tensor
    start: Tensor
    jump: Tensor
    reach: Tensor
    spans: Tensor
    shape: Tensor
    offset: Tensor
    share: Tensor
    slack: Tensor

    @property
    def most(self) -> int:
        """M: no box has more anchors that matter."""
        return len(self.shape)


@lru_cache(maxsize=64)
def windows(grids: tuple[Grid, ...], least: float, device: torch.device) -> Windows:
    """For overlaps of at least `least`. Cached, because a GPU would have to wait for the copy."""
    pairs = [(grid, shape) for grid in grids for shape in grid.shapes]
    firsts = accumulate((prod(grid.cells) * len(grid.shapes) for grid in grids), initial=0)
    start = torch.tensor(
        [first + row for first, grid in zip(firsts, grids, strict=False) for row in range(len(grid.shapes))]
    )
    jump = torch.tensor([(len(grid.shapes), len(grid.shapes) * grid.cells[0]) for grid, _ in pairs])
    cells = torch.tensor([grid.cells for grid, _ in pairs])
    step = torch.tensor([grid.step for grid, _ in pairs], dtype=torch.float64)
    first = torch.tensor([grid.first for grid, _ in pairs], dtype=torch.float64)
    corners = torch.tensor([shape for _, shape in pairs], dtype=torch.float64)
    slack = (first.abs().max() + (step * cells).max() + corners.abs().max()) * ROUNDING
    share = 1 / (1 + 1 / torch.tensor(least * (1 - ROUNDING), dtype=torch.float64))
    sides = corners[:, 2:] - corners[:, :2] + slack
    areas = (sides - 2 * slack).clamp(min=0).prod(dim=1)
    # the box that reaches furthest across is as high as the anchor and so wide that even concentric it only
    # just matters
    reach = (sides * (1 / share - 1 - (areas / sides.prod(dim=1))[:, None]) / 2).clamp(min=0) + slack
    spans = torch.minimum((2 * reach / step).floor().long() + 1, cells)
    shape, column, line = enumerate_windows(spans)
    offset = column * jump[shape, 0] + line * jump[shape, 1]
    first = first + (corners[:, :2] + corners[:, 2:]) / 2
    known = (first, step, cells, sides, areas, start, jump, reach, spans, shape, offset, share, slack)
    return Windows(*(one.to(device) for one in known))


def enumerate_windows(spans: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every cell of windows of spans [P, 2] columns and lines: its window, its column, its line [N]."""
    counts = spans.prod(dim=1)
    window = torch.repeat_interleave(counts)
    place = torch.arange(len(window)) - (counts.cumsum(0) - counts)[window]
    width = spans[:, 0][window]
    line = place // width
    return window, place - line * width, line


def candidate_pairs_cpu(boxes: Tensor, near: Windows) -> tuple[Tensor, Tensor]:
    """The pairs of a box [G, 4] and an anchor that matter, and a few that do not: their indices [N].

    N depends on the boxes, so a GPU would wait for it.
    """
    boxes = boxes.double()
    sides, centers = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    lesser = torch.minimum(sides[:, None], near.sides)  # [G, S, 2]
    least = (sides.prod(dim=1)[:, None] + near.areas) * near.share  # [G, S]: the intersection
    possible = (lesser > 0).all(dim=2) & (least <= lesser.prod(dim=2))  # were they concentric
    box, shape = possible.nonzero(as_tuple=True)  # [P]
    reach = (sides[box] + near.sides[shape]) / 2 - least[possible][:, None] / lesser[possible].flip(1)
    reach += near.slack
    center, step = centers[box] - near.first[shape], near.step[shape]
    low = ((center - reach) / step).ceil().clamp(min=0)
    high = torch.minimum(((center + reach) / step).floor(), near.cells[shape] - 1)
    window, column, line = enumerate_windows((high - low + 1).clamp(min=0).long())
    jump = near.jump[shape]
    origin = near.start[shape] + (low.long() * jump).sum(dim=1)
    return box[window], origin[window] + column * jump[:, 0][window] + line * jump[:, 1][window]


def candidate_pairs_gpu(boxes: Tensor, near: Windows) -> tuple[Tensor, Tensor]:
    """As `candidate_pairs_cpu`, but always the M nearest anchors of a box, so that a GPU never waits."""
    boxes = boxes.double()
    centers = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    low = ((centers - near.first - near.reach) / near.step).ceil().long()
    low = torch.minimum(low.clamp(min=0), near.cells - near.spans)  # the window lies within the grid
    origin = near.start + (low * near.jump).sum(dim=2)  # [G, S]
    anchor = origin[:, near.shape] + near.offset
    box = torch.arange(len(boxes), device=boxes.device)[:, None].expand_as(anchor)
    return box.flatten(), anchor.flatten()


CANDIDATES = 1 << 20
"""`assign_near` compares at most so many pairs of a box and an anchor at a time, but all those of one box."""

LEAST = 1e-6
"""Below such an overlap a threshold keeps no anchor away."""

LOW = (1 << 32) - 1
"""The lower half of a key of `assign_near`."""


def assign_near(
    anchors: list[Tensor],
    boxes: Tensor,
    valid: Tensor | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    force_above: float | None = 0.4,
) -> Tensor:
    """The same as `assign`, bit for bit, from anchors [HWA, 4] per level; faster where they stand on grids.

    An overlap below both `negative` and `force_above` decides nothing, so a box is compared only with the
    anchors that may overlap it more (`Windows`). Memory is O(B A + CANDIDATES). Anchors without grids, and
    rules by which any overlap counts, go to `assign`.
    """
    flat = torch.cat(anchors)
    least = negative if force_above is None else min(negative, force_above)
    # mps has no float64
    if not isinstance(anchors, GridAnchors) or not least >= LEAST or flat.device.type == "mps":
        return assign(flat, boxes, valid, positive, negative, force_above)
    near = windows(anchors.grids, least, flat.device)
    find = candidate_pairs_cpu if flat.device.type == "cpu" else candidate_pairs_gpu
    batch, count = boxes.shape[:2]
    rows = boxes.reshape(-1, 4)
    # for each anchor the bits of its best IoU, which sort as the numbers do, and below them those of LOW - g:
    # of several boxes that reach the best the first has the greatest key
    keys = torch.zeros(batch * len(flat), dtype=torch.long, device=flat.device)
    forced = torch.zeros(len(keys) + 1, dtype=torch.bool, device=flat.device)  # the last is no anchor
    chunk = max(1, CANDIDATES // near.most)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        row = torch.arange(start, start + len(part), device=flat.device)
        box, anchor = find(part, near)
        overlap = iou(flat[anchor], part[box])
        place = anchor + (row // count * len(flat))[box]
        if valid is not None:
            overlap = overlap.masked_fill(~valid.flatten()[place], 0)
        key_of_pair = (overlap.view(torch.int32).long() << 32) + (LOW - row % count)[box]
        keys.scatter_reduce_(0, place, key_of_pair, "amax")
        if force_above is not None:  # all that can be a box's best is in this part
            top = overlap.new_zeros(len(part)).scatter_reduce_(0, box, overlap, "amax")
            best = (overlap == top[box]) & (overlap >= force_above)
            forced.index_fill_(0, torch.where(best, place, len(keys)), True)
    forced = forced[:-1]
    match = torch.where(forced | (keys >= key(positive)), LOW - (keys & LOW), IGNORE)
    match = torch.where(forced | (keys >= key(negative)), match, BACKGROUND).view(batch, len(flat))
    return match if valid is None else match.masked_fill(~valid, IGNORE)


def key(threshold: float) -> int:
    """The smallest that an IoU of at least `threshold` can have; both are compared in float32."""
    bits: int = struct.unpack("<i", struct.pack("<f", threshold))[0]
    return bits << 32
