"""Every problem of a data set at once, with file and id, before the first step; dropped or cut on request."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from ..errors import DataError, Problem, report, unknown_name_error
from ..text import many
from .cache import MISSING, UNREADABLE, read_sizes
from .dataset import Dataset, Flags, Floats, Integers
from .images import MAX_PIXELS, read_pixels

Invalid = Literal["error", "drop", "clip"]

CHOICES = get_args(Invalid)

TOLERANCE = 1.0
"""Pixels by which a box may leave the image, as most tools round: it is cut at the border, and no problem."""

OUTSIDE = "boxes outside the image"

ADVICE = (
    "Fix the files, or pass --invalid drop to leave out what is wrong, with the images that would lack an "
    "object then, or --invalid clip to cut boxes at the border first and leave out the rest."
)


def validate(
    dataset: Dataset,
    invalid: Invalid = "error",
    headers: bool = True,
    *,
    strict: bool = False,
    deep: bool = False,
    max_pixels: int = MAX_PIXELS,
    need_boxes: bool = True,
) -> tuple[Dataset, list[Problem]]:
    """The data set as it can be used, and everything that is wrong with it, also what the reader found.

    invalid  error  any problem raises DataError, whose `problems` lists all of them
             drop   what has a problem is left out, and so is an image that would lack an object then: its
                    place would be learned as background. Of a box without area, or one that is there twice,
                    nothing is lost but the box.
             clip   boxes that leave their image are cut at its border; all else as with drop
    strict   the reader's repairs are problems too
    headers  look at the images: are they there, and as large as the annotations say (kept by time and length)
    deep     decode every image

    Boxes that leave their image by at most one pixel are cut at the border in any case, and sizes that the
    annotations do not give are filled in. Without any image or box (unless `need_boxes` is False), or when no
    image is there, it is always an error.
    """
    if invalid not in CHOICES:
        raise unknown_name_error("--invalid", invalid, CHOICES)
    problems = [*dataset.problems, *(dataset.repairs if strict else ())]
    _require_some(dataset, problems, need_boxes)
    lacking = {problem.image for problem in problems}
    good_images = np.array([file not in lacking for file in dataset.files.tolist()], dtype=np.bool_)
    sizes, measured = dataset.sizes, good_images.copy()
    for index in _listed_again(dataset):
        problems.append(_image_problem(dataset, "images that are listed twice", index))
        good_images[index] = False
    if headers or deep:
        sizes, measured = _check_headers(dataset, max_pixels, problems, good_images)
    if deep:
        _decode(dataset, max_pixels, problems, good_images)
    boxes, good_boxes, lost = _check_boxes(dataset, sizes, measured, invalid == "clip", problems)
    good_images[dataset.image_of_box()[lost]] = False

    if problems and invalid == "error":
        raise DataError(
            f"{dataset.source}: {many(len(problems), 'problem')}\n{report(problems, limit=10)}\n{ADVICE}",
            problems,
        )
    clean = replace(dataset, sizes=sizes)
    if (boxes != dataset.boxes).any():
        areas = np.where(_area_follows(dataset, boxes), _area(boxes), dataset.areas)
        clean = replace(clean, boxes=boxes, areas=areas)
    clean = clean.keep_boxes(good_boxes)
    if not good_images.all():
        clean = clean.subset(np.flatnonzero(good_images))
    _require_some(clean, problems, need_boxes)
    left_out = [
        many(before - after, one, more)
        for before, after, one, more in (
            (len(dataset), len(clean), "image", "images"),
            (len(dataset.labels), len(clean.labels), "box", "boxes"),
        )
        if before > after
    ]
    if problems:
        what = " and ".join(left_out) or "nothing"
        note = f"{many(len(problems), 'problem')} met: {what} left out (--invalid {invalid})"
        clean = replace(clean, notes=(*dataset.notes, note))
    return replace(clean, problems=()), problems


def _require_some(dataset: Dataset, problems: list[Problem], need_boxes: bool) -> None:
    boxes = "boxes but crowds (iscrowd, difficult)" if len(dataset.labels) else "boxes"
    lacks = "images" if len(dataset) == 0 else boxes if need_boxes and dataset.crowd.all() else None
    if lacks is not None:
        reasons = f"\n{report(problems, limit=10)}" if problems else ""
        advice = "; take the split away, and a tenth of train is held out" if dataset.split == "val" else ""
        raise DataError(
            f"{dataset.source}: there are no {lacks} in {dataset.split}, so there is nothing to learn or to "
            f"measure{advice}{reasons}",
            problems,
        )


def _image_problem(dataset: Dataset, kind: str, index: int, what: str = "") -> Problem:
    detail = f"image {dataset.image_ids[index]} ({dataset.files[index]})"
    return Problem(kind, dataset.source.name, f"{detail}: {what}" if what else detail)


def _listed_again(dataset: Dataset) -> list[int]:
    """Indices of images whose file an earlier image has already."""
    if len(set(dataset.files.tolist())) == len(dataset):
        return []
    _, first, inverse = np.unique(dataset.files, return_index=True, return_inverse=True)
    return np.flatnonzero(first[inverse] != np.arange(len(dataset))).tolist()


def _check_headers(
    dataset: Dataset, max_pixels: int, problems: list[Problem], good: Flags
) -> tuple[Integers, Flags]:
    """-> [N, 2] sizes, and [N] where they are sure, to judge boxes by; marks bad images in `good`."""
    found, failures = read_sizes(dataset.root, dataset.files.tolist())
    if len(failures) == len(dataset) and all(kind == MISSING for kind, _ in failures.values()):
        raise DataError(
            f"{dataset.source}: none of its {len(dataset)} images was found; the first was looked for at "
            f"{dataset.path(0)}; pass the folder of the images with --images",
            [*problems, *(_image_problem(dataset, MISSING, index) for index in failures)],
        )
    stated, seen = _known(dataset.sizes), _known(found)
    differs = stated & seen & (found != dataset.sizes).any(axis=1)
    large = seen & (found.prod(axis=1) > max_pixels)
    for index, (kind, reason) in failures.items():
        problems.append(_image_problem(dataset, kind, index, reason))
    for index in np.flatnonzero(differs).tolist():
        (height, width), (said_height, said_width) = found[index].tolist(), dataset.sizes[index].tolist()
        what = f"the annotation says {said_width} x {said_height}, the image is {width} x {height}"
        if (height, width) == (said_width, said_height):
            what += " (the sides are swapped, as where the EXIF rotation is ignored)"
        kind = "images whose size disagrees with the annotation"
        problems.append(_image_problem(dataset, kind, index, what))
    for index in np.flatnonzero(large).tolist():
        what = f"{found[index, 1]} x {found[index, 0]} pixels, the limit is {max_pixels} (--max-pixels)"
        problems.append(_image_problem(dataset, "images above the limit of pixels", index, what))
    good &= seen & ~large & ~differs
    return np.where(seen[:, None], found, dataset.sizes), ~differs


def _decode(dataset: Dataset, max_pixels: int, problems: list[Problem], good: Flags) -> None:
    """Decodes every image whose header is sound; marks the bad ones in `good`."""

    def fault(index: int) -> str | None:
        try:
            read_pixels(dataset.path(index), max_pixels)
        except DataError as error:
            return str(error).removeprefix(f"{dataset.path(index)}: ")
        return None

    sound = [int(index) for index in np.flatnonzero(good)]
    with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
        for index, reason in zip(sound, pool.map(fault, sound), strict=True):
            if reason is not None:
                problems.append(_image_problem(dataset, UNREADABLE, index, reason))
                good[index] = False


def _check_boxes(
    dataset: Dataset, sizes: Integers, measured: Flags, clip: bool, problems: list[Problem]
) -> tuple[Floats, Flags, Flags]:
    """-> [M, 4] boxes, cut where that is allowed; [M] which can be used; [M] which an image may not lack."""
    image = dataset.image_of_box()
    known = measured[image] & _known(sizes)[image]
    border = np.where(known[:, None], sizes[image][:, [1, 0, 1, 0]], np.inf)
    origin = np.where(known, 0.0, -np.inf)[:, None]
    finite: Flags = np.asarray(np.isfinite(dataset.boxes).all(axis=1))
    boxes = np.where(finite[:, None], dataset.boxes, 0.0)
    flat = finite & _flat(boxes)
    outside = finite & ~flat & ((boxes < origin - TOLERANCE) | (boxes > border + TOLERANCE)).any(axis=1)
    cut = np.clip(boxes, origin, border)
    vanishes = finite & ~flat & ~outside & _flat(cut)  # lies within the pixel of tolerance
    repeated = _repeated(image, dataset.labels, boxes) & finite

    # one box of a pixel in the corner may be meant, all of them are not
    fractions = finite & ~flat & (boxes.max(initial=0) <= 1) & (known & (border > 4).all(axis=1))
    faults = {
        "boxes that are not finite": ~finite,
        "boxes in fractions of the image and not in pixels": fractions,
        "boxes without area": flat | vanishes,
        OUTSIDE: outside,
        "duplicate boxes": repeated,
    }
    for kind, where in faults.items():
        for row in np.flatnonzero(where).tolist():
            problems.append(_box_problem(dataset, kind, row, int(image[row]), sizes))
    if dataset.layout == "coco" and known.all() and outside.any() and _fit_as_corners(boxes, border):
        what = "all boxes fit if they are [x1, y1, x2, y2]; COCO's are [x, y, width, height]"
        problems.append(Problem("files whose boxes seem to be corners", dataset.source.name, what))
    usable = finite & ~repeated & ~_flat(cut) & ~fractions
    inside_out = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)  # and not only flat: an object is there
    return (
        cut,
        (usable if clip else usable & ~outside),
        ~finite | inside_out | fractions | (outside & (not clip)),
    )


def _fit_as_corners(boxes: Floats, border: Floats) -> bool:
    """Whether width and height of all [M, 4] boxes can be their second corner."""
    with np.errstate(over="ignore"):
        second = boxes[:, 2:] - boxes[:, :2]
    return bool(((boxes[:, :2] < second) & (second <= border[:, 2:])).all())


def _known(sizes: Integers) -> Flags:
    """[N, 2] -> [N] whether the size is given."""
    return np.asarray((sizes > 0).all(axis=1))


def _flat(boxes: Floats) -> Flags:
    """[M, 4] -> [M] without width or height, or inside out."""
    return np.asarray((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))


def _area(boxes: Floats) -> Floats:
    """[M, 4] -> [M] width x height."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _area_follows(dataset: Dataset, cut: Floats) -> Flags:
    """[M] boxes that were cut, and whose area was that of the box and not of a mask."""
    changed = (cut != dataset.boxes).any(axis=1) & np.isfinite(dataset.boxes).all(axis=1)
    follows = np.zeros(len(changed), dtype=np.bool_)
    follows[changed] = np.isclose(dataset.areas[changed], _area(dataset.boxes[changed]))
    return follows


