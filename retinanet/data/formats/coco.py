"""COCO JSON -> columns. What cannot be a row is noted with its id; nothing else is left out."""

from __future__ import annotations

import gc
import json
import logging
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..cache import cached
from ..dataset import BOX_COLUMNS, Columns, Dataset, Integers, is_text
from .format import Read, split_of, subfolders
from .json import NUMBERS, ONLY_INT, WHOLE, as_int, reject_duplicate_keys, shorten

log = logging.getLogger("retinanet")

HOLDS = "*.json here, in annotations/, or in folders such as train/ and valid/"

OTHER_TASKS = re.compile("captions|keypoints|panoptic|stuff|info|results|predictions|detections|unlabeled")
"""Words in the names of COCO files that hold no boxes to train on."""

LISTS = ("images", "annotations", "categories")

FOLDERS = ("images", "JPEGImages", "data", "imgs")
"""Usual names of the folder of the images."""

LONGEST_NAME = 1024

UNUSABLE, UNKNOWN = -1, -2  # instead of the index of an image


def recognise_coco(root: Path, images: Path | None) -> Read | None:
    """Its files by split; "all" holds those whose name says none."""
    folders = subfolders(root)
    annotations = [folder for folder in folders if folder.name.lower() == "annotations"]
    named = [folder for folder in folders if split_of(folder.name)]
    files: dict[str, list[Path]] = {}
    for folder in [root, *annotations, *named]:
        for file in sorted(folder.glob("*.json")):
            words = re.split(r"[^a-z]+", file.stem.lower())
            if not any(map(OTHER_TASKS.fullmatch, words)) and _looks_like_coco(file):
                split = split_of(file.stem) or (split_of(folder.name) if folder in named else None)
                files.setdefault(split or "all", []).append(file)
    return (lambda: _read_splits(root, files, images)) if files else None


def read_coco_file(file: Path, images: Path | None) -> dict[str, Dataset]:
    """A single file, which is not split."""
    return {"all": read_coco(file, images, split_of(file.stem))}


