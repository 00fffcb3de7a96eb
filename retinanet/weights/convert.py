"""Other projects' weights as ours: a table of renames, and their conventions as settings. The model itself knows of no project."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import ImportConfig, ModelConfig
from ..errors import CheckpointError, ConfigError
from ..model.retinanet import RetinaNet
from .checkpoint import Card, build, load_model, save_model, sha256
from .coco_names import COCO
from .foreign import read_foreign, state_dict_of

log = logging.getLogger("retinanet")

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern for the whole of their key -> ours."""

FOREIGN = (".pth", ".pt", ".pkl", ".bin")
"""Ours end in .safetensors."""
ANCHORS = 9
"""Of a cell, in all these projects."""
V1_FILE = "eeacb38b"
"""How the SHA-256 of torchvision's retinanet_resnet50_fpn_coco-eeacb38b.pth begins: its batch norm has an eps of 0 (`overwrite_eps`)."""

SUBNETS = {"classification": "class_subnet", "regression": "box_subnet"}
HEAD = r"head\.(classification|regression)_head\.conv"


def _layer(kind: str, spacing: int = 1) -> Callable[[re.Match[str]], str]:
    """Layer `kind` of a head, of which theirs have one every `spacing` numbers; its place in our subnet is found by `placed`."""
    return lambda found: f"{SUBNETS[found[1]]}.{kind}{int(found[2]) // spacing}.{found[3]}"


TORCHVISION: list[Rule] = [
    (r"backbone\.body\.(.*)", r"backbone.body.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"pyramid.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"pyramid.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.(p[67])\.(weight|bias)", r"pyramid.\1.\2"),
    (HEAD + r"\.(\d)\.0\.(weight|bias)", _layer("conv")),
    (HEAD + r"\.(\d)\.1\.(weight|bias)", _layer("norm")),
    # before torchvision 0.13 a convolution and its ReLU stood side by side; the published v1 file is of that time
    (HEAD + r"\.([0246])\.(weight|bias)", _layer("conv", 2)),
    (r"head\.classification_head\.cls_logits\.(weight|bias)", r"class_subnet.last.\1"),
    (r"head\.regression_head\.bbox_reg\.(weight|bias)", r"box_subnet.last.\1"),
]


