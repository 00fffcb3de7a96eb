"""The files of a folder: each folder is listed once, and names match where they mean the same file."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from ..errors import DataError

SYSTEM = frozenset(
    ["__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db"]
)
"""Names of what systems put beside the files of a user."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is a system's own, as .ipynb_checkpoints, ._a.jpg, __MACOSX and @eaDir are."""
    return name.startswith(".") or name.lower() in SYSTEM


def folded(name: str) -> str:
    """The name without its Unicode form and case: `Größe.JPG` is one file to a Mac however it is written."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


class Listing(NamedTuple):
    """What one folder holds, sorted, without what is hidden."""

    files: list[str]
    folders: list[str]
    hidden: list[str]


class Folder:
    """The files below `top`. All names are relative to it, with forward slashes.

    Example:
        >>> Folder(Path("cells")).find("Images/GR%C3%96SSE.jpg")
        ['images/größe.jpg']
    """

    def __init__(self, top: Path) -> None:
        self.top = top
        self._listings: dict[str, Listing] = {}
        self._folded: dict[str, dict[str, list[str]]] = {}

    def listed(self, inside: str = "") -> Listing:
        """What the folder `inside` holds; DataError if it may not be read. Links are what they lead to."""
        if inside not in self._listings:
            found = Listing([], [], [])
            try:
                with os.scandir(self.top / inside) as entries:
                    for entry in entries:
                        # a link that leads nowhere, or in a circle, is a file, which is then missing
                        is_folder = os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()
                        kept = found.folders if is_folder else found.files
                        (found.hidden if is_hidden(entry.name) else kept).append(entry.name)
            except OSError as error:
                raise DataError(f"{self.top / inside}: cannot be listed: {error.strerror}") from None
            self._listings[inside] = Listing(*map(sorted, found))
        return self._listings[inside]

    def walk(self, inside: str = "") -> Iterator[str]:
        """All files below the folder `inside`. A folder that several links lead to comes once, so that a link
        to a folder above ends."""
        for folder in self.folders(inside):
            yield from (join(folder, name) for name in self.listed(folder).files)

    def folders(self, *inside: str) -> Iterator[str]:
        """These folders (the top) and all below, the nearest first: no link hides a folder's own name."""
        waiting, seen = deque(inside or [""]), set[tuple[int, int]]()
        while waiting:
            folder = waiting.popleft()
            status = os.stat(self.top / folder)
            if (key := (status.st_dev, status.st_ino)) not in seen:
                seen.add(key)
                yield folder
                waiting += [join(folder, name) for name in self.listed(folder).folders]

    def hidden(self) -> list[str]:
        """Names of the files that are hidden, or lie in hidden folders, where folders were listed so far."""
        met = [join(folder, name) for folder, one in self._listings.items() for name in one.hidden]
        found = [name for name in met if not os.path.isdir(self.top / name)]
        for parent, _, names in chain.from_iterable(os.walk(self.top / name) for name in met):
            found += [(Path(parent) / name).relative_to(self.top).as_posix() for name in names]
        return found

    def find(self, name: str) -> list[str]:
        """The files and folders on the disk that a name means: itself where it is there, else all that differ
        from it only by Unicode form, case, or %20 and the like. Several are for the caller to refuse."""
        for one in dict.fromkeys((name, unquote(name))):
            found = [""]
            for part in one.split("/"):
                found = [join(folder, match) for folder in found for match in self._matches(folder, part)]
            if found:
                return found
        named = ".." not in name.split("/") and os.path.lexists(self.top / name)  # hidden, but named
        return [name] if named else []

    def _matches(self, folder: str, part: str) -> Iterable[str]:
        if part in ("", "."):
            return [""]
        if part == ".." or (folder and not os.path.isdir(self.top / folder)):
            return []
        if folder not in self._folded:
            names = self._folded[folder] = {}
            with suppress(DataError):  # a folder that may be entered and not listed
                for one in chain(*self.listed(folder)[:2]):
                    names.setdefault(folded(one), []).append(one)
        near = self._folded[folder].get(folded(part), [])
        return [part] if part in near else near