def _looks_like_coco(file: Path) -> bool:
    """By its first 64 kB, since a file may have a gigabyte."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(65536).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return False
    return head.startswith(b"{") and any(b'"%s"' % key.encode() in head for key in LISTS)


def _read_splits(root: Path, files: dict[str, list[Path]], images: Path | None) -> dict[str, Dataset]:
    if len(files) > 1 and "all" in files:
        unnamed = ", ".join(file.name for file in files.pop("all"))
        log.info("%s: not read, since their names say no split: %s", root, unnamed)
    datasets = {}
    for split, candidates in files.items():
        instances = [file for file in candidates if file.stem.startswith("instances")]
        file, *others = instances if len(instances) == 1 else candidates
        if others:
            listed = ", ".join(one.relative_to(root).as_posix() for one in (file, *others))
            which = "without the name of a split" if split == "all" else f"for the split {split}"
            raise DataError(
                f"{root}: several annotation files {which}: {listed}; pass one of them instead of the folder"
            )
        datasets[split] = read_coco(file, images, split)
    _require_same_classes(*datasets.values())
    return datasets


def _require_same_classes(first: Dataset, *others: Dataset) -> None:
    for other in others:
        if other.names == first.names:
            continue
        only = [
            (one, [name for name in one.names if name not in two.names])
            for one, two in ((first, other), (other, first))
        ]
        differences = [
            f"only in {one.source.name}: {', '.join(map(repr, names))}" for one, names in only if names
        ]
        what = "; ".join(differences) or "the names are the same, but their ids put them in another order"
        raise DataError(
            f"{first.source.name} and {other.source.name} do not have the same classes: {what}. All splits "
            f"must share one list of categories"
        )


def read_coco(file: Path, images: Path | None = None, split: str | None = None) -> Dataset:
    """One COCO annotation file; `images` is the folder of its images (None: searched for around the file).

    Classes are in the order of their ids; crowds are kept and marked; `area` is the file's if it has one;
    boxes become xyxy in float64.
    """
    dataset, split = cached(file, _read), split or file.stem
    return replace(dataset, split=split, root=find_root(file, dataset.files[:20].tolist(), split, images))


def _read(file: Path) -> Dataset:
    columns = Columns()
    with _without_garbage_collection():
        content = _load(file)
        labels, names, category_ids = _categories(content["categories"], file.name, columns)
        index_of = _images(content["images"], file.name, columns)
        image_of_box = _annotations(content["annotations"], file.name, columns, index_of, labels)
        del content  # most of its memory is free already: the lists were emptied as they were read

    order = np.argsort(image_of_box, kind="stable")  # the annotations come in any order
    columns.counts = np.bincount(image_of_box, minlength=len(columns.files)).tolist()
    dataset = columns.build(file, file.parent, file.stem, names, category_ids)
    return replace(dataset, **{name: getattr(dataset, name)[order] for name in BOX_COLUMNS})


def find_root(file: Path, names: Iterable[str], split: str, images: Path | None = None) -> Path:
    """The folder that the file names are relative to: the first around the annotation file that holds one of
    them, else the first of all, since an evaluation needs no images."""
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder of images")
    here = Path(os.path.abspath(file)).parent
    around = [here.parent, here] if here.name.lower().startswith("annotation") else [here, here.parent]
    tops = [images] if images is not None else around
    words = (split.lower(), re.split(r"[^a-z0-9]", file.stem.lower())[-1])
    folders = chain.from_iterable(_candidates(top, words) for top in tops)
    # Path.is_file raises where a name is too long for the disk
    found = (folder for folder in folders if any(os.path.isfile(folder / name) for name in names))
    return next(found, tops[0])


def _candidates(top: Path, words: tuple[str, ...]) -> Iterator[Path]:
    """The folder itself, those below it named for the split (val: val, valid, val2017), those with the usual
    names, and those below these named for the split."""
    yield top
    usual = [top / name for name in FOLDERS if (top / name).is_dir()]
    for parent in [top, *usual]:
        try:
            children = sorted(parent.iterdir())
        except OSError:  # the folder above may be entered and not listed
            continue
        for child in children:
            if child.name.lower().startswith(words) and os.path.isdir(child):
                yield child
                yield child / "images"
        if parent is top:
            yield from usual


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=reject_duplicate_keys)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is not valid JSON: {error}") from None
    not_coco = f"{file}: is not a COCO annotation file: it"
    if not isinstance(content, dict):
        what = "a list, as result files are" if isinstance(content, list) else f"a {type(content).__name__}"
        raise DataError(f"{not_coco} holds {what}, not an object with {', '.join(LISTS)}")
    absent = [key for key in LISTS if not isinstance(content.get(key), list)]
    if absent:
        found = ", ".join(map(shorten, islice(content, 8))) or "nothing"
        raise DataError(f"{not_coco} has no list {' and no list '.join(map(repr, absent))} (found: {found})")
    return content


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A million new objects, none of them garbage: the collector would take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _categories(
    entries: list[Any], source: str, columns: Columns
) -> tuple[dict[int, int], list[str], list[int]]:
    """-> category id -> label, and the names and ids by label."""
    named: dict[int, str] = {}
    taken: set[str] = set()
    for position, entry in enumerate(entries):
        number = as_int(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if number is None or not isinstance(name, str) or not name or not is_text(name):
            kind = "categories without a whole number as id or without a name"
            columns.problem(kind, source, f"entry {position}: {shorten(entry)}")
        elif number in named:
            both = f"{named[number]!r} and {name!r}"
            columns.problem("duplicate category ids", source, f"category {number}: {both}")
        elif name in taken:
            what = f"category {number}: {name!r} is the name of another one"
            columns.problem("duplicate category names", source, what)
        else:
            named[number] = name
            taken.add(name)
    ids = sorted(named)
    return {number: label for label, number in enumerate(ids)}, [named[number] for number in ids], ids


def _images(entries: list[Any], source: str, columns: Columns) -> dict[int, int]:
    """-> image id -> index, or UNUSABLE where the image cannot be a row."""
    index_of: dict[int, int] = {}
    for position, entry in enumerate(entries):
        number = as_int(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            what = f"entry {position}: {shorten(entry)}"
            columns.problem("images without a whole number as id", source, what)
            continue
        name = entry.get("file_name")
        height, width = as_int(entry.get("height") or 0), as_int(entry.get("width") or 0)
        inside = inner_path(name) if isinstance(name, str) and name else None
        if number in index_of:
            what = f"image {number} ({name if inside else shorten(name)})"
            columns.problem("duplicate image ids", source, what)
            continue
        index_of[number] = UNUSABLE
        if not isinstance(name, str) or not name:
            columns.problem("images without a file name", source, f"image {number}: {shorten(entry)}")
        elif inside is None:
            columns.problem(
                "file names that leave the data folder", source, f"image {number}: {shorten(name)}"
            )
        elif height is None or width is None or height < 0 or width < 0:
            size = f"height {shorten(entry.get('height'))}, width {shorten(entry.get('width'))}"
            kind = "images whose height or width is no whole number"
            columns.problem(kind, source, f"image {number} ({name}): {size}")
        else:
            index_of[number] = len(columns.files)
            columns.image(inside, number, height, width)
    return index_of


def inner_path(name: str) -> str | None:
    """A file name of an annotation file, tidied, with forward slashes; None where it is absolute, climbs out
    with .. or is no name at all. Links inside the data folder are not looked at."""
    if len(name) > LONGEST_NAME or "\0" in name or not is_text(name):
        return None
    path = posixpath.normpath(name.replace("\\", "/"))
    return None if path.startswith(("/", "../")) or path in (".", "..") or path[1:2] == ":" else path


def _annotations(
    entries: list[Any], source: str, columns: Columns, index_of: dict[int, int], labels: dict[int, int]
) -> Integers:
    """Appends the boxes in the file's order -> [M] the image of each. One pass: COCO has 860,000."""
    image_of_box: list[int] = []
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        entries[position] = None
        try:
            ids: list[Any] = [entry["id"], entry["image_id"], entry["category_id"]]
            if not ONLY_INT.issuperset(map(type, ids)):
                ids = [as_int(one) for one in ids]
            number, image, label = ids[0], index_of[ids[1]], labels[ids[2]]
            x, y, w, h = box = entry["bbox"]
            crowd, area = entry.get("iscrowd") or 0, entry.get("area")
            numbers = box if area is None else [*box, area]
            area = w * h if area is None else area if area >= 0 else nan
            fine = (
                number is not None
                and -WHOLE <= number < WHOLE
                and number not in seen
                and image >= 0
                and crowd in (0, 1)
                and NUMBERS.issuperset(map(type, numbers))
                and isfinite(x + y + w + h)
                and isfinite(area)
            )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError):
            fine = False
        if not fine:
            kind, detail = _fault(position, entry, columns.files, index_of, labels, seen)
            columns.problem(kind, source, detail)
            continue
        seen.add(number)
        image_of_box.append(image)
        columns.boxes.append((x, y, x + w, y + h))
        columns.labels.append(label)
        columns.crowd.append(crowd == 1)
        columns.areas.append(area)
        columns.annotation_ids.append(number)
    return np.array(image_of_box, dtype=np.int64)


