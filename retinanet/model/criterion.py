"""From predictions and targets to losses (Sec. 3 and 4.1). The fp32 island: it reads bf16 and computes in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import unknown
from ..ops import losses
from ..ops.anchors import inside
from ..ops.assign import BACKGROUND, IGNORE, assign
from ..ops.boxes import decode, encode
from ..ops.fused import LOSSES, class_loss
from ..structures import Targets

BOX_LOSSES = ("smooth_l1", "l1", "giou")
NORMALIZERS = ("step", "image")


@dataclass(frozen=True)
class Matched:
    """What every anchor should say.

    labels     [B, A]     0..K-1, BACKGROUND or IGNORE
    boxes      [B, A, 4]  the ground truth of each positive; the anchor itself elsewhere
    positives  [B]        positive anchors of each picture, float32
    """

    labels: Tensor
    boxes: Tensor
    positives: Tensor

    def __getitem__(self, rows: slice) -> Matched:
        return Matched(self.labels[rows], self.boxes[rows], self.positives[rows])


class Criterion:
    """Class loss over all anchors plus box loss over the positives, both divided by the number of positives.

    loss            cross_entropy, balanced (alpha), focal (alpha, gamma), focal_star (alpha, gamma, beta)
    alpha           weight of the positives: a number, one for each class [K], or None for 1 and 1
    box_loss        smooth_l1 (over offsets; the paper's), l1 (over offsets) or giou (over boxes), times box_weight
    positive, negative, force_above   see `ops.assign`
    normalize       step: by the positives of the whole step, at least 1; image: each picture by its own (the paper's text), averaged
    """

    def __init__(
        self,
        loss: str = "focal",
        alpha: float | Sequence[float] | None = 0.25,
        gamma: float = 2.0,
        beta: float = 1.0,
        box_loss: str = "smooth_l1",
        smooth_l1_beta: float = 1 / 9,
        box_weight: float = 1.0,
        positive: float = 0.5,
        negative: float = 0.4,
        force_above: float | None = 0.4,
        normalize: str = "step",
    ) -> None:
        for kind, name, known in (("class loss", loss, LOSSES), ("box loss", box_loss, BOX_LOSSES), ("normalize", normalize, NORMALIZERS)):
            if name not in known:
                raise unknown(kind, name, known)
        self.loss, self.gamma, self.beta = loss, gamma, beta
        self.alpha = torch.tensor(alpha) if isinstance(alpha, Sequence) else alpha
        self.box_loss, self.smooth_l1_beta, self.box_weight = box_loss, smooth_l1_beta, box_weight
        self.positive, self.negative, self.force_above = positive, negative, force_above
        self.normalize = normalize

    @torch.no_grad()
    def match(self, anchors: list[Tensor], targets: Targets) -> Matched:
        """Per level anchors [HWA, 4] and the targets of B pictures -> what every anchor should say."""
        flat = torch.cat(anchors)
        index = assign(flat, targets.boxes, inside(flat, targets.sizes), self.positive, self.negative, self.force_above)
        if targets.labels.shape[1] == 0:
            return Matched(index, flat.expand(len(targets), -1, -1), index.new_zeros(len(targets), dtype=torch.float32))
        matched = index >= 0
        safe = index.clamp(min=0)
        labels = torch.where(matched, targets.labels.gather(1, safe), index)
        boxes = targets.boxes.gather(1, safe[..., None].expand(-1, -1, 4))
        return Matched(labels, torch.where(matched[..., None], boxes, flat), matched.sum(dim=1).float())

    def __call__(
        self,
        logits: list[Tensor],
        offsets: list[Tensor],
        anchors: list[Tensor],
        matched: Matched,
        normalizer: Tensor | None = None,
        pictures: int | None = None,
    ) -> dict[str, Tensor]:
        """{"class_loss", "box_loss"}, float32 numbers: the sums over `per_level`, which takes the same."""
        parts = self.per_level(logits, offsets, anchors, matched, normalizer, pictures)
        # added from the first level to the last, always in the same order
        return {name: sum(levels[1:], start=levels[0]) for name, levels in parts.items()}

    def per_level(
        self,
        logits: list[Tensor],
        offsets: list[Tensor],
        anchors: list[Tensor],
        matched: Matched,
        normalizer: Tensor | None = None,
        pictures: int | None = None,
    ) -> dict[str, list[Tensor]]:
        """The class loss and the box loss of each pyramid level, as float32 numbers.

        logits      per level [B, HWA, K]
        offsets     per level [B, HWA, 4]
        anchors     per level [HWA, 4]
        matched     what `match` said about the same pictures
        normalizer  positives to divide by, and
        pictures    how many pictures there are, when these are but a part of a step: those of the whole step. None: those of these
        """
        batch = len(matched.positives)
        if self.normalize == "image":
            weights = 1 / (matched.positives.clamp(min=1) * (pictures or batch))  # [B]
        else:
            total = matched.positives.sum() if normalizer is None else normalizer
            weights = (1 / total.clamp(min=1)).expand(batch)
        counts = [level.shape[1] for level in logits]
        labels = matched.labels.split(counts, dim=1)
        boxes = matched.boxes.split(counts, dim=1)
        return {
            "class_loss": [self._class_loss(x, label, weights) for x, label in zip(logits, labels, strict=True)],
            "box_loss": [
                self._box_loss(level, anchor, box, label, weights) * self.box_weight
                for level, anchor, box, label in zip(offsets, anchors, boxes, labels, strict=True)
            ],
        }

    def _class_loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if isinstance(self.alpha, Tensor):
            self.alpha = self.alpha.to(logits.device)  # once: a copy to a GPU makes the step wait
        settings = (self.loss, self.alpha, self.gamma, self.beta)
        if self.normalize == "step":  # one weight for all: one pass over the level
            return class_loss(logits, labels, *settings) * weights[0]
        parts = [class_loss(x, label, *settings) * weight for x, label, weight in zip(logits, labels, weights, strict=True)]
        return torch.stack(parts).sum()

    def _box_loss(self, offsets: Tensor, anchors: Tensor, boxes: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        positive = (labels >= 0)[..., None]
        # `where` on the inputs, not on the loss: an unmatched anchor's offsets may be anything, and 0 x inf is NaN
        offsets = torch.where(positive, losses.wide(offsets), 0)
        if self.box_loss == "giou":
            loss = losses.giou_loss(decode(offsets, anchors), boxes)
        else:
            offset_loss: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
                "smooth_l1": lambda one, other: losses.smooth_l1(one, other, self.smooth_l1_beta),
                "l1": losses.l1,
            }
            loss = offset_loss[self.box_loss](offsets, encode(boxes, anchors)).sum(dim=-1)
        return (torch.where(positive[..., 0], loss, 0).sum(dim=1) * weights).sum()


__all__ = ["BACKGROUND", "BOX_LOSSES", "IGNORE", "NORMALIZERS", "Criterion", "Matched"]
