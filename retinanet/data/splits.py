"""Opens the splits of a data set, validated: for training, for evaluation, for prediction."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError, unknown_name_error
from .dataset import Dataset
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
    max_pixels: int = MAX_PIXELS,
) -> tuple[Dataset, Dataset]:
    """(train, val), both validated; without a validation split a seeded tenth of train is held out."""
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
            checked[split], found = validate(data, invalid, max_pixels=max_pixels)
        except DataError as error:
            errors.append(error)
            continue
        if found:
            text = "%s: %d problems met with --invalid %s (retinanet check lists them)"
            log.info(text, split, len(found), invalid)
    if errors:
        problems = [problem for error in errors for problem in error.problems]
        raise DataError("\n".join(map(str, errors)), problems)
    if "val" not in checked:
        checked["train"], checked["val"] = hold_out(checked["train"], seed)
        text = "no validation split: %d images (a tenth, by seed %d) are held out of train"
        log.info(text, len(checked["val"]), seed)
        if any(data.crowd.all() for data in checked.values()):
            raise DataError(
                f"{source}: too few boxes to hold some out for validation; give a validation split"
            )
    return checked["train"], checked["val"]


def open_split(
    path: str | Path,
    split: str | None,
    *,
    layout: str | None = None,
    images: Path | None = None,
    invalid: Invalid = "error",
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
    data, problems = validate(
        splits[split], invalid, headers=headers, max_pixels=max_pixels, need_boxes=need_boxes
    )
    if problems:
        log.info("%s: %d problems met with --invalid %s", split, len(problems), invalid)
    return data


def in_model_classes(data: Dataset, names: list[str]) -> Dataset:
    """The same data set with the labels of a model with these classes: matched by name, never by number."""
    if list(data.names) == names:
        return data
    missing = [name for name in data.names if name not in names]
    if missing:
        raise DataError(
            f"{data.source} has classes that the model does not know: {', '.join(missing)}; the model "
            f"knows: {', '.join(names)}"
        )
    position = np.array([names.index(name) for name in data.names], dtype=np.int64)
    ids = dict(zip(data.names, data.category_ids, strict=True))
    free = count(max(data.category_ids, default=0) + 1)  # for classes that the data does not have
    new_ids = [ids[name] if name in ids else next(free) for name in names]
    return replace(data, names=tuple(names), category_ids=tuple(new_ids), labels=position[data.labels])


def hold_out(dataset: Dataset, seed: int, fraction: float = 0.1) -> tuple[Dataset, Dataset]:
    """(train, val): a seeded share of the images, at least one, for validation.

    The images are ranked by a hash of the seed and their file: neither their order nor a library's version
    matters, and images that are added later do not shuffle the rest.
    """
    if len(dataset) < 2:
        raise DataError(
            f"{dataset.source}: {len(dataset)} images cannot be split into training and validation; give a "
            f"validation split"
        )
    rank = np.array([hashlib.sha256(f"{seed}:{file}".encode()).hexdigest() for file in dataset.files])
    order = np.argsort(rank, kind="stable")
    held = min(max(1, round(fraction * len(dataset))), len(dataset) - 1)
    validation = dataset.subset(np.sort(order[:held]), "val")
    return dataset.subset(np.sort(order[held:]), "train"), replace(validation, held_out=True)
