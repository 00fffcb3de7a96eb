"""Non-maximum suppression within each class: of two boxes that overlap too much the lower goes. Exact, and
only as far down as is asked.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

PREFIX = 2
"""The fast path looks first at so many times the boxes that are wanted; its time grows with the square of
what it looks at.
"""


def survivors(boxes: Tensor, labels: Tensor, threshold: float, most: int) -> Tensor:
    """The first `most` survivors of NMS over boxes that come best first; fewer where it leaves fewer.

    boxes      [N, 4]  finite
    labels     [N]     boxes of two classes never suppress each other
    threshold  IoU above which the lower of two boxes goes
    returns    [<= most] int64, ascending positions in `boxes`: those of `all_survivors`

    What NMS decides about a box depends on those above it alone, and of these on the survivors alone. So it
    sees the best boxes, and, while
    too few survive, the survivors with twice as many again.
    """
    apart, seen, step = _apart(boxes, labels), 0, PREFIX * most
    kept = torch.zeros(0, dtype=torch.long, device=boxes.device)
    while len(kept) < most and seen < len(boxes):
        more = torch.arange(seen, min(seen + step, len(boxes)), device=boxes.device)
        some = torch.cat([kept, more])
        kept = some[nms(apart[some], _ranks(some), threshold)]
        seen, step = seen + step, 2 * step
    return kept[:most]


def all_survivors(boxes: Tensor, labels: Tensor, threshold: float, most: int) -> Tensor:
    """The reference of `survivors`: one NMS over all boxes."""
    kept: Tensor = nms(_apart(boxes, labels), _ranks(labels), threshold)
    return kept[:most]


def _apart(boxes: Tensor, labels: Tensor) -> Tensor:
    """[N, 4] float64: the boxes, each class shifted to a place of its own.

    In float32 the shift eats the fraction of a pixel and changes 4 % of the decisions.
    """
    if not len(boxes):
        return boxes.double()
    return boxes.double() + (labels.double() * (boxes.max().double() - boxes.min() + 1))[:, None]


def _ranks(boxes: Tensor) -> Tensor:
    """[N] float64, descending, for torchvision's NMS to sort by: what it makes of equal scores is not
    defined.
    """
    return torch.arange(len(boxes), 0, -1, dtype=torch.float64, device=boxes.device)
