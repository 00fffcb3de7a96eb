"""The command `audit`: which examples produce a model's class loss, and which labels are probably wrong."""

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
from ..config.io import check, from_json, reading, to_json
from ..config.schema import TrainConfig
from ..data.dataset import Dataset, Flags, Floats
from ..data.images import MAX_PIXELS
from ..data.loader import evaluation_batches
from ..data.splits import in_model_classes, open_split
from ..device import describe, explain_lost_loaders, pick_workers, versions
from ..errors import ConfigError
from ..files import may_fail, next_free, refuse_run, write_atomically
from ..inference.detector import Detector
from ..inference.load import load
from ..model.criterion import Criterion
from ..ops.anchors import inside
from ..ops.boxes import clip, decode
from ..text import aligned, progress_bar
from ..training.setup import build_criterion
from .evidence import BOX, LOWEST, PEAK, Predictions, Rows, Truth, examine
from .page import write_audit_page
from .shares import Shares
from .suspects import KINDS, STRONG, Suspect, rank

log = logging.getLogger("retinanet")

PER_LEVEL = 1000
"""Predictions of each pyramid level that are examined, as in prediction."""

PRINTED = 10
"""Suspects that are printed."""

HEAVIEST = 24
"""Boxes, and images, that are named for the loss that they produce."""


@dataclass(frozen=True)
class LossAnalysis:
    """What one pass over a split of N images and M boxes shows.

    image_losses  [N] class loss of each image, over all its anchors, before it is divided by the positives of
                  a step
    box_losses    [M] class loss of the anchors that are matched with each box
    matched       [M] whether any anchor is; false for crowds
    suspects      all of them, the worst first
    """

    shares: Shares
    image_losses: Floats
    box_losses: Floats
    matched: Flags
    suspects: list[Suspect]


@explain_lost_loaders()
def run(model: str, data: str, config: AuditConfig) -> LossAnalysis:
    """Print shares of the loss and suspects; write audit.json, suspects.json and audit.html to --out."""
    check(config)
    if config.scales:
        raise ConfigError("an audit looks at one scale; use --scale in place of --scales")
    refuse_run(config.out)
    detector = load(model, config.device, config.precision, config.scale)
    dataset = in_model_classes(
        open_split(data, config.split, any_split=True, **reading(config)), detector.names
    )
    criterion, settings = criterion_of(model, dataset)
    machine, workers = describe(detector.device), pick_workers(config.workers, detector.device)
    log.info("auditing %s on %s: %d images on %s", model, dataset.split, len(dataset), machine)
    with progress_bar(len(dataset), "auditing") as progress:
        found = analyse(detector, dataset, criterion, config.batch, workers, config.max_pixels, progress)
    out = config.out or next_free(Path("runs") / f"audit-{Path(data).resolve().stem}")
    out.mkdir(parents=True, exist_ok=True)
    content = summary(found, dataset)
    about = {
        "model": model,
        "data": str(data),
        "split": dataset.split,
        "data_hash": dataset.fingerprint(),
        "criterion": settings,
        "config": to_json(config),
        "versions": versions(),
        "machine": machine,
    }
    log.info("%s", report(found, dataset, content))
    listed = found.suspects[: config.count]
    write_atomically(out / "audit.json", json.dumps({**content, **about}, indent=1, allow_nan=False).encode())
    rows = ",\n".join(json.dumps(entry(dataset, suspect), allow_nan=False) for suspect in listed)
    write_atomically(out / "suspects.json", f"[{rows}]\n".encode())
    with may_fail(out / "audit.html"):
        write_audit_page(
            out / "audit.html",
            dataset,
            listed,
            box_losses=found.box_losses,
            image_losses=found.image_losses,
            content=content,
            table=found.shares.table(),
            max_pixels=config.max_pixels,
        )
    log.info("%d suspects: look at %s", len(listed), out / "audit.html")
    return found


