"""COCO's numbers, curves, the best threshold, and the confusion matrix.

AP and AR come from faster-coco-eval. The matching here serves what COCO does not give, the best threshold and
the confusion matrix, and follows COCO's rules at IoU 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster, mask
from numpy.typing import NDArray

from ..data.dataset import Dataset, Flags, Floats, Integers
from ..errors import DataError
from ..text import aligned, listed, many, shown
from .results import Results, xywh

NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

PER_IMAGE = 100  # COCO's maxDets: detections of one class in one image that count

IOU = 0.5

UNMATCHED, CROWD = -1, -2  # what a detection is matched to, when it is no object


@dataclass(frozen=True)
class ClassMetrics:
    """One row of the per-class table; None means that there are no such objects."""

    name: str
    boxes: int
    """Objects, crowds not counted."""
    AP: float | None
    AP50: float | None
    AP75: float | None
    threshold: float | None
    """The score that gives this class its best F1 at IoU 0.5."""
    f1: float | None


@dataclass(frozen=True)
class Curves:
    """What the plots show, at IoU 0.5."""

    recall: Floats
    """[101] 0, 0.01 .. 1."""
    precision: tuple[Floats | None, ...]
    """[K] COCO's interpolated precision [101] of each class; None for a class without objects."""
    thresholds: Floats
    """[101] 0, 0.01 .. 1."""
    f1: Floats
    """[101] F1 over all classes of the detections with at least that score; zeros without objects."""


@dataclass(frozen=True)
class Metrics:
    """The accuracy of detections on a data set. None stands for COCO's -1: there are no such objects.

    Example:
        >>> metrics["AP"], metrics["AP50"]
        >>> metrics.per_class[0].name
        >>> metrics.threshold  # the score of best F1
    """

    numbers: dict[str, float | None]
    """The twelve COCO numbers, in COCO's order (NUMBERS)."""
    per_class: tuple[ClassMetrics, ...]
    curves: Curves
    confusion: Integers
    """[K+1, K+1] rows are truth, columns prediction, last the background; at `threshold`, else at 0.5."""
    threshold: float | None
    """The score of best F1 over all classes; None without detections."""
    f1: float | None
    """The F1 at that score."""
    images: int
    boxes: int
    """Objects, crowds not counted."""
    detections: int
    crowded: int
    """Images with more than PER_IMAGE objects of a class."""

    def __getitem__(self, name: str) -> float | None:
        return self.numbers[name]

    def remarks(self) -> list[str]:
        """What AP leaves out, each in a line: classes without objects, detections beyond the hundredth."""
        unseen, classes = [row.name for row in self.per_class if not row.boxes], len(self.per_class)
        texts = ["no detections"] if not self.detections else []
        if unseen:
            over = f"AP over {classes - len(unseen)} of {many(classes, 'class', 'classes')}"
            texts.append(f"{over}; no objects of {listed(unseen)}")
        if self.crowded:
            count = many(self.crowded, "image")
            texts.append(
                f"{count} with more than {PER_IMAGE} objects of a class: COCO's AP counts the best "
                f"{PER_IMAGE} detections of a class in an image, so it stays below 1; F1 counts all"
            )
        return texts

    def to_json(self) -> dict[str, Any]:
        """Plain values only; null where there are no such objects, never NaN."""
        return {
            **self.numbers,
            "threshold": self.threshold,
            "f1": self.f1,
            "images": self.images,
            "boxes": self.boxes,
            "detections": self.detections,
            "remarks": self.remarks(),
            "per_class": [vars(row).copy() for row in self.per_class],
            "confusion": self.confusion.tolist(),
            "curves": {
                "recall": self.curves.recall.round(2).tolist(),
                "precision": [
                    None if one is None else one.round(4).tolist() for one in self.curves.precision
                ],
                "thresholds": self.curves.thresholds.round(2).tolist(),
                "f1": self.curves.f1.round(4).tolist(),
            },
        }


