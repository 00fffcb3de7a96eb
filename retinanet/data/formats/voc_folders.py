"""Where the XML files and the images of a Pascal VOC set lie: in the folders that tools make."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

from ...errors import DataError
from ..folder import Folder, folded, join, stem_of
from ..images import is_image
from .format import split_of
from .voc_images import ANNOTATIONS, IMAGES, is_xml, key_of
from .voc_xml import is_voc


def find_xmls(root: Path, images: Path | None) -> tuple[Folder, list[str]]:
    """The folder of a set and its XML files; a folder of XML files alone stands for the set around it."""
    for place in (root, root.parent):  # Annotations/, or Annotations/cam1/: the images lie beside it
        if images is None and folded(place.name) in ANNOTATIONS:
            names, around = list(Folder(root).walk()), Folder(place.parent)
            if any(map(is_xml, names)) and not any(map(is_image, names)) and _named(around, IMAGES, is_image):
                return around, list(filter(is_xml, around.walk(root.relative_to(place.parent).as_posix())))
    folder = Folder(root)
    return folder, list(filter(is_xml, _files(folder)))


def sibling_of_images(folder: Folder, xmls: list[str]) -> Path | None:
    """The only folder beside this one that holds an image with the name of one of the XML files."""
    stems, top = set(map(stem_of, xmls)), folder.top.parent
    with suppress(DataError):  # the folder above may be entered and not listed
        found = [
            name
            for name, files in _direct(Folder(top)).items()
            if any(is_image(file) and stem_of(file) in stems for file in files)
        ]
        return top / found[0] if len(found) == 1 else None
    return None


def _files(folder: Folder) -> Iterator[str]:
    """What lies below the folder for annotations, else below all if the top itself has XML files, else below
    the folder of images, and below those of splits; else in any folders of XML files."""
    if places := _named(folder, ANNOTATIONS, is_xml):
        return _below(folder, [*places, *_splits(folder)])
    direct = _direct(folder)
    images = any(map(is_image, chain(*direct.values()))) or bool(_named(folder, IMAGES, is_image))
    here = any(images or is_voc(folder.top / name) for name in filter(is_xml, direct[""]))
    if here or folded(folder.top.name) in ANNOTATIONS:
        return folder.walk()
    places = [*_named(folder, IMAGES, is_xml), *_splits(folder)]
    if not places and images:
        places = [name for name, files in direct.items() if any(map(is_xml, files))]
    return _below(folder, places)


def _below(folder: Folder, places: Iterable[str]) -> Iterator[str]:
    return (file for place in places for file in folder.walk(place))


def _splits(folder: Folder) -> list[str]:
    """The folders of splits that hold XML files."""
    return [
        name for name in folder.listed().folders if split_of(name) and any(map(is_xml, folder.walk(name)))
    ]


def _direct(folder: Folder) -> dict[str, list[str]]:
    """The files of the top, under "", and of each folder in it that may be read."""
    found = {"": folder.listed().files}
    for name in folder.listed().folders:
        with suppress(DataError):
            found[name] = folder.listed(name).files
    return found


def _named(folder: Folder, names: Sequence[str], kind: Callable[[str], bool], inside: str = "") -> list[str]:
    """The folders there with the first of the names that files of a kind lie below."""
    for wanted in names:
        there = [join(inside, name) for name in folder.listed(inside).folders if folded(name) == wanted]
        found = [place for place in there if any(map(kind, folder.walk(place)))]
        if found:
            return found
    return []


def find_images(folder: Folder, xmls: list[str]) -> list[str]:
    """The images of a set: of the folder named for images, here and in those named for splits, and beside XML
    files; without such folders, of all."""
    places = _named(folder, IMAGES, is_image)
    for split in filter(split_of, folder.listed().folders):
        places += _named(folder, IMAGES, is_image, split) or [split]
    found = set(_below(folder, places or [""]))
    for place in {"", *map(os.path.dirname, xmls)}:
        found.update(join(place, name) for name in folder.listed(place).files)
    return sorted(filter(is_image, found))


def folder_of_images(folder: Folder) -> str:
    """The folder in which images should be, also if none is there."""
    folders = folder.listed().folders
    return next((name for wanted in IMAGES for name in folders if folded(name) == wanted), "")


def around(folder: Folder, xmls: list[str]) -> list[str]:
    """Other XML files of the folder and of those in it."""
    found = [join(place, name) for place, files in _direct(folder).items() for name in filter(is_xml, files)]
    return [file for file in found if file not in set(xmls)]


def is_rest(folder: Folder, xmls: list[str]) -> bool:
    """Whether the XML files lie beside images that mostly have YOLO labels: labelImg writes XML at first."""
    beside = {os.path.dirname(xml) for xml in xmls}
    if {folded(part) for place in beside for part in place.split("/")} & {*ANNOTATIONS[:-1]}:
        return False
    named = [one for one in folder.listed().folders if folded(one) in ("labels", *IMAGES) or split_of(one)]
    files = [*folder.listed().files, *_below(folder, {*named, *beside} - {""})]
    images = {key_of(file) for file in files if is_image(file)}
    return len({key_of(file[:-4]) for file in files if file.endswith(".txt")} & images) > len(xmls)
