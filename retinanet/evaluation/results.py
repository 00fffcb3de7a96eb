"""What a detector found in a whole data set: columns, and COCO's result file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, Floats, Integers
from ..files import write_atomically
from ..structures import BOX_DIGITS, SCORE_DIGITS, Detections


@dataclass(frozen=True)
class Results:
    """What a detector found in a whole data set, as D rows in any order.

    images  [D]     index of the image in the data set
    boxes   [D, 4]  xyxy in pixels of the original image
    scores  [D]
    labels  [D]     0..K-1
    """

    images: Integers
    boxes: Floats
    scores: Floats
    labels: Integers

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.boxes.shape != (count, 4) or self.images.shape != (count,) or self.labels.shape != (count,):
            shapes = [list(part.shape) for part in (self.images, self.boxes, self.scores, self.labels)]
            raise ValueError(
                f"images [D], boxes [D, 4], scores [D] and labels [D] must agree on D, not {shapes}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> Results:
        """A slice, a mask or positions."""
        return Results(self.images[rows], self.boxes[rows], self.scores[rows], self.labels[rows])


def collect(
    dataset: Dataset, detections: Sequence[Detections], images: Sequence[int] | None = None
) -> Results:
    """One Detections for each image of the data set -> columns; with `images` those of these images only."""
    images = range(len(dataset)) if images is None else images
    if len(detections) != len(images):
        raise ValueError(f"{len(images)} images need as many Detections, not {len(detections)}")
    parts = [one.numpy() for one in detections]
    return Results(
        np.repeat(np.array(images, dtype=np.int64), [len(scores) for _, scores, _ in parts]),
        np.concatenate([np.empty((0, 4)), *(boxes for boxes, _, _ in parts)]).astype(np.float64),
        np.concatenate([np.empty(0), *(scores for _, scores, _ in parts)]).astype(np.float64),
        np.concatenate([np.empty(0, dtype=np.int64), *(labels for _, _, labels in parts)]),
    )


def merge(parts: Sequence[Results]) -> Results:
    """The results of several processes as one, in the order of the images."""
    columns = [
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("images", "boxes", "scores", "labels")
    ]
    whole = Results(*columns)
    return whole[np.argsort(whole.images, kind="stable")]  # within an image they stay best first


def write_results(file: Path, dataset: Dataset, results: Results) -> None:
    """As COCO result JSON, see `result_rows`."""
    write_atomically(file, ("[" + ",\n".join(result_rows(dataset, results)) + "]\n").encode())


def result_rows(dataset: Dataset, results: Results) -> Iterator[str]:
    """The rows of a COCO result file: the source's image and category ids, boxes as [x, y, width, height]."""
    columns = (
        dataset.image_ids[results.images].tolist(),
        np.array(dataset.category_ids, dtype=np.int64)[results.labels].tolist(),
        (xywh(results.boxes).round(BOX_DIGITS) + 0.0).tolist(),  # not -0.0
        results.scores.round(SCORE_DIGITS).tolist(),
    )
    names = ("image_id", "category_id", "bbox", "score")
    return (
        json.dumps(dict(zip(names, row, strict=True)), allow_nan=False) for row in zip(*columns, strict=True)
    )


def categories(names: Iterable[str], ids: Iterable[int]) -> list[dict[str, Any]]:
    """The names of category ids as our commands write them beside results, for `read.read_results`."""
    return [{"id": one, "name": name} for name, one in zip(names, ids, strict=True)]


def xywh(boxes: Floats) -> Floats:
    """[N, 4] xyxy -> x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