def join(folder: str, name: str) -> str:
    """A name in a folder, where "" is the top."""
    return f"{folder}/{name}" if folder and name else folder or name


class Pairs(NamedTuple):
    """Which label file belongs to which image."""

    label_of: dict[str, str]
    """image -> its label file"""
    renamed: list[str]
    """Those of these images whose label file has the name in another Unicode form or case."""
    alone: list[str]
    """Images without a label file."""
    twins: list[str]
    """Images without a label file, whose name differs only by form from one that has one."""
    orphans: dict[str, str]
    """label file that no image has -> the image that it probably belongs to, or ""."""


def pair(images: Iterable[str], labels: Iterable[str], expected: Callable[[str], str]) -> Pairs:
    """Pair images with label files. `expected` is the name that the label file of an image should have.

    Names match as they stand, else without regard to Unicode form and case where only one file is meant.
    """
    known, label_of, by_form = dict.fromkeys(labels), dict[str, str](), dict[str, list[str]]()
    for image in images:
        if (name := expected(image)) in known:
            label_of[image] = name
        else:
            by_form.setdefault(folded(name), []).append(image)
    taken, free = set(label_of.values()), dict[str, list[str]]()
    for label in known:
        if label not in taken:
            free.setdefault(folded(label), []).append(label)
    renamed = [group[0] for form, group in by_form.items() if len(group) == len(free.get(form, [])) == 1]
    label_of |= {image: free.pop(folded(expected(image)))[0] for image in renamed}
    forms = set(map(folded, known))
    rest = [(form in forms, image) for form, group in by_form.items() for image in group]
    rest = [(twin, image) for twin, image in rest if image not in label_of]
    alone = [image for twin, image in rest if not twin]
    orphans = dict.fromkeys(chain.from_iterable(free.values()), "")
    return Pairs(
        label_of, renamed, alone, [image for twin, image in rest if twin], _owners(orphans, alone, expected)
    )


def _owners(orphans: Iterable[str], alone: list[str], expected: Callable[[str], str]) -> dict[str, str]:
    """orphan -> the only image without a label file whose name is its own, or the longest part of its own
    (img_1.txt of 1.jpg), or has it as a part; of several, the one whose label file would be there too."""
    orphans, whole, parts = list(orphans), dict[str, list[str]](), dict[str, list[str]]()
    for image in alone if orphans else []:
        names = {folded(stem_of(image)), folded(os.path.basename(image))}
        for name in names:
            whole.setdefault(name, []).append(image)
        for part in set(_parts_of(min(names, key=len))):
            parts.setdefault(part, []).append(image)
    owners = {}
    for label in orphans:
        name = folded(stem_of(label))
        found = [part for part in (name, *_parts_of(name)) if part in whole]
        longest = [whole[part] for part in found if len(part) == len(found[0])]
        near = list(chain(*longest)) if found else parts.get(name, [])
        if len(near) > 1:
            inside = os.path.dirname(label)
            near = [image for image in near if os.path.dirname(expected(image)) == inside]
        owners[label] = near[0] if len(near) == 1 else ""
    return owners


MOST_WORDS = 12  # of a name; the parts of longer ones are too many


def _parts_of(name: str) -> list[str]:
    """What a name is made of, the longest first: of img_12, img_ and _12, img and 12."""
    words = re.findall(r"\d+|[^\W\d_]+|[\W_]+", name)[:MOST_WORDS]
    spans = [(start, end) for start in range(len(words)) for end in range(start + 1, len(words) + 1)]
    parts = ["".join(words[start:end]) for start, end in spans]
    return sorted((part for part in parts if part != name and part.strip("_- .")), key=len, reverse=True)


def stem_of(path: str) -> str:
    """shelf/a.b.jpg -> a.b"""
    return os.path.splitext(os.path.basename(path))[0]