def coco_metrics(dataset: Dataset, results: Results) -> Metrics:
    """Every image of the data set counts, also those in which nothing was found."""
    classes, images = len(dataset.names), len(dataset)
    for what, column, limit in (("class", results.labels, classes), ("image", results.images, images)):
        if len(column) and not 0 <= int(column.min()) <= int(column.max()) < limit:
            raise DataError(
                f"detections of {what} {int(column.max())} (from 0), but {dataset.source} has {limit}"
            )
    numbers, precision = _accumulate(dataset, results)

    results = results[np.lexsort((-results.scores, results.images))]
    objects = np.bincount(dataset.labels[~dataset.crowd], minlength=classes)
    of_class = (dataset.image_of_box() * classes + dataset.labels)[~dataset.crowd]  # image and class in one
    groups, sizes = np.unique(of_class, return_counts=True)
    pairs = _pairs(dataset, results)
    same = results.labels[pairs[0]] == dataset.labels[pairs[1]]
    match = _match(dataset, results, (pairs[0][same], pairs[1][same], pairs[2][same]))
    counted = match != CROWD  # a detection of a crowd is neither right nor wrong
    scores, right, labels = results.scores[counted], match[counted] >= 0, results.labels[counted]
    threshold, f1 = best_f1(scores, right, int(objects.sum()))

    per_class = []
    for label, name in enumerate(dataset.names):
        parts = (slice(None), slice(0, 1), slice(5, 6))  # all IoUs, 0.5, 0.75
        ap, ap50, ap75 = (_mean(precision[part, :, label]) for part in parts)
        mine, count = labels == label, int(objects[label])
        best, highest = best_f1(scores[mine], right[mine], count)
        per_class.append(ClassMetrics(name, count, ap, ap50, ap75, best, highest))
    at = np.linspace(0, 1, 101)
    return Metrics(
        numbers=numbers,
        per_class=tuple(per_class),
        curves=Curves(
            recall=at,
            precision=tuple(precision[0, :, label] if objects[label] else None for label in range(classes)),
            thresholds=at,
            f1=_f1_at(at, scores, right, int(objects.sum())),
        ),
        confusion=_confusion(dataset, results, pairs, IOU if threshold is None else threshold),
        threshold=threshold,
        f1=f1,
        images=images,
        boxes=int(objects.sum()),
        detections=len(results),
        crowded=len(np.unique(groups[sizes > PER_IMAGE] // max(classes, 1))),
    )


def coco_numbers(dataset: Dataset, results: Results) -> dict[str, float | None]:
    """The twelve numbers alone."""
    return _accumulate(dataset, results)[0]


def best_f1(scores: Floats, right: Flags, objects: int) -> tuple[float | None, float | None]:
    """The threshold of the best F1 (the highest such score), and that F1.

    scores, right  [D]  of each detection, and whether it found an object
    objects             number of objects to find
    """
    if objects == 0:
        return None, None
    if not right.any():
        return None, 0.0
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)  # 2 TP / (TP + FP + TP + FN)
    last = np.append(scores[:-1] != scores[1:], True)  # equal scores are kept or dropped together
    best = int(np.argmax(np.where(last, f1, -1.0)))
    return float(scores[best]), float(f1[best])


def _f1_at(thresholds: Floats, scores: Floats, right: Flags, objects: int) -> Floats:
    """F1 at each threshold."""
    kept = len(scores) - np.searchsorted(np.sort(scores), thresholds)
    hits = int(right.sum()) - np.searchsorted(np.sort(scores[right]), thresholds)
    return np.asarray(2 * hits / np.maximum(kept + objects, 1), dtype=np.float64)


def _mean(values: Floats) -> float | None:
    """The mean as COCO takes it: -1 is "no such objects"."""
    return float(values[values > -1].mean()) if (values > -1).any() else None


def _best_of_each_class(results: Results) -> Results:
    """By image and descending score, at most PER_IMAGE of each class in an image: what COCO counts."""
    order = np.lexsort((-results.scores, results.labels, results.images))
    images, labels = results.images[order], results.labels[order]
    starts = np.flatnonzero(
        np.append(True, (images[1:] != images[:-1]) | (labels[1:] != labels[:-1]))[: len(order)]
    )
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    results = results[order[rank < PER_IMAGE]]
    return results[np.lexsort((-results.scores, results.images))]


def _accumulate(dataset: Dataset, results: Results) -> tuple[dict[str, float | None], Floats]:
    """The twelve numbers; precision [10 IoUs, 101 recalls, K], -1 for a class without objects."""
    if not len(dataset) or not dataset.names:
        return dict.fromkeys(NUMBERS), np.full((10, 101, len(dataset.names)), -1.0)
    results = _best_of_each_class(results)
    # new ids in the order of the source's: the order of the images decides between equal scores
    ids = np.empty(len(dataset), dtype=np.int64)
    ids[np.argsort(dataset.image_ids, kind="stable")] = np.arange(1, len(dataset) + 1)
    index = {
        "images": [{"id": one} for one in ids.tolist()],
        "categories": [{"id": label} for label in range(len(dataset.names))],
    }
    truth = (ids[dataset.image_of_box()], dataset.labels, dataset.boxes)
    truths = _annotations(*truth, area=dataset.areas, iscrowd=dataset.crowd.astype(np.int64))
    areas = (results.boxes[:, 2:] - results.boxes[:, :2]).prod(axis=1)
    detected = (ids[results.images], results.labels, results.boxes)
    found = _annotations(*detected, area=areas, score=results.scores)
    both = (COCO({**index, "annotations": rows}, print_function=_silent) for rows in (truths, found))
    evaluator: Any = COCOeval_faster(*both, iouType="bbox", print_function=_silent)
    evaluator.run()
    stats = zip(NUMBERS, evaluator.stats, strict=True)
    numbers = {name: None if value < 0 else float(value) for name, value in stats}
    return numbers, np.asarray(evaluator.eval["precision"], dtype=np.float64)[:, :, :, 0, -1]


def _annotations(
    images: Integers, labels: Integers, boxes: Floats, **more: NDArray[Any]
) -> list[dict[str, Any]]:
    """Columns as COCO's rows. Their ids start at 1, since 0 means "unmatched" inside the evaluator."""
    columns = {"image_id": images, "category_id": labels, "bbox": xywh(boxes), **more}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"id": number, **dict(zip(columns, row, strict=True))} for number, row in enumerate(rows, 1)]


