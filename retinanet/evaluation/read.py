"""Reads a COCO result file, of our own commands or of any detector, to be scored on a data set."""

from __future__ import annotations

import json
import logging
import posixpath
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..data.dataset import Dataset, match_names
from ..data.formats.json import NUMBERS, as_id, as_number, reject_duplicate_keys, shorten
from ..errors import DataError, Problem
from ..text import listed, many
from .results import Results

log = logging.getLogger("retinanet")


def read_results(file: Path, dataset: Dataset) -> Results:
    """COCO result JSON -> columns; ids that the data set does not know are an error.

    Classes and images are matched by the names that our own commands wrote beside the file, if any.
    """
    try:
        content = json.loads(file.read_bytes(), object_pairs_hook=reject_duplicate_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, list):
        raise DataError(
            f"{file} is no COCO result file: that is a list of {{image_id, category_id, bbox, score}}"
        )
    read = [_row(entry) for entry in content]
    problems = [
        Problem(row, file.name, f"entry {number}: {shorten(content[number])}")
        for number, row in enumerate(read)
        if isinstance(row, str)
    ]
    rows = [row for row in read if not isinstance(row, str)]
    columns = []
    for column, (what, match) in enumerate((("image", _match_images), ("category", _match_categories))):
        ids = [row[:2][column] for row in rows]
        counts = Counter(ids)
        known = match(file, dataset, counts.keys())
        columns.append(np.array([known.get(one, -1) for one in ids], dtype=np.int64))
        unknown = sorted((one for one in counts if one not in known), key=lambda one: (type(one) is str, one))
        problems += [
            Problem(f"unknown {what} ids", file.name, f"{what}_id {one} ({counts[one]} detections)")
            for one in unknown
        ]
    if problems:
        hint = ""
        if any(problem.kind == "unknown category ids" for problem in problems):
            ours = [f"{one} {name}" for one, name in zip(dataset.category_ids, dataset.names, strict=True)]
            hint = f"\nthe category ids of {dataset.source} are {listed(ours)}"
        raise DataError(f"{file} does not go with {dataset.source}:\n{_summary(problems)}{hint}", problems)
    as_text = sum(any(isinstance(value, str) for value in _values(entry)) for entry in content)
    if as_text:
        log.info("%s: %s with ids or numbers as text", file, many(as_text, "entry", "entries"))
    values = np.array([row[2:] for row in rows], dtype=np.float64).reshape(-1, 5)
    return Results(columns[0], values[:, :4], values[:, 4], columns[1])


ROUNDING = 1e-4

UNUSABLE = "entries without a usable image_id, category_id, bbox and score"

NO_SCORE = "entries whose score is not in 0..1 (divide percent by 100, give logits a sigmoid)"

NOT_FINITE = "entries whose score is NaN or infinite (give them a score in 0..1, or leave them out)"

Row = tuple[int | str, int | str, float, float, float, float, float]


def _values(entry: Any) -> list[Any]:
    return [entry["image_id"], entry["category_id"], *entry["bbox"], entry["score"]]


def _row(entry: Any) -> Row | str:
    """Image id, category id, x0, y0, x1, y1 and score of an entry, or what is wrong with it."""
    try:
        image, category, x, y, width, height, score = _values(entry)
        if type(score) is float and not isfinite(score):
            return NOT_FINITE
        if not NUMBERS.issuperset(map(type, (x, y, width, height, score))) and type(entry["bbox"]) is list:
            x, y, width, height, score = map(as_number, (x, y, width, height, score))
        image, category, box = as_id(image), as_id(category), (x, y, x + width, y + height)
        if image is None or category is None or not all(map(isfinite, box)) or width < 0 or height < 0:
            return UNUSABLE
        return (image, category, *box, score) if -ROUNDING <= score <= 1 + ROUNDING else NO_SCORE
    except (KeyError, TypeError, ValueError, OverflowError):
        return UNUSABLE


def categories_beside(file: Path) -> dict[int | str, str]:
    """Category id -> class name, where `predict`, `eval` or `train` wrote predictions.json and these."""
    return _beside(file, "about.json", "name") or _beside(file, "metrics.json", "name")


