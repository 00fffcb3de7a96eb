"""Which labels are probably wrong: a model's predictions, compared with what is annotated.

Each kind of error has its evidence in the predictions. A prediction of probability p supports a box by
p x (2 IoU - 1), and not at all below IoU 0.5.

    renamed    `own` and `other`: the best support of a box by predictions of its own class, and of any other
    misplaced  `own`, and `partner`: the best prediction nearby that has the box's class and size, and no box;
               the box was moved from there, or it does not belong here
    missing    `p`: the best prediction at a place that no box overlaps by IoU 0.3

How much evidence is much? A tiny object is often found by no prediction though its label is right, and a
model after minutes of training is unsure of everything. So no threshold is set by hand. In thought every box
of the set is renamed, moved and dropped itself, and what the model predicts for these perturbed boxes is what
an error of that kind looks like to this model on this data. The score of a suspect is the log of (how many
perturbed boxes look like it) / (how many of the real boxes or predictions do), by a logistic regression of
the one against the other, made isotonic. It is in nats and means the same for all kinds: where the share e of
all boxes is wrong in one way, the odds that a suspect is one of these are about e x exp(score). The errors
themselves count among the real ones, so scores end near -log e.

Measured (the slow test of the audit: 600 generated scenes, 5 % of the boxes spoilt, a tiny model trained on
them for 700 steps): of the first 123 suspects, as many as errors were planted, 79 % are errors, and the first
246 find 95 % of them. By the loss of each box it is 49 % and 60 %, and by plain log odds (logit other - logit
own, -logit own, logit p) 44 % and 63 %: the tiny and the hard come first.

A box or prediction is listed once, as what it most resembles. A misplaced box and the prediction where it
should be are one suspect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.dataset import Floats
from .evidence import PEAK, Rows

KINDS = ("renamed", "misplaced", "missing")

STRONG = 3.0
"""A score that sound labels seldom reach: 17 of the 2,468 boxes above before they were spoilt, 108 after."""


@dataclass(frozen=True)
class Suspect:
    """A label that may be wrong.

    kind         of KINDS
    score        log of how many times more perturbed boxes than real ones look like this
    image        index in the data set
    row          of the box in the data set; None for a missing one
    label        class that the model predicts; None where it predicts nothing in the box's place or nearby
    probability  of that class
    box          where it predicts that, xyxy in pixels
    """

    kind: str
    score: float
    image: int
    row: int | None
    label: int | None = None
    probability: float | None = None
    box: tuple[float, float, float, float] | None = None


def rank(boxes: Rows, peaks: Sequence[Rows]) -> list[Suspect]:
    """All suspects, the worst first: BOX of all boxes, and PEAK of each image by its index."""
    renamed, misplaced = score_renamed(boxes), score_misplaced(boxes)
    spots = np.concatenate([np.zeros(0, PEAK), *peaks])
    start = np.concatenate([[0], np.cumsum([len(one) for one in peaks])])
    missing = score_missing(boxes, spots)
    suspects = []
    for box, as_renamed, as_misplaced in zip(boxes, renamed.tolist(), misplaced.tolist(), strict=True):
        image, row = int(box["image"]), int(box["row"])
        if as_renamed >= as_misplaced:
            one = Suspect("renamed", as_renamed, image, row)
            if box["predicted_p"] > 0:
                one = with_prediction(one, box["other_label"], box["predicted_p"], box["predicted"])
        else:
            one = Suspect("misplaced", as_misplaced, image, row)
            if box["partner_at"] >= 0:
                at = start[image] + box["partner_at"]
                if as_misplaced > 0 and missing[at] > -np.inf:  # one error, one suspect
                    one = replace(one, score=max(as_misplaced, float(missing[at])))
                    missing[at] = -np.inf
                one = with_prediction(one, spots[at]["label"], spots[at]["p"], spots[at]["box"])
        suspects.append(one)
    for spot, score in zip(spots, missing.tolist(), strict=True):
        one = Suspect("missing", score, int(spot["image"]), None)
        suspects.append(with_prediction(one, spot["label"], spot["p"], spot["box"]))
    suspects = [one for one in suspects if one.score > -np.inf]
    return sorted(suspects, key=lambda one: (-one.score, one.image, -1 if one.row is None else one.row))


def with_prediction(suspect: Suspect, label: Any, p: Any, box: Any) -> Suspect:
    """The suspect with what the model predicts there."""
    left, top, right, bottom = box.tolist()
    return replace(suspect, label=int(label), probability=float(p), box=(left, top, right, bottom))


def score_renamed(boxes: Rows) -> Floats:
    """[M]"""

    def features(own: Floats, other: Floats) -> Floats:
        return np.stack([other - own, logit(other), logit(own)], axis=1)

    perturbed = features(boxes["renamed_own"], boxes["renamed_other"])
    return log_ratio(perturbed, features(boxes["own"], boxes["other"]))


def score_misplaced(boxes: Rows) -> Floats:
    """[M]"""
    side = np.log(boxes["side"].clip(min=1))

    def features(own: Floats, partner: Floats) -> Floats:
        return np.stack([logit(own), side, logit(own) * side, logit(partner)], axis=1)

    perturbed = features(boxes["moved_own"], boxes["moved_partner"])
    return log_ratio(perturbed, features(boxes["own"], boxes["partner"]))


def score_missing(boxes: Rows, spots: Rows) -> Floats:
    """[P]"""

    def features(p: Floats, side: Floats) -> Floats:
        log_side = np.log(side.clip(min=1))
        return np.stack([logit(p), log_side, logit(p) * log_side], axis=1)

    perturbed = features(boxes["dropped_p"], boxes["dropped_side"])
    return log_ratio(perturbed, features(spots["p"], spots["side"]))


def log_ratio(perturbed: Floats, real: Floats) -> Floats:
    """Log of the number of perturbed to that of real ones, at the features of each of the real [N, F]: [N].
    Perturbed with a NaN do not count.

    A logistic regression separates the two. Its score, made isotonic, is the share of perturbed among those
    that look alike.
    """
    perturbed = perturbed[np.isfinite(perturbed).all(axis=1)]
    if not len(real) or not len(perturbed):
        return np.full(len(real), -np.inf)
    everything = np.concatenate([perturbed, real]).astype(np.float64)
    target = np.concatenate([np.ones(len(perturbed)), np.zeros(len(real))])
    scale = everything.std(axis=0)
    normalized = (everything - everything.mean(axis=0)) / np.where(scale > 0, scale, 1)
    x = np.concatenate([normalized, np.ones((len(everything), 1))], axis=1)
    weights, penalty = np.zeros(x.shape[1]), np.eye(x.shape[1])
    for _ in range(30):  # Newton's method
        share = 1 / (1 + np.exp(-(x @ weights)))
        slope = x.T @ (target - share) - penalty @ weights
        weights += np.linalg.solve((x * (share * (1 - share))[:, None]).T @ x + penalty, slope)
    score = x @ weights
    share = isotonic(score, target)[len(perturbed) :]
    # an isotonic function has steps: within a step the regression decides
    return np.log(share / (1 - share)) + 1e-3 * score[len(perturbed) :]


def isotonic(score: Floats, target: Floats) -> Floats:
    """[N] the rising function of `score` that is nearest to the targets 0 and 1, by pooling neighbours.

    Each pool is given half a 0 and half a 1 more than it holds, so that none is sure.
    """
    order = np.argsort(score, kind="stable")
    pools: list[tuple[float, int]] = []
    for value in target[order].tolist():
        total, count = value, 1
        while pools and pools[-1][0] * count >= total * pools[-1][1]:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    fitted = np.empty(len(score))
    fitted[order] = np.concatenate([np.full(count, (total + 0.5) / (count + 1)) for total, count in pools])
    return fitted


def logit(p: Floats) -> Floats:
    """log p / (1 - p), of p within 0.005..0.995: beyond that a short training means nothing."""
    p = np.clip(p, 0.005, 0.995)
    result: Floats = np.log(p / (1 - p))
    return result
