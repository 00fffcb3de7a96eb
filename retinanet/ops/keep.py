"""NMS of a whole batch as one operator of torch: a traced program has it as one node, with shapes that do not
depend on the boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from .nms import survivors


@library.custom_op("retinanet::keep", mutates_args=())
def keep(boxes: Tensor, x: Tensor, labels: Tensor, classes: int, threshold: float, most: int) -> Tensor:
    """NMS within each picture and class, in no order: which boxes stay, [B, P]. -inf: not a candidate at all.

    boxes, x, labels  [B, P, 4], [B, P], [B, P]; classes: K
    Of a picture at least its best `most` survivors are told, the others may be or not.
    """
    left = torch.zeros_like(x, dtype=torch.bool)
    for picture in range(len(x)):
        order = x[picture].sort(descending=True, stable=True).indices[: int((x[picture] > -torch.inf).sum())]
        left[picture, order[survivors(boxes[picture][order], labels[picture][order], threshold, most)]] = True
    return left


@keep.register_fake
def _(boxes: Tensor, x: Tensor, labels: Tensor, classes: int, threshold: float, most: int) -> Tensor:
    return torch.empty_like(x, dtype=torch.bool)
