"""Where the images of a COCO file are: the folder that its names start from, and the file of each name."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from ...errors import DataError, Problem
from ...text import many
from ..dataset import Dataset, is_text
from ..folder import Folder, join
from ..images import is_image

FOLDERS = ("images", "jpegimages", "data", "imgs")
"""Usual names of the folder of the images."""

LONGEST_NAME = 1024

OUTSIDE = "file names that leave the data folder"


def tidy(name: str) -> str | None:
    """A file name of an annotation file with forward slashes and without detours; None: it is no name."""
    if len(name) > LONGEST_NAME or "\0" in name or not is_text(name):
        return None
    path = posixpath.normpath(name.replace("\\", "/"))
    return None if path in (".", "..", "/", "//") else path


def is_outside(path: str) -> bool:
    """Whether a tidy name is absolute or climbs out of the folder. Links inside it are not looked at."""
    return path.startswith(("/", "../")) or path[1:2] == ":"


def locate(dataset: Dataset, images: Path | None = None) -> Dataset:
    """The data set with its folder of images, and the names as they stand on the disk.

    A name that differs from a file's by Unicode form, case or %20, or that starts at a folder of another
    machine, is that file's where only one is meant. An image whose name leaves the folder is left out.
    """
    folder, source = Folder(find_root(dataset, images)), dataset.source.name
    files, repairs, problems = dataset.files.tolist(), [], []
    if not folder.top.is_dir():
        return dataset
    kept = np.ones(len(files), dtype=np.bool_)
    for index in _strange(folder, files):
        name, number = files[index], dataset.image_ids[index]
        found, where = _meant(folder, name), f"image {number} ({name})"
        if len(found) > 1:
            kind = "file names that several files have in another form"
            problems.append(Problem(kind, source, f"{where}: {', '.join(found)}", name))
        elif found and found[0] != name:
            files[index] = found[0]
            repairs.append(Problem("file names found in another form", source, f"{where}: {found[0]}"))
        elif not found and is_outside(name):
            kept[index] = False
            boxes = int(dataset.first[index + 1] - dataset.first[index])
            problems.append(Problem(OUTSIDE, source, f"{where}, with {many(boxes, 'box', 'boxes')}"))
    if repairs:
        dataset = replace(dataset, files=np.array(files, dtype=np.str_))
    dataset = replace(
        dataset,
        root=folder.top,
        repairs=(*dataset.repairs, *repairs),
        problems=(*dataset.problems, *problems),
    )
    return dataset if kept.all() else dataset.subset(np.flatnonzero(kept))


def _strange(folder: Folder, files: list[str]) -> list[int]:
    """Indices of the names that are not exactly those of files: few, in most data sets."""
    exact: set[str] = set()
    for inside in {name.rpartition("/")[0] for name in files if not is_outside(name)}:
        with suppress(DataError):  # it is not there, or may be entered and not listed
            exact.update(join(inside, name) for name in folder.listed(inside).files)
    return [index for index, name in enumerate(files) if name not in exact]


def _meant(folder: Folder, name: str) -> list[str]:
    """The files of a name, or of the longest end of it that is there."""
    if is_outside(name) and os.path.lexists(folder.top / name):
        return []  # it is not of another machine, but outside the folder
    parts = name.split("/")
    whole = [] if is_outside(name) else [name]
    ends = whole + ["/".join(parts[start:]) for start in range(1, len(parts)) if parts[start] != ".."]
    return next(filter(None, map(folder.find, ends)), [])


def find_root(dataset: Dataset, images: Path | None) -> Path:
    """The folder that the file names are relative to: around the annotation file the first that holds most of
    the first names, else the first of all."""
    if images is not None and not images.is_dir():
        raise DataError(f"{images}: no such folder of images")
    file, names = dataset.source, dataset.files[:20].tolist()
    here = Path(os.path.abspath(file)).parent
    around = [here.parent, here] if here.name.lower().startswith("annotation") else [here, here.parent]
    tops = [images] if images is not None else around
    words = (dataset.split.lower(), re.split(r"[\W_]+", file.stem.lower())[-1])
    folders = list(
        dict.fromkeys(chain.from_iterable(_candidates(top, tuple(filter(None, words))) for top in tops))
    )

    def exactly(folder: Path) -> int:
        # Path.is_file raises where a name is too long for the disk
        return sum(os.path.isfile(folder / name) for name in names if not is_outside(name))

    def by_form(folder: Path) -> int:
        listed = Folder(folder)
        return sum(len(_meant(listed, name)) == 1 for name in names)

    best = max(folders, key=exactly)
    if exactly(best) < len(names):
        best = max(folders, key=lambda folder: (by_form(folder), exactly(folder)))
    return best


def _candidates(top: Path, words: tuple[str, ...]) -> Iterator[Path]:
    """The folder itself, those below it named for the split (val: val, valid, val2017), those with the usual
    names, and those below these named for the split."""
    yield top
    usual = [top / name for wanted in FOLDERS for name in _folders(top) if name.lower() == wanted]
    for parent in [top, *usual]:
        for name in _folders(parent):
            if words and name.lower().startswith(words):
                yield parent / name
                yield from (parent / name / one for one in _folders(parent / name) if one.lower() in FOLDERS)
        if parent is top:
            yield from usual


def _folders(folder: Path) -> list[str]:
    try:
        return Folder(folder).listed().folders
    except DataError:  # the folder above may be entered and not listed
        return []


def unlisted(datasets: Iterable[Dataset]) -> str | None:
    """How many images lie beside those of the data sets and are in no annotation file."""
    used = {f"{data.root}/{name}" for data in datasets for name in data.files.tolist()}
    folders = sorted({os.path.dirname(file) for file in used})
    there = [
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in Folder(Path(folder)).listed().files
        if is_image(name)
    ]
    left = [file for file in there if file not in used]
    return f"{many(len(left), 'image')} in no annotation file, left out, as {left[0]}" if left else None
