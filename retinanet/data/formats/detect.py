"""Which format a folder or file is in, and its splits. `FORMATS` has the formats that are recognised."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from ...errors import DataError, unknown_name_error
from ..dataset import Dataset
from ..folder import Folder
from ..images import is_image
from . import coco, voc, yolo
from .format import SPLITS, Format, Read

log = logging.getLogger("retinanet")

FORMATS = {
    "coco": Format(coco.recognise_coco, coco.HOLDS, (".json",), coco.read_coco_file),
    "voc": Format(voc.recognise_voc, voc.HOLDS),
    "yolo": Format(yolo.recognise_yolo, yolo.HOLDS, (".yaml", ".yml", ".data"), yolo.read_yolo_file),
}
"""In the order of preference. A new format is a file with these functions, and a line here."""

RUN_FILES = ("config.json", "model.safetensors")

PACKED = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")

EXPORT = "which is not read: export the set as COCO, VOC or YOLO"

OTHERS = tuple(
    (suffix, re.compile(mark, re.MULTILINE), what)
    for suffix, mark, what in (
        (".json", rb'"shapes"\s*:', f"of labelme, {EXPORT}"),
        (".json", rb'"(region_attributes|_via_\w+)"', f"of the VGG Image Annotator, {EXPORT}"),
        (".json", rb'"(from_name|\w+labels)"\s*:', f"of Label Studio, {EXPORT}"),
        (".json", rb'"classTitle"', f"of Supervisely, {EXPORT}"),
        (".json", rb'"coordinates"\s*:', f"of CreateML, {EXPORT}"),
        (".json", rb'"items"\s*:', f"of Datumaro, {EXPORT}"),
        (
            ".json",
            rb'"(images|annotations)"\s*:',
            "not taken for COCO by its name, folder or form: pass it itself",
        ),
        (".xml", rb"<annotations>", f"of CVAT's own format, {EXPORT}"),
        (".csv", rb"(?i)x_?min|width|bbox|\bx1\b", f"a table, {EXPORT}"),
        (".txt", rb"^\d+( +[01]?\.?\d+){4}\s*$", "a YOLO label file: call its folder labels, beside images"),
        (".txt", rb"^\S+\.(jpe?g|png)( +\d+(,\d+){4})+\s*$", f"a list of images with boxes, {EXPORT}"),
    )
)
"""Annotations that are not read where they lie, by suffix and mark, and what to do."""

TEXTS = tuple({suffix for suffix, _, _ in OTHERS})

MOST_WALKED, MOST_READ, MOST_BELOW = 10_000, 20, 50

DEPTH = 4  # folders around a data set that are gone through


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
    root, folder = Path(os.path.abspath(path)), None if images is None else Path(os.path.abspath(images))
    if layout is not None and layout not in FORMATS:
        raise unknown_name_error("layout", layout, FORMATS)
    formats = FORMATS if layout is None else {layout: FORMATS[layout]}
    kind = "" if layout is None else f"{layout.upper()} "
    if os.path.isfile(root):  # Path.is_file raises where a name is too long for the disk
        for name, known in formats.items():
            if known.read_file and root.suffix.lower() in known.suffixes:
                splits = known.read_file(root, folder)
                return {split: replace(data, layout=name) for split, data in splits.items()}
        files = [f"a {name.upper()} {known.suffixes[0]}" for name, known in FORMATS.items() if known.suffixes]
        raise DataError(
            f"{root}: is no {kind}annotation file; give {', '.join(files)}, or the folder of the data set"
        )
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such file or folder")
    if all((root / name).is_file() for name in RUN_FILES):
        raise DataError(f"{root}: is the folder of a training run, not a data set")
    found: dict[str, Read] = {}
    for inside in _only_folders(root):  # a zip often has one folder around the data set
        found = {name: read for name, known in formats.items() if (read := known.recognise(inside, folder))}
        if found:
            if inside != root:
                log.info("%s: the data set is in its folder %s", root, inside.relative_to(root))
            break
    if not found:
        looked_for = "\n".join(f"  {name.upper():5s} {known.holds}" for name, known in FORMATS.items())
        raise DataError(
            f"{root}: no {kind}data set was recognised here. What was looked for:\n{looked_for}\n"
            f"It holds: {_contents(root)}{_advice(root, formats.values(), folder)}"
        )
    chosen, read = next(iter(found.items()))
    if len(found) > 1:
        names = ", ".join(found)
        log.info("%s holds several layouts (%s); reading %s, --layout chooses", root, names, chosen)
    splits = read()
    return {split: replace(splits[split], layout=chosen) for split in (*SPLITS, "all") if split in splits}


def _only_folders(root: Path) -> Iterator[Path]:
    """The folder, then the one that it holds where it holds one and no images, and so on."""
    yield root
    for _ in range(DEPTH):
        listing = Folder(root).listed()
        if len(listing.folders) != 1 or any(map(is_image, listing.files)):
            return
        root = root / listing.folders[0]
        yield root


def _advice(root: Path, formats: Iterable[Format], images: Path | None) -> str:
    """What to do where no data set was recognised: a line each."""
    lines = []
    if below := list(_sets_below(root, list(formats), images)):
        lines.append(f"Data sets are in its folders {', '.join(below)}: pass one of them")
    if packed := [name for name in Folder(root).listed().files if name.lower().endswith(PACKED)]:
        lines.append(f"Unpack first: {', '.join(packed[:10])}")
    files = [name for name in islice(Folder(root).walk(), MOST_WALKED) if name.lower().endswith(TEXTS)]
    for name in () if lines else files[:MOST_READ]:
        with suppress(OSError), open(root / name, "rb") as stream:
            head = stream.read(1 << 16).replace(b"\0", b"")  # of UTF-16
            kinds = [what for end, mark, what in OTHERS if name.lower().endswith(end) and mark.search(head)]
            if kinds:
                return f"\n{name} is {kinds[0]}"
    return "".join(f"\n{line}" for line in lines)


def _sets_below(root: Path, formats: list[Format], images: Path | None, depth: int = 2) -> Iterator[str]:
    """The folders in the folder, and in those, that are data sets."""
    with suppress(DataError):  # of a folder that may not be listed
        for name in Folder(root).listed().folders[:MOST_BELOW]:
            if any(known.recognise(root / name, images) for known in formats):
                yield name
            elif depth > 1:
                yield from (f"{name}/{one}" for one in _sets_below(root / name, formats, images, depth - 1))


def _contents(folder: Path) -> str:
    listing = Folder(folder).listed()
    names = sorted([*listing.files, *(f"{name}/" for name in listing.folders)])
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"
