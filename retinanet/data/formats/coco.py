"""COCO JSON -> columns. What cannot be a row is noted with its id; nothing else is left out."""

from __future__ import annotations

import gc
import json
import logging
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from math import isfinite, nan
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from ...errors import DataError, Problem
from ..cache import cached
from ..dataset import BOX_COLUMNS, Columns, Dataset, Integers, is_text
from ..folder import Folder, folded
from .coco_images import OUTSIDE, locate, tidy, unlisted
from .coco_repairs import TEXT_IDS, UNUSABLE, repaired
from .format import Read, split_of, subfolders
from .json import NUMBERS, ONLY_INT, as_id, as_int, reject_duplicate_keys, shorten
from .voc_images import ANNOTATIONS

log = logging.getLogger("retinanet")

HOLDS = "*.json here, in annotations/, or in folders such as train/ and valid/"

OTHER_TASKS = re.compile("captions|keypoints|panoptic|stuff|info|results|predictions|detections|unlabeled")
"""Words in the names of COCO files that hold no boxes to train on."""

LISTS = ("images", "annotations", "categories")

A_LIST = rb'"%s"\s*:\s*\[\s*[{\]]'
"""How a list of objects begins in a JSON file."""

ANEW = "annotations numbered by their place, since some ids were absent, no numbers or not unique"


def recognise_coco(root: Path, images: Path | None) -> Read | None:
    """Its files by split; "all" holds those whose name says none."""
    folders = subfolders(root)
    annotations = [folder for folder in folders if folded(folder.name) in ANNOTATIONS]
    named = [folder for folder in folders if split_of(folder.name)]
    files: dict[str, list[Path]] = {}
    for folder in [root, *annotations, *named]:
        for name in Folder(folder).listed().files:
            file, words = folder / name, re.split(r"[^a-z]+", name.lower())
            if (
                file.suffix.lower() == ".json"
                and not any(map(OTHER_TASKS.fullmatch, words))
                and _looks_like_coco(file)
            ):
                split = split_of(file.stem) or (split_of(folder.name) if folder in named else None)
                files.setdefault(split or "all", []).append(file)
    return (lambda: _read_splits(root, files, images)) if files else None


def read_coco_file(file: Path, images: Path | None) -> dict[str, Dataset]:
    """A single file, which is not split."""
    return {"all": read_coco(file, images, split_of(file.stem))}


