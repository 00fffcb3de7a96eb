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
from ..device import pick_device
from ..errors import CheckpointError
from ..model.criterion import Criterion, forward_losses
from ..structures import Targets
from ..text import aligned
from ..training.diagnose import not_finite, read_dump
from ..weights.checkpoint import build, preprocess_of

log = logging.getLogger("retinanet")

AGREE = 1e-2
"""Largest relative difference of equal numbers: bf16 keeps three digits, and devices add in other orders."""


def run(dump: str | Path, config: ReplayConfig) -> bool:
    """Repeat the step of a dump as one batch in one process; true when the recorded numbers come again.

    Prints the losses by level beside the recorded ones, and which gradients are not finite.
    """
    content = read_dump(Path(dump))
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
            f"{dump} is not a whole dump of a training step ({type(error).__name__}: {error})"
        ) from error
    device, precision = pick_device(config.device), config.precision or settings.precision
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    step, files = content["iteration"] + 1, ", ".join(content["files"])
    log.info("iteration %d, lr %.3g, %s, with %s", step, content["lr"], precision, files)
    log.info("weights %s, as they were", content["checksum"])

    images = content["images"].to(device)
    scored = forward_losses(
        model,
        criterion,
        images,
        targets.to(device),
        anchors=model.anchors(images),
        preprocess=preprocess_of(settings.model, settings.train_scale),
        precision=precision,
    )
    torch.stack([loss for levels in scored.levels.values() for loss in levels]).sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))

    pairs = [("gradient_norm", recorded_norm, float(norm))]
    for name, losses in scored.levels.items():
        values = torch.stack(losses).tolist()
        for level, before, now in zip(model.levels, recorded[name], values, strict=True):
            pairs.append((f"{name} at {level}", before, now))
    rows = [(title, f"{before:.5g}", f"{now:.5g}") for title, before, now in pairs]
    log.info("%s", aligned([("", "recorded", "now"), *rows]))
    for title, tensors in (("logits", scored.logits), ("offsets", scored.offsets)):
        bad = not_finite(model.levels, [float(tensor.detach().abs().max()) for tensor in tensors])
        if bad:
            log.info("%s not finite at %s: the network itself, not the loss", title, ", ".join(bad))
    wrong = [name for name, gradient in reversed(gradients.items()) if not gradient.isfinite().all()]
    if wrong:
        text = "%d of %d gradients not finite; nearest to the loss: %s"
        log.info(text, len(wrong), len(gradients), ", ".join(wrong[:5]))
    agree = all(same(before, now) for _, before, now in pairs)
    log.info("reproduced" if agree else "not reproduced: here the step has other numbers")
    return agree


def same(one: float, other: float) -> bool:
    """Equal within AGREE, or both not finite."""
    if math.isfinite(one) and math.isfinite(other):
        return math.isclose(one, other, rel_tol=AGREE, abs_tol=1e-6)
    return math.isfinite(one) == math.isfinite(other)
