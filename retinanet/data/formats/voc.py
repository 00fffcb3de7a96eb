"""Pascal VOC -> columns: one XML file an image, in the original tree or beside the images.

Corners are taken as printed. Pascal's own are 1-based pixel indices that include the last pixel, but most
tools that write such files today write plain xyxy and none says which it wrote; torchvision and most
converters take them as printed too. `difficult` objects are marked as crowds.
"""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from ..dataset import NO_TEXT, Columns, Dataset, is_text
from ..images import is_image
from .format import SPLITS, Read, lines_of, split_of, subfolders

HOLDS = (
    "Annotations/*.xml with ImageSets/Main/*.txt, or *.xml beside the images, here or in train/, valid/, "
    "test/"
)

Box = tuple[float, float, float, float]


@dataclass
class Record:
    """What one XML file says."""

    filename: str | None = None
    """As it stands there; None where the file is no VOC annotation."""
    height: int = 0
    width: int = 0
    objects: list[tuple[str, Box, bool]] = field(default_factory=list)
    """name, xyxy, difficult"""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """kind, detail"""


def recognise_voc(root: Path, images: Path | None) -> Read | None:
    """The original tree, else folders of XML files that are named for a split, else one such folder."""
    tree, lists = root / "Annotations", root / "ImageSets" / "Main"
    if _has_xml(tree):
        files = sorted(lists.glob("*.txt"))
        sources = {
            split: file
            for split, rule in SPLITS.items()
            for file in files
            if rule.fullmatch(file.stem.lower())
        }
        both = lists / "trainval.txt"
        # beside a val.txt it would train on the validation split
        if both in files and not {"train", "val"} & sources.keys():
            sources["train"] = both
        sources = sources or {"all": tree}
    else:
        folders = subfolders(root)
        sources = {split: one for one in folders if (split := split_of(one.name)) and _has_xml(one)}
        if not sources and _has_xml(root) and any(map(is_image, os.listdir(root))):
            sources = {"all": root}
    return (lambda: read_voc(root, sources, images)) if sources else None


def _has_xml(folder: Path) -> bool:
    return any(folder.glob("*.xml"))


def read_voc(root: Path, splits: Mapping[str, Path], images: Path | None = None) -> dict[str, Dataset]:
    """All splits of a VOC set, which share their classes and ids.

    splits   name -> a list of stems (ImageSets/Main/train.txt; then Annotations/ and JPEGImages/ lie in
             `root`), or a folder of XML files
    images   the folder of the images, instead of JPEGImages or the folder of the XML files

    Classes are those of all XML files in alphabetical order, with the ids 1..K; an image's id is its place
    among all XML files, an annotation's its place in its split, both from 1.
    """
    tree, usual, top = root / "Annotations", root / "JPEGImages", images or root
    folders = {tree if source.is_file() else source for source in splits.values()}
    xmls = [file for folder in sorted(folders) for file in sorted(folder.glob("*.xml"))]
    records = {file: _parse(file) for file in xmls}
    numbers = {file: place for place, file in enumerate(xmls, start=1)}
    names = sorted({name for record in records.values() for name, _, _ in record.objects})
    labels = {name: label for label, name in enumerate(names)}

    datasets = {}
    for split, source in splits.items():
        columns, listed = Columns(), source.is_file()
        if listed:
            chosen = _listed(source, tree, records, columns)
        else:
            chosen = [file for file in xmls if file.parent == source]
        beside = usual if listed or (source == tree and usual.is_dir()) else source
        find = _Images(images or beside, top)
        for file in chosen:
            where, folder = file.relative_to(root).as_posix(), file.parent.name
            if not is_text(where):
                columns.problem(NO_TEXT, folder, ascii(where))
            elif file not in records:
                columns.problem("images without an XML file", folder, where)
            else:
                record = records[file]
                for kind, detail in record.problems:
                    columns.problem(kind, folder, f"{where}: {detail}" if detail else where)
                if record.filename is not None:
                    name = find(file.stem, record.filename)
                    columns.image(name, numbers[file], record.height, record.width)
                    for name, box, difficult in record.objects:
                        columns.box(box, labels[name], len(columns.labels) + 1, crowd=difficult)
        datasets[split] = columns.build(source, top, split, names, range(1, len(names) + 1))
    return datasets