def _beside(file: Path, name: str, value: str) -> dict[int | str, str]:
    """id -> `value` of the images or categories that the JSON file `name` beside our results lists."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        if file.name == "predictions.json":
            content = json.loads((file.parent / name).read_bytes())
            entries = content if isinstance(content, list) else content["categories"]
            return {entry["id"]: str(entry[value]) for entry in entries}
    return {}


def _match_categories(file: Path, dataset: Dataset, ids: Collection[int | str]) -> dict[int | str, int]:
    """Category id -> label: by name where the names are known, else by the data set's ids."""
    by_id: dict[int | str, int] = {one: label for label, one in enumerate(dataset.category_ids)}
    texts = match_names([one for one in ids if isinstance(one, str)], dataset.names)
    by_id |= {one: dataset.names.index(name) for one, name in texts.items()}
    names = {one: name for one, name in categories_beside(file).items() if one in ids}
    meant = match_names([*names.values()], dataset.names)
    unknown = [name for name in names.values() if name not in meant]
    if unknown:
        raise DataError(
            f"{file} has detections of {listed(unknown)}, and the classes of {dataset.source} are "
            f"{listed(dataset.names)}; score it on a data set that has its classes"
        )
    by_name = {one: dataset.names.index(meant[name]) for one, name in names.items()}
    if any(by_id.get(one) != label for one, label in by_name.items()):
        text = "%s numbers its classes otherwise than %s: they are matched by name"
        log.info(text, file, dataset.source)
    return by_name or by_id


def _match_images(file: Path, dataset: Dataset, ids: Collection[int | str]) -> dict[int | str, int]:
    """Image id -> index: by the data set's ids, or by file names where these are known and say otherwise."""
    by_id: dict[int | str, int] = {one: index for index, one in enumerate(dataset.image_ids.tolist())}
    beside = _beside(file, "images.json", "file_name")
    names = {one: str(beside.get(one, one)) for one in ids if one in beside or isinstance(one, str)}
    ends = _ends(dataset.files.tolist()) if names else {}
    found = {one: _by_end(name, ends) for one, name in names.items()}
    longest = {index: one for one, (index, _) in sorted(found.items(), key=lambda item: item[1][1])}
    by_name = {
        one: index
        for one, (index, _) in found.items()
        if index >= 0 and (one not in beside or longest[index] == one)
    }
    if all(by_id.get(one) == index for one, index in by_name.items()):
        return by_id
    log.info("%s numbers its images otherwise than %s: they are matched by file name", file, dataset.source)
    return {one: index for one, index in by_id.items() if one not in names} | by_name


def _ends(files: list[str]) -> dict[str, int]:
    """Every end of a path, without suffix ("b/1" and "1" of b/1.jpg) -> index; -1 where several have it."""
    stems = [posixpath.splitext(file)[0] for file in files]
    counts = Counter(stems)
    ends: dict[str, int] = {}
    for index, stem in enumerate(stems):
        parts = stem.split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            ends[end] = -1 if end in ends else index
    return ends | {stem: index for index, stem in enumerate(stems) if counts[stem] == 1}


def _by_end(name: str, ends: dict[str, int]) -> tuple[int, int]:
    """The image whose path has the longest end in common, or -1, and the parts of that end."""
    for path in (name, posixpath.splitext(name)[0]):
        parts = path.split("/")
        for start in range(len(parts)):
            if (end := "/".join(parts[start:])) in ends:
                return ends[end], len(parts) - start
    return -1, 0


def _summary(problems: list[Problem], limit: int = 10) -> str:
    """How many of each kind, and the first few."""
    lines = []
    for kind in dict.fromkeys(problem.kind for problem in problems):
        details = [problem.detail for problem in problems if problem.kind == kind]
        more = [f"... and {len(details) - limit} more"] if len(details) > limit else []
        lines += [f"{len(details)} {kind}", *(f"  {detail}" for detail in details[:limit] + more)]
    return "\n".join(lines)
