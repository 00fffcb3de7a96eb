"""A data set as columns: a few flat arrays, shared by all workers, instead of a million small objects."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Problem

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]

Integers = NDArray[np.int64]

Flags = NDArray[np.bool_]

BOX_COLUMNS = ("boxes", "labels", "crowd", "areas", "annotation_ids")

NO_TEXT = "file names that are no text"


def is_text(name: str) -> bool:
    """Whether a name can be printed and saved: half a character (a surrogate of a broken encoder) cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Dataset:
    """One split of a data set: N images, M boxes, K classes.

    The boxes of image i are the rows first[i]:first[i+1].

    Example:
        >>> data = retinanet.open_dataset("cells")["train"]
        >>> data.path(0), data.boxes[data.rows(0)]  # the first image and its boxes [G, 4]
        >>> data.names
    """

    source: Path
    """The annotation file or folder it was read from."""
    root: Path
    """The folder that `files` are relative to."""
    split: str
    """train, val, test, or another name of the source."""
    names: tuple[str, ...]
    """[K] class names."""
    category_ids: tuple[int, ...]
    """[K] the source's id of each class (COCO's are sparse)."""
    files: NDArray[np.str_]
    """[N] file of each image, relative to `root`, with forward slashes."""
    image_ids: Integers
    """[N] the source's id of each image."""
    sizes: Integers
    """[N, 2] height and width in pixels after EXIF rotation; 0 if the source does not say."""
    first: Integers
    """[N + 1] row of each image's first box."""
    boxes: Floats
    """[M, 4] xyxy in pixels; float64, since the metric is computed from them."""
    labels: Integers
    """[M] 0..K-1."""
    crowd: Flags
    """[M] true: ignored in training and evaluation (COCO's iscrowd, VOC's difficult)."""
    areas: Floats
    """[M] object area in pixels: COCO's own (of the mask), else width x height."""
    annotation_ids: Integers
    """[M] the source's id of each box."""
    problems: tuple[Problem, ...] = ()
    """What the reader could not read and left out."""
    repairs: tuple[Problem, ...] = ()
    """What the reader read although it is not as the format says, since it has only one meaning."""
    notes: tuple[str, ...] = ()
    """What else the reader found and a user should know: "4 images have no XML file and are left out"."""
    layout: str = ""
    """coco, voc or yolo."""
    held_out: bool = False
    """Whether the source has no such split and the images come from train, chosen by a seed."""

    def __post_init__(self) -> None:
        images, boxes = len(self.files), len(self.labels)
        assert self.image_ids.shape == (images,) and self.sizes.shape == (images, 2)
        assert self.first.shape == (images + 1,) and self.first[0] == 0 and self.first[-1] == boxes
        assert self.boxes.shape == (boxes, 4)
        assert self.crowd.shape == self.areas.shape == self.annotation_ids.shape == (boxes,)
        assert len(self.names) == len(self.category_ids)

    def __len__(self) -> int:
        return len(self.files)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.root / str(self.files[index])

    def rows(self, index: int) -> slice:
        """The rows of the boxes of image `index`."""
        return slice(int(self.first[index]), int(self.first[index + 1]))

    def image_of_box(self) -> Integers:
        """[M] the index of the image that each box belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.first))

    def keep_boxes(self, keep: Flags) -> Dataset:
        """The same images with only the boxes where keep [M] is true."""
        if keep.all():
            return self  # and not a copy: the columns may be those of a mapped file
        counts = np.bincount(self.image_of_box()[keep], minlength=len(self))
        return replace(self, **self._boxes_at(keep, counts))

    def subset(self, indices: Integers, split: str | None = None) -> Dataset:
        """The images at `indices`, in that order, with their boxes."""
        counts = np.diff(self.first)[indices]
        before = np.cumsum(counts) - counts
        order = np.arange(counts.sum()) + np.repeat(self.first[indices] - before, counts)
        images = {name: getattr(self, name)[indices] for name in ("files", "image_ids", "sizes")}
        return replace(self, split=split or self.split, **images, **self._boxes_at(order, counts))

    def _boxes_at(self, rows: Any, counts: Integers) -> dict[str, Any]:
        """The columns of boxes at `rows`, of which each image has its count."""
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return {"first": first, **{name: getattr(self, name)[rows] for name in BOX_COLUMNS}}

    def fingerprint(self) -> str:
        """16 hex digits that change whenever the index changes (not the pixels)."""
        digest = hashlib.sha256(repr((self.names, self.category_ids)).encode())
        for name in ("files", "image_ids", "sizes", "first", "boxes", "labels", "crowd"):
            digest.update(np.ascontiguousarray(getattr(self, name)).tobytes())
        return digest.hexdigest()[:16]


class Columns:
    """Grows the columns image by image; the readers fill it and call `build`."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self.image_ids: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.counts: list[int] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.labels: list[int] = []
        self.crowd: list[bool] = []
        self.areas: list[float] = []
        self.annotation_ids: list[int] = []
        self.problems: list[Problem] = []
        self.repairs: list[Problem] = []
        self.notes: list[str] = []

    def image(self, file: str, image_id: int, height: int, width: int) -> None:
        """Begin an image; the boxes that follow are its own."""
        self.files.append(file)
        self.image_ids.append(image_id)
        self.sizes.append((height, width))
        self.counts.append(0)

    def box(
        self,
        xyxy: tuple[float, float, float, float],
        label: int,
        annotation_id: int,
        *,
        crowd: bool = False,
        area: float | None = None,
    ) -> None:
        """Add a box to the image begun last."""
        self.counts[-1] += 1
        self.boxes.append(xyxy)
        self.labels.append(label)
        self.crowd.append(crowd)
        self.areas.append((xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) if area is None else area)
        self.annotation_ids.append(annotation_id)

    def problem(self, kind: str, file: str, detail: str, image: str = "") -> None:
        """Note what cannot be a row, and the image that lacks an object for it."""
        self.problems.append(Problem(kind, file, detail, image))

    def repair(self, kind: str, file: str, detail: str) -> None:
        """Note what was read in its only meaning."""
        self.repairs.append(Problem(kind, file, detail))

    def build(self, source: Path, root: Path, split: str, names: Any, category_ids: Any) -> Dataset:
        """The finished columns. Two names of one class are one class with the first's id."""
        names, category_ids = self._one_name_each(Path(source).name, list(names), list(category_ids))
        return Dataset(
            source=source,
            root=root,
            split=split,
            names=tuple(names),
            category_ids=tuple(int(i) for i in category_ids),
            files=np.array(self.files, dtype=np.str_),
            image_ids=np.array(self.image_ids, dtype=np.int64),
            sizes=np.array(self.sizes, dtype=np.int64).reshape(-1, 2),
            first=np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64),
            boxes=np.array(self.boxes, dtype=np.float64).reshape(-1, 4),
            labels=np.array(self.labels, dtype=np.int64),
            crowd=np.array(self.crowd, dtype=np.bool_),
            areas=np.array(self.areas, dtype=np.float64),
            annotation_ids=np.array(self.annotation_ids, dtype=np.int64),
            problems=tuple(self.problems),
            repairs=tuple(self.repairs),
            notes=tuple(self.notes),
        )

    def _one_name_each(self, source: str, names: list[str], ids: list[int]) -> tuple[list[str], list[int]]:
        """Merges classes whose names differ by Unicode form or blanks only: nobody can tell them apart."""
        clean = [clean_name(name) for name in names]
        unique = list(dict.fromkeys(clean))
        for name, better in zip(names, clean, strict=True):
            if name != better:
                merged = f", merged with {better!r}" if clean.count(better) > 1 else ""
                self.repair("class names in another Unicode form or with blanks", source, f"{name!r}{merged}")
        by_case: dict[str, list[str]] = {}
        for name in unique:
            by_case.setdefault(name.casefold(), []).append(name)
        for alike in by_case.values():
            # letters are classes of their own where text is read
            if len(alike) > 1 and len(alike[0]) > 1:
                listed = ", ".join(map(repr, alike))
                self.problem("classes whose names differ by case only", source, listed)
        self.labels = (
            [unique.index(clean[label]) for label in self.labels] if unique != clean else self.labels
        )
        return unique, [ids[clean.index(name)] for name in unique]


