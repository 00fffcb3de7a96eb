"""Which label file of a YOLO set belongs to which image, and what is left over on either side."""

from __future__ import annotations

import filecmp
import os
import posixpath
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from itertools import chain, filterfalse

from ...text import many
from ..dataset import NO_TEXT, Columns, is_text
from ..folder import Folder, Pairs, folded, join, pair
from ..images import is_image
from .yolo_files import is_list, is_names_file, is_prose, looks_like_labels

IMAGES = re.compile(r"(.*/)?(?:jpeg)?images/(.*)", re.IGNORECASE | re.DOTALL)
"""A path through a folder called images: what is above its last one, and what is below."""

PROSE = re.compile(r"(readme|licen[cs]e|notes|requirements)\b", re.IGNORECASE)

Files = dict[str, list[str]]
"""Split -> its images"""


def label_file(image: str) -> str:
    """images/train/a.jpg -> labels/train/a.txt: the last folder called images becomes labels; without one it
    lies beside the image."""
    match = IMAGES.fullmatch(image)
    return posixpath.splitext(f"{match[1] or ''}labels/{match[2]}" if match else image)[0] + ".txt"


def labels_in(folder: Folder, inside: str) -> list[str]:
    """The folder labels/ in a folder, however it is written."""
    return [join(inside, name) for name in folder.listed(inside).folders if name.lower() == "labels"]


def images_in(folder: Folder, inside: str) -> list[str]:
    """The folder images/ in a folder, however it is written."""
    return [join(inside, name) for name in folder.listed(inside).folders if IMAGES.fullmatch(f"{name}/")]


def pair_splits(
    folder: Folder, files: Files, columns: dict[str, Columns], *, skip: Iterable[str], whole: bool
) -> dict[str, str]:
    """image -> its label file, for all splits. What is left over goes into the columns.

    Args:
        folder: What all names are relative to.
        files: The images of each split.
        columns: Of each split.
        skip: Text files that are no label files.
        whole: All that lies in the folder belongs to the set, and not only what lies around the images.
    """
    expected = _expected(folder)
    first = columns[next(iter(columns))]
    images, texts = _around(folder, chain(*files.values()), expected, whole)
    images = list(filter(is_text, dict.fromkeys(chain(*files.values(), images))))
    for text in filterfalse(is_text, texts):
        first.problem(NO_TEXT, ".", ascii(text))
    skipped = set(skip)
    texts = [text for text in texts if text not in skipped and is_text(text)]
    pairs = pair(images, texts, expected)

    split_of = {image: split for split in reversed(files) for image in files[split]}
    orphans = _orphans(folder, pairs, expected)
    split_of_folder = {posixpath.dirname(expected(image)): split_of[image] for image in split_of if orphans}
    for label, why in orphans.items():
        inside, image = posixpath.dirname(label), pairs.orphans[label]
        split = split_of.get(image) or split_of_folder.get(inside)
        one = columns[split] if split else first
        one.problem("label files without an image", inside or ".", f"{label}: {why}", image)
    for image in filter(split_of.get, pairs.renamed):
        label = pairs.label_of[image]
        kind = "label files found under another form of their name"
        columns[split_of[image]].repair(kind, posixpath.dirname(label) or ".", f"{label} for {image}")
    same_form, sharing = _sharing(pairs.label_of)
    for image in filter(split_of.get, [*pairs.twins, *same_form]):
        kind = "images whose names differ only in form, and share one label file"
        columns[split_of[image]].problem(kind, posixpath.dirname(image) or ".", image, image)

    lonely = set(pairs.alone).difference(map(pairs.orphans.get, orphans))
    lonely = {image for image in lonely if os.path.isfile(folder.top / image)}  # else it is a problem anyway
    for split, names in files.items():
        _tell_lonely([name for name in names if name in lonely], len(names), split, columns[split])
    if sharing:
        which = f"{many(len(sharing), 'image')} read with the label file of another, as {sharing[0]}"
        first.notes.append(which)
    left = [image for image in images if image not in split_of]
    if left:
        first.notes.append(f"{many(len(left), 'image')} in no split, left out, as {left[0]}")
    return pairs.label_of


