"""The command `check`: every problem of a data set, once, and the boxes that the anchors cannot reach."""

from __future__ import annotations

import logging
from dataclasses import asdict

import numpy as np

from ..config.commands import CheckConfig
from ..config.io import check, override
from ..config.presets import default_preset, preset
from ..config.schema import TrainConfig
from ..data.dataset import Dataset
from ..data.formats.detect import open_dataset
from ..data.reach import anchor_reach, reach_table
from ..data.validate import validate
from ..errors import DataError, Problem, report
from ..model.criterion import Criterion
from ..ops.anchors import STRIDES
from ..weights.checkpoint import build, preprocess_of

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
        except DataError as error:  # no image or no box at all
            found = error.problems or [Problem(str(error), data.source.name, "")]
            clean = None
        problems += found
        log.info("%s", describe(name, data))
        if clean is not None:
            log.info("%s", describe_reach(clean, wanted))
    if problems:
        advice = "Fix them, or train with --invalid drop (leave out) or --invalid clip (cut at the border)."
        log.info("%s\n%d problems. %s", report(problems), len(problems), advice)
    else:
        log.info("no problem found%s", "" if config.deep else " (images were not decoded: --deep does)")
    return not problems


def planned(config: CheckConfig) -> TrainConfig:
    """The training whose anchors and IoU thresholds are compared with the boxes."""
    names = ("scale", "anchor_size", "anchor_scales", "anchor_ratios")
    changes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return override(preset(config.preset or default_preset()), changes)


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


def describe_reach(data: Dataset, config: TrainConfig) -> str:
    """Which boxes the anchors of a training reach, and what to do when many are out of reach."""
    model, criterion = build(config.model, len(data.names)), Criterion(**asdict(config.criterion))
    found = anchor_reach(data, model, criterion, preprocess_of(config.model))
    if not len(found.sides):
        return "  no boxes to match"
    smallest = config.model.network.anchor_size * STRIDES[0]
    text = (
        f"  anchors from {smallest:.0f} px at a short side of {config.model.preprocess.scale} px; "
        f"{found.missed.sum()} boxes are matched by none\n{reach_table(found, data)}"
    )
    if found.missed.mean() <= 0.05:
        return text
    small = float(np.quantile(found.sides, 0.05))
    if small >= smallest:
        return (
            f"{text}\n    most of these have a shape that no anchor has: add to --set anchor_ratios=... "
            f"(height over width)"
        )
    size = max(1.0, round(2 * small / STRIDES[0]) / 2)
    return (
        f"{text}\n    one box in twenty is below {small:.0f} px: train with --anchor-size {size:g} (anchors "
        f"from {size * STRIDES[0]:.0f} px), a larger --scale, or both"
    )
