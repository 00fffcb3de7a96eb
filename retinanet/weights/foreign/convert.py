"""Other projects' weights as ours: a table of renames, and their conventions as settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from ...config.io import check, override
from ...config.schema import ModelConfig, NetworkConfig
from ...errors import CheckpointError, ConfigError
from ...files import sha256
from ..checkpoint import ModelInfo, build
from .projects import COCO, PROJECTS, Rule, conventions
from .reader import read_foreign, state_dict_of

V1_FILE = "eeacb38b"
"""How the SHA-256 of torchvision's first file begins: its batch norm has an eps of 0 (`overwrite_eps`)."""

DEPTHS: dict[tuple[tuple[int, ...], bool], int] = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
"""Blocks of a ResNet's four stages, and whether they are bottlenecks (He et al., 2016, Table 1)."""


NEEDED = [
    *("pyramid.p6.weight", "pyramid.p7.weight"),
    *("class_subnet.conv0.weight", "class_subnet.last.weight", "class_subnet.last.bias"),
    *("box_subnet.conv0.weight", "box_subnet.last.weight", "box_subnet.last.bias"),
]
"""Our names of what every RetinaNet has."""


def import_weights(
    path: Path, names: Sequence[str] | None = None, eps: float | None = None, style: str | None = None
) -> tuple[dict[str, Tensor], ModelInfo]:
    """Another project's file -> the weights of our network, and a card with that project's conventions.

    names  [K] of the classes, when they are not COCO's 80, torchvision's 91 slots or those in the file
    eps    of the backbone's batch norm, which no file says; None: 0 for torchvision's first file, else 1e-5
    style  pytorch or caffe, what the backbone's first weights came from; None: what the file says

    CheckpointError when the file cannot be read, is of no known project, or does not fit: no key is guessed,
    none is left over. ConfigError when names or style are needed and not given.
    """
    content = read_foreign(path)
    weights = state_dict_of(content)
    project = next((one for one in PROJECTS if one.mark in weights), None)
    if project is None:
        known = "torchvision's, Detectron2's and MMDetection's RetinaNet on a ResNet"
        raise CheckpointError(f"{path}: these are not the keys of a project that is known ({known})")
    digest = sha256(path)
    if eps is None:
        eps = 0.0 if digest.startswith(V1_FILE) else 1e-5
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    ours = rename(path, weights, project.table)
    try:
        settings = {
            "backbone_eps": eps,
            **project.settings,
            **conventions(path, project, weights, meta, style),
        }
        config = override(ModelConfig(), {**settings, **infer_config(path, ours)}, foreign=True)
        check(config)
        network = config.network
        per_cell = len(network.anchor_scales) * len(network.anchor_ratios)
        slots = len(ours["class_subnet.last.bias"]) // per_cell
        rows, ids, titles = classes(path, slots, names_in(meta) if names is None else names)
        ours = reordered(ours, network, project.ratios_first, rows)
        ours = {layer_name(key, network): value for key, value in ours.items()}
    except (CheckpointError, ConfigError):
        raise
    # shapes and numbers that no such file has
    except (IndexError, RuntimeError, OverflowError, TypeError, ValueError) as error:
        reason = str(error)[:300]
        raise CheckpointError(f"{path} does not hold a RetinaNet that is known: {reason}") from error
    about = {"imported_from": path.name, "sha256": digest, "project": project.name}
    card = ModelInfo(config, tuple(titles), tuple(ids), about=about)
    return check_shapes(path, ours, card), card


def rename(path: Path, weights: Mapping[str, Tensor], table: Sequence[Rule]) -> dict[str, Tensor]:
    """The same weights under our names; CheckpointError for a key without a rule, or two keys of one name."""
    ours: dict[str, Tensor] = {}
    strangers = []
    for key, value in weights.items():
        if key.endswith("num_batches_tracked"):  # a counter of batch norm that nothing reads
            continue
        rule = next((rule for rule in table if re.fullmatch(rule[0], key)), None)
        if rule is None:
            strangers.append(key)
        elif rule[1] is not None:
            name = re.sub(rf"^(?:{rule[0]})$", rule[1], key)
            if name in ours:
                raise CheckpointError(f"{path}: {key} and another key are both {name}")
            ours[name] = value
    if strangers:
        more = f" and {len(strangers) - 5} more" if len(strangers) > 5 else ""
        raise CheckpointError(f"{path}: no rule for the keys {', '.join(strangers[:5])}{more}")
    missing = [key for key in NEEDED if key not in ours]
    if missing:
        raise CheckpointError(
            f"{path} is not the whole of a RetinaNet: {', '.join(missing)} missing (our names)"
        )
    return ours


