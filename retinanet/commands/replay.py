"""The command `replay`: repeats a step of training that was not finite."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict
from pathlib import Path

import torch

from ..config.commands import ReplayConfig
from ..config.io import from_json
from ..config.schema import TrainConfig
from ..device import autocast, pick_device
from ..errors import CheckpointError
from ..model.criterion import Criterion
from ..structures import Targets
from ..text import aligned
from ..training.diagnose import read_dump
from ..weights.checkpoint import build, preprocess_of

log = logging.getLogger("retinanet")

AGREE = 1e-2
"""Relative difference up to which two numbers are the same: bf16 keeps three digits, and another device adds
in another order.
"""


def run(dump: str | Path, config: ReplayConfig) -> bool:
    """Repeat the step of a dump, print its losses by level beside the recorded ones and whose gradient is not
    finite; true when it agrees.

    The step is run as one batch in one process, whatever it was. CheckpointError for a file that is not a
    whole dump of ours.
    """
    path = Path(dump)
    content = read_dump(path)
    try:
        settings = from_json(TrainConfig, content["config"])
        model = build(settings.model, len(content["names"]))
        model.load_state_dict(content["weights"])
        criterion = Criterion(**{**asdict(settings.criterion), "alpha": content["alpha"]})
        targets = Targets(content["boxes"], content["labels"], content["sizes"], content.get("seeds"))
        recorded = {
            name: [float(value) for value in content["levels"][name]] for name in ("class_loss", "box_loss")
        }
        recorded_norm = float(content["numbers"]["gradient_norm"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not a whole dump of a training step ({type(error).__name__}: {error})"
        ) from error
    device, precision = pick_device(config.device), config.precision or settings.precision
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    targets = targets.to(device)
    log.info(
        "iteration %d, lr %.3g, %s, with %s",
        content["iteration"] + 1,
        content["lr"],
        precision,
        ", ".join(content["files"]),
    )
    log.info("weights %s, as they were", content["checksum"])

    images = preprocess_of(settings.model, settings.train_scale).normalize(
        content["images"].to(device), targets.sizes
    )
    with autocast(precision, device):
        logits, offsets = model(images)
    anchors = model.anchors(images)
    parts = criterion.per_level(logits, offsets, anchors, criterion.match(anchors, targets))
    (sum(parts["class_loss"]) + sum(parts["box_loss"])).backward()  # type: ignore[union-attr]
    gradients = {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    norm = float(torch.nn.utils.get_total_norm(list(gradients.values())))

    agree = True
    rows: list[tuple[str, str, str]] = []
    for name, levels in parts.items():
        values, before = torch.stack(levels).tolist(), recorded[name]
        rows.append((name, "recorded", "now"))
        for level, then, now in zip(model.levels, before, values, strict=True):
            rows.append((f"  {level}", f"{then:.5g}", f"{now:.5g}"))
        agree &= all(map(same, before, values))
    log.info("%s", aligned([*rows, ("gradient_norm", f"{recorded_norm:.5g}", f"{norm:.5g}")]))
    agree &= same(recorded_norm, norm)
    for title, tensors in (("logits", logits), ("offsets", offsets)):
        bad = [
            level for level, tensor in zip(model.levels, tensors, strict=True) if not tensor.isfinite().all()
        ]
        if bad:
            log.info("%s not finite at %s: the network itself, not the loss", title, ", ".join(bad))
    wrong = [name for name, gradient in reversed(gradients.items()) if not gradient.isfinite().all()]
    if wrong:
        log.info(
            "%d of %d gradients not finite; nearest to the loss: %s",
            len(wrong),
            len(gradients),
            ", ".join(wrong[:5]),
        )
    log.info("reproduced" if agree else "not reproduced: here the step has other numbers")
    return agree


def same(one: float, other: float) -> bool:
    """Equal within AGREE, or both not finite."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return math.isclose(one, other, rel_tol=AGREE, abs_tol=1e-6)
