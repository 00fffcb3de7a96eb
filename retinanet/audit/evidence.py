"""What a model's predictions show about each annotated box, and about each place without one.

`suspects` makes scores of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

from ..data.dataset import Integers
from ..ops.boxes import area, iou

LOWEST = 0.02
"""Predictions below this probability do not count."""

SAME = 0.5
"""From this IoU on a prediction is about a box, and two predictions are about one object."""

FREE = 0.3
"""A prediction that overlaps every box by less than this IoU has none."""

PEAKS = 20
"""Of the predictions without a box in an image so many are kept, the best."""

REACH = 1.5
"""How many of its own sides away a misplaced box is looked for."""

STEP = (0.6, 1.2)
"""How far a box is moved to see what a misplaced box looks like, in its own sides."""

BOX = np.dtype(
    [
        ("row", "i8"),  # of the box in the data set
        ("image", "i8"),
        ("label", "i4"),
        ("side", "f4"),  # root of the area in pixels
        ("own", "f4"),  # support by predictions of its class,
        ("other", "f4"),  # and by those of another: of which,
        ("other_label", "i4"),
        ("predicted", "f4", 4),  # where the best of them is, xyxy in pixels,
        ("predicted_p", "f4"),  # and its probability, 0 where there is none
        ("partner", "f4"),  # probability of the prediction that could be where the box belongs; 0: none
        ("partner_at", "i8"),  # its position among the peaks of the image; -1: none
        ("renamed_own", "f4"),  # of the perturbed boxes; NaN where there is but one class
        ("renamed_other", "f4"),
        ("moved_own", "f4"),  # NaN where there is no room to move
        ("moved_partner", "f4"),
        ("dropped_p", "f4"),  # NaN where nothing is predicted
        ("dropped_side", "f4"),
    ]
)

PEAK = np.dtype([("image", "i8"), ("label", "i4"), ("p", "f4"), ("side", "f4"), ("box", "f4", 4)])

Rows = NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for one image before NMS: boxes [N, 4] in pixels, probabilities [N, K]."""

    boxes: Tensor
    p: Tensor


@dataclass(frozen=True)
class Spots:
    """Predictions after NMS: boxes [P, 4] in pixels, the best probability [P] and its class [P]."""

    boxes: Tensor
    p: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Truth:
    """What is annotated in one image.

    boxes, labels  [G, 4], [G]  without crowds
    crowds         [C, 4]
    rows           [G] of the boxes in the data set
    image          its index in the data set
    size           height and width in pixels
    """

    boxes: Tensor
    labels: Tensor
    crowds: Tensor
    rows: Integers
    image: int
    size: tuple[int, int]


def examine(found: Predictions, truth: Truth) -> tuple[Rows, Rows]:
    """The evidence of one image: BOX of each annotated box [G], PEAK of the best predictions without one."""
    boxes, labels = truth.boxes, truth.labels
    score, label = found.p.max(dim=1)
    kept = nms(found.boxes.double(), score.double(), SAME)  # over all classes: one object is missing once
    spots = Spots(found.boxes[kept], score[kept], label[kept])
    overlap = iou(boxes[:, None], spots.boxes[None])  # [G, P]
    free = (overlap < FREE).all(dim=0) & ~within(spots.boxes, truth.crowds)
    free &= free.cumsum(dim=0) <= PEAKS
    unmatched = Spots(spots.boxes[free], spots.p[free], spots.labels[free])
    evidence = np.zeros(len(boxes), BOX)
    if len(boxes):
        evidence["row"], evidence["image"], evidence["label"] = truth.rows, truth.image, labels
        evidence["side"] = area(boxes).sqrt()
        supported, best = support(boxes, found)
        own, other, other_label = own_and_other(supported, labels)
        evidence["own"], evidence["other"], evidence["other_label"] = own, other, other_label
        if len(found.boxes):
            where = best.gather(1, other_label[:, None])[:, 0]
            evidence["predicted"] = found.boxes[where]
            evidence["predicted_p"] = torch.where(other > 0, found.p[where, other_label], 0)
        evidence["partner"], evidence["partner_at"] = partners(boxes, labels, unmatched)
        rename_and_move(evidence, found, truth)
        drop(evidence, spots, overlap, labels)
    peaks = np.zeros(len(unmatched.boxes), PEAK)
    peaks["image"], peaks["label"], peaks["p"] = truth.image, unmatched.labels, unmatched.p
    peaks["side"], peaks["box"] = area(unmatched.boxes).sqrt(), unmatched.boxes
    return evidence, peaks


