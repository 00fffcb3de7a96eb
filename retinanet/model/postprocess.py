"""From predictions to answers (Sec. 4.1, "Inference"): threshold, the best of each level, decode, NMS."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import nms

from ..errors import unknown
from ..ops.anchors import inside
from ..ops.boxes import area, clip, decode

WORDS = {
    "padding_anchors": ("dropped", "kept"),
    "clip_boxes": ("before", "after"),
    "empty_boxes": ("kept", "dropped"),
}


class Postprocess:
    """Logits and offsets of B padded pictures -> boxes, scores and labels of each.

    score_threshold  scores must exceed this
    per_level        the best (anchor, class) pairs of each level that are decoded
    nms_threshold    IoU above which the lower of two boxes of one class goes
    max_detections   at most so many of a picture
    padding_anchors  dropped or kept: answers of anchors that are centred in the padding
    clip_boxes       before or after: when boxes are cut at the picture's border, seen from NMS
    empty_boxes      kept or dropped: boxes that the cut leaves without area
    shrink_limit     see `decode`
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        per_level: int = 1000,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        padding_anchors: str = "dropped",
        clip_boxes: str = "before",
        empty_boxes: str = "kept",
        shrink_limit: bool = False,
    ) -> None:
        chosen = {"padding_anchors": padding_anchors, "clip_boxes": clip_boxes, "empty_boxes": empty_boxes}
        for name, word in chosen.items():
            if word not in WORDS[name]:
                raise unknown(name, word, WORDS[name])
        self.padding_anchors, self.clip_boxes, self.empty_boxes = padding_anchors, clip_boxes, empty_boxes
        self.shrink_limit = shrink_limit
        self.score_threshold = score_threshold
        self.per_level = per_level
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        # logits are compared, not probabilities: the sigmoid is computed for the survivors only
        self.logit_threshold = math.log(score_threshold / (1 - score_threshold)) if score_threshold > 0 else -math.inf

    @torch.no_grad()
    def __call__(
        self, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Per picture boxes [N, 4], scores [N] and labels [N], best first; boxes in pixels of the batch, cut at the picture's border.

        logits   per level [B, HWA, K]
        offsets  per level [B, HWA, 4]
        anchors  per level [HWA, 4]
        sizes    [B, 2] height and width of each picture inside the batch
        """
        return self.suppress(*self.candidates(logits, offsets, anchors, sizes), sizes)

    @torch.no_grad()
    def candidates(
        self, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of all levels: boxes [B, P, 4] in pixels of the batch, logits [B, P], labels [B, P]. Arguments as above."""
        levels = [self._candidates(*level, sizes) for level in zip(logits, offsets, anchors, strict=True)]
        x, labels, boxes = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        return clip(boxes, sizes) if self.clip_boxes == "before" else boxes, x, labels

    @torch.no_grad()
    def suppress(self, boxes: Tensor, x: Tensor, labels: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Candidates -> per picture what a call returns; boxes and sizes [B, 2] may be in any pixels, as long as they are in the same."""
        return [self._suppress(*picture) for picture in zip(boxes, x, labels, sizes, strict=True)]

    def _candidates(self, logits: Tensor, offsets: Tensor, anchors: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of one level: logits [B, P], labels [B, P], boxes [B, P, 4]. No Python loop over pictures or classes."""
        _, count, classes = logits.shape
        best = logits.amax(dim=2).float()
        if self.padding_anchors == "dropped":
            best = best.masked_fill(~inside(anchors, sizes), -torch.inf)
        # every pair among the best P has its anchor among the best P anchors, by best class
        _, kept = best.topk(min(self.per_level, count), dim=1)
        pairs = logits.gather(1, kept[..., None].expand(-1, -1, classes)).float()
        pairs = pairs.masked_fill(best.gather(1, kept)[..., None] == -torch.inf, -torch.inf).flatten(1)
        x, index = pairs.topk(min(self.per_level, pairs.shape[1]), dim=1)
        anchor = kept.gather(1, index // classes)
        chosen = offsets.gather(1, anchor[..., None].expand(-1, -1, 4))
        return x, index % classes, decode(chosen, anchors[anchor], self.shrink_limit)

    def _suppress(self, boxes: Tensor, x: Tensor, labels: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """NMS for one picture of `size` [2] = height, width. In the original's pixels overlaps are the same: areas keep their ratios."""
        alive = (x > self.logit_threshold) & boxes.isfinite().all(dim=1)
        if self.clip_boxes == "before" and self.empty_boxes == "dropped":
            alive &= area(boxes) > 0
        boxes, x, labels = boxes[alive], x[alive], labels[alive]
        # classes are kept apart by shifts in float64: in float32 the shift eats the fraction of a pixel and changes 4 % of the decisions
        shift = labels.double() * (boxes.max().double() - boxes.min() + 1 if len(boxes) else 1)
        kept = nms(boxes.double() + shift[:, None], x.double(), self.nms_threshold)[: self.max_detections]
        if self.clip_boxes == "after":
            boxes = clip(boxes[None], size[None])[0]
            if self.empty_boxes == "dropped":
                kept = kept[area(boxes[kept]) > 0]
        return boxes[kept], x[kept].sigmoid(), labels[kept]
