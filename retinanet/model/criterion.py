"""From predictions and targets to losses (Sec. 3 and 4.1): it reads bf16 and computes in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..device import autocast
from ..errors import ConfigError, unknown_name_error
from ..ops import losses
from ..ops.anchors import inside
from ..ops.assign_fast import assign_near
from ..ops.boxes import decode, encode
from ..ops.fused import CLASS_LOSSES, anchor_losses, check_parameter_names, class_loss
from ..ops.mining import HARD, random_sample
from ..structures import Targets
from .preprocess import Preprocess

ASSIGNERS: dict[str, Callable[..., Tensor]] = {"iou": assign_near}
"""Name -> (anchors per level, boxes [B, G, 4], valid [B, A], positive, negative, force_above) -> for every
anchor of every image the index of its ground truth, or BACKGROUND, or IGNORE: [B, A]."""

NORMALIZERS = ("step", "image")

MINING = ("none", *HARD, "random")


@dataclass(frozen=True)
class Matched:
    """The target of every anchor."""

    labels: Tensor
    """[B, A] 0..K-1, BACKGROUND or IGNORE."""
    boxes: Tensor
    """[B, A, 4] the ground truth of a positive; elsewhere the anchor itself."""
    positives: Tensor
    """[B] number of positive anchors of each image, float32."""
    drawn: Tensor | None = None
    """[B, A] with random mining: whether the anchor is in the minibatch of its image."""

    def __getitem__(self, rows: slice) -> Matched:
        drawn = None if self.drawn is None else self.drawn[rows]
        return Matched(self.labels[rows], self.boxes[rows], self.positives[rows], drawn)


class Criterion:
    """Class loss over all anchors plus box loss over the positives, both divided by the number of positives.

    With mining the class loss is the mean over each image's minibatch, averaged over the images of the step,
    whatever `normalize` says. The paper is silent; Fast R-CNN and OHEM take means over the minibatch.

    Args:
        loss: A key of `ops.fused.CLASS_LOSSES`: cross_entropy, balanced (alpha), focal (alpha, gamma),
            focal_star (alpha, gamma, beta) or hinge (alpha, margin).
        alpha: Weight of the positives; 1 - alpha is that of the negatives. A number, one for each class [K],
            or None for 1 and 1.
        gamma: Focusing parameter (Eq. 4).
        beta: Shift of focal_star (Appendix A).
        margin: Probability of the truth above which the hinge loss is 0.
        mining: none (the class loss is over all anchors) or ohem, ohem-1:3, random (over a minibatch of each
            image; `ops.mining`).
        mining_batch: Number of anchors of a minibatch.
        mining_nms: IoU above which OHEM leaves out the easier of two anchors; None: never.
        box_loss: A key of `ops.losses.BOX_LOSSES`: smooth_l1 (the paper's) or l1, over offsets, or giou, over
            boxes.
        smooth_l1_beta: Offset difference below which smooth_l1 is quadratic.
        box_weight: Factor of the box loss.
        positive: IoU from which an anchor is positive.
        negative: IoU below which an anchor is background; between the two it is ignored.
        force_above: IoU from which a box's best anchor is positive in any case; None: never.
        normalize: step (divide by the positives of the whole step, at least 1) or image (divide each image by
            its own positives, as the paper's text says, and average).
        assigner: A key of `ASSIGNERS`.
        **parameters: Parameters of other class losses, by name.

    Raises:
        ConfigError: A name is unknown, or mining_batch is below 4.

    Example:
        >>> criterion = Criterion(loss="focal", alpha=0.25, gamma=2.0)
        >>> logits, offsets = model(images)
        >>> matched = criterion.match(model.anchors(images), targets)
    """

    def __init__(
        self,
        loss: str = "focal",
        alpha: float | Sequence[float] | None = 0.25,
        gamma: float = 2.0,
        beta: float = 1.0,
        margin: float = 0.5,
        mining: str = "none",
        mining_batch: int = 512,
        mining_nms: float | None = 0.7,
        box_loss: str = "smooth_l1",
        smooth_l1_beta: float = 1 / 9,
        box_weight: float = 1.0,
        positive: float = 0.5,
        negative: float = 0.4,
        force_above: float | None = 0.4,
        normalize: str = "step",
        assigner: str = "iou",
        **parameters: float,
    ) -> None:
        names: tuple[tuple[str, str, Iterable[str]], ...] = (
            ("class loss", loss, CLASS_LOSSES),
            ("mining", mining, MINING),
            ("box loss", box_loss, losses.BOX_LOSSES),
            ("assigner", assigner, ASSIGNERS),
            ("normalize", normalize, NORMALIZERS),
        )
        for kind, name, known in names:
            if name not in known:
                raise unknown_name_error(kind, name, known)
        if mining_batch < 4:
            raise ConfigError(
                f"mining_batch must be at least 4, a positive and three negatives, not {mining_batch}"
            )
        check_parameter_names(parameters)
        self.loss, self.gamma = loss, gamma
        self.loss_parameters = {"gamma": gamma, "beta": beta, "margin": margin, **parameters}
        self.mining, self.mining_batch, self.mining_nms = mining, mining_batch, mining_nms
        self.alpha = torch.tensor(alpha) if isinstance(alpha, Sequence) else alpha
        self.box_loss, self.box_weight = box_loss, box_weight
        self.box_space, self.compare_boxes = losses.BOX_LOSSES[box_loss]
        if box_loss == "smooth_l1":
            self.compare_boxes = partial(losses.smooth_l1, beta=smooth_l1_beta)
        self.assign = ASSIGNERS[assigner]
        self.positive, self.negative, self.force_above = positive, negative, force_above
        self.normalize = normalize

    @property
    def shared(self) -> tuple[str, ...]:
        """The losses that are divided by the positives of the whole step."""
        if self.normalize == "image":
            return ()
        return ("class_loss", "box_loss") if self.mining == "none" else ("box_loss",)

    @torch.no_grad()
    def match(self, anchors: list[Tensor], targets: Targets) -> Matched:
        """The target of every anchor, from the anchors [HWA, 4] of each level and the targets of B images."""
        flat = torch.cat(anchors)
        index = self.assign(
            anchors,
            targets.boxes,
            inside(flat, targets.sizes),
            self.positive,
            self.negative,
            self.force_above,
        )
        drawn = self._drawn(index, targets.seeds) if self.mining == "random" else None
        if targets.labels.shape[1] == 0:
            return Matched(
                index,
                flat.expand(len(targets), -1, -1),
                index.new_zeros(len(targets), dtype=torch.float32),
                drawn,
            )
        matched = index >= 0
        labels = torch.where(matched, targets.labels.gather(1, index.clamp(min=0)), index)
        # one copy of [B, A, 4] instead of two: rows of a table of all images' boxes, followed by the anchors
        batch, count = targets.labels.shape
        own = torch.arange(batch * count, batch * count + len(flat), device=flat.device)
        row = torch.where(matched, index + torch.arange(batch, device=flat.device)[:, None] * count, own)
        boxes = (
            torch.cat([targets.boxes.flatten(0, 1), flat])
            .index_select(0, row.flatten())
            .unflatten(0, row.shape)
        )
        return Matched(labels, boxes, matched.sum(dim=1).float(), drawn)

    def __call__(
        self,
        logits: list[Tensor],
        offsets: list[Tensor],
        anchors: list[Tensor],
        matched: Matched,
        normalizer: Tensor | None = None,
        images: int | None = None,
    ) -> dict[str, Tensor]:
        """{"class_loss", "box_loss"}, float32 numbers: the sums over the levels of `per_level`."""
        return sum_levels(self.per_level(logits, offsets, anchors, matched, normalizer, images))

    def per_level(
        self,
        logits: list[Tensor],
        offsets: list[Tensor],
        anchors: list[Tensor],
        matched: Matched,
        normalizer: Tensor | None = None,
        images: int | None = None,
    ) -> dict[str, list[Tensor]]:
        """The class loss and the box loss of each pyramid level, as float32 numbers.

        Args:
            logits: Per level [B, HWA, K].
            offsets: Per level [B, HWA, 4].
            anchors: Per level [HWA, 4].
            matched: The result of `match` for the same images.
            normalizer: Number of positives of the whole step, when these images are a part of it.
            images: Number of images of the whole step, likewise.
        """
        batch = len(matched.positives)
        if self.normalize == "image":
            weights = 1 / (matched.positives.clamp(min=1) * (images or batch))  # [B]
        else:
            total = matched.positives.sum() if normalizer is None else normalizer
            weights = (1 / total.clamp(min=1)).expand(batch)
        counts = [level.shape[1] for level in logits]
        labels = matched.labels.split(counts, dim=1)
        boxes = matched.boxes.split(counts, dim=1)
        if self.mining == "none":
            class_losses = [
                self._class_loss(x, label, weights) for x, label in zip(logits, labels, strict=True)
            ]
        else:
            chosen = self._minibatches(logits, anchors, matched)
            means = 1 / (chosen.sum(dim=1).clamp(min=1) * (images or batch))  # [B]
            parts = zip(logits, labels, chosen.split(counts, dim=1), strict=True)
            class_losses = [
                self._by_image(select_per_image(x, which), select_per_image(label, which), means)
                for x, label, which in parts
            ]
        return {
            "class_loss": class_losses,
            "box_loss": [
                self._box_loss(level, anchor, box, label, weights) * self.box_weight
                for level, anchor, box, label in zip(offsets, anchors, boxes, labels, strict=True)
            ],
        }

    def _class_loss(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Over all anchors of a level: logits [B, HWA, K], labels [B, HWA], weights [B]."""
        if self.normalize == "step":  # one weight for all: one pass over the level
            alpha = self._alpha(logits.device)
            return class_loss(logits, labels, self.loss, alpha, **self.loss_parameters) * weights[0]
        return self._by_image(logits, labels, weights)

    def _alpha(self, device: torch.device) -> float | Tensor | None:
        if isinstance(self.alpha, Tensor):
            self.alpha = self.alpha.to(device)  # once: a copy to a GPU makes the step wait
        return self.alpha

    def _by_image(self, logits: Iterable[Tensor], labels: Iterable[Tensor], weights: Tensor) -> Tensor:
        """Over some anchors of each image: logits B x [n, K], labels B x [n], weights [B]."""
        alpha = self._alpha(weights.device)
        parts = [
            class_loss(x, label, self.loss, alpha, **self.loss_parameters) * weight
            for x, label, weight in zip(logits, labels, weights, strict=True)
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def _minibatches(self, logits: list[Tensor], anchors: list[Tensor], matched: Matched) -> Tensor:
        """[B, A]: which anchors the class loss is over."""
        if self.mining == "random":
            assert matched.drawn is not None, "matched by another criterion"
            return matched.drawn
        labels = matched.labels.split([level.shape[1] for level in logits], dim=1)
        alpha = self._alpha(logits[0].device)
        scores = torch.cat(
            [
                anchor_losses(x, label, self.loss, alpha, **self.loss_parameters)
                for x, label in zip(logits, labels, strict=True)
            ],
            dim=1,
        )
        flat, chosen = torch.cat(anchors), torch.zeros_like(matched.labels, dtype=torch.bool)
        for row, score, label in zip(chosen, scores, matched.labels, strict=True):
            row[HARD[self.mining](score, label, flat, self.mining_batch, self.mining_nms)] = True
        return chosen

    def _drawn(self, labels: Tensor, seeds: Tensor | None) -> Tensor:
        """[B, A]: the random minibatch of each image. Its seed alone decides it, whatever the batch."""
        chosen = torch.zeros_like(labels, dtype=torch.bool)
        for image, (row, label) in enumerate(zip(chosen, labels, strict=True)):
            generator = None if seeds is None else torch.Generator().manual_seed(int(seeds[image]))
            row[random_sample(label, self.mining_batch, generator)] = True
        return chosen

    def _box_loss(
        self, offsets: Tensor, anchors: Tensor, boxes: Tensor, labels: Tensor, weights: Tensor
    ) -> Tensor:
        positive = (labels >= 0)[..., None]
        # `where` on the inputs, not on the loss: unmatched offsets may be anything, and 0 x inf is NaN
        offsets = torch.where(positive, losses.at_least_float32(offsets), 0)
        if self.box_space == "boxes":
            loss = self.compare_boxes(decode(offsets, anchors), boxes)
        else:
            loss = self.compare_boxes(offsets, encode(boxes, anchors))
        if loss.dim() == offsets.dim():  # a loss for each of the four numbers
            loss = loss.sum(dim=-1)
        return (torch.where(positive[..., 0], loss, 0).sum(dim=1) * weights).sum()


def select_per_image(values: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
    """The `chosen` [B, N] rows of values [B, N, ...], by image. One gather: its gradient has full size."""
    parts: tuple[Tensor, ...] = values[chosen].split(chosen.sum(dim=1).tolist())
    return parts


class Scored(NamedTuple):
    """What `forward_losses` found.

    logits, offsets  per level [B, HWA, K] and [B, HWA, 4]
    images           [B, 3, H, W] as the network saw them
    matched          what every anchor should say
    levels           {"class_loss", "box_loss"}: a number for each pyramid level
    """

    logits: list[Tensor]
    offsets: list[Tensor]
    images: Tensor
    matched: Matched
    levels: dict[str, list[Tensor]]


def forward_losses(
    network: Callable[[Tensor], tuple[list[Tensor], list[Tensor]]],
    criterion: Criterion,
    images: Tensor,
    targets: Targets,
    *,
    anchors: list[Tensor],
    preprocess: Preprocess,
    precision: str,
    matched: Matched | None = None,
    normalizer: Tensor | None = None,
    count: int | None = None,
) -> Scored:
    """Normalise images, predict, match and score: all that stands between a batch and its losses.

    network            normalised images -> logits and offsets; the model, compiled or distributed or not
    images             [B, 3, H, W] RGB of 0..255, padded, on the device of the network
    anchors            of the model for these images
    precision          of the forward pass: bf16 or fp32
    matched            where the images are matched already; None: they are matched here
    normalizer, count  see `Criterion.per_level`
    """
    matched = criterion.match(anchors, targets) if matched is None else matched
    normalized = preprocess.normalize(images, targets.sizes)
    with autocast(precision, images.device):
        logits, offsets = network(normalized)
    levels = criterion.per_level(logits, offsets, anchors, matched, normalizer, count)
    return Scored(logits, offsets, normalized, matched, levels)


def sum_levels(levels: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """Add the losses of all levels, from the first to the last, so that the bits are always the same."""
    return {name: sum(values[1:], start=values[0]) for name, values in levels.items()}