def _sharing(label_of: dict[str, str]) -> tuple[list[str], list[str]]:
    """Images whose label file an image before them has: those whose names differ only in form (a.jpg, a.JPG),
    and the others (a.jpg, a.png)."""
    first: dict[str, str] = {}
    later = [image for image, label in label_of.items() if first.setdefault(label, image) != image]
    same_form = [image for image in later if folded(image) == folded(first[label_of[image]])]
    return same_form, sorted(set(later).difference(same_form))


def _tell_lonely(lonely: list[str], count: int, split: str, columns: Columns) -> None:
    """An image without a label file has no objects, if that is the exception."""
    if 0 < len(lonely) == count:
        columns.notes.append(f"no image of {split} has a label file: it is not labelled")
    elif 2 * len(lonely) > count:
        kind = "images without a label file (give an empty one to those without objects)"
        for image in lonely:
            columns.problem(kind, posixpath.dirname(image) or ".", image, image)
    elif lonely:
        have = "has" if len(lonely) == 1 else "have"
        columns.notes.append(
            f"{len(lonely):,} of {many(count, 'image')} of {split} {have} no label file: no objects there"
        )


def _expected(folder: Folder) -> Callable[[str], str]:
    """The function image -> name of its label file: beside the image where no folder labels/ is there."""
    beside = cache(lambda above: not labels_in(folder, above))

    def expected(image: str) -> str:
        match = IMAGES.fullmatch(image)
        if match and beside((match[1] or "").rstrip("/")):
            return posixpath.splitext(image)[0] + ".txt"
        return label_file(image)

    return expected


def parents(inside: str) -> list[str]:
    """All folders above a folder: a/b/c -> a/b, a, and the top."""
    parts = inside.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, -1, -1)]


def _around(
    folder: Folder, files: Iterable[str], expected: Callable[[str], str], whole: bool
) -> tuple[list[str], list[str]]:
    """All images and text files where those of the set may be: in the folders of the images and in all called
    labels beside or above them; of text files also the folder above, where they may lie by mistake."""
    homes, near = dict[str, None](), dict[str, None]()
    for inside in sorted(set(map(posixpath.dirname, files))):
        if not os.path.isdir(folder.top / inside):
            continue
        match = IMAGES.fullmatch(f"{inside}/")
        home = inside[: len(inside) + 1 - len(match[2])].rstrip("/") if match else inside
        above = parents(home)
        homes[home] = None
        for one in above:
            if labels := labels_in(folder, one):
                homes |= dict.fromkeys(labels + images_in(folder, one))
        # a link may lead to a folder that is met under another name
        usual = folder.find(posixpath.dirname(expected(join(inside, "x"))))
        near |= dict.fromkeys([above[0], *(one for one in usual if os.path.isdir(folder.top / one))])
    inside_homes = dict.fromkeys(folder.folders(*homes) if homes else [])
    everywhere = folder.folders() if whole else iter(inside_homes)
    images = [join(one, name) for one in everywhere for name in folder.listed(one).files if is_image(name)]
    # a folder in the place of a label file is one that cannot be read
    names = ((one, name) for one in inside_homes | near for name in chain(*folder.listed(one)[:2]))
    texts = [join(one, name) for one, name in names if name.lower().endswith(".txt")]
    return images, [text for text in texts if not is_names_file(folder, text)]


def _orphans(folder: Folder, pairs: Pairs, expected: Callable[[str], str]) -> dict[str, str]:
    """label file -> what is known of its image. Lists and prose are none, nor is a copy of the image's label
    file beside the image."""
    owner = {posixpath.splitext(image)[0] + ".txt": image for image in pairs.label_of if pairs.orphans}
    found = {}
    for label, image in pairs.orphans.items():
        file, other = folder.top / label, pairs.label_of.get(owner.get(label, ""), "")
        with suppress(OSError):
            if is_list(file) or (other and filecmp.cmp(file, folder.top / other, shallow=False)):
                continue
        in_labels = "labels" in label.lower().split("/")[:-1] and not PROSE.match(file.name)
        if in_labels or looks_like_labels(file) or (image and not is_prose(file)):
            named = f"it probably belongs to {image}: call it {expected(image)}" if image else ""
            second = f"{owner[label]} has another label file, {other}" if other else ""
            found[label] = named or second or "no image has its name"
    return found
