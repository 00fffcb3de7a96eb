"""The page of an audit: each suspect cut out of its image, the annotation dashed, the prediction solid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import Dataset, Floats
from ..data.images import read_image
from ..structures import Detections
from ..view.draw import Box, draw_both, draw_truth
from ..view.html import Crop, crop, placed, write_page
from .suspects import KINDS, STRONG, Suspect

SHOWN = 12
"""Boxes, and images, that are shown for the loss that they produce."""

QUESTIONS = {
    "renamed": "Is its class right?",
    "misplaced": "Is the box where the object is?",
    "missing": "Is there an object without a box?",
}


def write_audit_page(
    path: Path,
    data: Dataset,
    suspects: list[Suspect],
    *,
    box_losses: Floats,
    image_losses: Floats,
    content: dict[str, Any],
    table: str,
    max_pixels: int,
) -> None:
    """Write the page: numbers, suspects, the boxes and images with most of the loss, the `table`."""
    hard = next(row for row in content["shares"]["groups"] if row["group"] == "hard negatives")
    strong = sum(content["strong_suspects"][kind] for kind in KINDS)
    numbers = [
        (f"suspects that score above {STRONG:g}", str(strong)),
        ("suspects shown", str(len(suspects))),
        ("boxes examined", f"{content['boxes']:,}"),
        ("boxes without an anchor, not judged", f"{content['boxes_without_anchor']:,}"),
        ("of the class loss is from hard negatives", f"{hard['loss']:.0%}"),
    ]
    intro = (
        f"{data.split} of {data.source.name}, {len(data)} images. Annotated boxes are dashed; the model's "
        "predictions are solid, with their probability. The worst suspects come first. The score is the log "
        "of how many times more often an error would look like this to the model than a sound label does; "
        f"sound labels seldom score above {STRONG:g}."
        "\n\nA suspect is a question. Hard objects are among the suspects, and only a person can decide; "
        "suspects.json lists them with their annotation ids."
    )
    rows = np.argsort(-box_losses, kind="stable")[:SHOWN].tolist()
    images = np.argsort(-image_losses, kind="stable")[:SHOWN].tolist()
    of_boxes, of_images = (losses / max(losses.sum(), 1e-300) for losses in (box_losses, image_losses))
    sections = [
        (
            "Suspects",
            "Labels that are probably wrong.",
            (suspected(data, one, max_pixels) for one in suspects),
        ),
        (
            "Boxes with the greatest loss",
            "Wrong labels have a great loss, and so have hard objects.",
            (heavy_box(data, row, float(of_boxes[row]), max_pixels) for row in rows),
        ),
        (
            "Images with the greatest loss",
            "All anchors of the image together.",
            (heavy_image(data, index, float(of_images[index]), max_pixels) for index in images),
        ),
    ]
    title = "Which examples produce the loss, and which labels look wrong"
    write_page(path, title, intro, numbers, sections=sections, table=table)


def suspected(data: Dataset, suspect: Suspect, max_pixels: int) -> Crop:
    """One suspect, cut out of its image."""
    annotated = [] if suspect.row is None else [suspect.row]
    lines = [f"{data.files[suspect.image]}, image {data.image_ids[suspect.image]}"]
    lines += [f"annotation {data.annotation_ids[row]}: {data.names[data.labels[row]]}" for row in annotated]
    found = detections(data)
    if suspect.label is None or suspect.box is None or suspect.probability is None:
        lines.append("the model predicts nothing here")
    else:
        lines.append(f"the model: {data.names[suspect.label]} {suspect.probability:.2f}")
        found = detections(data, [suspect.box], [suspect.probability], [suspect.label])
    part = cut(data, suspect.image, annotated, found, max_pixels)
    return Crop(part, f"{suspect.kind} {suspect.score:.2f}: {QUESTIONS[suspect.kind]}", lines)


def detections(
    data: Dataset, boxes: Sequence[Box] = (), scores: Sequence[float] = (), labels: Sequence[int] = ()
) -> Detections:
    """These detections in one image, or none."""
    corners = torch.tensor(boxes).reshape(-1, 4)
    return Detections(corners, torch.tensor(scores), torch.tensor(labels, dtype=torch.long), data.names)


def heavy_box(data: Dataset, row: int, share: float, max_pixels: int) -> Crop:
    """A box, cut out of its image."""
    index = int(np.searchsorted(data.first, row, side="right")) - 1
    lines = [f"{data.files[index]}, image {data.image_ids[index]}", f"annotation {data.annotation_ids[row]}"]
    part = cut(data, index, [row], detections(data), max_pixels)
    return Crop(part, f"{data.names[data.labels[row]]}: {share:.2%} of the loss of all boxes", lines)


def cut(data: Dataset, index: int, rows: list[int], found: Detections, max_pixels: int) -> Tensor:
    """Crop an image around the boxes at `rows` and the detections; only these have names."""
    around = [(left, top, right, bottom) for left, top, right, bottom in data.boxes[rows].tolist()]
    around += [(left, top, right, bottom) for left, top, right, bottom in found.boxes.tolist()]
    part, scale, shown = crop(read_image(data.path(index), max_pixels), around)
    part = others(part, data, index, rows, scale, shown)
    annotated = placed(torch.from_numpy(data.boxes[rows]).float(), scale, shown)
    found = replace(found, boxes=placed(found.boxes, scale, shown))
    return draw_both(part, annotated, torch.from_numpy(data.labels[rows]), found, data.names)


def heavy_image(data: Dataset, index: int, share: float, max_pixels: int) -> Crop:
    """A whole image with its annotated boxes."""
    image = read_image(data.path(index), max_pixels)
    part, scale, shown = crop(image, [(0, 0, image.shape[2], image.shape[1])])
    lines = [f"{data.files[index]}, image {data.image_ids[index]}"]
    return Crop(others(part, data, index, [], scale, shown), f"{share:.2%} of the class loss", lines)


def others(part: Tensor, data: Dataset, index: int, rows: list[int], scale: float, shown: Box) -> Tensor:
    """A crop of an image with all its annotated boxes but those at `rows`, dashed."""
    here = data.rows(index)
    left = [row for row in range(here.start, here.stop) if row not in rows]
    boxes = placed(torch.from_numpy(data.boxes[left]).float(), scale, shown)
    return draw_truth(part, boxes, torch.from_numpy(data.labels[left]))
