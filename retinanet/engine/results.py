"""What a detector found in a whole data set: columns, and COCO's result file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, Floats, Integers
from ..errors import DataError, Problem
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
            raise ValueError(f"images [D], boxes [D, 4], scores [D] and labels [D] must agree on D, not {shapes}")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, rows: Any) -> Results:
        """A slice, a mask or positions."""
        return Results(self.images[rows], self.boxes[rows], self.scores[rows], self.labels[rows])


def collect(dataset: Dataset, detections: Sequence[Detections]) -> Results:
    """One Detections for each image of the data set, in its order -> columns."""
    if len(detections) != len(dataset):
        raise ValueError(f"{len(dataset)} images need as many Detections, not {len(detections)}")
    parts = [one.numpy() for one in detections]
    return Results(
        np.repeat(np.arange(len(parts), dtype=np.int64), [len(scores) for _, scores, _ in parts]),
        np.concatenate([np.empty((0, 4)), *(boxes for boxes, _, _ in parts)]).astype(np.float64),
        np.concatenate([np.empty(0), *(scores for _, scores, _ in parts)]).astype(np.float64),
        np.concatenate([np.empty(0, dtype=np.int64), *(labels for _, _, labels in parts)]),
    )


def write_results(file: Path, dataset: Dataset, results: Results) -> None:
    """As COCO result JSON: the source's image and category ids, boxes as [x, y, width, height]. Written aside, then renamed."""
    columns = (
        dataset.image_ids[results.images].tolist(),
        np.array(dataset.category_ids, dtype=np.int64)[results.labels].tolist(),
        # Four decimals: a box that was read back has moved by at most a thousandth of a pixel.
        xywh(results.boxes).round(4).tolist(),
        results.scores.round(6).tolist(),
    )
    names = ("image_id", "category_id", "bbox", "score")
    rows = (json.dumps(dict(zip(names, row, strict=True)), allow_nan=False) for row in zip(*columns, strict=True))
    aside = file.with_name(file.name + ".part")
    try:
        aside.write_text("[" + ",\n".join(rows) + "]\n", encoding="utf-8")
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def read_results(file: Path, dataset: Dataset) -> Results:
    """COCO result JSON -> columns; ids that the data set does not know are an error."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise DataError(f"{file} is no COCO result file: that is a list of {{image_id, category_id, bbox, score}}")
    rows, problems = [], []
    for number, entry in enumerate(content):
        try:
            x, y, width, height = map(float, entry["bbox"])
            row = (int(entry["image_id"]), int(entry["category_id"]), x, y, x + width, y + height, float(entry["score"]))
            if not np.isfinite(row).all() or width < 0 or height < 0:
                raise ValueError
            rows.append(row)
        except (KeyError, TypeError, ValueError):
            problems.append(
                Problem("entries without a usable image_id, category_id, bbox and score", file.name, f"entry {number}: {entry}")
            )
    images, image_problems = _positions([row[0] for row in rows], dataset.image_ids, "image", file)
    labels, label_problems = _positions([row[1] for row in rows], np.array(dataset.category_ids, dtype=np.int64), "category", file)
    problems += image_problems + label_problems
    if problems:
        raise DataError(f"{file} does not go with {dataset.source}:\n{_summary(problems)}", problems)
    values = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, 5)
    return Results(images, values[:, :4], values[:, 4], labels)


def _positions(ids: list[int], known: Integers, what: str, file: Path) -> tuple[Integers, list[Problem]]:
    """The position of each id among the known ones, and what is wrong with the ids that are not."""
    where = {one: position for position, one in enumerate(known.tolist())}
    unknown = sorted(Counter(one for one in ids if one not in where).items())
    problems = [Problem(f"unknown {what} ids", file.name, f"{what}_id {one} ({count} detections)") for one, count in unknown]
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
