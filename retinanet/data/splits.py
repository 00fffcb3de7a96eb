"""Opens the splits of a data set, validated: for training, for evaluation, for prediction."""

from __future__ import annotations

import hashlib
import logging
import os
import posixpath
import re
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError, Problem, nearest, report, unknown_name_error
from ..files import sha256
from ..text import listed, many
from .dataset import Dataset, match_names
from .formats.detect import open_dataset
from .images import MAX_PIXELS
from .validate import Invalid, validate

log = logging.getLogger("retinanet")


def open_training(
    source: str | Path,
    seed: int,
    *,
    layout: str | None = None,
    images: Path | None = None,
    invalid: Invalid = "error",
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    held_out: float = 0.1,
) -> tuple[Dataset, Dataset]:
    """(train, val), both validated; without a validation split a seeded share of train is held out."""
    splits = open_dataset(source, layout, images)
    name = next((name for name in ("train", "all") if name in splits), None)
    if name is None:
        raise DataError(
            f"{source} has no training split, only {' and '.join(splits)}, which are not for training"
        )
    chosen = {"train": splits[name]} | ({"val": splits["val"]} if "val" in splits else {})
    checked, errors = {}, []
    for split, data in chosen.items():
        try:
            checked[split], _ = validate(data, invalid, strict=strict, max_pixels=max_pixels)
        except DataError as error:
            errors.append(error)
    if not errors and "val" in checked:
        try:
            checked["train"] = _apart(checked["train"], checked["val"], invalid)
        except DataError as error:
            errors.append(error)
    if errors:
        problems = [problem for error in errors for problem in error.problems]
        raise DataError("\n".join(map(str, errors)), problems)
    for split, data in checked.items():
        tell(split, data)
    if "val" not in checked:
        checked["train"], checked["val"] = hold_out(checked["train"], seed, held_out)
    return checked["train"], checked["val"]


def open_split(
    path: str | Path,
    split: str | None,
    *,
    layout: str | None = None,
    images: Path | None = None,
    invalid: Invalid = "error",
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    headers: bool = True,
    need_boxes: bool = True,
    any_split: bool = False,
) -> Dataset:
    """One validated split of a data set: `split`, else val, else a data set that is not split at all.

    ConfigError where there is only train, unless `any_split`: its AP would be taken for what it is not, so a
    user has to ask for it.
    """
    splits = open_dataset(path, layout, images)
    if split is None:
        names = ("val", "all", *splits) if any_split else ("val", "all")
        split = next((name for name in names if name in splits), None)
        if split is None:
            raise ConfigError(
                f"{path} has no validation split; choose one of its splits with --split: {', '.join(splits)}"
            )
        if split == "all":
            text = "%s is not split: all its images are scored, maybe also those of the training"
            log.info(text, path)
    if split not in splits:
        raise unknown_name_error("split", split, splits)
    data, _ = validate(
        splits[split],
        invalid,
        headers=headers,
        strict=strict,
        max_pixels=max_pixels,
        need_boxes=need_boxes,
    )
    tell(split, data)
    return data


def tell(split: str, data: Dataset) -> None:
    """What was done to read a split, each kind in a line."""
    for line in account(data):
        log.info("%s: %s", split, line)


def account(data: Dataset) -> list[str]:
    """What was done to read a split: repairs by kind with their number, images and boxes left out, ..."""
    whole = [repair.kind for repair in data.repairs if not repair.detail]  # of the file as a whole
    parts = Counter(repair.kind for repair in data.repairs if repair.detail)
    return [*dict.fromkeys(whole), *(f"{kind}: {count:,}" for kind, count in parts.items()), *data.notes]


IN_BOTH = "images that stand in two splits"


def _apart(train: Dataset, val: Dataset, invalid: Invalid) -> Dataset:
    """`train` without images of `val`, on which AP would be measured after training on them."""
    problems = in_both(train, val)
    if not problems:
        return train
    if len(problems) == len(train):
        raise DataError(
            f"{train.source}: all {len(train)} images for training stand in {val.split} too, so AP would say "
            f"nothing about others; give other images for validation, or none: a tenth of train is held out "
            f"then",
            problems,
        )
    if invalid == "error":
        raise DataError(
            f"{train.source}: {report(problems, limit=10)}\nAP would be measured on images that were trained "
            f"on. Take them out of one of the splits, or pass --invalid drop to leave them out of train",
            problems,
        )
    twice = {problem.image for problem in problems}
    keep = [index for index, file in enumerate(train.files.tolist()) if file not in twice]
    note = f"{many(len(twice), 'image')} of {val.split} left out (--invalid {invalid})"
    return replace(train.subset(np.array(keep, dtype=np.int64)), notes=(*train.notes, note))


def in_both(train: Dataset, val: Dataset, content: bool = False) -> list[Problem]:
    """The images of `train` whose file is one of `val` too, or with `content` holds the same bytes."""
    paths, others = _real_paths(train), _real_paths(val)
    if content:
        lengths = set(map(_length, others)) - {None}
        paths = [_digest(path) if _length(path) in lengths else path for path in paths]
        others = list(map(_digest, others))
    theirs = dict(zip(others, val.files.tolist(), strict=True))
    return [
        Problem(IN_BOTH, train.source.name, f"{file} of {train.split} is {theirs[path]} of {val.split}", file)
        for file, path in zip(train.files.tolist(), paths, strict=True)
        if path in theirs
    ]


