"""The model card of a run, a README.md as the Hugging Face hub shows it, and where its first weights came from."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import yaml

from ..config.schema import TrainConfig
from ..evaluation.coco import NUMBERS, Metrics
from ..files import write_atomically
from ..model.backbone import PINNED
from ..text import escaped, many, shown, table
from ..weights.checkpoint import ModelInfo
from .recipe import recipe
from .resume import Counters
from .setup import TrainState

log = logging.getLogger("retinanet")

TOLD = ("project", "imported_from", "published_as", "published_ap", "licence")
"""What a file of weights may say about its own origin."""

LONGEST = 20
"""Models of a chain, each trained from the one before, that are remembered."""


def origins(config: TrainConfig, donor: ModelInfo | None = None) -> list[dict[str, Any]]:
    """What a training begins from, the nearest first, as plain values; empty when everything is from scratch.

    donor    the card of the file that --init names; it knows what that model began from
    returns  dicts with `kind` (model, backbone) and `name`, and where known `licence` and the like
    """
    if config.init_model is None:
        return [imagenet(config.model.network.backbone)] if config.init == "imagenet" else []
    about = {} if donor is None else donor.about
    known = {key: str(about[key])[:200] for key in TOLD if isinstance(about.get(key), (str, int, float))}
    if isinstance(about.get("data"), str):
        known["trained_on"] = Path(about["data"]).name[:200]
    earlier = about.get("init")  # which may be anybody's, so its form is not trusted
    if earlier == []:
        known["scratch"] = "yes"
    entries = (
        [plain(entry) for entry in earlier if isinstance(entry, dict)] if isinstance(earlier, list) else []
    )
    return [{"kind": "model", "name": public_name(Path(config.init)), **known}, *entries][:LONGEST]


def imagenet(backbone: str) -> dict[str, str]:
    """timm's weights that the bare name of a backbone means, with their licence."""
    settings = timm.get_pretrained_cfg(PINNED.get(backbone, backbone)).to_dict()
    name = ".".join(str(settings[key]) for key in ("architecture", "tag") if settings.get(key))
    known = {"hub": settings.get("hf_hub_id"), "licence": settings.get("license")}
    return {
        "kind": "backbone",
        "name": name or backbone,
        "project": "timm",
        **{key: str(value) for key, value in known.items() if value},
    }


def public_name(path: str | Path) -> str:
    """A run or file without the folders above it, which are nobody's business; an address on a hub stays
    whole.
    """
    if str(path).startswith("hf:"):
        return str(path)
    path = Path(path).resolve()
    return f"{path.parent.name}/{path.name}" if path.stem in ("model", "best") else path.name


def plain(entry: dict[Any, Any]) -> dict[str, str]:
    """The entries that are text."""
    return {
        key: value[:200] for key, value in entry.items() if isinstance(key, str) and isinstance(value, str)
    }


NAME = "README.md"

MARK = "<!-- Written by retinanet train, anew at every validation. Delete this line to keep what you have edited. -->"

FEW = 12
"""Classes that are named at the top; the table has all."""

TAGS = ("object-detection", "retinanet", "focal-loss", "pytorch")

USE = """## How to use it

```sh
retinanet predict FOLDER PICTURES --out found  # FOLDER: this one; from the hub: hf:OWNER/NAME
```

```python
import retinanet

detector = retinanet.load("FOLDER")  # from the hub: retinanet.load("hf:OWNER/NAME")
detections = detector.predict("picture.jpg")
for name, score, box in detections.above(detector.threshold):
    print(name, score, box)  # xyxy in pixels of the picture
```"""

MEANING = """AP is COCO's: the mean over classes and over IoU from 0.50 to 0.95. s, m and l: objects below 32 x 32 px, up to 96 x 96 px,
and above. AR1, AR10, AR100: recall with so many answers a picture. `-`: there are no such objects."""

KINDS = {"backbone": "ImageNet weights of the backbone", "model": "a trained model"}

FACTS = {
    "project": "of {}",
    "imported_from": "imported from {}",
    "published_as": "published as {}",
    "published_ap": "published AP {}",
    "trained_on": "trained on {}",
    "scratch": "itself from scratch",
    "licence": "licence {}",
}
"""What `weights.origin` may know, in words."""


def write_card(folder: Path, text: str) -> None:
    """README.md of a run; one that somebody has written, or made his own, stays."""
    path = folder / NAME
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        log.info("%s is not ours and stays as it is; no model card is written", path)
        return
    write_atomically(path, text.encode(errors="replace"))


