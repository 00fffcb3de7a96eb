"""The model card of a run, a README.md as the Hugging Face hub shows it, and the origin of its weights."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import yaml

from ..config.io import flat
from ..config.presets import PRESETS
from ..config.schema import TrainConfig
from ..device import describe, versions
from ..evaluation.coco import NUMBERS, Metrics
from ..files import write_atomically
from ..model.backbone import PINNED
from ..ops.fused import CLASS_LOSSES
from ..text import duration, escaped, many, shown, table
from ..weights.checkpoint import ModelInfo
from .resume import Counters
from .setup import TrainState

log = logging.getLogger("retinanet")

MARK = "<!-- Written by retinanet train at every validation. Delete this line to keep what you edit. -->"

TEMPLATE = Path(__file__).with_name("card.md")

FEW = 12
"""Classes that are named at the top; the table has all."""

PRIVATE = ["out", "images", "init", "layout", "device", "workers", "micro_batch", "precision", "compile"]
PRIVATE += ["max_pixels", "budget", "seed", "validations", "log_every", "save_every", "tensorboard"]
"""Settings that are not named as changes of the preset: named elsewhere, or without effect on the weights."""

RECIPE = {
    "network": ["backbone", "backbone_norm", "channels", "num_convs", "subnet_norm", "pyramid"],
    "images": ["scale", "max_side", "train_scale"],
    "optimiser": ["optimizer", "momentum", "weight_decay", "max_grad_norm", "schedule", "warmup", "ema"],
    "augmentation": ["flip", "jitter", "photometric", "repeat_threshold"],
}
"""Lines of the recipe and the settings in them."""

KINDS = {"backbone": "ImageNet weights of the backbone", "model": "a trained model"}

FACTS = ("project", "imported_from", "published_as", "published_ap", "trained_on", "began", "licence")
"""What may be known about the origin of weights."""

LONGEST = 20
"""Models of a chain, each trained from the one before, that are remembered."""


def write_card(folder: Path, text: str) -> None:
    """Write README.md of a run; one that a user has written or edited stays."""
    path = folder / "README.md"
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        log.info("%s is not ours and stays as it is; no model card is written", path)
        return
    write_atomically(path, text.encode(errors="replace"))


def model_card(
    name: str,
    state: TrainState,
    about: dict[str, Any],
    progress: Counters,
    metrics: Metrics,
    rows: Sequence[dict[str, Any]],
) -> str:
    """The card of the shipped weights, from config.json (`about`), `metrics` and metrics.jsonl (`rows`)."""
    path = Path(about["data"])
    data = path.name if path.name not in ("", "..") else path.resolve().name or "data"
    done, iterations, names = progress.done, about["iterations"], [*map(escaped, state.training.names)]
    corners = state.training.boxes[~state.training.crowd]
    low, high = np.quantile(np.sqrt((corners[:, 2:] - corners[:, :2]).prod(axis=1)), (0.01, 0.99))
    height, width = np.median(state.training.sizes, axis=0)
    at = f"iteration {done:,} of {'about ' if progress.pace.estimated else ''}{iterations:,}"
    unfinished = f"\n\n**The training had not ended when this was written**: it was at {at}."
    held_out = f"The validation images were held out of train, by seed {state.config.seed}."
    threshold = (
        f"Threshold: {shown(metrics.threshold)}, the score with the best F1 over all classes in validation "
        f"({shown(metrics.f1)} at IoU 0.5). It decides what is drawn and printed; AP does not depend on it."
    )
    remarks = [f"{escaped(text[0].upper() + text[1:])}." for text in metrics.remarks()]
    if metrics.threshold is None:
        threshold = "Nothing was found in validation, so the threshold for images is 0.5, which is a guess."
    return TEMPLATE.read_text(encoding="utf-8").format(
        head=front_matter(name, data, state, about, metrics),
        mark=MARK,
        name=escaped(name),
        backbone=state.config.model.network.backbone,
        data=escaped(data),
        classes=many(len(names), "class", "classes"),
        few=", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else ""),
        ap=shown(metrics["AP"]),
        images=many(metrics.images, "image"),
        boxes=many(metrics.boxes, "box", "boxes"),
        unfinished=unfinished if done < iterations else "",
        at=at if state.average is None else f"{at}, a running average",
        best=best_weights(progress, rows),
        numbers="\n\n".join([table(NUMBERS, [[shown(metrics[key]) for key in NUMBERS]]), *remarks]),
        threshold=threshold,
        per_class=per_class(state, metrics),
        splits=splits(state, about),
        held_out=held_out if state.validation.held_out else "",
        recipe=table(("", ""), recipe(state, about, rows).items()),
        origins=began_from(about),
        chosen="`best.safetensors`" if metrics.threshold is None else "the threshold and `best.safetensors`",
        low_high=f"{low:.0f} to {high:.0f}",
        usual_image=f"{width:.0f} x {height:.0f}",
        licences="".join(map(licence_line, about.get("init", []))),
    )


def licence_line(entry: dict[str, str]) -> str:
    """The licence of one of the models that these weights go back to."""
    name, licence = entry.get("name", "the initial weights"), entry.get("licence") or "not recorded"
    return f" The licence of {escaped(name)}, from which they come: {escaped(licence)}."


def front_matter(name: str, data: str, state: TrainState, about: dict[str, Any], metrics: Metrics) -> str:
    """The part of what the hub reads that differs between runs, in YAML."""
    base = next(map(hub_address, about.get("init", [])), None)
    values: dict[str, Any] = {"base_model": base} if base else {}
    known = [(key, round(value, 4)) for key, value in metrics.numbers.items() if value is not None]
    if known:
        result = {
            "task": {"type": "object-detection", "name": "Object detection"},
            # a type is the address of a data set on the hub
            "dataset": {"name": data, "type": "custom", "split": state.validation.split},
            "metrics": [{"type": key, "name": key, "value": value} for key, value in known],
        }
        values["model-index"] = [{"name": name, "results": [result]}]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True) if values else ""


def best_weights(progress: Counters, rows: Sequence[dict[str, Any]]) -> str:
    """The best AP and its iteration, where the record has it."""
    found = (row["iteration"] for row in rows if row["kind"] == "val" and (row["AP"] or 0.0) == progress.best)
    at = next(found, None)
    if at == progress.done:
        return f"{shown(progress.best)}: they are the same"
    return shown(progress.best) + ("" if at is None else f" (iteration {at:,})")


def per_class(state: TrainState, metrics: Metrics) -> str:
    """AP of each class, and how many boxes it was learned from and measured on."""
    training = state.training
    boxes = np.bincount(training.labels[~training.crowd], minlength=len(training.names)).tolist()
    rows = []
    for category, learned, row in zip(training.category_ids, boxes, metrics.per_class, strict=True):
        numbers = map(shown, (row.AP, row.AP50, row.AP75, row.f1, row.threshold))
        rows.append([escaped(row.name), str(category), f"{learned:,}", f"{row.boxes:,}", *numbers])
    counts = ("class", "id", "boxes in training", "in validation")
    return table((*counts, "AP", "AP50", "AP75", "best F1", "at score"), rows)


def splits(state: TrainState, about: dict[str, Any]) -> str:
    """Name, sizes and fingerprint of the two splits."""
    rows = []
    for split, key in ((state.training, "data_hash"), (state.validation, "validation_hash")):
        boxes = int((~split.crowd).sum())
        rows.append([escaped(split.split), f"{len(split):,}", f"{boxes:,}", f"`{about[key]}`"])
    return table(("split", "images", "boxes", "fingerprint"), rows)


def recipe(state: TrainState, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """How it was trained, from the settings, config.json (`about`) and metrics.jsonl (`rows`)."""
    config, batch, iterations = state.config, state.sampler.batch, about["iterations"]
    settings = flat(config)
    lines = {name: listed(settings, names) for name, names in RECIPE.items()}
    size = sum(parameter.numel() for parameter in state.shipped.parameters()) / 1e6
    loss = CLASS_LOSSES[config.criterion.loss]
    own = ["loss", *["alpha"] * loss.weighted, *loss.parameters, "box_loss", "box_weight"]
    mining = ["mining", *["mining_batch"] * (config.criterion.mining != "none")]
    several = f", {about['processes']} processes" if about["processes"] > 1 else ""
    seconds, before = 0.0, 0
    for row in rows:
        if row["kind"] == "train" and row.get("images_per_second"):
            seconds += (row["iteration"] - before) * batch / row["images_per_second"]
            before = row["iteration"]
    return {
        "preset": preset_line(about.get("preset"), config),
        "length": f"{many(iterations, 'iteration')} of {many(batch, 'image')}: "
        f"{many(iterations * batch, 'image')} shown, {iterations / state.sampler.steps_per_epoch:.1f} epochs",
        **lines,
        "network": f"{lines['network']}; {size:.1f} million parameters",
        "optimiser": f"{lines['optimiser']}; learning rate {state.rate:.3g}",
        "loss": listed(settings, [*own, *mining, "positive", "negative", "normalize"]),
        "precision": config.precision,
        "seed": str(config.seed),
        "machine": then(about["machine"], describe(state.device)) + several,
        "time": f"{duration(seconds)} of training steps, validation not counted",
        "versions": then(*(listed(numbers, numbers) for numbers in (about["versions"], versions()))),
    }


def preset_line(name: str | None, config: TrainConfig) -> str:
    """The preset, and every setting that is not the preset's and affects what is learned."""
    if name not in PRESETS:
        return "none"
    usual, now = flat(PRESETS[name].config), flat(config)
    changed = [key for key in now if key not in PRIVATE and now[key] != usual[key]]
    return f"{name}; changed: {listed(now, changed)}" if changed else name