def clean_name(name: str) -> str:
    """A class name in the composed Unicode form (NFC), with single blanks inside and none around it."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def match_names(names: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """The known name that each name means: the equal one, else the only one that differs by Unicode form or
    blanks, else the only one that differs by case too. Names without such a one are left out."""
    found = {name: name for name in names if name in known}
    for form in (clean_name, lambda name: clean_name(name).casefold()):
        alike: dict[str, tuple[list[str], list[str]]] = {}
        taken = set(found.values())
        for side, ones in enumerate((names, known)):
            for one in ones:
                if one not in (taken if side else found):
                    alike.setdefault(form(one), ([], []))[side].append(one)
        found |= {mine[0]: other[0] for mine, other in alike.values() if len(mine) == len(other) == 1}
    return found


@dataclass(frozen=True)
class Shared:
    """A data set in shared memory: tensors, which torch hands to a new process without a copy."""

    columns: dict[str, tuple[Tensor, str]]
    """Of each column its bytes, one axis more than it has, and NumPy's name of what they are."""
    rest: dict[str, Any]

    def opened(self) -> Dataset:
        """The data set again, in the same memory."""
        columns = {name: one.numpy().view(kind)[..., 0] for name, (one, kind) in self.columns.items()}
        return Dataset(**self.rest | columns)


def share(data: Dataset) -> Shared:
    """Copies the columns once, for any number of processes. Problems and repairs are left behind."""
    import torch  # readers of annotations do without

    parts = {field.name: getattr(data, field.name) for field in fields(data)}
    parts |= {"problems": (), "repairs": ()}
    columns = {name: part for name, part in parts.items() if isinstance(part, np.ndarray)}
    return Shared(
        {
            name: (torch.from_numpy(np.array(one)[..., None].view(np.uint8)).share_memory_(), one.dtype.str)
            for name, one in columns.items()
        },
        {name: part for name, part in parts.items() if name not in columns},
    )
