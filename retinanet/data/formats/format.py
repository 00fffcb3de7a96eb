"""What a format of annotations is, and the names of splits, by which every reader goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError
from ..dataset import Dataset
from ..folder import Folder

SPLITS = {
    "train": re.compile(r"train(ing)?(\d{4})?"),
    "val": re.compile(r"(mini)?val(id|idation)?(\d{4})?|dev"),
    "test": re.compile(r"test(ing)?(\d{4})?"),
}

Read = Callable[[], dict[str, Dataset]]
"""Reads the splits that were recognised: train, val and test, or all."""


@dataclass(frozen=True)
class Format:
    """An entry of `detect.FORMATS`.

    recognise  (folder, folder of the images or None) -> what reads its splits; None: it is not this format
    holds      what a folder of this format holds, for the message that nothing was recognised
    suffixes   of a single file that can be given in place of a folder, and
    read_file  (file, folder of the images or None) -> its splits
    """

    recognise: Callable[[Path, Path | None], Read | None]
    holds: str
    suffixes: tuple[str, ...] = ()
    read_file: Callable[[Path, Path | None], dict[str, Dataset]] | None = None


def split_of(name: str) -> str | None:
    """train, val or test where the name says so: instances_val2017, valid, test-dev, ..."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next(
        (split for split in ("test", "val", "train") if any(map(SPLITS[split].fullmatch, words))), None
    )


UTF_8 = "utf-8-sig"

ENCODINGS = (UTF_8, "utf-16", "gbk", "big5", "shift_jis", "euc_kr", "cp1251", "cp1252")
"""Of text files."""

MOST_TRIED = 1000  # lines


def lines_of(file: Path) -> list[str]:
    """The lines of a text file, or a DataError that names it."""
    try:
        return file.read_text(encoding=UTF_8).splitlines()
    except (OSError, ValueError) as error:
        advice = "; save it as UTF-8" if isinstance(error, ValueError) else ""
        raise DataError(f"{file}: cannot be read: {error}{advice}") from None


def decoded(file: Path, known: Callable[[str], object]) -> tuple[list[str], str]:
    """The lines of a text file, and its encoding if it is not UTF-8: the one in which most lines are known.
    DataError where none is."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    best, most, chosen = list[str](), -1, ""
    for encoding in ENCODINGS:
        with suppress(ValueError):
            lines = content.decode(encoding).splitlines()
            tried = sorted(lines, key=str.isascii)[:MOST_TRIED]  # what is not ASCII tells most
            found = sum(map(bool, map(known, tried)))
            if found > max(most, -1 if encoding == UTF_8 else 0):
                best, most, chosen = lines, found, encoding
            if encoding == UTF_8 and (found == len(tried) or content.isascii()):
                break
    if not chosen:
        raise DataError(
            f"{file}: cannot be read: it is not UTF-8, and in no other encoding does it name files; save it "
            f"as UTF-8"
        )
    return best, "" if chosen == UTF_8 else chosen


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and those of a system."""
    return [folder / name for name in Folder(folder).listed().folders]
