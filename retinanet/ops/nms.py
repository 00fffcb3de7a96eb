"""NMS of a batch as one operator of torch: one node of a traced program, with fixed shapes."""

from __future__ import annotations

import torch
from torch import Tensor, library
from torchvision.ops import nms


@library.custom_op("retinanet::keep", mutates_args=())
def nms_mask(boxes: Tensor, x: Tensor, labels: Tensor, classes: int, threshold: float, most: int) -> Tensor:
    """NMS within each image and class, in no order: which boxes stay, [B, P].

    boxes, x, labels  [B, P, 4], [B, P], [B, P]; x is -inf where a box is no candidate; classes: K
    Of an image at least the best `most` survivors stay.
    """
    left = torch.zeros_like(x, dtype=torch.bool)
    for image in range(len(x)):
        order = x[image].sort(descending=True, stable=True).indices[: int((x[image] > -torch.inf).sum())]
        left[image, order[exact_nms(boxes[image][order], labels[image][order], threshold, most)]] = True
    return left


@nms_mask.register_fake
def _(boxes: Tensor, x: Tensor, labels: Tensor, classes: int, threshold: float, most: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)


PREFIX = 2
"""The fast path begins with so many times the wanted boxes; its time grows with their square."""


def exact_nms(boxes: Tensor, labels: Tensor, threshold: float, most: int) -> Tensor:
    """The first `most` survivors of NMS over boxes that come best first; fewer where it leaves fewer.

    boxes      [N, 4]  finite
    labels     [N]     boxes of two classes never suppress each other
    threshold  IoU above which the lower of two boxes goes
    returns    [<= most] int64, ascending positions in `boxes`

    What NMS decides about a box depends only on the survivors above it. So it sees the best boxes, and, while
    too few survive, the survivors with twice as many again.
    """
    apart, seen, step = _apart(boxes, labels), 0, PREFIX * most
    kept = torch.zeros(0, dtype=torch.long, device=boxes.device)
    while len(kept) < most and seen < len(boxes):
        more = torch.arange(seen, min(seen + step, len(boxes)), device=boxes.device)
        some = torch.cat([kept, more])
        # torchvision sorts by ranks, since its order of equal scores is not defined
        ranks = torch.arange(len(some), 0, -1, dtype=torch.float64, device=boxes.device)
        kept = some[nms(apart[some], ranks, threshold)]
        seen, step = seen + step, 2 * step
    return kept[:most]


def _apart(boxes: Tensor, labels: Tensor) -> Tensor:
    """[N, 4] float64: the boxes, each class shifted to a place of its own.

    In float32 the shift eats the fraction of a pixel and changes 4 % of the decisions.
    """
    if not len(boxes):
        return boxes.double()
    return boxes.double() + (labels.double() * (boxes.max().double() - boxes.min() + 1))[:, None]
