"""What one XML file of Pascal VOC says."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

Box = tuple[float, float, float, float]

CORNERS = ("xmin", "ymin", "xmax", "ymax")

TRUE, FALSE = ("1", "true", "yes"), ("0", "false", "no")

DECLARED = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"'](gb[k\d]+|big5|shift_jis|euc-[jk][pr])[\"']", re.I)
"""Encodings that the parser of XML does not know and Python does."""


@dataclass
class Record:
    """What an XML file says."""

    filename: str | None = None
    """As it stands there; None where the file is no VOC annotation."""
    height: int = 0
    width: int = 0
    """0 where it is not given."""
    objects: list[tuple[str, Box, bool]] = field(default_factory=list)
    """name, xyxy, difficult"""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """kind, detail; an object is lost for each"""
    repairs: list[tuple[str, str]] = field(default_factory=list)
    """kind, detail"""


def is_voc(file: Path) -> bool:
    """Whether it has the outermost element of VOC near its beginning."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(4096).replace(b"\0", b"")  # of UTF-16
    except OSError:
        return False
    return re.search(rb"<annotation[\s>/]", head) is not None


def parse(file: Path) -> Record:
    """The record of a file; one that cannot be read has a problem."""
    record = Record()
    try:
        tree = _root(file.read_bytes(), record)
    # LookupError: no such encoding
    except (ParseError, DefusedXmlException, OSError, ValueError, LookupError) as error:
        record.problems.append(("XML files that cannot be read", str(error) or type(error).__name__))
        return record
    if tree.tag != "annotation":
        detail = f"the outermost element is <{tree.tag}>, not <annotation>"
        record.problems.append(("XML files that are no VOC annotations", detail))
        return record
    record.filename = (tree.findtext("filename") or "").strip()
    sides = [_number(tree.findtext(f"size/{side}")) or 0.0 for side in ("height", "width")]
    if all(side.is_integer() and side > 0 for side in sides):
        record.height, record.width = map(int, sides)
    else:
        record.repairs.append(("XML files without a size, which is taken from the image", ""))
    for place, entry in enumerate(tree.iterfind("object"), start=1):
        if (entry.findtext("deleted") or "").strip() != "1":  # of LabelMe
            _object(entry, place, record)
    return record


def _root(content: bytes, record: Record) -> Element | Any:
    content = content.lstrip()
    try:
        return ElementTree.fromstring(content)
    except ParseError:
        with suppress(UnicodeDecodeError):
            content.decode()
            raise
        # the names of files may be in the encoding of a machine: what else is ASCII means the same in all
        tree = ElementTree.fromstring(content.decode("latin-1"))
        if not all((name.text or "").isascii() for name in tree.iter("name")):
            raise
        record.repairs.append(("XML files that are not in the encoding that they name", ""))
        return tree
    except ValueError:  # of the parser: it has only encodings of one byte a letter
        declared = DECLARED.match(content)
        if not declared:
            raise
        return ElementTree.fromstring(content.decode(declared[1].decode()))


def _object(entry: Element | Any, place: int, record: Record) -> None:
    """Appends an object, or a problem. A <part> of an object is none."""
    name = (entry.findtext("name") or "").strip()
    where, problem = f"object {place} ({name})", None
    corners = _corners(entry)
    box = [corner for corner in corners if corner is not None]
    if not name:
        where, problem = f"object {place}", "objects without a name"
    elif not corners:
        problem = "objects without bndbox"
    elif len(entry.findall("bndbox")) > 1 or len(entry.findall("name")) > 1:
        problem = "objects with two names or boxes"
    elif len(box) != 4:
        problem = "boxes that are not four finite numbers"
    if problem:
        record.problems.append((problem, where))
        return
    x1, y1, x2, y2 = box
    difficult = (entry.findtext("difficult") or "").strip().lower()
    record.objects.append((name, (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), difficult in TRUE))
    if x1 > x2 or y1 > y2:
        record.repairs.append(("boxes whose corners were put in order", where))
    if entry.find("bndbox") is None:
        record.repairs.append(("boxes around polygons, since there is no bndbox", where))
    if difficult not in (*TRUE, *FALSE) and entry.find("difficult") is not None:
        kind = "objects whose difficult is neither 0 nor 1, read as 0"
        record.repairs.append((kind, f"{where}: {difficult[:80]}"))


def _corners(entry: Element | Any) -> list[float | None]:
    """xmin, ymin, xmax, ymax of the bndbox, else of the box around the polygon; without both nothing."""
    if entry.find("bndbox") is not None:
        found = [entry.findall(f"bndbox/{key}") for key in CORNERS]
        return [_number(one[0].text) if len(one) == 1 else None for one in found]
    # <x1>, <y1>, ... or <pt> with <x> and <y>
    points = [one for one in entry.iterfind("polygon//") if re.fullmatch(r"[xy]\d*", str(one.tag))]
    xs, ys = ([_number(one.text) for one in points if one.tag[0] == axis] for axis in "xy")
    known = [value for value in (*xs, *ys) if value is not None]
    if entry.find("polygon") is None:
        return []
    if len(xs) != len(ys) or len(xs) < 2 or len(known) < len(points):
        return [None] * 4
    return [min(known[: len(xs)]), min(known[len(xs) :]), max(known[: len(xs)]), max(known[len(xs) :])]


def _number(text: str | None) -> float | None:
    """A finite number; None where there is none, also for 1_0, which Python takes for 10."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if abs(value) < 1e9 and "_" not in (text or "") else None
