"""What a model's answers show about each annotated box and each place without one; see `suspects` for what is
made of it.
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
"""Answers below this probability say nothing."""

SAME = 0.5
"""IoU from which an answer is about a box, and two answers are about one object."""

FREE = 0.3
"""An answer that overlaps every box by less than this has none."""

PEAKS = 20
"""Answers without a box that are kept of a picture, the best."""

REACH = 1.5
"""How many of its own sides away a misplaced box is looked for."""

STEP = (0.6, 1.2)
"""How far a decoy is moved, in its own sides."""

BOX = np.dtype(
    [
        ("row", "i8"),  # of the box in the data set
        ("image", "i8"),
        ("label", "i4"),
        ("side", "f4"),  # root of the area in pixels
        ("own", "f4"),  # support by answers of its class,
        ("other", "f4"),  # and by those of another: of which,
        ("other_label", "i4"),
        ("answer", "f4", 4),  # where the best of them is, xyxy in pixels,
        ("answer_p", "f4"),  # and its probability, 0 where there is none
        ("partner", "f4"),  # probability of the answer that could be where the box belongs; 0: none
        ("partner_at", "i8"),  # its position among the peaks of the picture; -1: none
        ("renamed_own", "f4"),  # of the decoys; NaN where there is but one class
        ("renamed_other", "f4"),
        ("moved_own", "f4"),  # NaN where there is no room to move
        ("moved_partner", "f4"),
        ("dropped_p", "f4"),  # NaN where nothing is answered
        ("dropped_side", "f4"),
    ]
)

PEAK = np.dtype([("image", "i8"), ("label", "i4"), ("p", "f4"), ("side", "f4"), ("box", "f4", 4)])

Rows = NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """What a model says of one picture: boxes [N, 4] in pixels, with all probabilities [N, K], or with the
    best [N] and its label [N].
    """

    boxes: Tensor
    p: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True)
class Truth:
    """What is annotated in one picture: boxes [G, 4] and labels [G] without crowds, crowds [C, 4], the rows
    [G] in the data set.
    """

    boxes: Tensor
    labels: Tensor
    crowds: Tensor
    rows: Integers
    image: int
    """Its index in the data set."""
    size: tuple[int, int]
    """Height and width in pixels."""


def examine(found: Answers, truth: Truth) -> tuple[Rows, Rows]:
    """The evidence of one picture: BOX of each annotated box [G], PEAK of the best answers that have no
    box.
    """
    boxes, labels = truth.boxes, truth.labels
    score, answer = found.p.max(dim=1)
    kept = nms(found.boxes.double(), score.double(), SAME)  # over all classes: one object is missing once
    spots = Answers(found.boxes[kept], score[kept], answer[kept])
    overlap = iou(boxes[:, None], spots.boxes[None])  # [G, P]
    free = (overlap < FREE).all(dim=0) & ~within(spots.boxes, truth.crowds)
    free &= free.cumsum(dim=0) <= PEAKS
    homeless = Answers(spots.boxes[free], score[kept][free], answer[kept][free])
    evidence = np.zeros(len(boxes), BOX)
    if len(boxes):
        evidence["row"], evidence["image"], evidence["label"] = truth.rows, truth.image, labels.numpy()
        evidence["side"] = area(boxes).sqrt().numpy()
        supported, best = support(boxes, found)
        own, other, other_label = own_and_other(supported, labels)
        evidence["own"], evidence["other"], evidence["other_label"] = (
            own.numpy(),
            other.numpy(),
            other_label.numpy(),
        )
        if len(found.boxes):
            where = best.gather(1, other_label[:, None])[:, 0]
            evidence["answer"] = found.boxes[where].numpy()
            evidence["answer_p"] = torch.where(other > 0, found.p[where, other_label], 0).numpy()
        partner, at = partners(boxes, labels, homeless)
        evidence["partner"], evidence["partner_at"] = partner.numpy(), at.numpy()
        rename_and_move(evidence, found, truth)
        drop(evidence, spots, overlap, labels)
    peaks = np.zeros(len(homeless.boxes), PEAK)
    peaks["image"], peaks["label"], peaks["p"] = truth.image, answer[kept][free].numpy(), homeless.p.numpy()
    peaks["side"], peaks["box"] = area(homeless.boxes).sqrt().numpy(), homeless.boxes.numpy()
    return evidence, peaks


def support(boxes: Tensor, found: Answers) -> tuple[Tensor, Tensor]:
    """[G, K] how well the answers, with all their probabilities, support each class at the boxes [G, 4]; [G,
    K] which does best.
    """
    if not len(found.boxes):
        return torch.zeros(len(boxes), found.p.shape[1]), torch.zeros(
            len(boxes), found.p.shape[1], dtype=torch.long
        )
    worth = (2 * iou(boxes[:, None], found.boxes[None]) - 1).clamp(min=0)  # [G, N]
    best = [(found.p * one[:, None]).max(dim=0) for one in worth]
    return torch.stack([values for values, _ in best]), torch.stack([positions for _, positions in best])


def own_and_other(supported: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of [G, K] and labels [G]: the entry of the label, the best other entry (-1 where there is but one
    class), and which that is.
    """
    own = supported.gather(1, labels[:, None])[:, 0]
    other, label = supported.scatter(1, labels[:, None], -1.0).max(dim=1)
    return own, other, label


