"""How a run was trained, in words: the lines of a table for its model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..config.io import flat
from ..config.presets import PRESETS
from ..config.schema import CriterionConfig, TrainConfig
from ..device import describe, versions
from ..text import duration, many
from .setup import TrainState

ELSEWHERE = {
    "out",
    "images",
    "init",
    "layout",
    "device",
    "workers",
    "micro_batch",
    "precision",
    "compile",
    "max_pixels",
} | {*("budget", "seed", "validations", "log_every", "save_every", "tensorboard")}
"""Settings that the line of the preset leaves out: other lines tell them, or they change nothing that is
learned.
"""

NORMS = {"frozen": "frozen batch norm", "batch": "batch norm", "group": "group norm"}

CLASS_LOSSES = {
    "cross_entropy": "cross entropy",
    "balanced": "balanced cross entropy (alpha {alpha})",
    "focal": "focal loss (alpha {alpha}, gamma {gamma:g})",
    "hinge": "hinge loss (margin {margin:g}, alpha {alpha})",
    "focal_star": "focal loss star (alpha {alpha}, gamma {gamma:g}, beta {beta:g})",
}

BOX_LOSSES = {"smooth_l1": "smooth L1 (beta {smooth_l1_beta:.3g})", "l1": "L1", "giou": "GIoU"}

SCHEDULES = {"drops": "divided by 10 after 2/3 and after 8/9 of the run", "cosine": "a cosine to 0"}
"""A choice that has no words here is told by its own name."""


def recipe(session: TrainState, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """What is told -> how it was, from the settings, config.json (`about`) and metrics.jsonl (`rows`); what
    is not known is left out.
    """
    config = session.config
    lines = {
        "preset": preset_line(about.get("preset"), config),
        "network": network_line(session),
        "pictures": picture_line(config),
        "length": length_line(session, about["iterations"]),
        "optimiser": optimizer_line(session),
        "schedule": schedule_line(config, about["iterations"]),
        "loss": loss_line(config.criterion),
        "augmentation": augmentation_line(config),
        "averaging": f"running average of the weights, decay {config.ema:g}: it is what is measured and saved"
        if config.ema
        else "",
        "precision": config.precision,
        "seed": str(config.seed),
        "machine": machine_line(session, about),
        "time": time_line(session, rows),
        "versions": then(told_versions(about["versions"]), told_versions(versions())),
    }
    return {name: text for name, text in lines.items() if text}


def preset_line(name: str | None, config: TrainConfig) -> str:
    """The preset, and every setting that is not the preset's and has a part in what is learned."""
    if name not in PRESETS:
        return ""
    usual = flat(PRESETS[name].config)
    changes = [
        f"{key} {setting(value)}"
        for key, value in flat(config).items()
        if key not in ELSEWHERE and value != usual[key]
    ]
    return f"{name}; changed: {', '.join(changes)}" if changes else name


def setting(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, tuple):
        return " ".join(map(setting, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


def network_line(session: TrainState) -> str:
    """Backbone, pyramid, subnets, size."""
    model = session.config.model.network
    size = sum(parameter.numel() for parameter in session.shipped.parameters()) / 1e6
    subnets = f"{many(model.num_convs, 'convolution')} a subnet" + (
        f" with {NORMS['group']}" if model.subnet_norm == "group" else ""
    )
    norm = NORMS.get(model.backbone_norm, model.backbone_norm)
    return (
        f"{model.backbone} with {norm}, {model.channels} channels, {subnets}; {size:.1f} million parameters"
    )


def picture_line(config: TrainConfig) -> str:
    """How large the network sees them."""
    model = config.model.preprocess
    limit = f"{model.max_side} px" if model.max_side else "5/3 of that"
    smaller = (
        f"; {config.train_scale} px in training" if config.train_scale not in (None, model.scale) else ""
    )
    return f"short side {model.scale} px, long side at most {limit}{smaller}"


def length_line(session: TrainState, iterations: int) -> str:
    """Iterations, images, epochs."""
    batch, epochs = session.sampler.batch, iterations / session.sampler.steps_per_epoch
    return (
        f"{many(iterations, 'iteration')} of {many(batch, 'image')}: "
        f"{many(iterations * batch, 'image')} shown, {epochs:.1f} epochs"
    )


def optimizer_line(session: TrainState) -> str:
    """Name, rate, decay, clipping."""
    config = session.config
    name = "AdamW" if config.optimizer == "adamw" else f"SGD, momentum {config.momentum:g}"
    clipping = f", gradient clipped at a norm of {config.max_grad_norm:g}" if config.max_grad_norm else ""
    return f"{name}, learning rate {session.rate:.3g}, weight decay {config.weight_decay:g}{clipping}"


def schedule_line(config: TrainConfig, iterations: int) -> str:
    """What becomes of the learning rate."""
    warmup = min(config.warmup, iterations // 10)
    return SCHEDULES.get(config.schedule, config.schedule) + (
        f", after {many(warmup, 'iteration')} of warm-up" if warmup else ""
    )


def loss_line(criterion: CriterionConfig) -> str:
    """Class loss and box loss with their parameters, and who is a positive."""
    values = vars(criterion) | {"alpha": setting(criterion.alpha)}
    factor = "" if criterion.box_weight == 1 else f"{criterion.box_weight:g} x "
    loss = CLASS_LOSSES.get(criterion.loss, criterion.loss).format(**values)
    box = BOX_LOSSES.get(criterion.box_loss, criterion.box_loss).format(**values)
    if criterion.mining != "none":
        loss += f" over {criterion.mining_batch} anchors a picture by {criterion.mining}"
    return (
        f"{loss} + {factor}{box}; positive from IoU {criterion.positive:g}, "
        f"background below {criterion.negative:g}"
    )


def augmentation_line(config: TrainConfig) -> str:
    """What is done to the pictures in training."""
    low, high = config.jitter
    parts = [f"horizontal flips ({config.flip:g})"] if config.flip else []
    parts += [f"scale {low:g} to {high:g}"] if (low, high) != (1, 1) else []
    parts += [f"colours ({config.photometric:g})"] if config.photometric else []
    return ", ".join(parts) or "none"


def machine_line(session: TrainState, about: dict[str, Any]) -> str:
    """What it ran on; a run that went on elsewhere names both machines."""
    several = f", {about['processes']} processes" if about["processes"] > 1 else ""
    return then(about["machine"], describe(session.device)) + several


def time_line(session: TrainState, rows: Sequence[dict[str, Any]]) -> str:
    """Time of the steps, from the speed in each row of the record, which a run that was stopped goes on
    with.
    """
    seconds, before = 0.0, 0
    for row in rows:
        if row["kind"] == "train" and row.get("images_per_second"):
            seconds += (row["iteration"] - before) * session.sampler.batch / row["images_per_second"]
            before = row["iteration"]
    return f"{duration(seconds)} of training steps, validation not counted" if seconds else ""


def told_versions(numbers: dict[str, str]) -> str:
    """retinanet 0.1.0, torch 2.11.0, ..."""
    return ", ".join(f"{package} {number}" for package, number in numbers.items())


def then(before: str, now: str) -> str:
    """Both, where they differ."""
    return before if before == now else f"{before}; then {now}"
