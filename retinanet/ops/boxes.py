"""Boxes: xyxy, absolute pixels, float32. Overlap, and the parameterisation that the network regresses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_RATIO = math.log(1000 / 16)
"""dw and dh are clamped here before exp (Detectron): a 16 px anchor becomes a box of 1000 px at most."""


def area(boxes: Tensor) -> Tensor:
    """[..., 4] -> [...]: width x height, 0 where a side is negative."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes [..., 4] that broadcast -> [...]; 0 where the union is empty."""
    corner = torch.maximum(one[..., :2], other[..., :2])
    sides = (torch.minimum(one[..., 2:], other[..., 2:]) - corner).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = area(one) + area(other) - overlap
    return torch.where(union > 0, overlap / torch.where(union > 0, union, 1), 0)


def giou(one: Tensor, other: Tensor, eps: float = 1e-7) -> Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of boxes [..., 4] that broadcast -> [...] in -1..1."""
    corner = torch.maximum(one[..., :2], other[..., :2])
    sides = (torch.minimum(one[..., 2:], other[..., 2:]) - corner).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = area(one) + area(other) - overlap
    hull = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    enclosing = hull[..., 0] * hull[..., 1]
    return overlap / (union + eps) - (enclosing - union) / (enclosing + eps)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets (dx, dy, dw, dh) from `anchors` [..., 4] to `boxes` [..., 4] (R-CNN). Inverse of `decode`."""
    sides = anchors[..., 2:] - anchors[..., :2]
    centers = anchors[..., :2] + sides / 2
    box_sides = boxes[..., 2:] - boxes[..., :2]
    box_centers = boxes[..., :2] + box_sides / 2
    return torch.cat([(box_centers - centers) / sides, torch.log(box_sides / sides)], dim=-1)


def decode(offsets: Tensor, anchors: Tensor, clip_dwh_below: bool = False) -> Tensor:
    """Boxes [..., 4] from offsets [..., 4] and anchors [..., 4], in float32 whatever the offsets are.

    clip_dwh_below  dw and dh are clamped from below too, as MMDetection has it
    """
    offsets = offsets if offsets.dtype == torch.float64 else offsets.float()
    sides = anchors[..., 2:] - anchors[..., :2]
    centers = anchors[..., :2] + sides / 2 + offsets[..., :2] * sides
    log_ratio = offsets[..., 2:].clamp(-MAX_LOG_RATIO if clip_dwh_below else None, MAX_LOG_RATIO)
    half = sides * torch.exp(log_ratio) / 2
    return torch.cat([centers - half, centers + half], dim=-1)


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] cut at the borders of their images; sizes [B, 2] = height, width."""
    limit = sizes.flip(-1).repeat(1, 2)[:, None]  # [B, 1, 4]: width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limit)
