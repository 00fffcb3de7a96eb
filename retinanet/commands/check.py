"""The command `check`: every problem of a data set, once, and the boxes that the anchors cannot reach."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from ..config.commands import CheckConfig
from ..config.io import check, override
from ..config.presets import default_preset, preset
from ..config.schema import TrainConfig
from ..data.dataset import Dataset
from ..data.folder import Folder
from ..data.formats.detect import open_dataset
from ..data.reach import anchor_reach, reach_table, too_narrow
from ..data.splits import IN_BOTH, account, in_both
from ..data.validate import validate
from ..errors import DataError, Problem, report
from ..files import write_atomically
from ..model.criterion import Criterion
from ..ops.anchors import STRIDES
from ..text import many
from ..weights.checkpoint import build, preprocess_of

log = logging.getLogger("retinanet")


def run(path: str, config: CheckConfig) -> bool:
    """Print what was understood, the reach of the anchors and all problems; true when there is no problem."""
    check(config)
    splits = open_dataset(path, config.layout, config.images)
    wanted = planned(config)
    problems: list[Problem] = []
    for name, data in splits.items():
        try:
            clean, found = validate(
                data,
                "clip",
                strict=config.strict,
                deep=config.deep,
                max_pixels=config.max_pixels,
                need_boxes=name != "test",
            )
        except DataError as error:  # no image or no box at all
            found = error.problems or [Problem("splits that cannot be used", name, str(error))]
            clean = None
        problems += found
        if clean is not None:
            log.info("%s: %s", name, describe_reach(clean, wanted))
    pairs = combinations((data for name, data in splits.items() if name != "all"), 2)
    problems += [problem for one, other in pairs for problem in in_both(one, other, content=True)]
    if problems:
        log.info(
            "%s", listed(problems, config.out or Path("runs") / f"{Path(path).resolve().name}-check.txt")
        )
    log.info("%s", summary(splits, problems, config.strict))
    if hidden := hidden_files(Path(path)):
        log.info("hidden and system files, left out: %d, as %s", len(hidden), hidden[0])
    if problems:
        advice = "Fix them, or train with --invalid drop (leave out) or --invalid clip (cut at the border)."
        log.info("%s. %s", many(len(problems), "problem"), advice)
    else:
        log.info("no problem found%s", "" if config.deep else " (images were not decoded: --deep does)")
    return not problems


MOST_LISTED = 10
"""Problems of a kind that are printed; a file has the rest."""


def listed(problems: list[Problem], file: Path) -> str:
    """The problems, each kind cut short; all of them go into `file` where some were cut."""
    if max(Counter((problem.kind, problem.file) for problem in problems).values()) > MOST_LISTED:
        write_atomically(file, (report(problems) + "\n").encode())
    return report(problems, MOST_LISTED, f"all are in {file}")


def summary(splits: dict[str, Dataset], problems: list[Problem], strict: bool) -> str:
    """What was understood: layout and classes, each split, and how many images stand in two of them."""
    first = next(iter(splits.values()))
    lines = [f"read as {first.layout.upper()}, {many(len(first.names), 'class', 'classes')}"]
    for name, data in splits.items():
        lacking = {problem.image for problem in problems if problem.kind != IN_BOTH}
        lines.append(describe(name, data, lacking))
        lines += [f"  {line}" for line in account(replace(data, repairs=() if strict else data.repairs))]
    if len(splits) > 1:
        shared = sum(problem.kind == IN_BOTH for problem in problems)
        lines.append(f"images in two splits, by path or content: {shared or 'none'}")
    return "\n".join(lines)


def planned(config: CheckConfig) -> TrainConfig:
    """The training whose anchors and IoU thresholds are compared with the boxes."""
    names = ("scale", "anchor_size", "anchor_scales", "anchor_ratios")
    changes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return override(preset(config.preset or default_preset()), changes)


def hidden_files(path: Path) -> list[str]:
    """The files that no reader looks at: .ipynb_checkpoints, ._a.jpg, __MACOSX, ..."""
    if not path.is_dir():
        return []
    folder = Folder(path)
    for _ in folder.folders():
        pass  # it lists each
    return folder.hidden()


def describe(name: str, data: Dataset, lacking: set[str]) -> str:
    """A split in a few lines: images, boxes, classes. `lacking` are images whose objects cannot be read."""
    counts = np.bincount(data.labels[~data.crowd], minlength=len(data.names))
    lack = [file in lacking for file in data.files.tolist()]
    empty = int(((np.diff(data.first) == 0) & ~np.array(lack, dtype=np.bool_)).sum())
    crowds = int(data.crowd.sum())
    lines = [
        f"{name}: {many(len(data), 'image')}, {many(int(counts.sum()), 'box', 'boxes')}"
        + (f" and {many(crowds, 'crowd')}" if crowds else "")
        + (f", {many(empty, 'image')} without objects" if empty else "")
        + (f", {many(sum(lack), 'image')} whose objects cannot all be read" if any(lack) else "")
    ]
    if not data.names:
        return lines[0]
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
    preprocess = preprocess_of(config.model)
    found = anchor_reach(data, model, criterion, preprocess)
    if not len(found.sides):
        return "no boxes to match"
    smallest = config.model.network.anchor_size * STRIDES[0]
    text = (
        f"anchors from {smallest:.0f} px at a short side of {config.model.preprocess.scale} px; "
        f"{found.missed.sum()} boxes are matched by none\n{reach_table(found, data)}"
    )
    if narrow := too_narrow(data, preprocess, min(model.strides)):
        text += f"\n    {many(len(narrow), 'image')} too narrow for any anchor, as {data.files[narrow[0]]}"
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