def listed(settings: Mapping[str, Any], names: Iterable[str]) -> str:
    """Settings with their names, as a user writes them."""
    return ", ".join(f"{name} {setting(settings[name])}" for name in names)


def setting(value: Any) -> str:
    """A value as a user writes it."""
    if isinstance(value, tuple):
        return " ".join(map(setting, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower()


def then(before: str, now: str) -> str:
    """Both, where they differ."""
    return before if before == now else f"{before}; then {now}"


def began_from(about: dict[str, Any]) -> str:
    """The initial weights, the nearest first; nothing where they were not recorded."""
    if "init" not in about:
        return ""
    lines = [f"{place}. {origin_line(entry)}" for place, entry in enumerate(about["init"], 1)]
    return f"\n## Initial weights\n\n{chr(10).join(lines) or 'None: everything was trained from scratch.'}\n"


def origin_line(entry: dict[str, Any]) -> str:
    """One of the models that these weights go back to."""
    name, address = escaped(entry.get("name", "without a name")), hub_address(entry)
    link = f"[{name}](https://huggingface.co/{address})" if address else name
    facts = [f"{key.replace('_', ' ')} {escaped(entry[key])}" for key in FACTS if entry.get(key)]
    return ", ".join([f"{KINDS.get(entry.get('kind', ''), 'weights')}: {link}", *facts])


def hub_address(entry: dict[str, Any]) -> str | None:
    """OWNER/NAME on the hub, where the weights that a run began from have one."""
    address = f"hf:{entry['hub']}" if "hub" in entry else str(entry.get("name"))
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(@.*)?", address, re.ASCII)  # a revision may follow
    return found[1] if found else None


def origins(config: TrainConfig, info: ModelInfo | None = None) -> list[dict[str, Any]]:
    """What a training begins from, the nearest first, as plain values; empty when it is from scratch.

    info     of the file that --init names; it knows what that model began from
    returns  dicts with `kind` (model, backbone) and `name`, and where known `licence` and the like
    """
    if config.init_model is None:
        return [imagenet(config.model.network.backbone)] if config.init == "imagenet" else []
    about = {} if info is None else info.about
    known = {key: str(about[key])[:200] for key in FACTS if isinstance(about.get(key), (str, int, float))}
    if isinstance(about.get("data"), str):
        known["trained_on"] = Path(about["data"]).name[:200]
    earlier = about.get("init")  # the file may come from anywhere, so its form is not trusted
    if earlier == []:
        known["began"] = "from scratch"
    entries = earlier if isinstance(earlier, list) else []
    chain = [
        {key: value[:200] for key, value in entry.items() if isinstance(key, str) and isinstance(value, str)}
        for entry in entries
        if isinstance(entry, dict)
    ]
    return [{"kind": "model", "name": public_name(config.init), **known}, *chain][:LONGEST]


def imagenet(backbone: str) -> dict[str, str]:
    """timm's weights that the bare name of a backbone means, with their licence."""
    known = timm.get_pretrained_cfg(PINNED.get(backbone, backbone)).to_dict()
    name = ".".join(str(known[key]) for key in ("architecture", "tag") if known.get(key))
    facts = {"hub": known.get("hf_hub_id"), "licence": known.get("license")}
    entry = {"kind": "backbone", "name": name or backbone, "project": "timm"}
    return entry | {key: str(value) for key, value in facts.items() if value}


def public_name(path: str | Path) -> str:
    """A run or file without the folders above it, which are private; an address on a hub stays whole."""
    if str(path).startswith("hf:"):
        return str(path)
    path = Path(path).resolve()
    return f"{path.parent.name}/{path.name}" if path.stem in ("model", "best") else path.name
