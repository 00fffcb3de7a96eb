"""Which examples produce the class loss and its gradient: easy or hard, by sign, class and level."""

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
"""An example is an anchor and a class. It is positive where the anchor is matched with a box of the class,
and hard up to p_t = EASY."""

ANCHORS = ("positive", "negative", "ignored", "outside")
"""Ignored anchors lie between the two IoU thresholds, those outside are centred in the padding of a batch."""

QUANTITIES = ("examples", "loss", "gradient")

MOST_CLASSES = 20


class Shares:
    """Sums over a whole split, batch by batch.

    sums     [3, L, K, 4]  the QUANTITIES of the GROUPS of every level and class: their number, the class
             loss, and |dL/dx| (Eq. 10)
    anchors  [L, 4]        the number of anchors of each kind in ANCHORS
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

        logits [B, A, K], labels [B, A] with BACKGROUND and IGNORE, inside [B, A], weights [B] of the images
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
                counts = torch.bincount(group, values, minlength=len(GROUPS))
                self.sums[quantity, level, k] += counts.cpu().numpy()
        total = torch.zeros(labels.shape, device=labels.device)
        total[counted] = sums
        return total

    def to_json(self) -> dict[str, Any]:
        """All shares, by group, level and class, and whole numbers of anchors and examples."""
        groups = [{"group": name, **self._numbers((..., g))} for g, name in enumerate(GROUPS)]
        levels = [
            {
                "level": name,
                "anchors": _kinds(self.anchors[i]),
                **self._numbers((i,)),
                "groups": self._groups((i,)),
            }
            for i, name in enumerate(self.levels)
        ]
        classes = [
            {"class": name, **self._numbers((slice(None), k)), "groups": self._groups((slice(None), k))}
            for k, name in enumerate(self.names)
        ]
        return {
            "easy_above": EASY,
            "groups": groups,
            "levels": levels,
            "classes": classes,
            "anchors": _kinds(self.anchors.sum(axis=0)),
            "total": {"examples": int(self.sums[0].sum()), "class_loss": float(self.sums[1].sum())},
        }

    def _numbers(self, cells: Any) -> dict[str, Any]:
        """The number of examples in some of the cells, and their shares of the loss and of the gradient."""
        examples, loss, gradient = (float(sums[cells].sum()) for sums in self.sums)
        _, all_loss, all_gradient = (float(sums.sum()) for sums in self.sums)
        return {
            "examples": int(examples),
            "loss": loss / all_loss if all_loss > 0 else 0.0,
            "gradient": gradient / all_gradient if all_gradient > 0 else 0.0,
        }

    def _groups(self, cells: tuple[Any, ...]) -> dict[str, dict[str, Any]]:
        """The numbers of each group among some of the cells."""
        return {name: self._numbers((*cells, ..., g)) for g, name in enumerate(GROUPS)}

    def table(self) -> str:
        """The shares as aligned text: by group, by level, and for the MOST_CLASSES with the greatest loss."""
        content = self.to_json()
        order = sorted(content["classes"], key=lambda row: -row["loss"])
        head = ["examples", "loss", "gradient"]
        parts = ["loss: hard +", "easy +", "hard -", "easy -"]
        levels = [
            ["level", *head, *parts, f"{ANCHORS[0]} anchors", *ANCHORS[1:]],
            *(
                [*_cells(row, "level"), *(f"{count:,}" for count in row["anchors"].values())]
                for row in content["levels"]
            ),
        ]
        tables = [
            aligned([["", *head], *(_cells(row, "group") for row in content["groups"])]),
            aligned(levels),
            aligned([["class", *head, *parts], *(_cells(row, "class") for row in order[:MOST_CLASSES])]),
        ]
        left = len(order) - MOST_CLASSES
        return "\n\n".join(tables) + (f"\n... and {left} more classes" if left > 0 else "")


def examples(logits: Tensor, present: Tensor, criterion: Criterion, k: int) -> tuple[Tensor, Tensor]:
    """The class loss of examples of class k, without normaliser, and its derivative by the logit.

    logits and present [n] -> [n] and [n], float32
    """
    name, alpha, parameters = criterion.loss, criterion.alpha, criterion.loss_parameters
    weight = float(alpha.reshape(-1)[k if alpha.numel() > 1 else 0]) if isinstance(alpha, Tensor) else alpha
    x = logits.detach().float()[:, None].requires_grad_()  # as if this were the only class
    labels = torch.where(present, 0, BACKGROUND)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(class_loss(x, labels, name, weight, **parameters), x)
    return anchor_losses(x.detach(), labels, name, weight, **parameters), gradient[:, 0]


def group_of(logits: Tensor, present: Tensor) -> Tensor:
    """Logits [...] and whether the class is there [...] -> [...] position in GROUPS."""
    x_t = torch.where(present, logits, -logits).float()
    return torch.where(present, 0, 2) + (torch.sigmoid(x_t) > EASY).long()


def _kinds(counts: Any) -> dict[str, int]:
    return dict(zip(ANCHORS, counts.tolist(), strict=True))


def _cells(row: dict[str, Any], name: str) -> list[str]:
    shares = [row["loss"], row["gradient"], *(part["loss"] for part in row.get("groups", {}).values())]
    return [row[name], f"{row['examples']:,}", *(f"{100 * share:.1f} %" for share in shares)]