def infer_config(path: Path, ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings that follow from the weights: backbone, widths, depths, source of P6."""
    bottlenecks = "backbone.body.layer1.0.conv3.weight" in ours
    return {
        "backbone": resnet(path, ours),
        "channels": len(ours["pyramid.p7.weight"]),
        "num_convs": sum(re.fullmatch(r"class_subnet\.conv\d+\.weight", key) is not None for key in ours),
        "subnet_norm": "group" if "class_subnet.norm0.weight" in ours else "none",
        "p6": "p5" if ours["pyramid.p6.weight"].shape == ours["pyramid.p7.weight"].shape else "c5",
        **({} if bottlenecks else {"backbone_stride": "3x3"}),  # without a 1x1 the styles are one
    }


def resnet(path: Path, ours: Mapping[str, Tensor]) -> str:
    """timm's name of the ResNet or ResNeXt that has these weights."""
    stages = [
        {key.split(".")[3] for key in ours if key.startswith(f"backbone.body.layer{stage}.")}
        for stage in (1, 2, 3, 4)
    ]
    middle = ours.get("backbone.body.layer1.0.conv2.weight")
    blocks = tuple(map(len, stages))
    depth = DEPTHS.get((blocks, "backbone.body.layer1.0.conv3.weight" in ours))
    name = f"resnet{depth}"
    if middle is not None and middle.shape[:2] != (64, 64):
        # in groups, each of as many channels as a filter sees
        name = f"resnext{depth}_{middle.shape[0] // max(1, middle.shape[1])}x{middle.shape[1]}d"
    if depth is None or middle is None or name not in timm.list_models():
        raise CheckpointError(
            f"{path}: its backbone, of {'+'.join(map(str, blocks))} blocks, is no known ResNet"
        )
    return name


def reordered(
    ours: dict[str, Tensor], config: NetworkConfig, ratios_first: bool, rows: Sequence[int]
) -> dict[str, Tensor]:
    """The last layers with a cell's anchors in our order; of the class scores the `rows` that are classes."""
    scales, ratios = len(config.anchor_scales), len(config.anchor_ratios)
    order = torch.arange(scales * ratios)
    if ratios_first:
        order = order.reshape(ratios, scales).T.flatten()
    changed = dict(ours)
    for subnet, kept in (("class_subnet", rows), ("box_subnet", range(4))):
        for part in ("weight", "bias"):
            key = f"{subnet}.last.{part}"
            changed[key] = ours[key].unflatten(0, (scales * ratios, -1))[order][:, list(kept)].flatten(0, 1)
    return changed


def layer_name(key: str, config: NetworkConfig) -> str:
    """class_subnet.conv2.weight -> class_subnet.4.weight: ours has two or three layers a convolution."""
    found = re.fullmatch(r"(class_subnet|box_subnet)\.(?:(conv|norm)(\d+)|last)\.(.*)", key)
    if found is None:
        return key
    step = 2 if config.subnet_norm == "none" else 3
    position = config.num_convs * step if found[2] is None else step * int(found[3]) + (found[2] == "norm")
    return f"{found[1]}.{position}.{found[4]}"


def names_in(meta: Mapping[str, Any]) -> list[str] | None:
    """The class names that an MMDetection file carries."""
    inner = meta.get("dataset_meta")
    inner = inner if isinstance(inner, dict) else {}
    for found in (meta.get("CLASSES"), inner.get("classes"), inner.get("CLASSES")):
        if isinstance(found, (list, tuple)) and found and all(isinstance(name, str) for name in found):
            return list(found)
    return None


def classes(path: Path, slots: int, names: Sequence[str] | None) -> tuple[list[int], list[int], list[str]]:
    """The rows that hold classes, the category ids and the names: as given, or COCO's 80, which torchvision
    has at their ids among 91."""
    if names is not None and list(names) != list(COCO.values()):
        if len(names) != slots:
            raise ConfigError(f"{path} has {slots} classes, not {len(names)}; give as many names")
        if not all(names) or len(set(names)) < len(names):
            raise ConfigError("of the class names one is empty or stands twice; each needs its own")
        return list(range(slots)), list(range(1, slots + 1)), list(names)
    if slots not in (80, 91):
        raise ConfigError(
            f"{path} has {slots} classes, neither 80 nor 91 as COCO has; name them with --names FILE"
        )
    return list(COCO) if slots == 91 else list(range(80)), list(COCO), list(COCO.values())


def check_shapes(path: Path, weights: Mapping[str, Tensor], card: ModelInfo) -> dict[str, Tensor]:
    """The weights, float32, when they are exactly those of the network that the card describes."""
    with torch.device("meta"):
        wanted = build(card.model, len(card.names)).state_dict()
    common = wanted.keys() & weights.keys()
    problems = {
        "missing": wanted.keys() - common,
        "left over": weights.keys() - common,
        "of another shape": {key for key in common if weights[key].shape != wanted[key].shape},
    }
    wrong = [f"{len(keys)} {what}, the first: {min(keys)}" for what, keys in problems.items() if keys]
    if wrong:
        raise CheckpointError(f"{path} does not hold a RetinaNet that is known: {'; '.join(wrong)}")
    return {key: weights[key].float().contiguous() for key in wanted}
