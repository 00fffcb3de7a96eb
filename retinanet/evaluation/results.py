"""What a detector found in a whole data set: columns, and COCO's result file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, Floats, Integers
from ..data.formats.json import NUMBERS, as_int, reject_duplicate_keys, shorten
from ..errors import DataError, Problem
from ..files import write_atomically
from ..structures import Detections


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
        # Four decimals: a box that was read back has moved by at most a thousandth of a pixel.
        xywh(results.boxes).round(4).tolist(),
        results.scores.round(6).tolist(),
    )
    names = ("image_id", "category_id", "bbox", "score")
    return (
        json.dumps(dict(zip(names, row, strict=True)), allow_nan=False) for row in zip(*columns, strict=True)
    )


def read_results(file: Path, dataset: Dataset) -> Results:
    """COCO result JSON -> columns; ids that the data set does not know are an error."""
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=reject_duplicate_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise DataError(
            f"{file} is no COCO result file: that is a list of {{image_id, category_id, bbox, score}}"
        )
    rows, problems = [], []
    for number, entry in enumerate(content):
        try:
            x, y, width, height = box = entry["bbox"]
            image, category, score = as_int(entry["image_id"]), as_int(entry["category_id"]), entry["score"]
            row = (x, y, x + width, y + height, score)
            if (
                not NUMBERS.issuperset(map(type, [*box, score]))
                or not all(map(isfinite, row))
                or width < 0
                or height < 0
            ):
                raise ValueError
            if image is None or category is None:
                raise ValueError
            rows.append((image, category, *row))
        except (KeyError, TypeError, ValueError, OverflowError):
            problems.append(
                Problem(
                    "entries without a usable image_id, category_id, bbox and score",
                    file.name,
                    f"entry {number}: {shorten(entry)}",
                )
            )
    images, image_problems = _positions([row[0] for row in rows], dataset.image_ids, "image", file)
    labels, label_problems = _positions(
        [row[1] for row in rows], np.array(dataset.category_ids, dtype=np.int64), "category", file
    )
    problems += image_problems + label_problems
    if problems:
        raise DataError(f"{file} does not go with {dataset.source}:\n{_summary(problems)}", problems)
    values = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, 5)
    return Results(images, values[:, :4], values[:, 4], labels)


def _positions(ids: list[int], known: Integers, what: str, file: Path) -> tuple[Integers, list[Problem]]:
    """The position of each id among the known ones, and what is wrong with the ids that are not."""
    where = {one: position for position, one in enumerate(known.tolist())}
    unknown = sorted(Counter(one for one in ids if one not in where).items())
    problems = [
        Problem(f"unknown {what} ids", file.name, f"{what}_id {one} ({count} detections)")
        for one, count in unknown
    ]
    return np.array([where.get(one, -1) for one in ids], dtype=np.int64), problems


def _summary(problems: list[Problem], limit: int = 10) -> str:
    """How many of each kind, and the first few."""
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in problems):
        details = [problem.detail for problem in problems if problem.kind == kind]
        more = [f"... and {len(details) - limit} more"] if len(details) > limit else []
        lines += [f"{len(details)} {kind}", *(f"  {detail}" for detail in details[:limit] + more)]
    return "\n".join(lines)


def xywh(boxes: Floats) -> Floats:
    """[N, 4] xyxy -> x, y, width, height."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
