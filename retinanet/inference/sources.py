"""Which images and videos are meant: files, folders, globs, lists."""

from __future__ import annotations

import codecs
import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..data.folder import Folder, is_hidden
from ..data.images import IMAGE_SUFFIXES, is_image, missing_reader
from ..errors import DataError
from ..text import many

log = logging.getLogger("retinanet")

VIDEO_SUFFIXES = frozenset(
    f".{name}" for name in re.findall(r"\w+", "mp4 m4v mov mkv webm avi mpg mpeg mts m2ts wmv flv 3gp ogv")
)
"""Not .gif, which is an image here, and not .ts, which is more often a program."""


def find_files(sources: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The images and the videos that the words of a command line mean, each once, in a stable order.

    A folder: all images and videos below it. A glob ("shots/*.png"): those that it matches. Neither takes
    what is hidden or a system's own (.ipynb_checkpoints, ._a.jpg, __MACOSX), which is counted; links are
    followed. A .txt file: one path a line, relative to the file. Any other file is a video if its suffix says
    so, else an image. DataError names every source that holds none.
    """
    found: dict[Path, None] = {}
    empty, skipped = [], 0
    for source in sources:
        files, hidden = _of(Path(source))
        skipped += hidden
        if not files:
            empty.append(str(source))
        found.update(dict.fromkeys(files))
    if skipped:
        log.info("%s skipped: hidden, or in a system's folder such as __MACOSX", many(skipped, "image"))
    if empty:
        kinds = ", ".join([*sorted(IMAGE_SUFFIXES), *sorted(VIDEO_SUFFIXES)])
        raise DataError(
            f"no image or video found at {', '.join(empty)} (looked for files, folders and globs of "
            f"{kinds}, and .txt lists)"
        )
    return [path for path in found if not is_video(path)], [path for path in found if is_video(path)]


def _of(source: Path) -> tuple[list[Path], int]:
    """The files that one source means, and how many images were skipped."""
    if not source.exists():
        source = Path(os.path.expanduser(source))
    if source.is_dir():
        folder = Folder(source)
        return sorted(filter(_counts, map(source.joinpath, folder.walk()))), sum(
            map(is_image, folder.hidden())
        )
    if source.is_file():
        return _listed(source) if source.suffix.lower() == ".txt" else [source], 0
    found = sorted(
        map(Path, glob.glob(str(source), recursive=True)), key=lambda path: (len(path.parts), path)
    )
    once: dict[tuple[str, str], Path] = {}  # ** goes round and round where a link leads upwards
    real = {folder: os.path.realpath(folder) for folder in {path.parent for path in found}}
    for path in found:
        once.setdefault((real[path.parent], path.name), path)
    files = list(filter(_counts, once.values()))
    shown = [path for path in files if not any(map(is_hidden, {*path.parts} - {*source.parts}))]
    return sorted(shown), len(files) - len(shown)


def _listed(file: Path) -> list[Path]:
    """One path a line, in whatever encoding the disk has the names; Windows may write UTF-16."""
    content = file.read_bytes()
    try:
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16") if wide else os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
        if "\0" in text:
            raise ValueError
    except ValueError:
        raise DataError(f"{file} is not a list of paths: it is not text") from None
    paths = [file.parent / line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return [path for path in paths if not path.name.startswith("#") or path.exists()]  # a comment


def _counts(path: Path) -> bool:
    return (is_image(path.name) or is_video(path)) and not path.is_dir()


def is_video(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def readers_that_are_missing(reasons: Iterable[str]) -> str:
    """The end of a sentence: "; for 3 of them a reader is missing: pip install pillow-heif"."""
    lines = Counter(filter(None, map(missing_reader, reasons)))
    return "".join(
        f"; for {count} of them a reader is missing: {line}" for line, count in sorted(lines.items())
    )
