"""The verb `check`: every problem of a data set, once, and the boxes that the anchors cannot reach."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import inf

import numpy as np
import torch

from ..config.commands import CheckConfig
from ..config.io import check, override
from ..config.presets import default_preset, preset
from ..config.schema import ModelConfig, TrainConfig
from ..data.dataset import Dataset
from ..data.formats.detect import open_dataset
from ..data.validate import validate
from ..errors import DataError, Problem, report
from ..model.retinanet import NECKS
from ..ops.anchors import STRIDES, cell_anchors
from ..training.autobatch import SIDES
from ..weights.checkpoint import preprocess_of

log = logging.getLogger("retinanet")


def run(path: str, config: CheckConfig) -> bool:
    """Print all problems of all splits and the anchors' reach; true when there is no problem."""
    check(config)
    splits = open_dataset(path, config.layout, config.images)
    wanted = planned(config)
    problems: list[Problem] = []
    for name, data in splits.items():
        try:
            clean, found = validate(
                data, "clip", deep=config.deep, max_pixels=config.max_pixels, need_boxes=name == "train"
            )
        except DataError as error:  # no picture or no box at all
            found = error.problems or [Problem(str(error), data.source.name, "")]
            clean = None
        problems += found
        log.info("%s", describe(name, data))
        if clean is not None:
            log.info("%s", reach_table(reach(clean, wanted.model), wanted))
    if problems:
        log.info(
            "%s\n%d problems. Fix them, or train with --invalid drop (leave out) or --invalid clip (cut at "
            "the border).",
            report(problems),
            len(problems),
        )
    else:
        log.info("no problem found%s", "" if config.deep else " (pictures were not decoded: --deep does)")
    return not problems


def planned(config: CheckConfig) -> TrainConfig:
    """The training whose anchors and IoU thresholds are asked about."""
    wanted = {
        name: getattr(config, name) for name in ("scale", "anchor_size", "anchor_scales", "anchor_ratios")
    }
    return override(
        preset(config.preset or default_preset()),
        {name: value for name, value in wanted.items() if value is not None},
    )


def describe(name: str, data: Dataset) -> str:
    """A split in a few lines: images, boxes, classes."""
    counts = np.bincount(data.labels[~data.crowd], minlength=len(data.names))
    empty = int((np.diff(data.first) == 0).sum())
    crowds = int(data.crowd.sum())
    lines = [
        f"{name}: {len(data)} images, {int(counts.sum())} boxes"
        + (f" and {crowds} crowds" if crowds else "")
        + (f", {empty} images without objects" if empty else "")
    ]
    shown = sorted(zip(counts.tolist(), data.names, strict=True), reverse=True)
    lines.append(
        "  "
        + ", ".join(f"{title} {count}" for count, title in shown[:20])
        + (f" and {len(shown) - 20} more classes" if len(shown) > 20 else "")
    )
    return "\n".join(lines)


@dataclass(frozen=True)
class Reach:
    """For every box the best IoU that any anchor can have with it."""

    best: np.ndarray
    """[M]"""
    sides: np.ndarray
    """[M] root of the area at network scale, in pixels."""
    labels: np.ndarray
    names: tuple[str, ...]


def reach(data: Dataset, model: ModelConfig) -> Reach:
    """How well anchors can match the boxes of a data set, at the size that the network sees.

    A map's anchors stand `stride` pixels apart, so a box's nearest centre is off by up to half a stride on
    each axis. The IoU
    is taken at a quarter of a stride on each axis, the mean distance.
    """
    image, preprocess = data.image_of_box(), preprocess_of(model)
    keep = ~data.crowd
    factors = np.array([np.divide(preprocess.size(int(h), int(w)), (h, w)) for h, w in data.sizes]).reshape(
        -1, 2
    )[image][keep]  # [M, 2] of height, width
    boxes = data.boxes[keep]
    width, height = (boxes[:, 2] - boxes[:, 0]) * factors[:, 1], (boxes[:, 3] - boxes[:, 1]) * factors[:, 0]
    best = torch.zeros(len(boxes), dtype=torch.float64)
    size = torch.from_numpy(np.stack([width, height], axis=1))
    network = model.network
    strides = NECKS[network.pyramid].strides
    for stride, base in ((stride, base) for stride, bases in strides.items() for base in bases):
        for anchor in cell_anchors(
            base, network.anchor_size, network.anchor_scales, network.anchor_ratios
        ).double():
            sides = anchor[2:] - anchor[:2]
            overlap = (
                (torch.minimum(size, sides) - (stride / 4 - (size - sides).abs() / 2).clamp(min=0))
                .clamp(min=0)
                .prod(dim=1)
            )
            best = torch.maximum(best, overlap / (size.prod(dim=1) + sides.prod() - overlap))
    return Reach(best.numpy(), np.sqrt(width * height), data.labels[keep], data.names)


def reach_table(found: Reach, config: TrainConfig) -> str:
    """What share of the boxes anchors match, by size and by class, and what to do when many are out of
    reach.
    """
    total = len(found.best)
    if total == 0:
        return "  no boxes to match"
    model, positive, forced = config.model, config.criterion.positive, config.criterion.force_above
    missed = found.best < min(positive, inf if forced is None else forced)
    lines = [
        f"  anchors from {model.network.anchor_size * STRIDES[0]:.0f} px at a short side of "
        f"{model.preprocess.scale} px: "
        f"{(found.best >= positive).mean():.1%} of the boxes are matched, "
        f"{((found.best < positive) & ~missed).mean():.1%} only by force, "
        f"{missed.mean():.1%} ({int(missed.sum())}) by none"
    ]
    for low, high in SIDES:
        inside = (found.sides >= low) & (found.sides < high)
        if inside.any() and missed[inside].any():
            span = f"{low}-{high} px" if high < 1 << 30 else f"above {low} px"
            lines.append(
                f"    {span}: {int(missed[inside].sum())} of {int(inside.sum())} boxes are matched by no "
                f"anchor"
            )
    for label, name in enumerate(found.names):
        inside = found.labels == label
        if inside.any() and missed[inside].mean() > 0.05:
            lines.append(
                f"    {name}: {int(missed[inside].sum())} of {int(inside.sum())} boxes are matched by no "
                f"anchor"
            )
    if missed.mean() > 0.05:
        small = float(np.quantile(found.sides, 0.05))
        if small < model.network.anchor_size * STRIDES[0]:
            size = max(1.0, round(2 * small / STRIDES[0]) / 2)
            lines.append(
                f"    one box in twenty is below {small:.0f} px: train with --anchor-size {size:g} (anchors "
                f"from "
                f"{size * STRIDES[0]:.0f} px), a larger --scale, or both"
            )
        else:
            lines.append(
                "    most of these have a shape that no anchor has: add to --set anchor_ratios=... (height "
                "over width)"
            )
    return "\n".join(lines)