def _looks_like_coco(file: Path) -> bool:
    """Whether it begins as an object and has a list of images, and one of annotations or names of files."""
    with (
        suppress(OSError, ValueError),  # ValueError: an empty file
        open(file, "rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        if content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            images, annotations = (re.search(A_LIST % key, content) for key in (b"images", b"annotations"))
            return bool(images and (annotations or b'"file_name"' in content[: 1 << 16]))
    return False


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
    datasets = _share_classes(datasets)
    if note := unlisted(datasets.values()):
        first = next(iter(datasets))
        datasets[first] = replace(datasets[first], notes=(*datasets[first].notes, note))
    return datasets


def _share_classes(datasets: dict[str, Dataset]) -> dict[str, Dataset]:
    """All splits with the classes of train, else of the first, by name: a file may number them otherwise, or
    list fewer. It keeps its ids."""
    first = datasets["train" if "train" in datasets else next(iter(datasets))]
    shared = {}
    for split, other in datasets.items():
        only = [
            (one.source.name, [name for name in one.names if name not in two.names])
            for one, two in ((first, other), (other, first))
        ]
        if only[1][1]:
            what = "; ".join(
                f"only in {file}: {', '.join(map(repr, names))}" for file, names in only if names
            )
            raise DataError(
                f"{only[0][0]} and {only[1][0]} do not have the same classes: {what}. Add the classes that "
                f"lack to the categories of {only[0][0]}"
            )
        if other.names != first.names:
            id_of = dict(zip(other.names, other.category_ids, strict=True))
            free = iter(set(range(1, 2 * len(first.names) + 1)).difference(other.category_ids))
            label_of = np.array([first.names.index(name) for name in other.names], dtype=np.int64)
            kind = "files whose categories are fewer than those of train or in another order, matched by name"
            other = replace(
                other,
                names=first.names,
                category_ids=tuple(id_of[name] if name in id_of else next(free) for name in first.names),
                labels=label_of[other.labels],
                repairs=(*other.repairs, Problem(kind, other.source.name, "")),
            )
        shared[split] = other
    return shared


def read_coco(file: Path, images: Path | None = None, split: str | None = None) -> Dataset:
    """One COCO annotation file; `images` is the folder of its images (None: searched for around the file).

    Classes are in the order of their ids; crowds are kept and marked; `area` is the file's if it has one;
    boxes become xyxy in float64.
    """
    return locate(replace(cached(file, _read), split=split or file.stem), images)


def _read(file: Path) -> Dataset:
    columns = Columns()
    with _without_garbage_collection():
        content = _load(file)
        labels, names, category_ids = _categories(content["categories"], file.name, columns)
        index_of = _images(content["images"], file.name, columns)
        image_of_box = _annotations(
            content["annotations"], file.name, columns, index_of=index_of, labels=labels
        )
        del content  # most of its memory is free already: the lists were emptied as they were read

    order = np.argsort(image_of_box, kind="stable")  # the annotations come in any order
    columns.counts = np.bincount(image_of_box, minlength=len(columns.files)).tolist()
    dataset = columns.build(file, file.parent, file.stem, names, category_ids)
    return replace(dataset, **{name: getattr(dataset, name)[order] for name in BOX_COLUMNS})


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
) -> tuple[dict[int | str, int], list[str], list[int]]:
    """-> category id -> label, and the names and ids by label."""
    named: dict[int | str, str] = {}
    taken: set[str] = set()
    for position, entry in enumerate(entries):
        number = as_id(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if type(name) is int:
            columns.repair("categories whose name is a number", source, f"category {number}")
            name = str(name)
        if number is None or not isinstance(name, str) or not name.strip() or not is_text(name):
            kind = "categories without an id or without a name"
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
            if isinstance(entry["id"], str):
                columns.repair(TEXT_IDS, source, f"category {shorten(entry['id'])}")
    ids = sorted(named, key=lambda one: (isinstance(one, str), one))
    numbers = [one for one in ids if isinstance(one, int)]
    if len(numbers) < len(ids):
        numbers = list(range(1, len(ids) + 1))
    return {number: label for label, number in enumerate(ids)}, [named[number] for number in ids], numbers


def _images(entries: list[Any], source: str, columns: Columns) -> dict[int | str, int]:
    """-> image id -> index, or UNUSABLE where the image cannot be a row."""
    index_of: dict[int | str, int] = {}
    for position, entry in enumerate(entries):
        number = as_id(entry.get("id")) if isinstance(entry, dict) else None
        if number is None:
            columns.problem("images without an id", source, f"entry {position}: {shorten(entry)}")
            continue
        name, where = _file_name(entry), f"image {number}"
        inside = tidy(name) if name else None
        if number in index_of:
            what, first = name if inside else shorten(name), index_of[number]
            lacks = columns.files[first] if first >= 0 else ""
            columns.problem("duplicate image ids", source, f"{where} ({what})", lacks)
            continue
        index_of[number] = UNUSABLE
        height, width = (_side(entry.get(side)) for side in ("height", "width"))
        if not name:
            columns.problem("images without a file name", source, f"{where}: {shorten(entry)}")
        elif inside is None:
            columns.problem(OUTSIDE, source, f"{where}: {shorten(name)}")
        elif height is None or width is None:
            size = f"height {shorten(entry.get('height'))}, width {shorten(entry.get('width'))}"
            kind = "images whose height or width is no whole number"
            columns.problem(kind, source, f"{where} ({name}): {size}")
        else:
            index_of[number] = len(columns.files)
            columns.image(inside, number if isinstance(number, int) else 0, height, width)
            if any(isinstance(entry.get(key), str) for key in ("id", "height", "width")):
                columns.repair(TEXT_IDS, source, f"{where} ({name})")
            if entry.get("file_name") != name:
                columns.repair(
                    "file names that are a number or the end of an address", source, f"{where}: {name}"
                )
    if any(isinstance(number, str) for number in index_of):
        columns.image_ids = list(range(1, len(columns.files) + 1))
        columns.repair("files with image ids that are no numbers: they are numbered anew", source, "")
    return index_of


def _file_name(entry: dict[str, Any]) -> str | None:
    """Its file_name, which may be a number, else the end of its coco_url, as in LVIS."""
    name, address = entry.get("file_name"), entry.get("coco_url")
    if not name and isinstance(address, str):
        with suppress(ValueError):  # of an address that is none
            name = unquote(urlsplit(address).path.rpartition("/")[2])
    return str(name) if type(name) is int else name if isinstance(name, str) else None


def _side(value: Any) -> int | None:
    """A height or width, 0 where it is not given; None where it is no whole number."""
    side = as_id(value or 0)
    return side if isinstance(side, int) and side >= 0 else None


def _annotations(
    entries: list[Any],
    source: str,
    columns: Columns,
    *,
    index_of: dict[int | str, int],
    labels: dict[int | str, int],
) -> Integers:
    """Appends the boxes in the file's order -> [M] the image of each. One pass: COCO has 860,000."""
    image_of_box: list[int] = []
    places: list[int] = []  # of the annotations in the file, from 1
    for position, entry in enumerate(entries):
        entries[position] = None
        try:
            ids = entry["image_id"], entry["category_id"]
            x, y, w, h = box = entry["bbox"]
            image, label = index_of[ids[0]], labels[ids[1]]
            number, crowd, area = entry.get("id"), entry.get("iscrowd") or 0, entry.get("area")
            numbers = box if area is None else [*box, area]
            area = w * h if area is None else area if area >= 0 else nan
            fine = (
                ONLY_INT.issuperset(map(type, ids))
                and image >= 0
                and crowd in (0, 1)
                and NUMBERS.issuperset(map(type, numbers))
                and isfinite(x + y + w + h)
                and isfinite(area)
            )
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError):
            fine = False
        if not fine:
            row = repaired(position, entry, columns.files, index_of=index_of, labels=labels)
            if isinstance(row, Problem):
                columns.problem(row.kind, source, row.detail, row.image)
                continue
            for kind in row.repairs:
                columns.repair(kind, source, f"entry {position}, image {columns.files[row.image]}")
            number, image, label, (x, y, w, h), crowd, area, _ = row
        image_of_box.append(image)
        places.append(position + 1)
        columns.boxes.append((x, y, x + w, y + h))
        columns.labels.append(label)
        columns.crowd.append(crowd == 1)
        columns.areas.append(area)
        columns.annotation_ids.append(number)
    # nothing refers to the id of an annotation, so new ones do no harm
    numbers = [as_int(one) for one in columns.annotation_ids]
    if None in numbers or len(set(numbers)) < len(numbers):
        columns.repair(ANEW, source, "")
        numbers = places
    columns.annotation_ids = numbers
    return np.array(image_of_box, dtype=np.int64)
