"""Errors planted in sound annotations, and how many of them a list of suspects finds."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retinanet.audit.evidence import SAME
from retinanet.audit.suspects import Suspect
from retinanet.data.dataset import Dataset
from retinanet.errors import DataError
from retinanet.files import write_atomically
from retinanet.ops.boxes import iou

FILE = "planted.json"
"""The truth about a planted data set, in its folder."""

KINDS = ("moved", "dropped", "renamed")

FARTHEST = 0.5
"""A moved box overlaps the place where it was by less IoU than this: at more, annotators disagree by as
much."""

STEP = (0.6, 1.2)
"""How far a box is moved, in its own width and height."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Planted:
    """One error that was made on purpose."""

    kind: str
    """moved, dropped or renamed."""
    image_id: int
    annotation_id: int
    """Of the box before it was changed; a dropped one is no longer in the file."""
    name: str
    """The class that it truly has."""
    box: Box
    """Where it truly is: xyxy in pixels."""


def plant(
    content: Mapping[str, Any], share: float = 0.05, seed: int = 0
) -> tuple[dict[str, Any], list[Planted]]:
    """A COCO file's content with `share` of its boxes spoilt, a third in each of the KINDS, and what was done
    to which.

    moved    by STEP of its own sides in any direction, inside the picture, to an IoU below FARTHEST with
             where it was
    dropped  the annotation is gone
    renamed  one of the other classes, each as likely

    Crowds stay as they are. A box that fills its picture cannot be moved; the next one of a random order is
    taken then.
    """
    rng = np.random.default_rng(seed)
    spoilt: dict[str, Any] = copy.deepcopy(dict(content))
    sizes = {image["id"]: (float(image["width"]), float(image["height"])) for image in spoilt["images"]}
    names = {category["id"]: str(category["name"]) for category in spoilt["categories"]}
    boxes = [one for one in spoilt["annotations"] if not one.get("iscrowd")]
    total = round(share * len(boxes))
    order = iter(rng.permutation(len(boxes)).tolist())
    done: list[Planted] = []
    dropped: set[int] = set()
    for number in range(total):
        kind = KINDS[number * len(KINDS) // total]
        for one in (boxes[position] for position in order):
            x, y, wide, tall = one["bbox"]
            truth = Planted(
                kind, one["image_id"], one["id"], names[one["category_id"]], (x, y, x + wide, y + tall)
            )
            if kind == "moved":
                place = _elsewhere(rng, (x, y, wide, tall), sizes[one["image_id"]])
                if place is None:
                    continue
                one["bbox"] = [*place, wide, tall]
            elif kind == "dropped":
                dropped.add(one["id"])
            else:
                one["category_id"] = int(
                    rng.choice([other for other in names if other != one["category_id"]])
                )
            done.append(truth)
            break
    spoilt["annotations"] = [one for one in spoilt["annotations"] if one["id"] not in dropped]
    return spoilt, done


def plant_file(index: Path, truth: Path, share: float = 0.05, seed: int = 0) -> list[Planted]:
    """Spoil a COCO file in its place, and write what was done to `truth`, which `read_truth` reads."""
    spoilt, done = plant(json.loads(index.read_text(encoding="utf-8")), share, seed)
    write_atomically(truth, json.dumps({"planted": [asdict(one) for one in done]}, indent=1).encode())
    write_atomically(index, json.dumps(spoilt).encode())
    return done


def read_truth(file: Path) -> list[Planted]:
    """What `plant_file` wrote."""
    try:
        rows = json.loads(file.read_bytes())["planted"]
        return [Planted(**{**row, "box": tuple(row["box"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is no list of planted errors: {error}") from error


def _elsewhere(
    rng: np.random.Generator, box: Sequence[float], size: tuple[float, float]
) -> tuple[float, float] | None:
    """Left and top of a new place for a box [x, y, width, height] in an image; None where there is none."""
    x, y, wide, tall = box
    for _ in range(50):
        angle, step = rng.uniform(0, 2 * np.pi), rng.uniform(*STEP)
        left = float(np.clip(x + step * wide * np.cos(angle), 0, size[0] - wide))
        top = float(np.clip(y + step * tall * np.sin(angle), 0, size[1] - tall))
        shared = max(0.0, wide - abs(left - x)) * max(0.0, tall - abs(top - y))
        if shared / (2 * wide * tall - shared) < FARTHEST:
            return round(left, 2), round(top, 2)
    return None


def scores(suspects: Sequence[Suspect], data: Dataset, truth: Sequence[Planted]) -> dict[str, Any]:
    """How good a list is, the worst suspect first: precision and recall of its first k/2, k and 2k, where k
    errors were planted.

    A suspect is right when it names the annotation of an error, or when its answer lies where a moved or
    dropped box truly is (IoU 0.5).
    Two that find the same error are both right; for the recall it is found once.
    """
    found = hits(suspects, data, truth)
    at = {}
    for count in (len(truth) // 2, len(truth), 2 * len(truth)):
        first = [one for one in found[:count] if one is not None]
        right = {one.annotation_id for one in first}
        kinds = {kind: [one.annotation_id in right for one in truth if one.kind == kind] for kind in KINDS}
        at[str(count)] = {
            "precision": len(first) / max(1, min(count, len(found))),
            "recall": len(right) / max(1, len(truth)),
            "recall_by_kind": {kind: sum(some) / max(1, len(some)) for kind, some in kinds.items()},
        }
    return {"planted": len(truth), "first": at}


def hits(suspects: Sequence[Suspect], data: Dataset, truth: Sequence[Planted]) -> list[Planted | None]:
    """Of each suspect the error that it finds."""
    by_annotation = {one.annotation_id: one for one in truth if one.kind != "dropped"}
    without_box: dict[int, list[Planted]] = {}
    for one in truth:
        if one.kind != "renamed":
            without_box.setdefault(one.image_id, []).append(one)
    found: list[Planted | None] = []
    for suspect in suspects:
        error = None if suspect.row is None else by_annotation.get(int(data.annotation_ids[suspect.row]))
        places = without_box.get(int(data.image_ids[suspect.image]), [])
        if error is None and suspect.kind != "renamed" and suspect.box is not None and places:
            overlap = iou(torch.tensor([suspect.box]), torch.tensor([place.box for place in places]))
            error = places[int(overlap.argmax())] if float(overlap.max()) >= SAME else None
        found.append(error)
    return found


def text(found: Mapping[str, Any]) -> str:
    """What `scores` says, in words."""
    lines = [f"{found['planted']} errors were planted:"]
    for count, row in found["first"].items():
        kinds = ", ".join(f"{kind} {share:.2f}" for kind, share in row["recall_by_kind"].items())
        lines.append(
            f"  first {count} suspects: precision {row['precision']:.2f}, recall {row['recall']:.2f} "
            f"({kinds})"
        )
    return "\n".join(lines)
