"""The files that describe a YOLO set: data.yaml, Darknet's obj.data, lists of images and of class names."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ...errors import DataError, Problem
from ..cache import MISSING
from ..dataset import Columns, is_text
from ..folder import Folder, join, stem_of
from ..images import is_image
from .coco_images import OUTSIDE, is_outside
from .format import decoded, lines_of, split_of

SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

YAML, DARKNET = (".yaml", ".yml"), ".data"

USUAL = ("data", "dataset")
"""Names of the file that describes the set."""

KEY = re.compile(rb"""^["']?(names|train|val|valid|test|path|nc)["']?[ \t]*:""", re.MULTILINE)
"""An entry at the top level of a YAML file."""

FROM_THE_END = "paths of another machine, of which the end is found here"

MOST_READ = 20  # lines of a file whose kind is asked

PREDEFINED = "predefined_classes.txt"  # labelImg's proposals, used where no other list of names is there

NAMES_FILES = {
    "classes.txt",
    "_classes.txt",
    "class.txt",
    "names.txt",
    "class_names.txt",
    "labels.txt",
    PREDEFINED,
}


@dataclass(frozen=True)
class YoloFile:
    """What a description says."""

    base: Path
    names: tuple[str, ...] = ()
    """() where it does not say."""
    splits: dict[str, list[Path]] = field(default_factory=dict)
    """train, val, test -> folders of images, or text files that list images"""
    pose: bool = False
    """Lines are a box and then key points, which must not be taken for a polygon."""
    absent: list[str] = field(default_factory=list)
    """Splits that are not there, in words."""
    repairs: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_descriptions(folder: Folder) -> list[Path]:
    """The data.yaml of a folder; several where it is open which one is meant. Else Darknet's files."""
    files = [name for name in folder.listed().files if name.lower().endswith(YAML)]
    described = [folder.top / name for name in files if _describes(folder.top / name)]
    described = [file for file in described if file.stem.lower() in USUAL] or described
    for inside in ("", "data", "cfg"):
        if not described and (not inside or inside in folder.listed().folders):
            names = [name for name in folder.listed(inside).files if name.lower().endswith(DARKNET)]
            described = [folder.top / inside / name for name in names]
    return described


def _describes(file: Path) -> bool:
    """Whether its top level has names and an entry of a YOLO set. A data.yaml is one in any case."""
    try:
        keys = set(KEY.findall(file.read_bytes().removeprefix(b"\xef\xbb\xbf")))
    except OSError:
        keys = set()
    usual = file.stem.lower()
    return usual == "data" or (b"names" in keys and len(keys) > 1) or (usual in USUAL and bool(keys))


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
        advice = "; save it as UTF-8" if isinstance(error, yaml.reader.ReaderError) else ""
        raise DataError(f"{file}: is not valid YAML: {error}{advice}") from None
    beside: tuple[str, ...] = ()
    if not isinstance(content, dict) or "names" not in content:
        beside = find_names(Folder(file.parent), [""], Columns()) if isinstance(content, dict) else ()
        if not beside:
            raise DataError(f"{file}: has no entry 'names', the list of classes")
    names = _checked_names(list(beside) or content["names"], file, content.get("nc"))
    about = _with_splits(file, content, names)
    if beside:
        kind = "descriptions without class names, which are those of a list beside them"
        about.repairs.append(Problem(kind, file.name, ", ".join(names[:10])))
    return about


def read_darknet(file: Path) -> YoloFile:
    """Darknet's and CVAT's file of lines `train = data/train.txt`. Nothing says where its paths start."""
    entries = [line.split("#")[0].partition("=") for line in lines_of(file)]
    content = {key.strip().lower(): value.strip() for key, equals, value in entries if equals}
    if not content.keys() & {"train", "valid", "names"}:
        raise DataError(
            f"{file}: describes no YOLO set; it needs lines as train = train.txt, names = obj.names"
        )
    found, where = _place([file.parent], content.get("names", ""), file)
    names = names_of(found, content.get("classes")) if where and found.is_file() else ()
    return _with_splits(file, content, names)


def _with_splits(file: Path, content: dict[str, Any], names: tuple[str, ...]) -> YoloFile:
    """Adds where the images of the splits are."""
    (path,) = _words(content, "path", file) or ["."]
    repairs, notes, absent = [], [], []
    bases = [Path(os.path.normpath(file.parent / path))]
    if not os.path.exists(bases[0]):
        ends = from_the_end(Folder(file.parent), path)[:1]
        bases = [*(file.parent / end for end in ends), file.parent]
        repairs.append(Problem(FROM_THE_END, file.name, f"path: {path} is read as {(ends or ['.'])[0]}"))
    entries = [
        (split, key, part, *_place(bases, part, file))
        for split, keys in SPLIT_KEYS.items()
        for key in [key for key in keys if content.get(key)][:1]
        for part in _words(content, key, file)
    ]
    splits: dict[str, list[Path]] = {}
    for split, key, part, found, where in entries:
        if where and found in (*bases[0].parents, Path(found.anchor)):
            raise DataError(
                f"{file}: {split} is {found}, above the data folder {bases[0]}, and not a folder of images"
            )
        if not where:
            absent.append((split, str(found)))
        elif where == "end" and any(
            _overlap(found, part, there, other) for *_, other, there, how in entries if how
        ):
            absent.append((split, f"{part} (its end is a folder of another split)"))
        elif where == "end":
            detail = f"{key}: {part} is read as {os.path.relpath(found, file.parent)}"
            repairs.append(Problem(FROM_THE_END, file.name, detail))
        splits.setdefault(split, []).append(found)
    lost = dict(absent)
    if "test" in lost and len(splits) > 1:  # many files name a test split that was not handed out
        notes.append(f"{file.name} names a test split that is not there: {lost['test']}")
    words = [f"the images of {split} are not there: {found}" for split, found in absent]
    splits = {split: found for split, found in splits.items() if split not in lost}
    if splits and lost.keys() - {"test"}:
        needed = "; ".join(text for text, (split, _) in zip(words, absent, strict=True) if split != "test")
        raise DataError(f"{file}: {needed}; if the set has no such split, take the entry out of the file")
    return YoloFile(
        bases[-1], names, splits, "kpt_shape" in content, absent=words, repairs=repairs, notes=notes
    )


def _overlap(found: Path, part: str, there: Path, other: str) -> bool:
    """Whether another entry means the same folder, or one inside it: one folder cannot be two splits."""
    return part != other and (found == there or found in there.parents)


def _place(bases: list[Path], part: str, file: Path) -> tuple[Path, str]:
    """Where an entry is, and how it was found: "exact", or by its "end" only, or "" where it is not there."""
    part = part.replace("\\", "/")
    for base in bases:
        # Roboflow writes ../train/images and means train/images, beside the file
        for one in (base / part.removeprefix("../"), base / part):
            if part and os.path.exists(one):
                return Path(os.path.normpath(one)), "exact"
    for base in dict.fromkeys([*bases, file.parent]):
        if len(found := from_the_end(Folder(base), part)) == 1:
            return base / found[0], "end"
    return Path(os.path.normpath(bases[0] / part)), ""


def from_the_end(folder: Folder, path: str) -> list[str]:
    """The files of the longest end of a path that is there: of /content/cells/images/train, images/train."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next(filter(None, map(folder.find, ends)), [])


def _words(content: dict[str, Any], key: str, file: Path) -> list[str]:
    """An entry that is a path, or a list of them. Nothing else is quoted: aliases can stand for gigabytes."""
    entry = content.get(key) or []
    parts: list[Any] = entry if isinstance(entry, list) and key != "path" else [entry] if entry else []
    if not all(isinstance(part, str) and is_text(part) and "\0" not in part for part in parts):
        raise DataError(f"{file}: {key!r} must be a path" + ("" if key == "path" else ", or a list of paths"))
    return parts


def _checked_names(entry: Any, file: Path, count: Any = None, key: str = "nc") -> tuple[str, ...]:
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
    if count is not None and count != str(len(entry)):
        number = count[:20] if isinstance(count, str) else "no number"
        raise DataError(
            f"{file}: {key!r} is {number}, but there are {len(entry)} names; add those that "
            f"lack, or write the right number"
        )
    return tuple(entry)


def names_of(file: Path, count: str | None = None) -> tuple[str, ...]:
    """The class names of a text file, one a line. A line that begins with a number sign and a blank is a
    comment."""
    names = [name for line in lines_of(file) if (name := line.strip()) and not name.startswith("# ")]
    if not names:
        raise DataError(f"{file}: holds no class names; give one a line")
    return _checked_names(names, file, count, "classes")


def is_names_file(folder: Folder, file: str) -> bool:
    """Whether a file holds the names of classes, as classes.txt, obj.names and _darknet.labels do."""
    name = os.path.basename(file).lower()
    called = name in NAMES_FILES or name.endswith((".names", ".labels"))
    return called and not looks_like_labels(folder.top / file)


def find_names(folder: Folder, places: Iterable[str], columns: Columns) -> tuple[str, ...]:
    """The class names of a set without data.yaml: those of its names files in the given folders, which must
    not contradict each other; () without any."""
    files = [join(one, name) for one in places for name in folder.listed(one).files]
    files = [file for file in files if is_names_file(folder, file) and os.path.isfile(folder.top / file)]
    files = [file for file in files if os.path.getsize(folder.top / file)]
    files = [file for file in files if os.path.basename(file).lower() != PREDEFINED] or files
    if any(file.endswith(PREDEFINED) for file in files):
        columns.notes.append(
            f"the class names are labelImg's proposals ({', '.join(files)}): are they right?"
        )
    found = {file: names_of(folder.top / file) for file in files}
    longest = max(found.values(), key=len, default=())
    short = [file for file, names in found.items() if names != longest]
    if any(found[file] != longest[: len(found[file])] for file in short):
        listed = ", ".join(files)
        raise DataError(
            f"{folder.top}: has lists of class names that contradict each other: {listed}; keep the right one"
        )
    for file in short:  # labelImg writes a list for each folder, with the classes met so far
        columns.repair("lists of class names that another one goes on with", file, "")
    return longest


def looks_like_labels(file: Path) -> bool:
    """Whether one of the first lines of a text file is one of a label file."""
    with suppress(DataError):
        for line in lines_of(file)[:MOST_READ]:
            words = line.replace(",", " ").split()
            with suppress(ValueError):
                if len(words) > 4 and list(map(float, words[-4:])):
                    return True
    return False


def is_prose(file: Path) -> bool:
    """Whether a text file has words."""
    with suppress(DataError):
        return any(re.search(r"[^\W\d_]{3}", line) for line in lines_of(file)[:MOST_READ])
    return False


def find_lists(folder: Folder) -> dict[str, list[Path]]:
    """Lists of images named for the splits, as train.txt, of a set without a description."""
    files = [name for name in folder.listed().files if name.lower().endswith(".txt")]
    splits: dict[str, list[Path]] = {}
    for name in files:
        split = split_of(stem_of(name))
        if split and is_list(folder.top / name):
            splits.setdefault(split, []).append(folder.top / name)
    return splits


def is_list(file: Path) -> bool:
    """Whether the first line of a text file is the name of an image."""
    with suppress(OSError), open(file, "rb") as stream:
        return is_image(next(filter(None, map(bytes.strip, stream)), b"").decode("latin-1"))
    return False


def read_list(file: Path, folder: Folder, home: Path, columns: Columns) -> list[str]:
    """The images of a text file, one a line; relative ones start at the data folder or at the file's.

    Args:
        file: The list.
        folder: What the names that are returned are relative to.
        home: The data folder, which no image may leave.
        columns: Gets the problems and the repairs.
    """
    found: dict[str, int] = {}
    ends: dict[str, str] = {}
    top, inside = os.path.join(folder.top, ""), os.path.join(home, "")
    lines, encoding = decoded(file, lambda line: _meant(folder, file.parent, line.strip(), ends)[0])
    if encoding:
        columns.repair("lists of images that are not in UTF-8", file.name, f"read as {encoding}")
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        where = f"line {number}: {name[:200]}"
        meant, exact = _meant(folder, file.parent, name, ends)
        path = os.path.normpath(os.path.join(top, meant[0]) if meant else file.parent / name)
        if not name or (name.startswith("#") and not exact):
            continue
        if len(meant) > 1:
            kind = "names in lists that several files have in another form"
            columns.problem(kind, file.name, f"{where}: {', '.join(meant)}")
        elif not meant and is_outside(name.replace("\\", "/")):
            columns.problem(MISSING, file.name, where)
        elif not f"{path}/".startswith(inside):
            columns.problem(OUTSIDE, file.name, where)
        elif (image := path.removeprefix(top)) in found:
            columns.repair("images listed again, read once", file.name, f"{where}, as line {found[image]}")
        else:
            found[image] = number
            if meant and not exact:
                kind = "names in lists found in another form or by their end"
                columns.repair(kind, file.name, f"{where} is read as {image}")
    return list(found)


def _meant(folder: Folder, near: Path, name: str, ends: dict[str, str]) -> tuple[list[str], bool]:
    """The files of a line, and whether it names them exactly. `ends` remembers where the folders of another
    machine were found."""
    path = name.replace("\\", "/")
    for start in (folder.top, near):
        one = os.path.join(start, path)
        if name and os.path.lexists(one):
            return [one], True
    above, _, base = path.rpartition("/")
    if above in ends and os.path.lexists(folder.top / ends[above] / base):
        return [join(ends[above], base)], False
    found = from_the_end(folder, path)
    if len(found) == 1 and os.path.basename(found[0]) == base:
        ends[above] = os.path.dirname(found[0])
    return found, False
