"""Annotations that are not written as COCO says: what they mean, where that is one thing."""

from __future__ import annotations

from math import isfinite, nan
from typing import Any, NamedTuple

from ...errors import Problem
from .coco_masks import box_of_mask
from .json import as_id, as_number, shorten

UNUSABLE = -1  # instead of the index of an image

TEXT_IDS = "ids, sizes or boxes that are written as text"

FROM_MASK = "boxes taken from polygons or masks"


class Row(NamedTuple):
    """An annotation that is not written as the format says, and has only one meaning."""

    number: Any
    image: int
    label: int
    box: tuple[float, float, float, float]
    """x, y, width, height"""
    crowd: int
    area: float
    repairs: list[str]


def repaired(
    position: int,
    entry: Any,
    files: list[str],
    *,
    index_of: dict[int | str, int],
    labels: dict[int | str, int],
) -> Row | Problem:
    """What an annotation means, or what is wrong with it. The reader asks only where its quick checks failed.

    position  of the annotation in the file
    files     names of the images
    index_of  image id -> index, or UNUSABLE
    labels    category id -> label
    """
    if not isinstance(entry, dict):
        return Problem("annotations that are no objects", "", f"entry {position}: {shorten(entry)}")
    image, category = (as_id(entry.get(key)) for key in ("image_id", "category_id"))
    index = index_of.get(image) if image is not None else None
    name = files[index] if index is not None and index >= 0 else ""
    where = f"entry {position}" if entry.get("id") is None else f"annotation {shorten(entry['id'])}"
    where += f", image {shorten(entry.get('image_id'))}" + (f" ({name})" if name else "")

    def fault(kind: str, detail: str, image: str = name) -> Problem:
        return Problem(kind, "", f"{where}: {detail}" if detail else where, image)

    for key in ("image_id", "category_id"):
        if entry.get(key) is None:
            return fault(f"annotations without {key}", shorten(entry))
    if index is None or index == UNUSABLE:
        which = "unknown images" if index is None else "images that cannot be used"
        return fault(f"annotations of {which}", "")
    if category not in labels:
        return fault("annotations of unknown categories", f"category {shorten(entry['category_id'])}")
    box, crowd, area = entry.get("bbox"), entry.get("iscrowd") or 0, entry.get("area")
    crowd = as_id(crowd) if isinstance(crowd, str) else crowd
    if crowd not in (0, 1):
        kind = "annotations whose iscrowd is neither 0 nor 1"
        return fault(kind, f"iscrowd {shorten(entry.get('iscrowd'))}")
    repairs = []
    if not box and (around := box_of_mask(entry.get("segmentation"))):
        box, repairs = list(around), [FROM_MASK]
    elif not box:  # an empty list says that nothing is there
        return fault("annotations without bbox", shorten(entry), image="" if box == [] else name)
    sides = [as_number(side) for side in box] if isinstance(box, list) else []
    if len(sides) != 4 or not all(isinstance(side, int | float | str) and side is not True for side in box):
        return fault("boxes that are not four numbers", f"bbox {shorten(box)}")
    x, y, w, h = (nan if side is None else side for side in sides)
    wide = w * h if area is None else as_number(area)
    if wide is not None and wide < 0 and area is not None:
        return fault("areas below 0", f"area {shorten(area)}")
    if wide is None or not isfinite(x + y + w + h) or not isfinite(wide):
        return fault("boxes or areas that are not finite", f"bbox {shorten(box)}, area {shorten(area)}")
    if any(isinstance(value, str) for value in (*box, area, entry["image_id"], entry["category_id"])):
        repairs.append(TEXT_IDS)
    return Row(entry.get("id"), index, labels[category], (x, y, w, h), crowd, wide, repairs)
