"""A YOLO label file -> boxes: a line `class cx cy w h` an object, in fractions of the image. A line with more
corners is a polygon, and stands for the box around it."""

from __future__ import annotations

import posixpath
import re
from functools import lru_cache
from math import isfinite
from pathlib import Path

from ...errors import DataError
from ..dataset import Columns, clean_name
from .format import lines_of

SLACK = 0.01
"""How far a fraction may lie outside 0..1; beyond, it is taken for a pixel and refused."""

MOST_CLASSES = 10_000
"""Where nothing names the classes; a greater number is hardly one of a class."""

BY_NAME = "label files with class names in place of numbers"

CONFIDENCE = "label files with confidences, which are not used"


def read_labels(top: Path, file: str, names: tuple[str, ...], pose: bool, columns: Columns) -> None:
    """Appends the objects of a label file to the image begun last. `names` is empty where nothing names the
    classes."""
    folder, image, count = posixpath.dirname(file) or ".", columns.files[-1], len(names) or MOST_CLASSES
    repairs: dict[str, str] = {}
    odd: list[str]
    try:
        lines = lines_of(top / file)
    except DataError as error:
        reason = str(error).removeprefix(f"{top / file}: ")
        columns.problem("label files that cannot be read", folder, f"{file}: {reason}", image)
        return
    for number, line in enumerate(lines, start=1):
        try:
            # Python takes 0.4_1 for 0.41
            (label, *values), odd = map(float, line.replace("_", "?").split()), []
        except ValueError:
            if not line.strip():
                continue
            meaning = _other_meaning(line, names)
            if meaning is None:
                columns.problem("lines that are not numbers", folder, _where(file, number, line), image)
                continue
            (label, *values), odd = meaning
        if pose:
            values = values[:4]
        elif len(values) % 2 and len(values) > 4 and 0 <= values[-1] <= 1:
            values.pop()
            odd.append(CONFIDENCE)
        fault = _fault(label, values, count)
        if fault:
            columns.problem(fault, folder, _where(file, number, line), image)
            continue
        columns.box(_box(values, *columns.sizes[-1]), int(label), len(columns.labels) + 1)
        for kind in odd:
            repairs.setdefault(kind, _where(file, number, line))
    for kind, where in repairs.items():
        columns.repair(kind, folder, where)


def _where(file: str, number: int, line: str) -> str:
    shown = line.strip().replace("\t", " ")[:80]
    return f"{file}, line {number}: {shown if shown.isprintable() else ascii(shown)}"


def _fault(label: float, values: list[float], count: int) -> str:
    """What is wrong with a line; empty where nothing is."""
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return "lines that are neither a box (class cx cy w h) nor a polygon (class x y x y x y ...)"
    if not (0 <= label < count and label.is_integer()):
        return f"lines of an unknown class (there are 0..{count - 1})"
    if not all(isfinite(value) and -SLACK <= value <= 1 + SLACK for value in values):
        return "lines that are not fractions of the image (0..1)"
    return ""


def _other_meaning(line: str, names: tuple[str, ...]) -> tuple[list[float], list[str]] | None:
    """The numbers of a line that has only one meaning, and what is odd about it; else None."""
    words, kinds = line.split(), []
    if "," in line and "." not in line and max(word.count(",") for word in words) == 1:
        words, kinds = [word.replace(",", ".") for word in words], ["label files with decimal commas"]
    elif "." in line and len(cells := re.split(r"[ \t]*,[ \t]*", line.strip())) > 4:
        words, kinds = cells, ["label files with commas between the numbers"]
    for split in range(len(words) - 4, 0, -1):  # a class name may have several words, and end in a number
        wanted = clean_name(" ".join(words[:split])).casefold()
        if len(labels := _labels_of(names).get(wanted, [])) == 1:
            words, kinds = [str(labels[0]), *words[split:]], [BY_NAME, *kinds]
            break
    try:
        return [float(word.replace("_", "?")) for word in words], kinds
    except ValueError:
        return None


@lru_cache(1)
def _labels_of(names: tuple[str, ...]) -> dict[str, list[int]]:
    """Name without its case -> the classes that have it."""
    labels: dict[str, list[int]] = {}
    for label, name in enumerate(names):
        labels.setdefault(clean_name(name).casefold(), []).append(label)
    return labels


def _box(values: list[float], height: int, width: int) -> tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, w, h = values
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    xs, ys = values[0::2], values[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