def _repeated(image: Integers, labels: Integers, boxes: Floats) -> Flags:
    """[M] true for a box that equals an earlier one of the same image and class."""
    keys = (*boxes.T, labels, image)
    suspects = _of_equal_hash(keys)
    # stable: equal boxes stay in the order of the file
    order = suspects[np.lexsort([key[suspects] for key in keys])]
    same = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    repeated = np.zeros(len(image), dtype=np.bool_)
    repeated[order[1:]] = same
    return repeated


def _of_equal_hash(keys: Sequence[Floats | Integers]) -> Integers:
    """Rows that share a hash of all keys with another row. To sort COCO's 860,000 by six keys takes 0.6 s."""
    mixed = np.zeros(len(keys[0]), dtype=np.uint64)
    for key in keys:
        mixed ^= (key + key.dtype.type(0)).view(np.uint64)  # -0.0 + 0 is 0.0, which it equals
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    ordered = np.sort(mixed)
    return np.flatnonzero(np.isin(mixed, ordered[1:][ordered[1:] == ordered[:-1]]))


def _box_problem(dataset: Dataset, kind: str, row: int, index: int, sizes: Integers) -> Problem:
    x1, y1, x2, y2 = dataset.boxes[row].tolist()
    xywh = ", ".join(f"{value:.10g}" for value in (x1, y1, x2 - x1, y2 - y1))
    height, width = sizes[index].tolist()
    size = f" of {width} x {height}" if kind == OUTSIDE else ""
    number, name = dataset.image_ids[index], dataset.files[index]
    what = f"annotation {dataset.annotation_ids[row]}, image {number} ({name}){size}"
    return Problem(kind, dataset.source.name, f"{what}: [x, y, w, h] = [{xywh}]")
