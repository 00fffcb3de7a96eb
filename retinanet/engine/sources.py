"""Which pictures are meant: files, folders, globs, lists."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from ..data.images import IMAGE_SUFFIXES
from ..errors import DataError


def find_pictures(sources: Sequence[str | Path]) -> list[Path]:
    """The pictures that the words of a command line mean, each once, in a stable order.

    A folder: all pictures below it. A glob ("shots/*.png"): what it matches. A .txt file: one path a line, relative to the file.
    Any other file is taken as a picture. DataError names every source that holds none.
    """
    found: dict[Path, None] = {}
    empty = []
    for source in sources:
        pictures = _of(Path(source))
        if not pictures:
            empty.append(str(source))
        found.update(dict.fromkeys(pictures))
    if empty:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise DataError(f"no picture found at {', '.join(empty)} (looked for files, folders and globs of {kinds}, and .txt lists)")
    return list(found)


def _of(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if is_picture(path))
    if source.is_file():
        return _listed(source) if source.suffix == ".txt" else [source]
    return sorted(path for path in map(Path, glob.glob(str(source), recursive=True)) if is_picture(path))


def _listed(file: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a list of paths: it is not text") from error
    return [file.parent / line for line in lines if line]


def is_picture(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