def within(spots: Tensor, regions: Tensor) -> Tensor:
    """[P] whether at least half of a spot [P, 4] lies in one of the regions [C, 4]."""
    corner = torch.maximum(spots[:, None, :2], regions[None, :, :2])
    sides = (torch.minimum(spots[:, None, 2:], regions[None, :, 2:]) - corner).clamp(min=0)
    return (sides.prod(dim=-1) >= 0.5 * area(spots)[:, None]).any(dim=1)


def partners(boxes: Tensor, labels: Tensor, homeless: Answers) -> tuple[Tensor, Tensor]:
    """[G] the best answer without a box that could be where a box belongs: its probability and position, or 0
    and -1.
    """
    assert homeless.labels is not None
    if not len(homeless.boxes):
        return torch.zeros(len(boxes)), torch.full((len(boxes),), -1)
    spots = homeless.boxes
    sides, spot_sides = boxes[:, 2:] - boxes[:, :2], spots[:, 2:] - spots[:, :2]
    smaller = torch.minimum(sides[:, None], spot_sides[None]).prod(dim=2)
    alike = (
        smaller / (area(boxes)[:, None] + area(spots)[None] - smaller) >= SAME
    )  # their IoU if they had one centre
    away = (
        (boxes[:, None, :2] + boxes[:, None, 2:]) / 2 - (spots[None, :, :2] + spots[None, :, 2:]) / 2
    ).abs()
    near = (away <= REACH * sides[:, None]).all(dim=2)
    best, at = torch.where(alike & near & (homeless.labels[None] == labels[:, None]), homeless.p, 0).max(
        dim=1
    )
    return best, torch.where(best > 0, at, -1)


def rename_and_move(evidence: Rows, found: Answers, truth: Truth) -> None:
    """What the evidence would be if each box had another name, any as likely, or stood STEP away, inside the
    picture.
    """
    boxes, labels, count = truth.boxes, truth.labels, len(truth.boxes)
    rng = np.random.default_rng((truth.image, count))  # the decoys of a picture do not depend on the others
    evidence["renamed_own"] = np.nan
    if (classes := found.p.shape[1]) > 1:
        renamed = (labels + torch.from_numpy(rng.integers(1, classes, count))) % classes
        own, other, _ = own_and_other(support(boxes, found)[0], renamed)
        evidence["renamed_own"], evidence["renamed_other"] = own.numpy(), other.numpy()
    angle, step = rng.uniform(0, 2 * np.pi, count), rng.uniform(*STEP, count)
    way = torch.from_numpy(np.stack([np.cos(angle), np.sin(angle)], axis=1) * step[:, None]).float()
    sides = boxes[:, 2:] - boxes[:, :2]
    room = (torch.tensor([truth.size[1], truth.size[0]]) - sides).clamp(min=0)
    corner = torch.minimum((boxes[:, :2] + way * sides).clamp(min=0), room)
    moved = torch.cat([corner, corner + sides], dim=1)
    own = support(moved, found)[0].gather(1, labels[:, None])[:, 0]
    apart = (iou(moved[:, None], boxes[None]) < SAME).all(dim=1)
    evidence["moved_own"] = torch.where(apart, own, torch.nan).numpy()


def drop(evidence: Rows, spots: Answers, overlap: Tensor, labels: Tensor) -> None:
    """What would be answered without a box if each were dropped; of its own class that is a moved box's
    partner too. overlap [G, P]
    """
    assert spots.labels is not None
    evidence["dropped_p"] = np.nan
    if len(spots.boxes):
        about = torch.where(overlap >= SAME, spots.p, 0)  # [G, P]
        best, which = about.max(dim=1)
        evidence["dropped_p"] = torch.where(best > 0, best, torch.nan).numpy()
        evidence["dropped_side"] = area(spots.boxes[which]).sqrt().numpy()
        evidence["moved_partner"] = torch.where(spots.labels == labels[:, None], about, 0).amax(dim=1).numpy()
