"""YOLO text files in labels/ beside images/ -> columns: a line `class cx cy w h` an object, in fractions of
the image. A line with more corners is a polygon, and stands for the box around it."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from ...errors import DataError
from ..cache import read_sizes
from ..dataset import NO_TEXT, Columns, Dataset, is_text
from ..images import is_image
from .format import Read, lines_of, split_of, subfolders

HOLDS = "data.yaml, or images/ with labels/, here or in train/, valid/, test/"

USUAL = ("data", "dataset")
"""Names of the file that describes the set."""

SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

SLACK = 0.01
"""How far a fraction may lie outside 0..1; beyond, it is taken for a pixel and refused."""


@dataclass(frozen=True)
class YoloFile:
    """What a data.yaml says."""

    base: Path
    names: tuple[str, ...]
    splits: dict[str, list[Path]]
    """train, val, test -> folders of images, or text files that list images"""
    pose: bool
    """Lines are a box and then key points, which must not be taken for a polygon."""


def recognise_yolo(root: Path, images: Path | None) -> Read | None:
    """A folder with a data.yaml, else images/ beside labels/, here or in folders named for the splits."""
    files = sorted(filter(Path.is_file, [*root.glob("*.yaml"), *root.glob("*.yml")]))
    described = [file for file in files if b"names" in file.read_bytes()]
    described = described or [file for file in files if file.stem in USUAL]
    sources: dict[str, Path] = {}
    if not described:
        if _has_labels(root):
            folders = subfolders(root / "images")
            sources = {split: folder for folder in folders if (split := split_of(folder.name))}
            sources = sources or {"all": root / "images"}
        for folder in subfolders(root):
            if (split := split_of(folder.name)) and _has_labels(folder):
                sources[split] = folder / "images"
    return (lambda: _read_splits(root, described, sources, images)) if described or sources else None


def _has_labels(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels").is_dir()


def _read_splits(
    root: Path, described: list[Path], sources: dict[str, Path], images: Path | None
) -> dict[str, Dataset]:
    """By the data.yaml where there is one, else from the folders of images of the splits."""
    if images is not None:
        raise DataError(
            f"{root}: a YOLO set says itself where its images are; --images goes with COCO and VOC"
        )
    if not described:
        names = guess_names(root, sources.values())
        return {split: read_yolo(root, [folder], names, split) for split, folder in sources.items()}
    file, *others = [file for file in described if file.stem in USUAL] or described
    if others:
        listed = ", ".join(file.name for file in described)
        raise DataError(f"{root}: several YOLO files: {listed}; pass one of them instead of the folder")
    return read_yolo_file(file)


def read_yolo_file(file: Path, images: Path | None = None) -> dict[str, Dataset]:
    """The splits of a data.yaml, which says itself where its images are."""
    content = read_yaml(file)
    if not content.splits:
        raise DataError(
            f"{file}: names no split that exists; it needs an entry train, val or test with a folder of "
            f"images"
        )
    return {
        split: read_yolo(content.base, sources, content.names, split, content.pose)
        for split, sources in content.splits.items()
    }


class _Loader(yaml.BaseLoader):
    """The safe loader with every word as it stands (a class may be called no, on or 1e3) and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice = next((key for key, count in keys.items() if count > 1), None)
        if twice is not None:
            what = f"the key {twice!r} stands there twice"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> YoloFile:
    """A data.yaml as Ultralytics and Roboflow write it."""
    try:
        content: Any = yaml.load(file.read_bytes(), Loader=_Loader)
    # OverflowError: "\Uffffffff" is no letter
    except (OSError, yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{file}: is not valid YAML: {error}") from None
    if not isinstance(content, dict) or "names" not in content:
        raise DataError(f"{file}: has no entry 'names', the list of classes")
    names = _names(content, file)
    (place,) = _words(content, "path", file) or ["."]
    base = _first_that_exists([file.parent / place, file.parent])
    splits = {}
    for split, keys in SPLIT_KEYS.items():
        key = next((key for key in keys if content.get(key)), None)
        if key is None:
            continue
        # Roboflow writes ../train/images and means train/images, beside the file
        sources = [
            _first_that_exists([base / part.removeprefix("../"), base / part])
            for part in _words(content, key, file)
        ]
        above = [str(source) for source in sources if source in (*base.parents, Path(source.anchor))]
        if above:
            raise DataError(
                f"{file}: {split} is {', '.join(above)}, above the data folder {base}, and not a folder of "
                f"its images"
            )
        absent = [str(source) for source in sources if not os.path.exists(source)]
        if not absent:
            splits[split] = sources
        elif split != "test":  # many files name a test split that was not handed out
            raise DataError(f"{file}: the images of {split} are not there: {', '.join(absent)}")
    return YoloFile(base, names, splits, pose="kpt_shape" in content)


def _words(content: dict[str, Any], key: str, file: Path) -> list[str]:
    """An entry that is a path, or a list of them. Nothing else is quoted: aliases can stand for gigabytes."""
    entry = content.get(key) or []
    parts: list[Any] = entry if isinstance(entry, list) and key != "path" else [entry] if entry else []
    if not all(isinstance(part, str) and is_text(part) and "\0" not in part for part in parts):
        raise DataError(f"{file}: {key!r} must be a path" + ("" if key == "path" else ", or a list of paths"))
    return parts


def _names(content: dict[str, Any], file: Path) -> tuple[str, ...]:
    entry = content["names"]
    if isinstance(entry, dict):
        if sorted(entry) != sorted(map(str, range(len(entry)))):
            keys = ", ".join(map(repr, entry))[:200]
            raise DataError(f"{file}: the keys of 'names' must be 0..{len(entry) - 1}, not {keys}")
        entry = [entry[str(label)] for label in range(len(entry))]
    proper = isinstance(entry, list) and all(
        isinstance(name, str) and name and is_text(name) for name in entry
    )
    if not entry or not proper:
        raise DataError(f"{file}: 'names' must be a list of class names, or a table 0: name, 1: name, ...")
    twice = sorted(name for name, count in Counter(entry).items() if count > 1)
    if twice:
        raise DataError(f"{file}: 'names' holds a class twice: {', '.join(twice)}")
    if "nc" in content and content["nc"] != str(len(entry)):
        number = content["nc"][:20] if isinstance(content["nc"], str) else "no number"
        raise DataError(f"{file}: 'nc' is {number}, but there are {len(entry)} names")
    return tuple(entry)


def guess_names(root: Path, sources: Iterable[Path]) -> tuple[str, ...]:
    """The classes of a set without data.yaml: classes.txt, else the numbers that its labels use."""
    for file in (root / "classes.txt", root / "labels" / "classes.txt"):
        if file.is_file():
            return _names({"names": [line.strip() for line in lines_of(file) if line.strip()]}, file)
    used = {-1}
    for source in sources:
        folder = root / posixpath.dirname(label_file(f"{source.relative_to(root).as_posix()}/_"))
        for file in filter(Path.is_file, folder.rglob("*.txt")):
            for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
                word = line.strip().split(maxsplit=1)[:1]
                # anything else is a bad line, which the reader notes
                used.update(int(number) for number in word if number.isdecimal() and len(number) < 5)
    return tuple(str(label) for label in range(max(used) + 1))


def _first_that_exists(paths: Sequence[Path]) -> Path:
    return Path(os.path.normpath(next(filter(os.path.exists, paths), paths[-1])))


def read_yolo(
    base: Path, sources: Iterable[Path], names: Sequence[str], split: str, pose: bool = False
) -> Dataset:
    """One split. `base` is the data folder, `sources` folders of images or text files that list them;
    category ids are 0..K-1.

    Images have the ids 1..N in the order of their names, annotations 1..M. An image without a label file has
    no objects.
    """
    sources, columns, top = list(sources), Columns(), base
    if not all(source.is_relative_to(base) for source in sources):
        top = Path(os.path.commonpath([base, *sources]))
    found = (_listed(one, top, columns) if one.is_file() else _walk(one, top) for one in sources)
    files = sorted(set(chain.from_iterable(found)))
    sizes, failures = read_sizes(top, files)
    for index, (file, (height, width)) in enumerate(zip(files, sizes.tolist(), strict=True)):
        if not is_text(file):
            columns.problem(NO_TEXT, split, ascii(file))
        elif index in failures:
            kind, reason = failures[index]
            columns.problem(kind, split, f"{file}: {reason}" if reason else file)
        else:
            columns.image(file, index + 1, height, width)
            _labels(top, label_file(file), len(names), pose, columns)
    return columns.build(sources[0] if len(sources) == 1 else base, top, split, names, range(len(names)))


def label_file(image: str) -> str:
    """images/train/a.jpg -> labels/train/a.txt: the last folder called images becomes labels; without one it
    lies beside the image."""
    above, folder, below = f"/{image}".rpartition("/images/")
    return posixpath.splitext(f"{above}/labels/{below}" if folder else image)[0].removeprefix("/") + ".txt"


def _walk(folder: Path, top: Path) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder):
        inside = Path(parent).relative_to(top).as_posix()
        found += [posixpath.normpath(f"{inside}/{name}") for name in filter(is_image, names)]
    return found


