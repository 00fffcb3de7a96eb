"""YOLO text files -> columns: where its images are, with or without a file that describes the set."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from ...errors import DataError, Problem
from ..cache import read_sizes
from ..dataset import NO_TEXT, Columns, Dataset, is_text
from ..folder import Folder, folded, join, stem_of
from ..images import is_image
from .format import Read, split_of
from .yolo_files import (
    DARKNET,
    YoloFile,
    find_descriptions,
    find_lists,
    find_names,
    is_names_file,
    looks_like_labels,
    read_darknet,
    read_list,
    read_yaml,
)
from .yolo_lines import read_labels
from .yolo_pairs import IMAGES, images_in, labels_in, pair_splits, parents

HOLDS = (
    "data.yaml, obj.data, images/ with labels/, or images and .txt files side by side; here or in train/, "
    "valid/, test/"
)

SAMPLE = 20  # pairs of an image and a text file of which one must hold labels


def recognise_yolo(root: Path, images: Path | None) -> Read | None:
    """A folder with a data.yaml or obj.data, else one with images and label files (see `find_sources`)."""
    folder = Folder(root)
    described = find_descriptions(folder)
    sources = {} if described else find_sources(folder)

    def read() -> dict[str, Dataset]:
        if len(described) > 1:
            listed = ", ".join(file.relative_to(root).as_posix() for file in described)
            raise DataError(f"{root}: several YOLO files: {listed}; pass one of them instead of the folder")
        if described:
            return read_yolo_file(described[0], images)
        _refuse_images(root, images)
        return read_splits(YoloFile(root, splits=sources), whole=True)

    return read if described or sources else None


def read_yolo_file(file: Path, images: Path | None = None) -> dict[str, Dataset]:
    """The splits of a data.yaml or obj.data, which says itself where its images are."""
    _refuse_images(file, images)
    about = read_darknet(file) if file.suffix.lower() == DARKNET else read_yaml(file)
    if about.splits:
        return read_splits(about)
    sources = find_sources(Folder(file.parent))
    if sources:
        kind = "descriptions that name no split that is here; the folders beside them are read"
        repair = Problem(kind, file.name, "; ".join(about.absent) or "it names none")
        return read_splits(replace(about, base=file.parent, splits=sources, repairs=[repair]))
    what = "names no split that exists; it needs an entry train, val or test with a folder of images"
    raise DataError(f"{file}: {'; '.join(about.absent) or what}")


def _refuse_images(place: Path, images: Path | None) -> None:
    if images is not None:
        raise DataError(
            f"{place}: a YOLO set says itself where its images are; --images goes with COCO and VOC"
        )


def find_sources(folder: Folder) -> dict[str, list[Path]]:
    """Split -> folders of images, or lists of them, of a set without a description; "all" if it is not split.

    A folder of images has labels/ beside it, or holds the label files itself. It is at the top or in a folder
    named for a split, or holds such folders; where class names or lists lie at the top, it may be elsewhere.
    """
    splits: dict[str, list[str]] = {}
    lists = find_lists(folder)
    for home in _homes(
        folder, bool(lists) or any(is_names_file(folder, name) for name in folder.listed().files)
    ):
        named = [name for part in reversed(home.split("/")) if (name := split_of(part))]
        below = [name for name in folder.listed(home).folders if split_of(name)]
        if named or not below:
            splits.setdefault(named[0] if named else "all", []).append(home)
        else:
            for name in below:
                splits.setdefault(str(split_of(name)), []).append(join(home, name))
    if lists and set(splits) == {"all"}:
        return lists
    if "train" in splits:
        splits.pop("all", None)  # the images there are counted as being in no split
    return {split: [folder.top / home for home in dict.fromkeys(homes)] for split, homes in splits.items()}


def _homes(folder: Folder, anywhere: bool, inside: str = "", depth: int = 3) -> Iterator[str]:
    """Folders of images with labels, below folders called images or named for splits, or anywhere."""
    images, labels = images_in(folder, inside), labels_in(folder, inside)
    if images and labels:
        yield from images
    elif _has_pairs(folder, inside):  # as images/train/sub, where images/train is the whole
        parts = inside.split("/")
        named = [split_of(part) for part in parts], [IMAGES.fullmatch(f"{part}/") for part in parts]
        ends = [index + 1 for one in named for index, found in enumerate(one) if found]
        yield "/".join(parts[: ends[0] if ends else None])
    for name in folder.listed(inside).folders if depth else []:
        child = join(inside, name)
        if (anywhere or split_of(name) or child in images) and not (labels and child in images):
            yield from _homes(folder, True, child, depth - 1)


def _has_pairs(folder: Folder, inside: str) -> bool:
    """Whether label files lie beside images of the same names."""
    files = folder.listed(inside).files
    texts = [name for name in files if name.lower().endswith(".txt")]
    stems = {folded(stem_of(name)) for name in files if is_image(name)} if texts else set()
    pairs = [folder.top / inside / name for name in texts if folded(stem_of(name)) in stems]
    return any(map(looks_like_labels, pairs[:SAMPLE]))


def read_splits(about: YoloFile, whole: bool = False) -> dict[str, Dataset]:
    """The splits of a description; category ids are 0..K-1.

    Images have the ids 1..N in the order of their names, annotations 1..M. An image without a label file has
    no objects, if that is the exception. `whole`: all that lies in the base folder belongs to the set.
    """
    folder, base = Folder(_top(about)), about.base
    columns = {split: Columns() for split in about.splits}
    files: dict[str, list[str]] = {}
    for split, sources in about.splits.items():
        home = Path(os.path.commonpath([base, *sources]))
        found = (
            read_list(one, folder, home, columns[split]) if one.is_file() else _walk(one, folder)
            for one in sources
        )
        files[split] = sorted(set(chain.from_iterable(found)))
    if "all" in files:
        files["all"] = sorted(
            set(files["all"]).difference(*(files[split] for split in files if split != "all"))
        )
    first = next(iter(columns.values()))
    first.repairs += about.repairs
    first.notes += about.notes

    lists = [one.relative_to(folder.top).as_posix() for one in chain(*about.splits.values())]
    label_of = pair_splits(folder, files, columns, skip=lists, whole=whole)
    if about.names:
        _compare_names(folder, about, first)
    names = about.names or _find_names(folder, chain(label_of, label_of.values()), first)
    for split, images in files.items():
        _read_images(
            folder,
            images,
            label_of=label_of,
            names=names,
            pose=about.pose,
            split=split,
            columns=columns[split],
        )
    names = names or _numbered(columns.values(), first)
    return {
        split: columns[split].build(
            sources[0] if len(sources) == 1 else base, folder.top, split, names, range(len(names))
        )
        for split, sources in about.splits.items()
    }


def _top(about: YoloFile) -> Path:
    """The folder that holds the base and all sources, and the labels beside them."""
    sources = [*chain.from_iterable(about.splits.values())]
    top = Path(os.path.commonpath([about.base, *sources]))
    above = IMAGES.fullmatch(f"{top}/")
    if above is None or any(IMAGES.fullmatch(f"{one.relative_to(top).as_posix()}/") for one in sources):
        return top
    parent = Path(above[1] or "/")
    return parent if labels_in(Folder(parent), "") else top


def _walk(source: Path, folder: Folder) -> list[str]:
    inside = source.relative_to(folder.top).as_posix()
    return list(filter(is_image, folder.walk("" if inside == "." else inside)))


def _read_images(
    folder: Folder,
    files: list[str],
    *,
    label_of: dict[str, str],
    names: tuple[str, ...],
    pose: bool,
    split: str,
    columns: Columns,
) -> None:
    """Appends the images that can be read, with their objects."""
    sizes, failures = read_sizes(folder.top, files)
    for index, (file, (height, width)) in enumerate(zip(files, sizes.tolist(), strict=True)):
        if not is_text(file):
            columns.problem(NO_TEXT, split, ascii(file))
        elif index in failures:
            kind, reason = failures[index]
            columns.problem(kind, split, f"{file}: {reason}" if reason else file)
        else:
            columns.image(file, index + 1, height, width)
            if file in label_of:
                read_labels(folder.top, label_of[file], names, pose, columns)


def _find_names(folder: Folder, files: Iterable[str], columns: Columns) -> tuple[str, ...]:
    """Those of the names files in the folders of these files and above them, else one folder further up."""
    inside = set(map(posixpath.dirname, files))
    places = inside.union(*map(parents, inside), [""])
    if names := find_names(folder, sorted(places), columns):
        return names
    above = Folder(folder.top.parent)
    with suppress(DataError):  # the folder above may be entered and not listed
        if names := find_names(above, [""], columns):
            columns.notes.append(f"the names of the classes are those of a file in {above.top}")
    return names


def _compare_names(folder: Folder, about: YoloFile, columns: Columns) -> None:
    """Notes that a list of names at the top does not say what the description says."""
    inside = about.base.relative_to(folder.top).as_posix()
    with suppress(DataError):  # of a list that is not read
        names = find_names(folder, ["" if inside == "." else inside], Columns())
        if names and names != about.names:
            columns.notes.append(
                "a list of class names at the top says otherwise than the description, which counts"
            )


def _numbered(columns: Iterable[Columns], first: Columns) -> tuple[str, ...]:
    """The classes of a set that does not name them: 0 to the greatest number in the label files."""
    used = set(chain.from_iterable(one.labels for one in columns))
    names = tuple(map(str, range(max(used, default=-1) + 1)))
    if names:
        listed = ", ".join(map(str, sorted(used)[:20]))
        only = f"; the label files use only {listed} of them" if len(used) < len(names) else ""
        first.notes.append(
            f"nothing names the classes: they are called 0..{names[-1]}{only}; give classes.txt"
        )
    return names