def _fault(
    position: int, entry: Any, files: list[str], index_of: dict[int, int], labels: Any, seen: set[int]
) -> tuple[str, str]:
    """(kind, detail) of an annotation that failed the quick checks above."""
    if not isinstance(entry, dict):
        return "annotations that are no objects", f"entry {position}: {shorten(entry)}"
    number, image, category = (as_int(entry.get(key)) for key in ("id", "image_id", "category_id"))
    box, crowd = entry.get("bbox"), entry.get("iscrowd") or 0
    index = UNKNOWN if image is None else index_of.get(image, UNKNOWN)
    where = f"entry {position}" if number is None else f"annotation {number}"
    where += f", image {shorten(entry.get('image_id'))}" + (f" ({files[index]})" if index >= 0 else "")
    for key in ("id", "image_id", "category_id", "bbox"):
        if entry.get(key) is None:
            return f"annotations without {key}", f"{where}: {shorten(entry)}"
    if number is None:
        return "annotations whose id is no whole number", f"{where}: id {shorten(entry['id'])}"
    if number in seen:
        return "duplicate annotation ids", where
    if index == UNKNOWN:
        return "annotations of unknown images", where
    if index == UNUSABLE:
        return "annotations of images that cannot be used", where
    if category not in labels:
        return "annotations of unknown categories", f"{where}: category {shorten(entry['category_id'])}"
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        return "boxes that are not four numbers", f"{where}: bbox {shorten(box)}"
    if crowd not in (0, 1):
        return "annotations whose iscrowd is neither 0 nor 1", f"{where}: iscrowd {shorten(crowd)}"
    if isinstance(entry.get("area"), (int, float)) and entry["area"] < 0:
        return "areas below 0", f"{where}: area {shorten(entry['area'])}"
    numbers = f"bbox {shorten(box)}, area {shorten(entry.get('area'))}"
    return "boxes or areas that are not finite", f"{where}: {numbers}"