def _listed(file: Path, top: Path, columns: Columns) -> list[str]:
    """The images of a text file, one a line; relative ones start at the file's folder or the data folder."""
    found = []
    for number, line in enumerate(lines_of(file), start=1):
        name = line.strip().replace("\\", "/")
        path = _first_that_exists([top / name, file.parent / name])
        if name and path.is_relative_to(top):
            found.append(path.relative_to(top).as_posix())
        elif name:
            where = f"line {number}: {name[:200]}"
            columns.problem("file names that leave the data folder", file.name, where)
    return found


def _labels(top: Path, file: str, count: int, pose: bool, columns: Columns) -> None:
    """Appends the objects of the image begun last."""
    if not os.path.lexists(top / file):
        return
    folder = posixpath.dirname(file) or "."
    try:
        lines = lines_of(top / file)
    except DataError as error:
        columns.problem("label files that cannot be read", folder, f"{file}: {error}")
        return
    for number, line in enumerate(lines, start=1):
        words = line.replace("_", "?").split()  # Python takes 0.4_1 for 0.41
        where = f"{file}, line {number}: {line.strip()[:80]}"
        try:
            label, *values = map(float, words)
        except ValueError:
            if words:
                columns.problem("lines that are not numbers", folder, where)
            continue
        if pose:
            values = values[:4]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            kind = "lines that are neither a box (class cx cy w h) nor a polygon (class x y x y x y ...)"
            columns.problem(kind, folder, where)
        elif not (0 <= label < count and label.is_integer()):
            columns.problem("lines of an unknown class", folder, f"{where}: classes are 0..{count - 1}")
        elif not all(isfinite(value) and -SLACK <= value <= 1 + SLACK for value in values):
            columns.problem("lines that are not fractions of the image (0..1)", folder, where)
        else:
            columns.box(_box(values, *columns.sizes[-1]), int(label), len(columns.labels) + 1)


def _box(values: list[float], height: int, width: int) -> tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, w, h = values
        return (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
    xs, ys = values[0::2], values[1::2]
    return min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
