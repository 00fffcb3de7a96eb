"""The page of an audit: every suspect as a picture, cut out around it, the annotation dashed and the
model's answer drawn through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from ..view.html import Picture, crop, placed, write_page
from .suspects import KINDS, STRONG, Suspect

SHOWN = 12
"""Boxes, and pictures, that are shown for the loss that they produce."""

QUESTIONS = {
    "renamed": "Is it called by the right name?",
    "misplaced": "Is the box where the object is?",
    "missing": "Is there an object without a box?",
}


def exhibit(
    path: Path,
    data: Dataset,
    suspects: list[Suspect],
    box_losses: Floats,
    image_losses: Floats,
    content: dict[str, Any],
    table: str,
    max_pixels: int,
) -> None:
    """Write the page: numbers, suspects, the boxes and the pictures that carry most of the loss, and the
    `table` of shares.
    """
    hard = next(row for row in content["shares"]["groups"] if row["group"] == "hard negatives")
    numbers = [
        (
            f"suspects that score above {STRONG:g}",
            str(sum(content["strong_suspects"][kind] for kind in KINDS)),
        ),
        ("suspects shown", str(len(suspects))),
        ("boxes looked at", f"{content['boxes']:,}"),
        ("boxes without an anchor, not judged", f"{content['boxes_without_anchor']:,}"),
        ("of the class loss is from hard negatives", f"{hard['loss']:.0%}"),
    ]
    intro = (
        f"{data.split} of {data.source.name}, {len(data)} pictures. Annotated boxes are dashed; what the "
        f"model answers is drawn through, "
        "with its probability. The worst suspects come first: the score is the log of how many times more "
        "often an error would look "
        f"like this to the model than what is annotated does; sound labels seldom score above {STRONG:g}."
        "\n\nA suspect is a question. Hard objects are among them, and only a person can tell; "
        "suspects.json lists them with their "
        "annotation ids."
    )
    rows = np.argsort(-box_losses, kind="stable")[:SHOWN].tolist()
    images = np.argsort(-image_losses, kind="stable")[:SHOWN].tolist()
    sections: list[tuple[str, str, Iterator[Picture]]] = [
        (
            "Suspects",
            "Labels that are probably wrong.",
            (suspected(data, one, max_pixels) for one in suspects),
        ),
        (
            "Boxes with the greatest loss",
            "Wrong labels have a great loss, and so have hard objects.",
            (heavy_box(data, row, float(box_losses[row]) / _total(box_losses), max_pixels) for row in rows),
        ),
        (
            "Pictures with the greatest loss",
            "All anchors of the picture together.",
            (
                heavy_image(data, index, float(image_losses[index]) / _total(image_losses), max_pixels)
                for index in images
            ),
        ),
    ]
    title = "Who produces the loss, and which labels look wrong"
    write_page(path, title, intro, numbers, sections=sections, table=table)


def suspected(data: Dataset, suspect: Suspect, max_pixels: int) -> Picture:
    """One suspect, cut out of its picture."""
    annotated = [] if suspect.row is None else [suspect.row]
    lines = [f"{data.files[suspect.image]}, image {data.image_ids[suspect.image]}"]
    lines += [f"annotation {data.annotation_ids[row]}: {data.names[data.labels[row]]}" for row in annotated]
    found = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), data.names)
    if suspect.answer is None or suspect.box is None or suspect.probability is None:
        lines.append("the model answers nothing here")
    else:
        lines.append(f"the model: {data.names[suspect.answer]} {suspect.probability:.2f}")
        found = Detections(
            torch.tensor([suspect.box]),
            torch.tensor([suspect.probability]),
            torch.tensor([suspect.answer]),
            data.names,
        )
    part = cut(data, suspect.image, annotated, found, max_pixels)
    return Picture(part, f"{suspect.kind} {suspect.score:.2f}: {QUESTIONS[suspect.kind]}", lines)


def heavy_box(data: Dataset, row: int, share: float, max_pixels: int) -> Picture:
    """A box, cut out of its picture."""
    index = int(np.searchsorted(data.first, row, side="right")) - 1
    lines = [f"{data.files[index]}, image {data.image_ids[index]}", f"annotation {data.annotation_ids[row]}"]
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), data.names)
    part = cut(data, index, [row], nothing, max_pixels)
    return Picture(part, f"{data.names[data.labels[row]]}: {share:.2%} of the loss of all boxes", lines)


def cut(data: Dataset, index: int, rows: list[int], found: Detections, max_pixels: int) -> Tensor:
    """The part of a picture around the boxes at `rows` and what was found: these with their names, the other
    boxes without.
    """
    around = [_corners(box) for box in [*data.boxes[rows], *found.boxes.tolist()]]
    part, scale, shown = crop(read_image(data.path(index), max_pixels), around)
    part = others(part, data, index, rows, scale, shown)
    annotated = placed(torch.from_numpy(data.boxes[rows]).float(), scale, shown)
    labels = torch.from_numpy(data.labels[rows])
    return draw_both(
        part, annotated, labels, replace(found, boxes=placed(found.boxes, scale, shown)), data.names
    )


def heavy_image(data: Dataset, index: int, share: float, max_pixels: int) -> Picture:
    """A whole picture with its annotated boxes."""
    image = read_image(data.path(index), max_pixels)
    part, scale, shown = crop(image, [(0, 0, image.shape[2], image.shape[1])])
    lines = [f"{data.files[index]}, image {data.image_ids[index]}"]
    return Picture(others(part, data, index, [], scale, shown), f"{share:.2%} of the class loss", lines)


def others(part: Tensor, data: Dataset, index: int, rows: list[int], scale: float, shown: Box) -> Tensor:
    """A crop of a picture with all its annotated boxes but those at `rows`, dashed."""
    here = data.rows(index)
    left = [row for row in range(here.start, here.stop) if row not in rows]
    return draw_truth(
        part,
        placed(torch.from_numpy(data.boxes[left]).float(), scale, shown),
        torch.from_numpy(data.labels[left]),
    )


def _corners(box: Iterable[Any]) -> Box:
    left, top, right, bottom = (float(value) for value in box)
    return left, top, right, bottom


def _total(losses: Floats) -> float:
    return max(float(losses.sum()), 1e-300)
