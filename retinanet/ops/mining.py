"""Which anchors a class loss is summed over, when it is not all of them: what the paper compares with the
focal loss (Sec. 5.1, Table 1d).

An example is an anchor that is not ignored; its score is its class loss, and its box, where NMS compares
boxes, is the anchor itself. On the paper's grid two anchors of one place overlap by 0.63 at most. So NMS at
0.7 only thins out equal anchors of neighbouring cells, 28 to 32 % of 120,000 anchors, and at 0.5 it takes 86
to 89 % (measured with scores that are equal, smooth over the image, random).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import nms

from .assign import BACKGROUND, IGNORE
from .boxes import iou

PREFIX = 4
"""NMS first sees so many times the wanted examples: all 120,000 take 5 to 36 s on a CPU core."""


def hardest(scores: Tensor, boxes: Tensor, count: int, nms_threshold: float | None) -> Tensor:
    """The `count` examples of highest score among those that NMS leaves, hardest first; fewer where it leaves
    fewer.

    scores         [A]
    boxes          [A, 4]  compared whatever their classes are
    nms_threshold  IoU above which the lower-scored of two goes; None: no NMS
    returns        [<= count] int64, positions in `scores`; of equal scores the first counts as the higher

    The result is that of NMS over all of them, exactly: what NMS decides about an example depends on those
    above it alone.
    """
    return _survivors(
        _by_score(scores), boxes, nms_threshold, PREFIX * count, lambda kept, seen: len(kept) >= count
    )[:count]


def ohem(scores: Tensor, labels: Tensor, boxes: Tensor, count: int, nms_threshold: float | None) -> Tensor:
    """Online hard example mining (Shrivastava et al. 2016; Sec. 5.1): the hardest examples after NMS, of both
    kinds.

    scores   [A]     class loss of each anchor
    labels   [A]     0..K-1, BACKGROUND or IGNORE
    boxes    [A, 4]  the anchors
    returns  [<= count] int64 positions
    """
    examples = torch.nonzero(labels != IGNORE)[:, 0]
    return examples[hardest(scores[examples], boxes[examples], count, nms_threshold)]


def ohem_one_to_three(
    scores: Tensor, labels: Tensor, boxes: Tensor, count: int, nms_threshold: float | None
) -> Tensor:
    """OHEM with three negatives for each positive, as in SSD (Liu et al. 2016); takes and returns what `ohem`
    does.

    After NMS over all examples it takes the hardest positives, up to a quarter of `count`, and three times as
    many of the hardest negatives. Where no positive is left, it takes as many negatives as in a full
    minibatch: SSD takes none, and an image without objects would teach nothing.

    NMS has to reach every positive that nothing harder suppresses, so easy positives may take the time of all
    anchors.
    """
    examples = torch.nonzero(labels != IGNORE)[:, 0]
    boxes = boxes[examples]
    order, positive, most = _by_score(scores[examples]), labels[examples] >= 0, count // 4

    def wanted(kept: Tensor) -> tuple[int, int]:
        positives = min(int(positive[kept].sum()), most)
        return positives, 3 * (positives or most)

    def enough(kept: Tensor, seen: int) -> bool:
        positives, negatives = wanted(kept)
        if int((~positive[kept]).sum()) < negatives:
            return False
        easier = order[seen:][positive[order[seen:]]]
        return positives == most or bool(_surely_gone(boxes[easier], boxes[kept], nms_threshold).all())

    kept = _survivors(order, boxes, nms_threshold, PREFIX * count, enough)
    positives, negatives = wanted(kept)
    return examples[torch.cat([kept[positive[kept]][:positives], kept[~positive[kept]][:negatives]])]


HARD = {"ohem": ohem, "ohem-1:3": ohem_one_to_three}
"""The choices that go by the loss."""


def random_sample(labels: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """A random sample, up to a quarter positives (Fast R-CNN, Girshick 2015): [<= count] int64 positions.

    labels     [A]  0..K-1, BACKGROUND or IGNORE
    generator  on the CPU, where all is drawn, so that devices agree; None: torch's own
    """
    positives, negatives = (torch.nonzero(kind)[:, 0] for kind in (labels >= 0, labels == BACKGROUND))
    positives = _drawn(positives, count // 4, generator)
    return torch.cat([positives, _drawn(negatives, count - len(positives), generator)])


def _drawn(values: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)[:count].to(values.device)]


def _by_score(scores: Tensor) -> Tensor:
    return scores.sort(descending=True, stable=True).indices


def _survivors(
    order: Tensor,
    boxes: Tensor,
    nms_threshold: float | None,
    first: int,
    enough: Callable[[Tensor, int], bool],
) -> Tensor:
    """The examples that NMS leaves, hardest first, until `enough` of (those left, number seen) is true.

    NMS sees the hardest `first`, then twice as many, and so on: its decisions about the first stay the same.
    """
    while True:
        seen = order[:first]
        # NMS sorts by ranks: its order of equal scores is not defined
        rank = torch.arange(len(seen), 0, -1, dtype=boxes.dtype, device=boxes.device)
        kept = seen if nms_threshold is None else seen[nms(boxes[seen], rank, nms_threshold)]
        if len(seen) == len(order) or enough(kept, len(seen)):
            return kept
        first *= 2


def _surely_gone(boxes: Tensor, harder: Tensor, nms_threshold: float | None) -> Tensor:
    """[N] which boxes one of `harder` suppresses, whatever NMS makes of the last bit of their overlap."""
    gone = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    limit = torch.inf if nms_threshold is None else nms_threshold + 1e-5
    for some in harder.split(1024):
        gone |= (iou(boxes[:, None], some) > limit).any(dim=1)
    return gone