def criterion_of(model: str, data: Dataset) -> tuple[Criterion, dict[str, Any]]:
    """The losses that a run was trained with, and their settings; the paper's when `model` is no folder of a
    run.

    Class weights by inverse frequency are those of `data`. Anchors that mining left out are examined too.
    """
    config, file = TrainConfig(), Path(model) / "config.json"
    if file.is_file():
        try:
            config = from_json(TrainConfig, json.loads(file.read_text())["config"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"{file} cannot be read ({error}); was the run made by another version?"
            ) from error
    mining = config.criterion.mining
    if mining != "none":
        log.info("the run was trained on minibatches (--mining %s); here all anchors are examined", mining)
        config = replace(config, criterion=replace(config.criterion, mining="none"))
    return build_criterion(config, data), to_json(config.criterion)


@torch.no_grad()
def analyse(
    detector: Detector,
    data: Dataset,
    criterion: Criterion,
    batch: int = 8,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> LossAnalysis:
    """One pass over a validated split, as in evaluation; only a few numbers of each box are kept."""
    shares = Shares(detector.model.levels, data.names)
    image_losses, box_losses = np.zeros(len(data)), np.zeros(len(data.labels))
    matched = np.zeros(len(data.labels), dtype=np.bool_)
    evidence = np.zeros(len(data.labels), BOX)
    peaks: list[Rows] = [np.zeros(0, PEAK)] * len(data)
    done, pin = 0, detector.device.type == "cuda"
    for loaded in evaluation_batches(data, detector.preprocess, batch, workers, pin, max_pixels):
        indices, sizes = loaded.indices.tolist(), loaded.targets.sizes
        logits, offsets, normalized = detector.forward(loaded.images, sizes)
        anchors = detector.model.anchors(normalized)
        targets = loaded.targets.to(detector.device)
        positions = torch.arange(targets.labels.shape[1], device=detector.device)
        # the position of the box that each anchor is matched with, or BACKGROUND, or IGNORE
        owners = criterion.match(
            anchors, replace(targets, labels=positions.expand(targets.labels.shape))
        ).labels
        labels = owners
        if len(positions):
            labels = torch.where(owners >= 0, targets.labels.gather(1, owners.clamp(min=0)), owners)
        weights = torch.ones(len(owners), device=owners.device)
        if criterion.normalize == "image":
            weights = 1 / (owners >= 0).sum(dim=1).clamp(min=1)
        parts = zip(logits, labels.split([x.shape[1] for x in logits], dim=1), anchors, strict=True)
        losses = torch.cat(
            [
                shares.add(level, x, label, inside(anchor, targets.sizes), weights, criterion)
                for level, (x, label, anchor) in enumerate(parts)
            ],
            dim=1,
        )
        of_boxes, has_anchor = by_owner(losses, owners, len(positions))
        image_losses[indices] = losses.sum(dim=1).cpu().numpy()
        predictions = best_predictions(detector, logits, offsets, anchors, sizes)
        for b, (index, (found, p)) in enumerate(zip(indices, predictions, strict=True)):
            single = ~data.crowd[data.rows(index)]
            rows = np.arange(data.first[index], data.first[index + 1])[single]
            box_losses[rows], matched[rows] = of_boxes[b, : len(rows)], has_anchor[b, : len(rows)]
            height, width = (int(side) for side in data.sizes[index])
            scale = torch.tensor([width, height] * 2) / sizes[b].flip(0).repeat(2)
            truth = Truth(
                boxes=torch.from_numpy(data.boxes[rows]).float(),
                labels=torch.from_numpy(data.labels[rows]),
                crowds=torch.from_numpy(data.boxes[data.rows(index)][~single]).float(),
                rows=rows,
                image=index,
                size=(height, width),
            )
            evidence[rows], peaks[index] = examine(Predictions(found * scale, p), truth)
        done += len(indices)
        if progress is not None:
            progress(done)
    return LossAnalysis(shares, image_losses, box_losses, matched, rank(evidence[matched], peaks))


def by_owner(losses: Tensor, owners: Tensor, boxes: int) -> tuple[Floats, Flags]:
    """Losses and owners [B, A] -> of each box [B, G]: the loss of its anchors, and whether it has any."""
    positive, owner = owners >= 0, owners.clamp(min=0)
    sums = torch.zeros(len(losses), max(boxes, 1), dtype=torch.float64, device=losses.device)
    counts = torch.zeros_like(sums)
    sums.scatter_add_(1, owner, torch.where(positive, losses, 0).double())
    counts.scatter_add_(1, owner, positive.double())
    return sums.cpu().numpy(), (counts > 0).cpu().numpy()


def best_predictions(
    detector: Detector, logits: list[Tensor], offsets: list[Tensor], anchors: list[Tensor], sizes: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each image the best boxes [N, 4] in pixels of the batch, before NMS, and probabilities [N, K]."""
    sizes = sizes.to(detector.device)
    boxes, scores = [], []
    for x, offset, anchor in zip(logits, offsets, anchors, strict=True):
        best = x.amax(dim=2).float().masked_fill(~inside(anchor, sizes), -torch.inf)
        top, kept = best.topk(min(PER_LEVEL, best.shape[1]), dim=1)
        chosen = offset.gather(1, kept[..., None].expand(-1, -1, 4))
        boxes.append(clip(decode(chosen, anchor[kept]), sizes))
        p = x.gather(1, kept[..., None].expand(-1, -1, x.shape[2])).float().sigmoid()
        scores.append(p.masked_fill(top[..., None] == -torch.inf, 0))
    for found, p in zip(torch.cat(boxes, dim=1).cpu(), torch.cat(scores, dim=1).cpu(), strict=True):
        counts = (p.amax(dim=1) >= LOWEST) & found.isfinite().all(dim=1)
        yield found[counts], p[counts]


def summary(found: LossAnalysis, data: Dataset) -> dict[str, Any]:
    """The content of audit.json."""
    single, image_of = ~data.crowd, data.image_of_box()
    of_boxes, of_images = found.box_losses, found.image_losses
    total, total_of_boxes = (max(float(losses.sum()), 1e-300) for losses in (of_images, of_boxes))
    rows, images = (np.argsort(-losses, kind="stable") for losses in (of_boxes, of_images))
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
            for row in rows[:HEAVIEST]
        ],
        "heaviest_images": [
            {**place(data, int(index), None), "share": float(of_images[index]) / total}
            for index in images[:HEAVIEST]
        ],
        "share_of_heaviest_hundredth": {
            "boxes": float(of_boxes[rows[: -(-len(rows) // 100)]].sum()) / total_of_boxes,
            "images": float(of_images[images[: -(-len(images) // 100)]].sum()) / total,
        },
    }


def place(data: Dataset, index: int, row: int | None) -> dict[str, Any]:
    """File, image and annotation; of a box also its class and corners ([x, y, width, height])."""
    about: dict[str, Any] = {"file": str(data.files[index]), "image_id": int(data.image_ids[index])}
    if row is None:
        return about | {"annotation_id": None}
    box = {"label": data.names[data.labels[row]], "bbox": _xywh(data.boxes[row])}
    return about | {"annotation_id": int(data.annotation_ids[row])} | box


def entry(data: Dataset, suspect: Suspect) -> dict[str, Any]:
    """A suspect as an entry of suspects.json."""
    predicted = None
    if suspect.label is not None and suspect.box is not None:
        predicted = {
            "label": data.names[suspect.label],
            "probability": round(suspect.probability or 0.0, 4),
            "bbox": _xywh(suspect.box),
        }
    missing = {"label": None, "bbox": None} if suspect.row is None else {}
    about = {"kind": suspect.kind, "score": round(suspect.score, 4)}
    return {**about, **place(data, suspect.image, suspect.row), **missing, "answer": predicted}


def report(found: LossAnalysis, data: Dataset, content: dict[str, Any]) -> str:
    """What is printed: the shares, and the first suspects."""
    anchors, heaviest = content["shares"]["anchors"], content["share_of_heaviest_hundredth"]
    strong = ", ".join(f"{content['strong_suspects'][kind]} {kind}" for kind in KINDS)
    head = ["suspect", "score", "file", "annotation", "annotated", "predicted"]
    lines = [
        found.shares.table(),
        "",
        f"{anchors['ignored']:,} of {sum(anchors.values()):,} anchors are ignored between the IoU thresholds",
        f"{content['boxes_without_anchor']} of {content['boxes']} boxes have no anchor: the model never "
        "learned them, and they are not judged",
        f"1 % of the images carry {heaviest['images']:.0%} of the class loss, 1 % of the boxes "
        f"{heaviest['boxes']:.0%} of that of boxes",
        f"suspects that score above {STRONG:g}, which sound labels seldom do: {strong}",
        "",
        aligned([head, *(_cells(entry(data, one)) for one in found.suspects[:PRINTED])]),
    ]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    predicted = f"{row['answer']['label']} {row['answer']['probability']:.2f}" if row["answer"] else "-"
    number = "-" if row["annotation_id"] is None else str(row["annotation_id"])
    return [row["kind"], f"{row['score']:.2f}", row["file"], number, row["label"] or "-", predicted]


def _xywh(box: Any) -> list[float]:
    left, top, right, bottom = (float(value) for value in box)
    return [round(value, 2) for value in (left, top, right - left, bottom - top)]
