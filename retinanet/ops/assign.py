"""Which anchor is matched with which object (Sec. 4, "Anchors")."""

from __future__ import annotations

import torch
from torch import Tensor

from .boxes import iou

BACKGROUND = -1

IGNORE = -2


def assign(
    anchors: Tensor,
    boxes: Tensor,
    valid: Tensor | None = None,
    positive: float = 0.5,
    negative: float = 0.4,
    force_above: float | None = 0.4,
) -> Tensor:
    """For every anchor of every image the index of its ground truth, or BACKGROUND, or IGNORE.

    anchors      [A, 4]
    boxes        [B, G, 4]  padding rows have no area: they overlap nothing and are never matched
    valid        [B, A]     false where the anchor lies outside the image: IGNORE
    positive     IoU >= positive: the anchor is matched with the box it overlaps most
    negative     IoU < negative: background; what lies between is ignored
    force_above  a box's best anchors (all that tie) become positive when their IoU is at least this: 0.4 is
                 Detectron's rule, 0 forces at any overlap, None never forces. A forced anchor is still
                 matched with the box that it overlaps most.
    returns      [B, A] int64

    An IoU of 0 never matches: all anchors tie at the best IoU, 0, of a box that touches none, and would
    become positives. The boxes are taken one by one, so memory is O(B A) whatever G is.
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
