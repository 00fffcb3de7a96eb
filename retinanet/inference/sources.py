"""Which images and videos are meant: files, folders, globs, lists."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from ..data.images import IMAGE_SUFFIXES
from ..errors import DataError

VIDEO_SUFFIXES = frozenset(
    f".{name}" for name in re.findall(r"\w+", "mp4 m4v mov mkv webm avi mpg mpeg mts m2ts wmv flv 3gp ogv")
)
"""Not .gif, which is an image here, and not .ts, which is more often a program."""


def find_files(sources: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The images and the videos that the words of a command line mean, each once, in a stable order.

    A folder: all images and videos below it. A glob ("shots/*.png"): those that it matches. A .txt file: one
    path a line, relative to the file. Any other file is a video if its suffix says so, else an image.
    DataError names every source that holds none.
    """
    found: dict[Path, None] = {}
    empty = []
    for source in sources:
        files = _of(Path(source))
        if not files:
            empty.append(str(source))
        found.update(dict.fromkeys(files))
    if empty:
        kinds = ", ".join([*sorted(IMAGE_SUFFIXES), *sorted(VIDEO_SUFFIXES)])
        raise DataError(
            f"no image or video found at {', '.join(empty)} (looked for files, folders and globs of "
            f"{kinds}, and .txt lists)"
        )
    return [path for path in found if not is_video(path)], [path for path in found if is_video(path)]


def _of(source: Path) -> list[Path]:
    if source.is_dir():
        return sorted(path for path in source.rglob("*") if _counts(path))
    if source.is_file():
        return _listed(source) if source.suffix == ".txt" else [source]
    return sorted(path for path in map(Path, glob.glob(str(source), recursive=True)) if _counts(path))


def _listed(file: Path) -> list[Path]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not a list of paths: it is not text") from error
    return [file.parent / line for line in lines if line]


def _counts(path: Path) -> bool:
    return (path.suffix.lower() in IMAGE_SUFFIXES or is_video(path)) and path.is_file()


def is_video(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES
