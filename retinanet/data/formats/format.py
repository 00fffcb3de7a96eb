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


ENCODINGS = ("utf-16", "gbk", "big5", "shift_jis", "euc_kr", "cp1251", "cp1252")
"""Of text files that are not UTF-8."""


def lines_of(file: Path) -> list[str]:
    """The lines of a text file, or a DataError that names it."""
    return decoded(file)[0]


def decoded(file: Path, known: Callable[[str], object] | None = None) -> tuple[list[str], str]:
    """The lines of a text file, and its encoding if it is not UTF-8: the one in which most lines are known.
    DataError where none is."""
    try:
        content = file.read_bytes()
        return content.decode("utf-8-sig").splitlines(), ""
    except (OSError, ValueError) as error:
        if known and isinstance(error, UnicodeDecodeError):
            guesses = {}
            for encoding in ENCODINGS:
                with suppress(ValueError):
                    guesses[encoding] = content.decode(encoding).splitlines()
            best = max(
                guesses, key=lambda encoding: sum(map(bool, map(known, guesses[encoding]))), default=""
            )
            if any(map(known, guesses.get(best, []))):
                return guesses[best], best
        raise DataError(f"{file}: cannot be read: {error}") from None


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and those of a system."""
    return [folder / name for name in Folder(folder).listed().folders]
