"""Which objects the anchors reach: how many positive anchors each object has, by size and by class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..model.criterion import Criterion
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..ops.anchors import inside
from ..text import aligned
from .dataset import Dataset, Flags, Floats, Integers

SIDES = (0, 8, 16, 32, 64, 128, 256, 512)
"""Where the bins of object size begin: the root of the area in pixels, as the network sees it."""

MOST_IMAGES = 2000
"""Images whose objects are compared with the anchors."""


@dataclass(frozen=True)
class Reach:
    """What training would assign to the M objects of a data set, without augmentation.

    anchors  [M] how many positive anchors the object has
    forced   [M] whether it has them only because its best anchor is forced
    sides    [M] root of the area in pixels, as the network sees it
    labels   [M]
    """

    anchors: Integers
    forced: Flags
    sides: Floats
    labels: Integers

    @property
    def missed(self) -> Flags:
        """[M] whether the object has no positive anchor."""
        missed: Flags = self.anchors == 0
        return missed


def anchor_reach(
    data: Dataset, model: RetinaNet, criterion: Criterion, preprocess: Preprocess, images: int = MOST_IMAGES
) -> Reach:
    """Assign anchors to the objects of at most so many images, as training does."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(data))[:images])
    anchors, forced, sides, labels = [], [], [], []
    for index in chosen.tolist():
        rows = data.rows(index)
        single = ~data.crowd[rows]
        old, new = data.sizes[index], preprocess.size(*data.sizes[index].tolist())
        boxes = torch.from_numpy(data.boxes[rows][single] * np.tile(new / old, 2)[[1, 0, 3, 2]]).float()
        levels = model.anchors(torch.empty(0, 3, *preprocess.padded([new])))
        valid = inside(torch.cat(levels), torch.tensor([new], dtype=torch.float32))
        by_force, plain = (
            criterion.assign(levels, boxes[None], valid, criterion.positive, criterion.negative, force)[0]
            for force in (criterion.force_above, None)
        )
        anchors.append(torch.bincount(by_force[by_force >= 0], minlength=len(boxes)).numpy())
        forced.append(torch.bincount(plain[plain >= 0], minlength=len(boxes)).numpy() == 0)
        sides.append((boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt().double().numpy())
        labels.append(data.labels[rows][single])
    counts = np.concatenate(anchors)
    return Reach(counts, np.concatenate(forced) & (counts > 0), np.concatenate(sides), np.concatenate(labels))


def too_narrow(data: Dataset, preprocess: Preprocess, stride: int) -> list[int]:
    """Indices of the images that are so narrow, as the network sees them, that no anchor is centred in them:
    the first centre lies half a stride from the border."""
    sizes = [preprocess.size(height, width) for height, width in data.sizes.tolist()]
    return [index for index, size in enumerate(sizes) if min(size) <= stride / 2]


def reach_table(found: Reach, data: Dataset) -> str:
    """Objects, mean anchors of each, and the shares reached by force and not at all: by size and by class."""
    groups = [("all", np.ones(len(found.sides), dtype=np.bool_))]
    for low, high in zip(SIDES, (*SIDES[1:], np.inf), strict=True):
        title = f"{low}-{high} px" if np.isfinite(high) else f"above {low} px"
        groups.append((title, (found.sides >= low) & (found.sides < high)))
    groups += [(name, found.labels == label) for label, name in enumerate(data.names)]
    sample = f" (of {MOST_IMAGES} images)" if len(data) > MOST_IMAGES else ""
    rows = [(f"  anchors per object{sample}", "objects", "anchors", "by force", "none")]
    for title, group in groups:
        if group.any():
            mean, forced, missed = (x[group].mean() for x in (found.anchors, found.forced, found.missed))
            rows.append((f"    {title}", f"{group.sum()}", f"{mean:.1f}", f"{forced:.1%}", f"{missed:.1%}"))
    return aligned(rows)
