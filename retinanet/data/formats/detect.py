"""Which format a folder or file is in, and which splits it has: COCO, VOC and YOLO are recognised by their
files.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import DataError, unknown_name_error
from ..dataset import Dataset
from ..images import IMAGE_SUFFIXES
from .coco import read_coco
from .voc import read_voc
from .yolo import guess_names, read_yaml, read_yolo

log = logging.getLogger("retinanet")

SPLITS = {
    "train": re.compile(r"train(ing)?(\d{4})?"),
    "val": re.compile(r"(mini)?val(id|idation)?(\d{4})?|dev"),
    "test": re.compile(r"test(ing)?(\d{4})?"),
}

OTHER_TASKS = {
    "captions",
    "keypoints",
    "panoptic",
    "stuff",
    "info",
    "results",
    "predictions",
    "detections",
    "unlabeled",
}
"""Words in the names of COCO files that hold no boxes to train on."""

LOOKED_FOR = """  COCO  *.json here, in annotations/, or in folders such as train/ and valid/
  VOC   Annotations/*.xml with ImageSets/Main/*.txt, or *.xml beside the pictures, here or in train/, valid/, test/
  YOLO  data.yaml, or images/ with labels/, here or in train/, valid/, test/"""

Found = Callable[[], dict[str, Dataset]]
"""Reads what was recognised."""


def open_dataset(
    path: str | Path, layout: str | None = None, images: str | Path | None = None
) -> dict[str, Dataset]:
    """Read the splits of a data set.

    Args:
        path: A folder, a COCO JSON file, or a YOLO data.yaml.
        layout: coco, voc or yolo, where several are found; None: COCO wins, and the log says so.
        images: The folder of the images, if they are not with the annotations.

    Returns:
        The splits by name: train, val and test, or "all" for a single file or a set that is not split.

    Raises:
        DataError: There is no data set, or it cannot be read.
        ConfigError: An unknown layout.

    Example:
        >>> splits = retinanet.open_dataset("cells")
        >>> train = splits["train"]
        >>> len(train), train.names
    """
    root, pictures = Path(os.path.abspath(path)), None if images is None else Path(os.path.abspath(images))
    if layout is not None and layout not in LAYOUTS:
        raise unknown_name_error("layout", layout, LAYOUTS)
    if os.path.isfile(root):  # Path.is_file raises where a name is too long for the disk
        return _open_file(root, layout, pictures)
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such file or folder")
    found = {
        name: read
        for name, recognise in LAYOUTS.items()
        if layout in (None, name) and (read := recognise(root, pictures))
    }
    if not found:
        what = "no data set" if layout is None else f"no {layout.upper()} data set"
        raise DataError(
            f"{root}: {what} was recognised here. What was looked for:\n{LOOKED_FOR}\nIt holds: "
            f"{_contents(root)}"
        )
    chosen = next(iter(found))
    if len(found) > 1:
        log.info(
            "%s holds several layouts (%s); reading %s, --layout chooses", root, ", ".join(found), chosen
        )
    if images is not None and chosen == "yolo":
        raise DataError(
            f"{root}: a YOLO set says itself where its pictures lie; --images goes with COCO and VOC"
        )
    splits = found[chosen]()
    return {split: splits[split] for split in (*SPLITS, "all") if split in splits}


def split_of(name: str) -> str | None:
    """train, val or test where the name says so: instances_val2017, valid, test-dev, ..."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next(
        (split for split in ("test", "val", "train") if any(SPLITS[split].fullmatch(word) for word in words)),
        None,
    )


def _open_file(file: Path, layout: str | None, images: Path | None) -> dict[str, Dataset]:
    if file.suffix.lower() in (".yaml", ".yml") and layout in (None, "yolo"):
        return _read_yaml_splits(file)
    if file.suffix.lower() == ".json" and layout in (None, "coco"):
        return {"all": read_coco(file, images, split_of(file.stem))}
    kind = "annotation file" if layout is None else f"{layout.upper()} annotation file"
    raise DataError(f"{file}: is no {kind}; give a COCO .json, a YOLO .yaml, or the folder of the data set")


def _coco(root: Path, images: Path | None) -> Found | None:
    annotations = [folder for folder in _folders(root) if folder.name.lower() == "annotations"]
    named = [folder for folder in _folders(root) if split_of(folder.name)]
    files: dict[str, list[Path]] = {}
    for folder in [root, *annotations, *named]:
        for file in sorted(folder.glob("*.json")):
            if not OTHER_TASKS & set(re.split(r"[^a-z]+", file.stem.lower())) and _looks_like_coco(file):
                split = split_of(file.stem) or (split_of(folder.name) if folder in named else None)
                files.setdefault(split or "all", []).append(file)
    if not files:
        return None
    return lambda: _read_coco_splits(root, files, images)


def _looks_like_coco(file: Path) -> bool:
    """By its first 64 kB, since a file may have a gigabyte."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(65536).removeprefix(b"\xef\xbb\xbf").lstrip()
    except OSError:
        return False
    return head.startswith(b"{") and any(
        key in head for key in (b'"images"', b'"annotations"', b'"categories"')
    )


def _read_coco_splits(root: Path, files: dict[str, list[Path]], images: Path | None) -> dict[str, Dataset]:
    chosen = {}
    for split, candidates in files.items():
        if split == "all" and len(files) > 1:
            log.info(
                "%s: not read, since their names say no split: %s",
                root,
                ", ".join(file.name for file in candidates),
            )
            continue
        instances = [file for file in candidates if file.stem.startswith("instances")]
        candidates = instances if len(instances) == 1 else candidates
        if len(candidates) > 1:
            listed = ", ".join(file.relative_to(root).as_posix() for file in candidates)
            which = "without the name of a split" if split == "all" else f"for the split {split}"
            raise DataError(
                f"{root}: several annotation files {which}: {listed}; pass one of them instead of the folder"
            )
        chosen[split] = candidates[0]
    datasets = {split: read_coco(file, images, split) for split, file in chosen.items()}
    _same_classes(datasets)
    return datasets


def _same_classes(datasets: dict[str, Dataset]) -> None:
    first, *others = datasets.values()
    for other in others:
        if other.names == first.names:
            continue
        only = [
            (one, [name for name in one.names if name not in two.names])
            for one, two in ((first, other), (other, first))
        ]
        differences = [
            f"only in {one.source.name}: {', '.join(map(repr, names))}" for one, names in only if names
        ]
        what = "; ".join(differences) or "the names are the same, but their ids put them in another order"
        pair = f"{first.source.name} and {other.source.name}"
        raise DataError(
            f"{pair} do not have the same classes: {what}. All splits must share one list of categories"
        )


def _voc(root: Path, images: Path | None) -> Found | None:
    tree = next(
        (folder for folder in _folders(root) if folder.name == "Annotations" and any(folder.glob("*.xml"))),
        None,
    )
    if tree is not None:
        lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
        sources = {
            split: file
            for split, rule in SPLITS.items()
            for file in lists
            if rule.fullmatch(file.stem.lower())
        }
        both = root / "ImageSets" / "Main" / "trainval.txt"
        if (
            not {"train", "val"} & sources.keys() and both in lists
        ):  # beside a val.txt it would train on the validation split
            sources["train"] = both
        sources = sources or {"all": tree}
    else:
        sources = {
            split: folder
            for folder in _folders(root)
            if (split := split_of(folder.name)) and any(folder.glob("*.xml"))
        }
        if not sources and any(root.glob("*.xml")) and _has_pictures(root):
            sources = {"all": root}
    return (lambda: read_voc(root, sources, images)) if sources else None


def _yolo(root: Path, images: Path | None) -> Found | None:
    files = sorted(filter(Path.is_file, [*root.glob("*.yaml"), *root.glob("*.yml")]))
    usual = ("data", "dataset")
    described = [file for file in files if b"names" in file.read_bytes()] or [
        file for file in files if file.stem in usual
    ]
    if described:
        named = [file for file in described if file.stem in usual]
        if len(described) > 1 and len(named) != 1:
            return lambda: _refuse_several(root, described)
        return lambda: _read_yaml_splits((named or described)[0])
    sources: dict[str, Path] = {}
    if (root / "images").is_dir() and (root / "labels").is_dir():
        sources = {
            split: folder for folder in _folders(root / "images") if (split := split_of(folder.name))
        } or {"all": root / "images"}
    for folder in _folders(root):
        split = split_of(folder.name)
        if split and (folder / "images").is_dir() and (folder / "labels").is_dir():
            sources[split] = folder / "images"
    return (lambda: _read_folders(root, sources)) if sources else None


def _refuse_several(root: Path, files: Iterable[Path]) -> dict[str, Dataset]:
    raise DataError(
        f"{root}: several YOLO files: {', '.join(file.name for file in files)}; pass one of them instead of "
        f"the folder"
    )


def _read_yaml_splits(file: Path) -> dict[str, Dataset]:
    content = read_yaml(file)
    if not content.splits:
        raise DataError(
            f"{file}: names no split that exists; it needs an entry train, val or test with a folder of "
            f"pictures"
        )
    return {
        split: read_yolo(content.base, sources, content.names, split, content.pose)
        for split, sources in content.splits.items()
    }


def _read_folders(root: Path, sources: dict[str, Path]) -> dict[str, Dataset]:
    names = guess_names(root, sources.values())
    return {split: read_yolo(root, [folder], names, split) for split, folder in sources.items()}


def _folders(folder: Path) -> list[Path]:
    with (
        os.scandir(folder) as entries
    ):  # which knows folders from files without asking the disk about each; links in a circle it raises
        return sorted(
            folder / entry.name
            for entry in entries
            if (os.path.isdir(entry) if entry.is_symlink() else entry.is_dir())
        )


def _has_pictures(folder: Path) -> bool:
    return any(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in os.listdir(folder))


def _contents(folder: Path) -> str:
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"


LAYOUTS: dict[str, Callable[[Path, Path | None], Found | None]] = {"coco": _coco, "voc": _voc, "yolo": _yolo}
"""In the order of preference."""