def run(foreign: str | Path, config: ImportConfig) -> Path:
    """The verb `import`: another project's file, converted once and written as ours; returns where."""
    path = Path(foreign)
    out = config.out or path.with_suffix(".safetensors")
    if out.exists():
        raise ConfigError(f"{out} exists, and nothing is overwritten; choose another --out")
    names = None
    if config.names is not None:
        names = [line.strip() for line in config.names.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    weights, card = import_weights(path, names, config.bn_eps)
    save_model(out, weights, card)
    log.info("%s: %s's RetinaNet, %d classes (%s ...): %s", path, card.about["project"], len(card.names), ", ".join(card.names[:3]), out)
    return out


def load_any(path: Path) -> tuple[RetinaNet, Card]:
    """The network and card of a file of ours, or of another project's, which is converted on the way."""
    if path.suffix not in FOREIGN:
        return load_model(path)
    weights, card = import_weights(path)
    model = build(card.model, len(card.names))
    model.load_state_dict(weights)
    return model, card


def import_weights(path: Path, names: Sequence[str] | None = None, eps: float | None = None) -> tuple[dict[str, Tensor], Card]:
    """Another project's file -> the weights of our network, and a card with that project's conventions.

    names  [K] of the classes, when they are not COCO's 80 or torchvision's 91 slots
    eps    of the backbone's batch norm, which no file tells; None: 0 for torchvision's own first file, else 1e-5

    CheckpointError when the file cannot be read, is of no known project, or does not fit: no key is guessed, none is left over.
    """
    weights = state_dict_of(read_foreign(path))
    if "backbone.body.conv1.weight" not in weights or "head.classification_head.cls_logits.weight" not in weights:
        raise CheckpointError(f"{path}: these are not the keys of a project that is known (torchvision's RetinaNet on a ResNet)")
    digest = sha256(path)
    if eps is None:
        eps = 0.0 if digest.startswith(V1_FILE) else 1e-5
    about = {"imported_from": path.name, "sha256": digest, "project": "torchvision"}
    return from_torchvision(path, weights, names, eps, about)


def from_torchvision(
    path: Path, weights: Mapping[str, Tensor], names: Sequence[str] | None, eps: float, about: dict[str, str]
) -> tuple[dict[str, Tensor], Card]:
    """retinanet_resnet50_fpn (P6 from P5) and retinanet_resnet50_fpn_v2 (P6 from C5, group norm in the heads)."""
    ours = rename(path, weights, TORCHVISION)
    needed = [f"pyramid.{level}.weight" for level in ("p6", "p7")]
    needed += [f"{subnet}.last.{part}" for subnet in SUBNETS.values() for part in ("weight", "bias")]
    missing = [key for key in needed if key not in ours]
    if missing:
        raise CheckpointError(f"{path} is not the whole of a RetinaNet: {', '.join(missing)} missing (our names)")
    normed = "class_subnet.norm0.weight" in ours
    config = ModelConfig(
        backbone="resnet50",
        backbone_eps=eps,
        subnet_norm="group" if normed else "none",
        p6="p5" if ours["pyramid.p6.weight"].shape == ours["pyramid.p7.weight"].shape else "c5",
        anchor_center=0.0,
        anchor_rounding=True,
        anchor_steps="picture",
        padding_anchors="kept",
        scale=800,
        max_side=1333,
        resize="plain",
        max_detections=300,
    )
    slots = len(ours["class_subnet.last.bias"]) // ANCHORS
    kept, ids, titles = classes(path, slots, names)
    by_octave = torch.arange(ANCHORS).reshape(3, 3).T.flatten()  # theirs: ratios outermost; ours: scales outermost
    for part in ("weight", "bias"):
        for subnet, rows in (("class_subnet", kept), ("box_subnet", list(range(4)))):
            key = f"{subnet}.last.{part}"
            ours[key] = ours[key].unflatten(0, (ANCHORS, -1))[by_octave][:, rows].flatten(0, 1)
    ours = {placed(key, 3 if normed else 2): value for key, value in ours.items()}
    card = Card(config, tuple(titles), tuple(ids), about=about)
    return fitting(path, ours, card), card


def rename(path: Path, weights: Mapping[str, Tensor], table: Sequence[Rule]) -> dict[str, Tensor]:
    """The same weights under our names; CheckpointError for a key without a rule, or two keys with one name."""
    ours: dict[str, Tensor] = {}
    strangers = []
    for key, value in weights.items():
        if key.endswith("num_batches_tracked"):  # a counter of batch norm that nothing reads
            continue
        rule = next((rule for rule in table if re.fullmatch(rule[0], key)), None)
        if rule is None:
            strangers.append(key)
            continue
        name = re.sub(rf"^(?:{rule[0]})$", rule[1], key)
        if name in ours:
            raise CheckpointError(f"{path}: {key} and another key are both {name}")
        ours[name] = value
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise CheckpointError(f"{path}: no rule for the keys {', '.join(strangers[:5])}{more}")
    return ours


def placed(key: str, step: int) -> str:
    """class_subnet.conv2.weight -> class_subnet.4.weight: its place in our subnet of `step` layers for each of four convolutions."""
    found = re.fullmatch(r"(class_subnet|box_subnet)\.(?:(conv|norm)(\d)|last)\.(.*)", key)
    if found is None:
        return key
    position = 4 * step if found[2] is None else step * int(found[3]) + (found[2] == "norm")
    return f"{found[1]}.{position}.{found[4]}"


def classes(path: Path, slots: int, names: Sequence[str] | None) -> tuple[list[int], list[int], list[str]]:
    """The rows that hold classes, the category ids and the names: as given, COCO's 80 in a row, or at their ids among torchvision's 91."""
    if names is not None:
        if len(names) != slots:
            raise ConfigError(f"{path} has {slots} classes, not {len(names)}; give as many names")
        return list(range(slots)), list(range(1, slots + 1)), list(names)
    if slots not in (80, 91):
        raise ConfigError(f"{path} has {slots} classes, neither 80 nor 91 as for COCO; name them with --names FILE, one a line")
    return list(COCO) if slots == 91 else list(range(80)), list(COCO), list(COCO.values())


def fitting(path: Path, weights: Mapping[str, Tensor], card: Card) -> dict[str, Tensor]:
    """The weights, float32, when they are exactly those of the network that the card describes."""
    with torch.device("meta"):
        wanted = build(card.model, len(card.names)).state_dict()
    common = wanted.keys() & weights.keys()
    problems = {
        "missing": wanted.keys() - common,
        "left over": weights.keys() - common,
        "of another shape": {key for key in common if weights[key].shape != wanted[key].shape},
    }
    told = [f"{len(keys)} {what}, the first: {min(keys)}" for what, keys in problems.items() if keys]
    if told:
        raise CheckpointError(f"{path} does not hold a RetinaNet that is known: {'; '.join(told)}")
    return {key: weights[key].float().contiguous() for key in wanted}
