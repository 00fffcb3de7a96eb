"""The command `audit`: which examples produce a model's class loss, and which labels are probably
wrong.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.commands import AuditConfig
from ..config.io import check, from_json, to_json
from ..config.schema import TrainConfig
from ..data.dataset import Dataset, Flags, Floats
from ..data.formats.detect import open_dataset
from ..data.images import MAX_PIXELS
from ..data.loader import evaluation_batches
from ..data.splits import in_model_classes
from ..data.validate import validate
from ..device import describe, pick_workers, versions
from ..errors import ConfigError, unknown_name_error
from ..files import next_free, refuse_run, write_atomically
from ..inference.detector import Detector
from ..inference.load import load
from ..model.criterion import Criterion
from ..ops.anchors import inside
from ..ops.boxes import clip, decode
from ..structures import Targets
from ..text import aligned, progress_bar
from ..training.setup import build_criterion
from .evidence import BOX, LOWEST, PEAK, Answers, Rows, Truth, examine
from .page import exhibit
from .shares import Shares
from .suspects import KINDS, STRONG, Suspect, rank

log = logging.getLogger("retinanet")

PER_LEVEL = 1000
"""Answers of each pyramid level that are looked at, as in prediction."""

TOLD = 10
"""Suspects that are printed."""

HEAVIEST = 24
"""Boxes, and pictures, that are named for the loss that they produce."""


@dataclass(frozen=True)
class LossAnalysis:
    """What one pass over a split of N pictures and M boxes shows."""

    shares: Shares
    image_losses: Floats
    """[N] class loss of each picture, over all its anchors; the normaliser is that of the training but for
    the number of its step.
    """
    box_losses: Floats
    """[M] class loss of the anchors that answer for each box."""
    matched: Flags
    """[M] whether any anchor answers for it; false for crowds."""
    suspects: list[Suspect]
    """All of them, the worst first."""


def run(model: str, data: str, config: AuditConfig) -> LossAnalysis:
    """Print the shares of the loss and the first suspects; audit.json, suspects.json and the page
    audit.html go to --out.
    """
    check(config)
    if config.scales:
        raise ConfigError("an audit looks at one scale; use --scale in place of --scales")
    refuse_run(config.out)
    detector = load(model, config.device, config.precision, config.scale)
    dataset = in_model_classes(chosen_split(data, config), detector.names)
    criterion, settings = criterion_of(model, dataset)
    log.info(
        "looking at %s on %s: %d images on %s", model, dataset.split, len(dataset), describe(detector.device)
    )
    with progress_bar(len(dataset), "looking") as progress:
        workers = pick_workers(config.workers, detector.device)
        found = dissect(detector, dataset, criterion, config.batch, workers, config.max_pixels, progress)
    out = config.out or next_free(Path("runs") / f"audit-{Path(data).resolve().stem}")
    out.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "model": model,
        "data": str(data),
        "split": dataset.split,
        "data_hash": dataset.fingerprint(),
    }
    about |= {
        "criterion": settings,
        "config": to_json(config),
        "versions": versions(),
        "machine": describe(detector.device),
    }
    content = summary(found, dataset)
    log.info("%s", report(found, dataset, content))
    listed = found.suspects[: config.count]
    write_atomically(out / "audit.json", json.dumps({**content, **about}, indent=1, allow_nan=False).encode())
    rows = ",\n".join(json.dumps(entry(dataset, suspect), allow_nan=False) for suspect in listed)
    write_atomically(out / "suspects.json", f"[{rows}]\n".encode())
    exhibit(
        out / "audit.html",
        dataset,
        listed,
        found.box_losses,
        found.image_losses,
        content,
        found.shares.table(),
        config.max_pixels,
    )
    log.info("%d suspects: look at %s", len(listed), out / "audit.html")
    return found


def chosen_split(path: str, config: AuditConfig) -> Dataset:
    """The split that is meant, validated: val if none is named, else the only one."""
    splits = open_dataset(path, config.layout, config.images)
    split = config.split or next((name for name in ("val", "all") if name in splits), next(iter(splits)))
    if split not in splits:
        raise unknown_name_error("split", split, splits)
    data, problems = validate(splits[split], config.invalid, max_pixels=config.max_pixels)
    if problems:
        log.info("%s: %d problems met with --invalid %s", split, len(problems), config.invalid)
    return data


def criterion_of(model: str, data: Dataset) -> tuple[Criterion, dict[str, Any]]:
    """The losses that a run was trained with, and their settings; the paper's when `model` is no folder of a
    run.

    Class weights by inverse frequency are those of `data`. What mining leaves out is looked at all the same.
    """
    config, file = TrainConfig(), Path(model) / "config.json"
    if file.is_file():
        try:
            config = from_json(TrainConfig, json.loads(file.read_text())["config"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{file} cannot be read ({error}); was the run made by another version?"
            ) from error
    if config.criterion.mining != "none":
        log.info(
            "the run was trained on minibatches (--mining %s); here all anchors are looked at",
            config.criterion.mining,
        )
        config = replace(config, criterion=replace(config.criterion, mining="none"))
    return build_criterion(config, data), to_json(config.criterion)


@torch.no_grad()
def dissect(
    detector: Detector,
    data: Dataset,
    criterion: Criterion,
    batch: int = 8,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> LossAnalysis:
    """One pass over every picture of `data` (whose sizes are known, see `validate`), as in evaluation; few
    numbers of each box are kept.
    """
    shares = Shares(detector.model.levels, data.names)
    image_losses, box_losses = np.zeros(len(data)), np.zeros(len(data.labels))
    matched = np.zeros(len(data.labels), dtype=np.bool_)
    evidence = np.zeros(len(data.labels), BOX)
    peaks: list[Rows] = [np.zeros(0, PEAK)] * len(data)
    done = 0
    for loaded in evaluation_batches(
        data, detector.preprocess, batch, workers, detector.device.type == "cuda", max_pixels
    ):
        indices, sizes = loaded.indices.tolist(), loaded.targets.sizes
        logits, offsets, normalized = detector.forward(loaded.images, sizes)
        anchors = detector.model.anchors(normalized)
        targets = loaded.targets.to(detector.device)
        owners = owners_of(criterion, anchors, targets)
        losses = add_losses(shares, logits, anchors, targets, owners, criterion)
        of_boxes, has_anchor = by_owner(losses, owners, targets.labels.shape[1])
        image_losses[indices] = losses.sum(dim=1).cpu().numpy()
        for b, (index, (found, p)) in enumerate(
            zip(indices, best_answers(detector, logits, offsets, anchors, sizes), strict=True)
        ):
            single = ~data.crowd[data.rows(index)]
            rows = np.arange(data.first[index], data.first[index + 1])[single]
            box_losses[rows], matched[rows] = of_boxes[b, : len(rows)], has_anchor[b, : len(rows)]
            height, width = (int(side) for side in data.sizes[index])
            scale = torch.tensor([width, height] * 2) / sizes[b].flip(0).repeat(2)
            boxes, labels = torch.from_numpy(data.boxes[rows]).float(), torch.from_numpy(data.labels[rows])
            crowds = torch.from_numpy(data.boxes[data.rows(index)][~single]).float()
            truth = Truth(boxes, labels, crowds, rows, index, (height, width))
            evidence[rows], peaks[index] = examine(Answers(found * scale, p), truth)
        done += len(indices)
        if progress is not None:
            progress(done)
    return LossAnalysis(shares, image_losses, box_losses, matched, rank(evidence[matched], peaks))


def owners_of(criterion: Criterion, anchors: list[Tensor], targets: Targets) -> Tensor:
    """[B, A] the position of the box that each anchor answers for, or BACKGROUND, or IGNORE: `match`, with
    positions in place of labels.
    """
    positions = torch.arange(targets.labels.shape[1], device=targets.labels.device).expand(
        targets.labels.shape
    )
    return criterion.match(anchors, replace(targets, labels=positions)).labels


def add_losses(
    shares: Shares,
    logits: list[Tensor],
    anchors: list[Tensor],
    targets: Targets,
    owners: Tensor,
    criterion: Criterion,
) -> Tensor:
    """Add a batch to the shares; returns the class loss of each anchor [B, A]."""
    labels = owners
    if targets.labels.shape[1]:
        labels = torch.where(owners >= 0, targets.labels.gather(1, owners.clamp(min=0)), owners)
    weights = torch.ones(len(owners), device=owners.device)
    if criterion.normalize == "image":
        weights = 1 / (owners >= 0).sum(dim=1).clamp(min=1)
    counts = [level.shape[1] for level in logits]
    parts = zip(logits, labels.split(counts, dim=1), anchors, strict=True)
    losses = [
        shares.add(level, x, label, inside(anchor, targets.sizes), weights, criterion)
        for level, (x, label, anchor) in enumerate(parts)
    ]
    return torch.cat(losses, dim=1)


def by_owner(losses: Tensor, owners: Tensor, boxes: int) -> tuple[Floats, Flags]:
    """Losses and owners [B, A] -> of each box [B, G]: the loss of its anchors, and whether it has any."""
    answering = owners >= 0
    owner = owners.clamp(min=0)
    sums = torch.zeros(len(losses), max(boxes, 1), dtype=torch.float64, device=losses.device)
    counts = torch.zeros_like(sums)
    sums.scatter_add_(1, owner, torch.where(answering, losses, 0).double())
    counts.scatter_add_(1, owner, answering.double())
    return sums.cpu().numpy(), (counts > 0).cpu().numpy()


def best_answers(
    detector: Detector, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each picture the boxes [N, 4], in pixels of the batch, and probabilities [N, K] of its best anchors,
    before NMS; on the CPU.
    """
    there = sizes.to(detector.device)
    boxes, scores = [], []
    for x, offset, anchor in zip(logits, offsets, anchors, strict=True):
        best = x.amax(dim=2).float().masked_fill(~inside(anchor, there), -torch.inf)
        _, kept = best.topk(min(PER_LEVEL, best.shape[1]), dim=1)
        chosen = offset.gather(1, kept[..., None].expand(-1, -1, 4))
        boxes.append(clip(decode(chosen, anchor[kept]), there))
        hidden = best.gather(1, kept)[..., None] == -torch.inf
        scores.append(
            x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])).float().sigmoid().masked_fill(hidden, 0)
        )
    for found, p in zip(torch.cat(boxes, dim=1).cpu(), torch.cat(scores, dim=1).cpu(), strict=True):
        says = (p.amax(dim=1) >= LOWEST) & found.isfinite().all(dim=1)
        yield found[says], p[says]