def _real_paths(data: Dataset) -> list[str]:
    """The files without links in their folders; each folder is looked up once."""
    parts = [posixpath.split(file) for file in data.files.tolist()]
    folders = {folder: os.path.realpath(data.root / folder) for folder, _ in parts}
    return [f"{folders[folder]}/{name}" for folder, name in parts]


def _length(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # it is a problem of its own
        return None


def _digest(path: str) -> str:
    return sha256(Path(path)) if _length(path) else path


def in_model_classes(data: Dataset, names: list[str]) -> Dataset:
    """The same data set with the labels of a model with these classes: matched by name, never by number."""
    if list(data.names) == names:
        return data
    meant = match_names(data.names, names)
    missing = [name + nearest(name, names) for name in data.names if name not in meant]
    if missing:
        raise DataError(
            f"{data.source} has classes that the model does not know: {', '.join(missing)}; the model "
            f"knows: {', '.join(names)}"
        )
    other = [f"{name!r} is the model's {meant[name]!r}" for name in data.names if name != meant[name]]
    if other:
        log.info("classes whose names differ by case, blanks or Unicode form only: %s", listed(other))
    position = np.array([names.index(meant[name]) for name in data.names], dtype=np.int64)
    ids = {meant[name]: one for name, one in zip(data.names, data.category_ids, strict=True)}
    free = count(max(data.category_ids, default=0) + 1)  # for classes that the data does not have
    new_ids = [ids[name] if name in ids else next(free) for name in names]
    return replace(data, names=tuple(names), category_ids=tuple(new_ids), labels=position[data.labels])


def hold_out(dataset: Dataset, seed: int, fraction: float = 0.1) -> tuple[Dataset, Dataset]:
    """(train, val): a seeded share of the images for validation; with 0 all images are both.

    Each class, and the images without objects, give about their share of images and at least one, unless a
    single group has them all or twice the share is held out already. A group is one image, or neighbouring
    frames, or copies of one image. Groups are ranked by a hash of the seed and their name.
    """
    if fraction == 0:
        log.info("validated on the training images themselves: AP says nothing about other images")
        return replace(dataset, split="train"), replace(dataset, split="train")
    has = _classes_of_images(dataset)
    of_group = _groups(dataset.files.tolist(), block=round(fraction * len(dataset) / 4))
    ranked = sorted(of_group, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    left = Counter(label for group in of_group.values() for label in _union(has, group))
    images = Counter(label for labels in has for label in labels)
    held, held_images, have = set[str](), list[int](), Counter[int]()
    most = 2 * fraction * len(dataset)  # many rare classes would ask for more
    for label in sorted(images, key=lambda label: (images[label], label)):  # the rarest first
        wanted = max(1, round(fraction * images[label]))
        for group in ranked:
            labels = _union(has, of_group[group])
            if have[label] >= wanted or len(held_images) >= most:
                break
            if group not in held and label in labels and all(left[one] > 1 for one in labels):
                held.add(group)
                held_images += of_group[group]
                left.subtract(labels)
                have.update(one for index in of_group[group] for one in has[index])
    chosen = np.array(sorted(held_images), dtype=np.int64)
    train = dataset.subset(np.setdiff1d(np.arange(len(dataset)), chosen), "train")
    val = replace(dataset.subset(chosen, "val"), held_out=True)
    if not len(val) or val.crowd.all():
        raise DataError(
            f"{dataset.source}: {many(sum(EMPTY not in one for one in has), 'image')} with objects cannot be "
            f"split into training and validation; give a validation split, or pass --set held_out=0 to train "
            f"without one"
        )
    only = [name for label, name in enumerate(dataset.names) if label in images and label not in val.labels]
    log.info(
        "no validation split: %d of %d images, with %d boxes, are held out of train by seed %d%s",
        *(len(val), len(dataset), (~val.crowd).sum(), seed),
        f"; none of them has {listed(only)}" if only else "",
    )
    return train, val


EMPTY = -1  # instead of a label


def _classes_of_images(dataset: Dataset) -> list[set[int]]:
    labels = np.where(dataset.crowd, EMPTY, dataset.labels)
    return [set(labels[dataset.rows(index)].tolist()) - {EMPTY} or {EMPTY} for index in range(len(dataset))]


def _union(has: list[set[int]], group: list[int]) -> set[int]:
    return set[int]().union(*(has[index] for index in group))


def _groups(files: list[str], block: int) -> dict[str, list[int]]:
    """Indices of images by a name: `block` neighbouring numbers of one series, at most ten; Roboflow's copies
    of one image (a.rf.1b2c.jpg)."""
    groups: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        stem = re.sub(r"\.rf\.\w+$", "", posixpath.splitext(file)[0])
        series = re.fullmatch(r"(.*?)(\d{1,18})(\D*)", stem)
        if series:
            stem = f"{series[1]}{int(series[2]) // min(max(block, 1), 10)}{series[3]}"
        groups.setdefault(stem, []).append(index)
    return groups