def model_card(
    name: str,
    session: TrainState,
    about: dict[str, Any],
    progress: Counters,
    metrics: Metrics,
    rows: Sequence[dict[str, Any]],
) -> str:
    """The card of the weights that were just validated.

    name      of the run
    about     what config.json says
    metrics   of those weights, the shipped ones, on the validation split
    rows      of metrics.jsonl so far
    """
    data = data_name(about)
    parts = (
        front_matter(name, data, session, about, metrics),
        MARK,
        summary(name, data, session, about, progress, metrics),
        USE,
        results(session, about, progress, metrics, rows),
        per_class(session, metrics),
        trained_on(data, session, about),
        "## Recipe",
        table(("", ""), recipe(session, about, rows).items()),
        "`config.json` has every setting.",
        began_from(about),
        limits(session, metrics),
        licence(about),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def data_name(about: dict[str, Any]) -> str:
    """The last name of the data set's path: the rest is nobody's business."""
    path = Path(about["data"])
    return path.name if path.name not in ("", "..") else path.resolve().name or "data"


def front_matter(name: str, data: str, session: TrainState, about: dict[str, Any], metrics: Metrics) -> str:
    """What the hub reads: YAML between two lines of dashes."""
    values: dict[str, Any] = {
        "library_name": "retinanet",
        "pipeline_tag": "object-detection",
        "tags": list(TAGS),
    }
    base = next(map(hub_address, about.get("init", [])), None)
    if base:
        values["base_model"] = base
    measured = [
        {"type": key, "name": key, "value": round(value, 4)}
        for key, value in metrics.numbers.items()
        if value is not None
    ]
    if measured:
        dataset = {
            "name": data,
            "type": "custom",
            "split": session.validation.split,
        }  # a type is the address of a data set on the hub
        task = {"type": "object-detection", "name": "Object detection"}
        values["model-index"] = [
            {"name": name, "results": [{"task": task, "dataset": dataset, "metrics": measured}]}
        ]
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def hub_address(entry: dict[str, Any]) -> str | None:
    """OWNER/NAME on the hub, where the weights that a run began from have one."""
    address = f"hf:{entry['hub']}" if "hub" in entry else str(entry.get("name"))
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(@.*)?", address, re.ASCII)  # a revision may follow
    return found[1] if found else None


def summary(
    name: str, data: str, session: TrainState, about: dict[str, Any], progress: Counters, metrics: Metrics
) -> str:
    """What it is, in two sentences."""
    names = session.training.names
    few = ", ".join(map(escaped, names[:FEW])) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")
    text = (
        f"# {escaped(name)}\n\n"
        f"A [RetinaNet](https://arxiv.org/abs/1708.02002) on {session.config.model.network.backbone}, trained on "
        f"{escaped(data)}, that finds "
        f"{many(len(names), 'class', 'classes')} of objects in pictures: {few}.\n\n"
        f"AP {shown(metrics['AP'])} (as COCO computes it) on the {many(metrics.images, 'image')} of the "
        f"validation split."
    )
    if progress.done < about["iterations"]:
        part = f"{progress.done:,} of {about['iterations']:,} iterations were done"
        text += f"\n\n**The training had not ended when this was written**: {part}."
    return text


def results(
    session: TrainState,
    about: dict[str, Any],
    progress: Counters,
    metrics: Metrics,
    rows: Sequence[dict[str, Any]],
) -> str:
    """The twelve COCO numbers, whose they are, and the threshold."""
    averaged = "" if session.average is None else ", a running average"
    at = f"iteration {progress.done:,} of {about['iterations']:,}{averaged}"
    where = f"{many(metrics.images, 'image')} with {many(metrics.boxes, 'box', 'boxes')}"
    whose = f"Of `model.safetensors`, the last weights ({at}), in validation: {where}. {best_weights(progress, rows)}"
    tables = [table(part, [[shown(metrics[key]) for key in part]]) for part in (NUMBERS[:6], NUMBERS[6:])]
    return "\n\n".join(["## Results", whose, *tables, MEANING, threshold(metrics)])


def best_weights(progress: Counters, rows: Sequence[dict[str, Any]]) -> str:
    """How `best.safetensors` compares."""
    at = next(
        (row["iteration"] for row in rows if row["kind"] == "val" and (row["AP"] or 0.0) == progress.best),
        None,
    )
    if at == progress.done:
        return "No validation before had a better AP, so `best.safetensors` holds the same."
    when = f" (iteration {at:,})" if at is not None else ""
    return f"`best.safetensors` holds those with the best AP in validation, {shown(progress.best)}{when}."


def threshold(metrics: Metrics) -> str:
    """From which score on an answer is drawn, and why."""
    if metrics.threshold is None:
        return "Nothing was found in validation, so the threshold for pictures is 0.5, which is a guess."
    return (
        f"Threshold: {shown(metrics.threshold)}, the score with the best F1 over all classes in validation "
        f"({shown(metrics.f1)} at IoU "
        "0.5). It decides what is drawn and printed; AP does not depend on it."
    )


def per_class(session: TrainState, metrics: Metrics) -> str:
    """AP of each class, and how many boxes it was learned from and measured on."""
    training = session.training
    boxes = np.bincount(training.labels[~training.crowd], minlength=len(training.names)).tolist()
    rows = []
    for category, learned, row in zip(training.category_ids, boxes, metrics.per_class, strict=True):
        numbers = (row.AP, row.AP50, row.AP75, row.f1, row.threshold)
        rows.append(
            [escaped(row.name), str(category), f"{learned:,}", f"{row.boxes:,}", *map(shown, numbers)]
        )
    return table(
        ("class", "id", "boxes in training", "in validation", "AP", "AP50", "AP75", "best F1", "at score"),
        rows,
    )


def trained_on(data: str, session: TrainState, about: dict[str, Any]) -> str:
    """Name, sizes and fingerprints of the splits."""
    rows = []
    for split, key in ((session.training, "data_hash"), (session.validation, "validation_hash")):
        rows.append(
            [escaped(split.split), f"{len(split):,}", f"{int((~split.crowd).sum()):,}", f"`{about[key]}`"]
        )
    note = "The fingerprint is that of the annotations (classes, files, sizes, boxes), not of the pixels."
    if session.validation.held_out:
        note += f" The data set has no validation split: its images were held out of train, by seed {session.config.seed}."
    return "\n\n".join(
        [f"## Data\n\n{escaped(data)}", table(("split", "images", "boxes", "fingerprint"), rows), note]
    )


def began_from(about: dict[str, Any]) -> str:
    """The initial weights, the nearest first; nothing where they were not written down."""
    if "init" not in about:
        return ""
    lines = [f"{place}. {origin_line(entry)}" for place, entry in enumerate(about["init"], 1)]
    return "## Initial weights\n\n" + ("\n".join(lines) or "None: everything was trained from scratch.")


def origin_line(entry: dict[str, Any]) -> str:
    """One of the models that these weights go back to."""
    name, address = escaped(entry.get("name", "without a name")), hub_address(entry)
    link = f"[{name}](https://huggingface.co/{address})" if address else name
    facts = [text.format(escaped(entry[key])) for key, text in FACTS.items() if entry.get(key)]
    return ", ".join([f"{KINDS.get(entry.get('kind', ''), 'weights')}: {link}", *facts])


def limits(session: TrainState, metrics: Metrics) -> str:
    """What the numbers do not say."""
    training = session.training
    boxes, labels = training.boxes[~training.crowd], set(np.unique(training.labels[~training.crowd]).tolist())
    chosen = "`best.safetensors`" if metrics.threshold is None else "the threshold and `best.safetensors`"
    lines = [
        "It knows the classes above and no others: whatever else is in a picture is background to it, or "
        "taken for one of them.",
        f"The numbers are those of {many(metrics.images, 'image')} of the data set that it was trained on, "
        f"which also chose {chosen}. "
        "Pictures from elsewhere were not measured, and the scores were not calibrated as probabilities.",
    ]
    if len(boxes):
        low, high = np.quantile(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)), (0.01, 0.99))
        height, width = np.median(training.sizes, axis=0)
        lines.append(
            f"98 % of the boxes in training measure {low:.0f} to {high:.0f} px (root of the area), in "
            f"pictures of typically "
            f"{width:.0f} x {height:.0f} px; it has seen few that are smaller or larger."
        )
    unseen = [escaped(name) for label, name in enumerate(training.names) if label not in labels]
    if unseen:
        lines.append(f"Without a box in training, so not to be found: {', '.join(unseen)}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def licence(about: dict[str, Any]) -> str:
    """Whose choice it is, and what is known to matter for it."""
    lines = [
        "None has been chosen: whoever publishes these weights does so, with a line `license:` in the head "
        "of this file."
    ]
    for entry in about.get("init", []):
        told = escaped(entry["licence"]) if entry.get("licence") else "not recorded"
        lines.append(
            f"The licence of {escaped(entry.get('name', 'the initial weights'))}, from which they come: "
            f"{told}."
        )
    return f"## Licence\n\n{' '.join(lines)} The licence of the data is not recorded."