def _silent(*_: object) -> None:
    """A library prints nothing."""


Pairs = tuple[Integers, Integers, Floats]


def _pairs(dataset: Dataset, results: Results) -> Pairs:
    """Detections and objects of one image, of any class, with an IoU of at least 0.5: their rows and IoUs."""
    first = np.searchsorted(results.images, np.arange(len(dataset) + 1))
    found, truths = xywh(results.boxes), xywh(dataset.boxes)
    parts: list[Pairs] = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
    for image in np.flatnonzero((np.diff(first) > 0) & (np.diff(dataset.first) > 0)):
        mine, theirs = slice(first[image], first[image + 1]), dataset.rows(int(image))
        iou = np.asarray(mask.iou(found[mine], truths[theirs], dataset.crowd[theirs].astype(int).tolist()))
        row, column = np.nonzero(iou >= IOU)
        parts.append((row + mine.start, column + theirs.start, iou[row, column]))
    rows, columns, ious = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows, columns, ious


def _match(dataset: Dataset, results: Results, pairs: Pairs) -> Integers:
    """[D] the object that each detection found, or UNMATCHED or CROWD.

    The best score chooses first, and takes the best IoU among the objects that are left. A crowd is chosen
    when nothing else is left, and by any number of detections.
    """
    rows, columns, ious = pairs
    # results are by descending score within an image
    order = np.lexsort((-columns, -ious, dataset.crowd[columns], rows))
    rows, columns = rows[order], columns[order]
    match = [UNMATCHED] * len(results)
    taken = [False] * len(dataset.labels)
    for row, column, crowd in zip(
        rows.tolist(), columns.tolist(), dataset.crowd[columns].tolist(), strict=True
    ):
        if match[row] == UNMATCHED and not taken[column]:
            match[row] = CROWD if crowd else column
            taken[column] = not crowd
    return np.array(match, dtype=np.int64)


def _confusion(dataset: Dataset, results: Results, pairs: Pairs, threshold: float) -> Integers:
    """[K+1, K+1] how often class row was detected as class column; the last is the background."""
    background = len(dataset.names)
    kept = results.scores >= threshold
    sure = kept[pairs[0]]
    match = _match(dataset, results, (pairs[0][sure], pairs[1][sure], pairs[2][sure]))
    hit, stray = kept & (match >= 0), kept & (match == UNMATCHED)
    missed = ~dataset.crowd
    missed[match[hit]] = False
    table = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(table, (dataset.labels[match[hit]], results.labels[hit]), 1)
    table[background] += np.bincount(results.labels[stray], minlength=background + 1)
    table[:, background] += np.bincount(dataset.labels[missed], minlength=background + 1)
    return table


def format_table(metrics: Metrics) -> str:
    """The twelve numbers and a line for each class, as plain text; "-" where there are no such objects."""
    cells = [f"{name:<5} {shown(metrics[name]):>5}" for name in NUMBERS]
    lines = ["   ".join(cells[at : at + 3]) for at in range(0, 12, 3)]
    lines += [f"best F1 {shown(metrics.f1)} at score {shown(metrics.threshold)}", *metrics.remarks()]
    rows: list[tuple[str, ...]] = [("class", "boxes", "AP", "AP50", "AP75", "F1", "at score")]
    for row in metrics.per_class:
        values = (row.AP, row.AP50, row.AP75, row.f1, row.threshold)
        rows.append((row.name, str(row.boxes), *map(shown, values)))
    return "\n".join([*(line.rstrip() for line in lines), "", aligned(rows)])
