"""Which format a folder or file is in, and its splits. `FORMATS` has the formats that are recognised."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ...errors import DataError, unknown_name_error
from ..dataset import Dataset
from . import coco, voc, yolo
from .format import SPLITS, Format

log = logging.getLogger("retinanet")

FORMATS = {
    "coco": Format(coco.recognise_coco, coco.HOLDS, (".json",), coco.read_coco_file),
    "voc": Format(voc.recognise_voc, voc.HOLDS),
    "yolo": Format(yolo.recognise_yolo, yolo.HOLDS, (".yaml", ".yml"), yolo.read_yolo_file),
}
"""In the order of preference. A new format is a file with these functions, and a line here."""


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
        for known in formats.values():
            if known.read_file and root.suffix.lower() in known.suffixes:
                return known.read_file(root, folder)
        files = [f"a {name.upper()} {known.suffixes[0]}" for name, known in FORMATS.items() if known.suffixes]
        raise DataError(
            f"{root}: is no {kind}annotation file; give {', '.join(files)}, or the folder of the data set"
        )
    if not os.path.isdir(root):
        raise DataError(f"{root}: no such file or folder")
    found = {name: read for name, known in formats.items() if (read := known.recognise(root, folder))}
    if not found:
        looked_for = "\n".join(f"  {name.upper():5s} {known.holds}" for name, known in FORMATS.items())
        raise DataError(
            f"{root}: no {kind}data set was recognised here. What was looked for:\n{looked_for}\n"
            f"It holds: {_contents(root)}"
        )
    chosen, read = next(iter(found.items()))
    if len(found) > 1:
        names = ", ".join(found)
        log.info("%s holds several layouts (%s); reading %s, --layout chooses", root, names, chosen)
    splits = read()
    return {split: splits[split] for split in (*SPLITS, "all") if split in splits}


def _contents(folder: Path) -> str:
    names = sorted(child.name + ("/" if child.is_dir() else "") for child in folder.iterdir())
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "nothing"
