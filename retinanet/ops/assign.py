"""Which anchor answers for which object (Sec. 4, "Anchors")."""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from .anchors import GridAnchors
from .boxes import iou
from .windows import around, found, windows

BACKGROUND = -1
IGNORE = -2
CANDIDATES = 1 << 20
"""`assign_near` compares so many pairs of a box and an anchor at a time, at most (but with as many anchors as
one box needs).
"""
LEAST = 1e-6
"""Below such an overlap a threshold keeps no anchor away."""
LOW = (1 << 32) - 1
"""The lower half of a key of `assign_near`."""


def assign(
    anchors: Tensor,
    boxes: Tensor,
    valid: Tensor | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    force_above: float | None = 0.4,
) -> Tensor:
    """For every anchor of every picture the index of its ground truth, or BACKGROUND, or IGNORE.

    anchors      [A, 4]
    boxes        [B, G, 4]  padding rows have no area: they overlap nothing and are never matched
    valid        [B, A]     false where the anchor lies outside the picture: IGNORE
    positive     IoU >= positive: the anchor is matched with the box it overlaps most
    negative     IoU < negative: background; what lies between is ignored
    force_above  a box's best anchors (all that tie) become positive when their IoU is at least this: 0.4 is
                 Detectron's rule,
                 0 forces at any overlap, None never forces. A forced anchor still answers for the box that it
                 overlaps most.
    returns      [B, A] int64

    An IoU of 0 never matches. Elsewhere one box that touches no anchor makes every anchor a positive: all tie
    at its best IoU, 0.
    Ground truths are streamed, so memory is O(B A) whatever G is; no [A, G] matrix exists.
    """
    batch, count = boxes.shape[:2]
    best = anchors.new_zeros(batch, len(anchors))
    match = torch.zeros(batch, len(anchors), dtype=torch.long, device=anchors.device)
    forced = torch.zeros_like(match, dtype=torch.bool)
    for g in range(count):
        overlap = iou(anchors[None], boxes[:, g, None])  # [B, A]
        if valid is not None:
            overlap = overlap.masked_fill(~valid, 0)
        closer = overlap > best
        best = torch.where(closer, overlap, best)
        match.masked_fill_(closer, g)
        if force_above is not None:
            top = overlap.amax(dim=1, keepdim=True)
            forced |= (overlap == top) & (top >= force_above) & (top > 0)
    match = torch.where(forced | (best >= positive), match, IGNORE)
    match = torch.where(~forced & (best < negative), BACKGROUND, match)
    return match if valid is None else match.masked_fill(~valid, IGNORE)


def assign_near(
    anchors: list[Tensor],
    boxes: Tensor,
    valid: Tensor | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    force_above: float | None = 0.4,
) -> Tensor:
    """What `assign` says, bit for bit, but given per level anchors [HWA, 4], and sooner where they stand on
    grids.

    An overlap below both `negative` and `force_above` decides nothing, so a box is compared only with the
    anchors that may overlap it
    more (`ops.windows`). Memory is O(B A + CANDIDATES). Anchors without grids, and rules by which any overlap
    counts, go to `assign`.
    """
    flat = torch.cat(anchors)
    least = negative if force_above is None else min(negative, force_above)
    if (
        not isinstance(anchors, GridAnchors) or not least >= LEAST or flat.device.type == "mps"
    ):  # which has no float64
        return assign(flat, boxes, valid, positive, negative, force_above)
    near = windows(anchors.grids, least, flat.device)
    find = found if flat.device.type == "cpu" else around
    batch, count = boxes.shape[:2]
    rows = boxes.reshape(-1, 4)
    # for each anchor the bits of its best IoU, which sort as the numbers do, and below them those of LOW - g:
    # of several boxes that reach the best the first has the greatest key
    keys = torch.zeros(batch * len(flat), dtype=torch.long, device=flat.device)
    forced = torch.zeros(len(keys) + 1, dtype=torch.bool, device=flat.device)  # the last is nobody
    chunk = max(1, CANDIDATES // near.most)
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk]
        row = torch.arange(start, start + len(part), device=flat.device)
        box, anchor = find(part, near)
        overlap = iou(flat[anchor], part[box])
        place = anchor + (row // count * len(flat))[box]
        if valid is not None:
            overlap = overlap.masked_fill(~valid.flatten()[place], 0)
        keys.scatter_reduce_(
            0, place, (overlap.view(torch.int32).long() << 32) + (LOW - row % count)[box], "amax"
        )
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
