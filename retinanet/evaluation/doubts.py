"""What makes the numbers of an evaluation mean something else than they seem to, each in a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, Floats
from ..text import many
from .coco import Metrics, coco_numbers
from .results import Results, xywh

LOW = 0.45
"""An AP from which on nothing is doubted: twice as much, and a tenth, would be more than 1."""


def more_objects(*splits: Dataset, limit: int) -> list[str]:
    """The images with more objects than a model gives detections."""
    counts = np.concatenate([np.bincount(one.image_of_box()[~one.crowd], minlength=1) for one in splits])
    over, most = int((counts > limit).sum()), int(counts.max())
    if not over:
        return []
    return [
        f"{many(over, 'image')} with more objects (up to {most:,}) than the {limit:,} detections of an image "
        f"that the model gives: train with --set max_detections={most + most // 2}, or set "
        f"detector.postprocess.max_detections in Python"
    ]


def trained_on(data: Dataset, source: str | Path, about: Mapping[str, Any]) -> list[str]:
    """Whether these images are those of the training that `about` of a model tells of."""
    same = Path(str(about.get("data"))).resolve() == Path(source).resolve()
    if about.get("data_hash") == data.fingerprint() or (same and data.split not in ("val", "test")):
        return ["the model was trained on these images: AP says nothing about others; choose another --split"]
    return []


def misread(data: Dataset, results: Results, metrics: Metrics) -> list[str]:
    """Whether a foreign results file gives a far better AP with boxes of another form, or with other classes.

    It is computed for a low AP only, and where the boxes are such that another form is possible.
    """
    ap = metrics["AP"]
    if ap is None or ap > LOW or not len(results):
        return []
    texts, truth = [], replace(data, names=("object",), category_ids=(1,), labels=np.zeros_like(data.labels))
    any_class = coco_numbers(truth, _one_class(results))["AP"] or 0.0
    for form, boxes in _other_forms(data, results) if any_class < LOW else ():
        other = replace(results, boxes=boxes)
        better = coco_numbers(truth, _one_class(other))["AP"] or 0.0
        if _far_better(better, any_class):
            texts.append(
                f"AP {ap:.3f}, but {better:.3f} if the boxes are {form}: write them as [x, y, width, height] "
                f"in pixels of the image, as COCO does"
            )
            ap, any_class = coco_numbers(data, other)["AP"] or 0.0, better
            break
    else:
        texts += _misplaced(data, results)
    if len(data.names) > 1 and _far_better(any_class, ap):
        texts.append(
            f"AP {ap:.3f}, but {any_class:.3f} without regard to class: are the category ids those of "
            f"{data.source.name}?"
        )
    return texts


def _misplaced(data: Dataset, results: Results) -> list[str]:
    """Whether many boxes leave their images, or all lie in the first pixel."""
    sizes = data.sizes[results.images][:, [1, 0]]
    over = (results.boxes[:, 2:] > 1.1 * sizes + 1).any(axis=1) & (sizes > 0).all(axis=1)
    tiny = bool(results.boxes.max() <= 1 + 1e-3 and sizes.min() > 1)
    if not tiny and over.mean() < 0.25:
        return []
    what = (
        "all boxes lie in the first pixel"
        if tiny
        else f"{over.sum():,} of {len(results):,} boxes leave the image"
    )
    return [f"{what}: are they [x, y, width, height] in pixels of the image, as COCO has them?"]


def _far_better(one: float, other: float) -> bool:
    return one > 2 * other + 0.1


def _one_class(results: Results) -> Results:
    return replace(results, labels=np.zeros_like(results.labels))


def _other_forms(data: Dataset, results: Results) -> Iterator[tuple[str, Floats]]:
    """Each other form that the boxes may have, and what they are then as xyxy in pixels."""
    written, sizes = xywh(results.boxes), data.sizes[results.images][:, [1, 0, 1, 0]]
    fractions = bool(written.max() <= 1 + 1e-3 and sizes.min() > 1)
    pixels, unit = (written * sizes, " in fractions of the image") if fractions else (written, "")
    first, second = pixels[:, :2], pixels[:, 2:]
    if fractions:
        yield f"[x, y, width, height]{unit}", np.hstack([first, first + second])
    if (first <= second).all(axis=1).mean() > 0.9:
        yield f"[x0, y0, x1, y1]{unit}", np.hstack([first, np.maximum(first, second)])
    yield f"[centre x, centre y, width, height]{unit}", np.hstack([first - second / 2, first + second / 2])
