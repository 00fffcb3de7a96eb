"""Which image an XML file of Pascal VOC belongs to: by its own name, else by the name that it holds."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from ..folder import folded, join, pair, stem_of
from ..images import is_image
from .voc_xml import Record

ANNOTATIONS = ("annotations", "annotation", "xmls", "xml", "labels")
"""Usual names of folders of XML files, folded, the best first."""

IMAGES = ("jpegimages", "images", "image", "imgs", "img")
"""And of folders of images."""

SEVERAL, TAKEN = "XML files that several images fit", "XML files whose image has another XML file"

ORPHAN = "XML files without an image"


def is_xml(name: str) -> bool:
    """Whether a file name has the suffix .xml, in any case."""
    return name.lower().endswith(".xml")


def key_of(path: str) -> str:
    """What an XML file and its image share: of Annotations/cam1/a.xml and images/cam1/a.jpg it is cam1/a."""
    place, name = os.path.split(path)
    name = name[:-4] if is_xml(name) else name
    return join(_place(place), os.path.splitext(name)[0] if is_image(name) else name)


@lru_cache
def _place(folder: str) -> str:
    return "/".join(part for part in folder.split("/") if folded(part) not in ANNOTATIONS + IMAGES)


class Index:
    """Finds files by keys. Their names alone do where no two files have the same."""

    def __init__(self, files: Iterable[str]) -> None:
        self._exact: dict[str, list[str]] = {}
        self._form: dict[str, list[str]] = {}
        self._stem: dict[str, list[str]] = {}
        for file in files:
            key = key_of(file)
            self._exact.setdefault(key, []).append(file)
            self._form.setdefault(_form(key), []).append(file)
            self._stem.setdefault(_form(os.path.basename(key)), []).append(file)
        self.names_differ = all(len(files) == 1 for files in self._stem.values())

    def exact(self, key: str) -> list[str]:
        """The files with this key."""
        return self._exact.get(key, [])

    def by_form(self, key: str) -> list[str]:
        """Those whose key differs at most by Unicode form, case, or %20 and the like."""
        return self._form.get(_form(key), [])

    def anywhere(self, key: str) -> list[str]:
        """Those of the same name in a folder whose path ends with that of the key, or the other way round, or
        in any folder if no two files have one name."""
        near, place = self._stem.get(_form(os.path.basename(key)), []), os.path.dirname(key)
        return [file for file in near if self.names_differ or _fits(place, os.path.dirname(key_of(file)))]

    def find(self, key: str) -> list[str]:
        """The nearest ones. Several are for the caller to refuse."""
        return self.exact(key) or self.by_form(key) or self.anywhere(key)


def _form(key: str) -> str:
    return folded(unquote(key))


def _fits(place: str, other: str) -> bool:
    short, long = sorted((_form(place), _form(other)), key=len)
    return not short or f"/{long}".endswith(f"/{short}")


class Found(NamedTuple):
    """Which image each XML file belongs to."""

    image_of: dict[str, str]
    """XML file -> its image; one that is not there has the name that it should have."""
    renamed: set[str]
    """XML files whose image has the name in another form."""
    problems: dict[str, tuple[str, str, str]]
    """XML file -> kind, detail and an image that lacks objects for it."""
    twins: list[str]
    """Images without an XML file, whose name differs by form only from one that has one."""
    alone: list[str]
    """Other images without an XML file."""


def match(records: Mapping[str, Record], images: list[str], usual: str) -> Found:
    """XML files take images of their own name first, then of its form, then from other folders, and at last
    by <filename>, which is often stale. `usual` is the folder of images that are not there."""
    index, image_of, xml_of = Index(images), dict[str, str](), dict[str, str]()
    index.names_differ &= Index(records).names_differ
    renamed, problems = set[str](), dict[str, tuple[str, str, str]]()
    for way in (index.exact, index.by_form, index.anywhere, index.find):
        for xml, record in records.items():
            if xml in image_of or problems.get(xml, ("",))[0] == SEVERAL:
                continue
            key, name = key_of(xml), _filename(record)
            if way == index.find:
                key = join(os.path.dirname(key), key_of(name))
            near = way(key)
            free = _best([image for image in near if image not in xml_of], xml, name)
            if len(free) == 1:
                image_of[xml], xml_of[free[0]] = free[0], xml
                renamed |= {xml} if way == index.by_form else set()
                problems.pop(xml, None)
            elif free:
                problems[xml] = (SEVERAL, ", ".join(free), "")
            # a stale <filename> is no claim to the image of another XML file
            elif near and (way != index.find or key_of(near[0]) != key_of(xml_of[near[0]])):
                problems[xml] = (TAKEN, f"{near[0]} has {xml_of[near[0]]}", near[0])
    forms = set(map(folded, xml_of))
    rest = [image for image in images if image not in xml_of]
    twins, alone = ([image for image in rest if (folded(image) in forms) == twin] for twin in (True, False))
    orphans = [xml for xml in records if xml not in image_of and xml not in problems]
    folders = {os.path.dirname(xml): os.path.dirname(image) for xml, image in image_of.items()}
    beside = {image: xml for xml, image in folders.items()}

    def expected(image: str) -> str:
        """A name that no XML file has, in the folder of the XML file of the image."""
        return join(beside.get(os.path.dirname(image), ""), os.path.basename(image))

    for xml, owner in pair(alone, orphans, expected).orphans.items():
        if owner:
            problems[xml] = (ORPHAN, f"it is probably that of {owner}; give both one name", "")
        else:
            place, name = os.path.split(key_of(xml))
            folder = folders.get(os.path.dirname(xml), join(usual, place))
            stated = os.path.splitext(_filename(records[xml]))
            image_of[xml] = join(folder, name + (stated[1] if is_image("".join(stated)) else ".jpg"))
    return Found(image_of, renamed, problems, twins, alone)


def _filename(record: Record) -> str:
    """The name in <filename>, without the folders of the machine that wrote it."""
    return os.path.basename((record.filename or "").replace("\\", "/"))


def _best(images: list[str], xml: str, filename: str) -> list[str]:
    """Of several images those with the name of the XML file, of these those with the name that it holds, of
    these those in its folder."""
    if len(images) < 2:
        return images
    for fits in (
        lambda image: stem_of(image) == stem_of(xml),
        lambda image: os.path.basename(image) in (filename, stem_of(xml)),
        lambda image: os.path.dirname(key_of(image)) == os.path.dirname(key_of(xml)),
    ):
        images = list(filter(fits, images)) or images
    return images