def _listed(file: Path, folder: Path, known: Container[Path], columns: Columns) -> list[Path]:
    """The XML files of the stems in a list such as ImageSets/Main/val.txt; further columns are ignored."""
    chosen: dict[Path, None] = {}
    for line in filter(None, map(str.strip, lines_of(file))):
        stem, *last = line.rsplit(maxsplit=1)
        if last not in (["-1"], ["0"], ["1"]) or folder / f"{line}.xml" in known:
            stem = line  # with its spaces
        xml = folder / f"{stem}.xml"
        if os.path.basename(stem) != stem:
            columns.problem("file names that leave the data folder", file.name, stem)
        elif xml in chosen:
            columns.problem("images that are listed twice", file.name, stem)
        else:
            chosen[xml] = None
    return list(chosen)


class _Images:
    """Finds the image of an XML file in one listing of the folder: asking for each suffix is slow."""

    def __init__(self, folder: Path, top: Path) -> None:
        self.prefix = "" if folder == top else folder.relative_to(top).as_posix() + "/"
        found = sorted(os.listdir(folder)) if folder.is_dir() else []
        self.names = {name for name in found if is_image(name)}
        self.by_stem = {Path(name).stem: name for name in reversed(found) if name in self.names}

    def __call__(self, stem: str, filename: str) -> str:
        """The image of the XML's own stem, else the one in its <filename>, which is often stale."""
        name = os.path.basename(filename.replace("\\", "/"))
        if name in self.names and (Path(name).stem == stem or stem not in self.by_stem):
            return self.prefix + name
        return self.prefix + self.by_stem.get(stem, f"{stem}{Path(name).suffix or '.jpg'}")


def _parse(file: Path) -> Record:
    record = Record()
    note = record.problems.append
    try:
        tree: Element | Any = ElementTree.parse(file).getroot()
    # LookupError: no such encoding
    except (ParseError, DefusedXmlException, OSError, ValueError, LookupError) as error:
        note(("XML files that cannot be read", str(error) or type(error).__name__))
        return record
    if tree.tag != "annotation":
        detail = f"the outermost element is <{tree.tag}>, not <annotation>"
        note(("XML files that are no VOC annotations", detail))
        return record
    record.filename = (tree.findtext("filename") or "").strip()
    sides = [_number(tree, f"size/{side}") or 0.0 for side in ("height", "width")]
    if all(side.is_integer() and side > 0 for side in sides):
        record.height, record.width = map(int, sides)
    else:
        note(("XML files without the size of the image", ""))
    for place, entry in enumerate(tree.iterfind("object"), start=1):
        name = (entry.findtext("name") or "").strip()
        where = f"object {place} ({name})"
        corners = [_number(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        box = tuple(corner for corner in corners if corner is not None)
        difficult = (entry.findtext("difficult") or "0").strip().lower()
        if not name:
            note(("objects without a name", f"object {place}"))
        elif entry.find("bndbox") is None:
            note(("objects without bndbox", where))
        elif len(entry.findall("bndbox")) > 1 or len(entry.findall("name")) > 1:
            note(("objects with two names or boxes", where))
        elif len(box) != 4:
            note(("boxes that are not four finite numbers", where))
        elif difficult not in ("0", "1", "false", "true"):
            note(("objects whose difficult is neither 0 nor 1", f"{where}: {difficult[:80]}"))
        else:
            record.objects.append((name, box, difficult in ("1", "true")))
    return record


def _number(element: Element | Any, path: str) -> float | None:
    """A finite number; None where there is none, also for 1_0, which Python takes for 10."""
    text = element.findtext(path) or ""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) < 1e9 and "_" not in text else None