def support(boxes: Tensor, found: Predictions) -> tuple[Tensor, Tensor]:
    """[G, K] how well the predictions support each class at the boxes [G, 4]; [G, K] which does best."""
    if not len(found.boxes):
        nothing = torch.zeros(len(boxes), found.p.shape[1])
        return nothing, nothing.long()
    worth = (2 * iou(boxes[:, None], found.boxes[None]) - 1).clamp(min=0)  # [G, N]
    best = [(found.p * one[:, None]).max(dim=0) for one in worth]
    return torch.stack([values for values, _ in best]), torch.stack([positions for _, positions in best])


def own_and_other(supported: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From [G, K] and labels [G]: the own entry, the best other entry (-1 with one class), its class."""
    own = supported.gather(1, labels[:, None])[:, 0]
    other, label = supported.scatter(1, labels[:, None], -1.0).max(dim=1)
    return own, other, label


def within(spots: Tensor, regions: Tensor) -> Tensor:
    """[P] whether at least half of a spot [P, 4] lies in one of the regions [C, 4]."""
    corner = torch.maximum(spots[:, None, :2], regions[None, :, :2])
    sides = (torch.minimum(spots[:, None, 2:], regions[None, :, 2:]) - corner).clamp(min=0)
    return (sides.prod(dim=-1) >= 0.5 * area(spots)[:, None]).any(dim=1)


def partners(boxes: Tensor, labels: Tensor, unmatched: Spots) -> tuple[Tensor, Tensor]:
    """[G] the best unmatched prediction that could be where a box belongs: its p and position, or 0, -1."""
    spots = unmatched.boxes
    if not len(spots):
        return torch.zeros(len(boxes)), torch.full((len(boxes),), -1)
    sides, spot_sides = boxes[:, 2:] - boxes[:, :2], spots[:, 2:] - spots[:, :2]
    smaller = torch.minimum(sides[:, None], spot_sides[None]).prod(dim=2)
    if_concentric = smaller / (area(boxes)[:, None] + area(spots)[None] - smaller)  # their IoU then
    centers, spot_centers = (boxes[:, :2] + boxes[:, 2:]) / 2, (spots[:, :2] + spots[:, 2:]) / 2
    near = ((centers[:, None] - spot_centers[None]).abs() <= REACH * sides[:, None]).all(dim=2)
    same = unmatched.labels[None] == labels[:, None]
    best, at = torch.where((if_concentric >= SAME) & near & same, unmatched.p, 0).max(dim=1)
    return best, torch.where(best > 0, at, -1)


def rename_and_move(evidence: Rows, found: Predictions, truth: Truth) -> None:
    """The evidence if each box had another class, any as likely, or stood STEP away, inside the image."""
    boxes, labels, count = truth.boxes, truth.labels, len(truth.boxes)
    rng = np.random.default_rng((truth.image, count))  # an image's numbers do not depend on other images
    evidence["renamed_own"] = np.nan
    if (classes := found.p.shape[1]) > 1:
        renamed = (labels + torch.from_numpy(rng.integers(1, classes, count))) % classes
        own, other, _ = own_and_other(support(boxes, found)[0], renamed)
        evidence["renamed_own"], evidence["renamed_other"] = own, other
    angle, step = rng.uniform(0, 2 * np.pi, count), rng.uniform(*STEP, count)
    way = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], axis=1) * step[:, None]).float()
    sides = boxes[:, 2:] - boxes[:, :2]
    room = (torch.tensor([truth.size[1], truth.size[0]]) - sides).clamp(min=0)
    corner = torch.minimum((boxes[:, :2] + way * sides).clamp(min=0), room)
    moved = torch.cat([corner, corner + sides], dim=1)
    own = support(moved, found)[0].gather(1, labels[:, None])[:, 0]
    apart = (iou(moved[:, None], boxes[None]) < SAME).all(dim=1)
    evidence["moved_own"] = torch.where(apart, own, torch.nan)


def drop(evidence: Rows, spots: Spots, overlap: Tensor, labels: Tensor) -> None:
    """The predictions that would have no box if each box [G] were dropped; those of its own class would be
    the partner of a moved box too. overlap [G, P]"""
    evidence["dropped_p"] = np.nan
    if len(spots.boxes):
        about = torch.where(overlap >= SAME, spots.p, 0)  # [G, P]
        best, which = about.max(dim=1)
        evidence["dropped_p"] = torch.where(best > 0, best, torch.nan)
        evidence["dropped_side"] = area(spots.boxes[which]).sqrt()
        evidence["moved_partner"] = torch.where(spots.labels == labels[:, None], about, 0).amax(dim=1)