def summary(found: LossAnalysis, data: Dataset) -> dict[str, Any]:
    """The content of audit.json."""
    single = ~data.crowd
    image_of = data.image_of_box()
    total, of_boxes = max(float(found.image_losses.sum()), 1e-300), found.box_losses
    heavy_boxes, heavy_images = (
        np.argsort(-of_boxes, kind="stable"),
        np.argsort(-found.image_losses, kind="stable"),
    )
    strong = {kind: sum(one.kind == kind and one.score > STRONG for one in found.suspects) for kind in KINDS}
    return {
        "shares": found.shares.to_json(),
        "images": len(data),
        "boxes": int(single.sum()),
        "crowds": int((~single).sum()),
        "boxes_without_anchor": int((single & ~found.matched).sum()),
        "strong_suspects": {"score_above": STRONG, **strong},
        "heaviest_boxes": [
            {**place(data, int(image_of[row]), int(row)), "share": float(of_boxes[row]) / total}
            for row in heavy_boxes[:HEAVIEST]
        ],
        "heaviest_images": [
            {**place(data, int(index), None), "share": float(found.image_losses[index]) / total}
            for index in heavy_images[:HEAVIEST]
        ],
        "share_of_heaviest_hundredth": {
            "boxes": float(of_boxes[heavy_boxes[: -(-len(of_boxes) // 100)]].sum())
            / max(float(of_boxes.sum()), 1e-300),
            "images": float(found.image_losses[heavy_images[: -(-len(data) // 100)]].sum()) / total,
        },
    }


def place(data: Dataset, index: int, row: int | None) -> dict[str, Any]:
    """Where it is: file, image, annotation; with the annotated class and box ([x, y, width, height]) if there
    is one.
    """
    about: dict[str, Any] = {
        "file": str(data.files[index]),
        "image_id": int(data.image_ids[index]),
        "annotation_id": None,
    }
    if row is None:
        return about
    box = {"label": data.names[data.labels[row]], "bbox": _xywh(data.boxes[row])}
    return about | {"annotation_id": int(data.annotation_ids[row])} | box


def entry(data: Dataset, suspect: Suspect) -> dict[str, Any]:
    """A suspect as it stands in suspects.json."""
    answer = None
    if suspect.answer is not None and suspect.box is not None:
        answer = {
            "label": data.names[suspect.answer],
            "probability": round(suspect.probability or 0.0, 4),
            "bbox": _xywh(suspect.box),
        }
    missing = {"label": None, "bbox": None} if suspect.row is None else {}
    about = {"kind": suspect.kind, "score": round(suspect.score, 4)}
    return {**about, **place(data, suspect.image, suspect.row), **missing, "answer": answer}


def report(found: LossAnalysis, data: Dataset, content: dict[str, Any]) -> str:
    """What is printed: the shares, and the first suspects."""
    shares, lines = content["shares"], [found.shares.table(), ""]
    lines.append(
        f"{shares['anchors']['ignored']:,} of {sum(shares['anchors'].values()):,} anchors are ignored "
        f"between the IoU thresholds"
    )
    lines.append(
        f"{content['boxes_without_anchor']} of {content['boxes']} boxes have no anchor: the model never "
        f"learned them, they are not judged"
    )
    heaviest = content["share_of_heaviest_hundredth"]
    lines.append(
        f"1 % of the pictures carry {heaviest['images']:.0%} of the class loss, 1 % of the boxes "
        f"{heaviest['boxes']:.0%} of that of boxes"
    )
    strong = ", ".join(f"{content['strong_suspects'][kind]} {kind}" for kind in KINDS)
    lines.append(f"suspects that score above {STRONG:g}, which sound labels seldom do: {strong}")
    head = ["suspect", "score", "file", "annotation", "annotated", "answered"]
    lines += ["", aligned([head, *(_cells(entry(data, one)) for one in found.suspects[:TOLD])])]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    answer = f"{row['answer']['label']} {row['answer']['probability']:.2f}" if row["answer"] else "-"
    number = "-" if row["annotation_id"] is None else str(row["annotation_id"])
    return [row["kind"], f"{row['score']:.2f}", row["file"], number, row["label"] or "-", answer]


def _xywh(box: Any) -> list[float]:
    left, top, right, bottom = (float(value) for value in box)
    return [round(value, 2) for value in (left, top, right - left, bottom - top)]
