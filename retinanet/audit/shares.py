"""Who produces the class loss and its gradient: easy and hard, positive and negative, of every class and
pyramid level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.criterion import Criterion
from ..ops.assign import BACKGROUND, IGNORE
from ..ops.fused import anchor_losses, class_loss
from ..text import aligned

EASY = 0.6
"""p_t above which an example is well classified (Fig. 1)."""

GROUPS = ("hard positives", "easy positives", "hard negatives", "easy negatives")
"""Of examples, each an anchor and a class: positive where the anchor answers for a box of the class, hard up
to p_t = EASY.
"""

ANCHORS = ("positive", "negative", "ignored", "outside")
"""Of anchors: ignored are those between the two IoU thresholds, outside those centred in the padding of a
batch.
"""

QUANTITIES = ("examples", "loss", "gradient")

MOST_CLASSES = 20


class Shares:
    """Sums over a whole split, batch by batch.

    sums     [3, L, K, 4]  the QUANTITIES of the GROUPS of every level and class: their number, the class
             loss, and |dL/dx| (Eq. 10)
    anchors  [L, 4]        how many there are of each kind in ANCHORS
    """

    def __init__(self, levels: Sequence[str], names: Sequence[str]) -> None:
        self.levels, self.names = list(levels), list(names)
        self.sums = np.zeros((len(QUANTITIES), len(levels), len(names), len(GROUPS)))
        self.anchors = np.zeros((len(levels), len(ANCHORS)), dtype=np.int64)

    def add(
        self,
        level: int,
        logits: Tensor,
        labels: Tensor,
        inside: Tensor,
        weights: Tensor,
        criterion: Criterion,
    ) -> Tensor:
        """Add a level of a batch; returns the class loss of each anchor, summed over classes and weighted:
        [B, A], float32.

        logits [B, A, K], labels [B, A] with BACKGROUND and IGNORE, inside [B, A], weights [B]: what the loss
        of each picture counts
        """
        ignored = labels == IGNORE
        kinds = (labels >= 0, labels == BACKGROUND, ignored & inside, ignored & ~inside)
        self.anchors[level] += [int(kind.sum()) for kind in kinds]
        counted = (~ignored).nonzero(as_tuple=True)
        x, label, weight = logits[counted], labels[counted], weights[counted[0]]  # [n, K], [n], [n]
        sums = torch.zeros_like(label, dtype=torch.float32)
        for k in range(logits.shape[2]):
            present = label == k
            loss, gradient = examples(x[:, k], present, criterion, k)
            loss, gradient = loss * weight, gradient.abs() * weight
            sums += loss
            group = group_of(x[:, k], present)
            for quantity, values in enumerate((None, loss.double(), gradient.double())):
                self.sums[quantity, level, k] += (
                    torch.bincount(group, values, minlength=len(GROUPS)).cpu().numpy()
                )
        total = torch.zeros(labels.shape, device=labels.device)
        total[counted] = sums
        return total

    def to_json(self) -> dict[str, Any]:
        """All shares, by group, level and class, and whole numbers of anchors and examples."""
        sums = dict(zip(QUANTITIES, self.sums, strict=True))
        return {
            "easy_above": EASY,
            "groups": [self._row({"group": name}, (..., g)) for g, name in enumerate(GROUPS)],
            "levels": [
                self._row(
                    {"level": name, "anchors": dict(zip(ANCHORS, self.anchors[index].tolist(), strict=True))},
                    (index,),
                )
                for index, name in enumerate(self.levels)
            ],
            "classes": [self._row({"class": name}, (slice(None), k)) for k, name in enumerate(self.names)],
            "anchors": dict(zip(ANCHORS, self.anchors.sum(axis=0).tolist(), strict=True)),
            "total": {"examples": int(sums["examples"].sum()), "class_loss": float(sums["loss"].sum())},
        }

    def _row(self, row: dict[str, Any], cells: Any) -> dict[str, Any]:
        """Number and shares of some of the cells, and of the groups among them."""
        whole = self.sums.sum(axis=(1, 2, 3))
        part = np.stack([sums[cells] for sums in self.sums])
        row |= {"examples": int(part[0].sum())}
        row |= {name: _ratio(part[i].sum(), whole[i]) for i, name in ((1, "loss"), (2, "gradient"))}
        if "group" not in row:
            groups = part.reshape(len(QUANTITIES), -1, len(GROUPS)).sum(axis=1)
            row["groups"] = {
                name: {
                    "examples": int(groups[0, g]),
                    "loss": _ratio(groups[1, g], whole[1]),
                    "gradient": _ratio(groups[2, g], whole[2]),
                }
                for g, name in enumerate(GROUPS)
            }
        return row

    def table(self) -> str:
        """The shares as aligned text: by group, by level, and by class, of which the MOST_CLASSES with the
        greatest loss.
        """
        content = self.to_json()
        by_group = [[row["group"], *_numbers(row)] for row in content["groups"]]
        by_level = [
            [row["level"], *_numbers(row), *_parts(row), *map(_count, row["anchors"].values())]
            for row in content["levels"]
        ]
        order = sorted(content["classes"], key=lambda row: -row["loss"])
        by_class = [[row["class"], *_numbers(row), *_parts(row)] for row in order[:MOST_CLASSES]]
        head = ["examples", "loss", "gradient"]
        parts = ["loss: hard +", "easy +", "hard -", "easy -"]
        tables = [
            aligned([["", *head], *by_group]),
            aligned(
                [
                    [
                        "level",
                        *head,
                        *parts,
                        *(f"{kind} anchors" if kind == ANCHORS[0] else kind for kind in ANCHORS),
                    ],
                    *by_level,
                ]
            ),
            aligned([["class", *head, *parts], *by_class]),
        ]
        left = len(order) - MOST_CLASSES
        return "\n\n".join(tables) + (f"\n... and {left} more classes" if left > 0 else "")


def examples(logits: Tensor, present: Tensor, criterion: Criterion, k: int) -> tuple[Tensor, Tensor]:
    """The class loss of examples of class k, without normaliser, and its derivative by the logit, in closed
    form (`ops.fused`).

    logits and present [n] -> [n] and [n], float32
    """
    name, alpha, parameters = criterion.loss, criterion.alpha, criterion.loss_parameters
    weight = float(alpha.reshape(-1)[k if alpha.numel() > 1 else 0]) if isinstance(alpha, Tensor) else alpha
    x = logits.detach().float()[:, None].requires_grad_()  # as if there were but this one class
    labels = torch.where(present, 0, BACKGROUND)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(class_loss(x, labels, name, weight, **parameters), x)
    return anchor_losses(x.detach(), labels, name, weight, **parameters), gradient[:, 0]


def group_of(logits: Tensor, present: Tensor) -> Tensor:
    """Logits [...] and whether the class is there [...] -> [...] position in GROUPS."""
    x_t = torch.where(present, logits, -logits).float()
    return torch.where(present, 0, 2) + (torch.sigmoid(x_t) > EASY).long()


def _ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole > 0 else 0.0


def _numbers(row: dict[str, Any]) -> list[str]:
    return [_count(row["examples"]), _percent(row["loss"]), _percent(row["gradient"])]


def _parts(row: dict[str, Any]) -> list[str]:
    return [_percent(row["groups"][name]["loss"]) for name in GROUPS]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _count(number: int) -> str:
    return f"{number:,}"
