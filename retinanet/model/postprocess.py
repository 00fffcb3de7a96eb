"""From predictions to detections (Sec. 4.1, "Inference"): threshold, the best of each level, decode, NMS."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import unknown_name_error
from ..ops.anchors import inside
from ..ops.boxes import area, clip, decode
from ..ops.nms import exact_nms

WORDS = {"clip_boxes": ("before", "after"), "empty_boxes": ("kept", "dropped")}

CHUNK = 16384  # anchors


class Postprocess:
    """Turns the logits and offsets of B padded images into boxes, scores and labels (Sec. 4.1, "Inference").

    Args:
        score_threshold: Scores must exceed this.
        topk_candidates: Number of best (anchor, class) pairs of each level that are decoded.
        nms_threshold: IoU above which the lower of two boxes of one class is removed.
        max_detections: Largest number of detections of an image.
        filter_padding: Drop detections of anchors that are centred in the padding.
        clip_boxes: before or after; whether boxes are cut at the image border before or after NMS.
        empty_boxes: kept or dropped; boxes that the cut leaves without area.
        clip_dwh_below: See `ops.boxes.decode`.

    Raises:
        ConfigError: An unknown word for clip_boxes or empty_boxes.

    Example:
        >>> postprocess = Postprocess(score_threshold=0.05, nms_threshold=0.5)
        >>> logits, offsets = model(images)
        >>> boxes, scores, labels = postprocess(logits, offsets, model.anchors(images), sizes)[0]
    """

    def __init__(
        self,
        score_threshold: float = 0.05,
        topk_candidates: int = 1000,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        filter_padding: bool = True,
        clip_boxes: str = "before",
        empty_boxes: str = "kept",
        clip_dwh_below: bool = False,
    ) -> None:
        chosen = {"clip_boxes": clip_boxes, "empty_boxes": empty_boxes}
        for name, word in chosen.items():
            if word not in WORDS[name]:
                raise unknown_name_error(name, word, WORDS[name])
        self.filter_padding, self.clip_boxes, self.empty_boxes = filter_padding, clip_boxes, empty_boxes
        self.clip_dwh_below = clip_dwh_below
        self.score_threshold = score_threshold
        self.topk_candidates = topk_candidates
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        # logits are compared, not probabilities: the sigmoid is computed for the survivors only
        self.logit_threshold = (
            math.log(score_threshold / (1 - score_threshold)) if score_threshold > 0 else -math.inf
        )

    @torch.no_grad()
    def __call__(
        self, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """For each image boxes [N, 4], scores [N] and labels [N], best first.

        Boxes are in pixels of the batch, cut at the border of the image.

        Args:
            logits: Per level [B, HWA, K].
            offsets: Per level [B, HWA, 4].
            anchors: Per level [HWA, 4].
            sizes: [B, 2] height and width of each image inside the batch.
        """
        return self.suppress(*self.candidates(logits, offsets, anchors, sizes), sizes)

    @torch.no_grad()
    def candidates(
        self, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of all levels: boxes [B, P, 4] in pixels of the batch, logits and labels [B, P]."""
        levels = [self._candidates(*level, sizes) for level in zip(logits, offsets, anchors, strict=True)]
        x, labels, chosen, bases = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
        boxes = decode(chosen, bases, self.clip_dwh_below)
        return clip(boxes, sizes) if self.clip_boxes == "before" else boxes, x, labels

    @torch.no_grad()
    def suppress(
        self, boxes: Tensor, logits: Tensor, labels: Tensor, sizes: Tensor
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Candidates -> detections of each image; boxes and sizes [B, 2] are in the same pixels."""
        alive = (logits > self.logit_threshold) & boxes.isfinite().all(dim=2)
        if self.clip_boxes == "before" and self.empty_boxes == "dropped":
            alive &= area(boxes) > 0
        # of equal scores the first counts as the higher; dropped candidates come last
        logits, order = logits.masked_fill(~alive, -torch.inf).sort(dim=1, descending=True, stable=True)
        boxes, labels = boxes.gather(1, order[..., None].expand(-1, -1, 4)), labels.gather(1, order)
        counts = alive.sum(dim=1).tolist()  # a GPU is waited for here, and in each NMS
        images = zip(boxes, logits, labels, sizes, counts, strict=True)
        return [self._suppress(boxes[:n], x[:n], labels[:n], size) for boxes, x, labels, size, n in images]

    def _candidates(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best pairs of a level: logits and labels [B, P], offsets and anchors [B, P, 4]."""
        _, count, classes = logits.shape
        best = best_class(logits)
        outside = padding(anchors, sizes) if self.filter_padding else None
        if outside is not None:
            best = best.masked_fill(outside, -torch.inf)
        # every pair among the best P has its anchor among the best P anchors, by best class
        best, kept = best.topk(min(self.topk_candidates, count), dim=1)
        pairs = rows(logits, kept).float()
        if outside is not None:
            pairs = pairs.masked_fill(best[..., None] == -torch.inf, -torch.inf)
        x, index = pairs.flatten(1).topk(min(self.topk_candidates, kept.shape[1] * classes), dim=1)
        anchor = kept.gather(1, index // classes)
        return x, index % classes, rows(offsets, anchor), anchors[anchor]

    def _suppress(
        self, boxes: Tensor, x: Tensor, labels: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """NMS and the limit for one image of `size` [2] = height, width."""
        kept = exact_nms(boxes, labels, self.nms_threshold, self.max_detections)
        boxes, x, labels = boxes[kept], x[kept], labels[kept]
        if self.clip_boxes == "after":
            boxes = clip(boxes[None], size[None])[0]
            if self.empty_boxes == "dropped":
                whole = area(boxes) > 0
                boxes, x, labels = boxes[whole], x[whole], labels[whole]
        return boxes, x.sigmoid(), labels


def best_class(logits: Tensor) -> Tensor:
    """[B, HWA, K] -> [B, HWA] float32: the highest logit of each anchor, in one pass."""
    if logits.dtype == torch.float32 or logits.device.type != "cpu":
        return logits.amax(dim=2).float()
    # on a CPU the maximum of bf16 numbers is slower than their conversion, as long as they stay in the cache
    parts = logits.split(max(CHUNK // max(len(logits), 1), 1), dim=1)
    return torch.cat([part.float().amax(dim=2) for part in parts], dim=1)


def padding(anchors: Tensor, sizes: Tensor) -> Tensor | None:
    """[B, HWA]: whether an anchor is centred in the padding; None if there is none."""
    if sizes.device.type == "cpu" and len(sizes) and inside(anchors, sizes.amin(dim=0, keepdim=True)).all():
        return None
    return ~inside(anchors, sizes)


def rows(values: Tensor, anchor: Tensor) -> Tensor:
    """The rows of values [B, HWA, N] of the anchors [B, P]: [B, P, N]. Several times faster than gather."""
    first = torch.arange(values.shape[0], device=anchor.device)[:, None] * values.shape[1]
    found: Tensor = values.flatten(0, 1).index_select(0, (first + anchor).flatten())
    return found.view(*anchor.shape, values.shape[2])
