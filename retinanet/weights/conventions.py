"""What a foreign file itself tells of its project's conventions. What it does not tell is asked for, what is
not known is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError
from ..ops.anchors import STRIDES, cell_anchors
from .projects import DETECTRON2, MMDETECTION, STYLES, Project


def conventions(
    path: Path, project: Project, weights: Mapping[str, Tensor], meta: Mapping[str, Any], style: str | None
) -> dict[str, Any]:
    """Settings of ours that differ between the files of one project: how pictures are normalised, the stride
    of a bottleneck, and so on.

    style  what the user says of the backbone, pytorch or caffe; None: what the file tells
    """
    if style is not None and style not in STYLES:
        raise ConfigError(f"style is pytorch or caffe, not {style!r}")
    if project is DETECTRON2:
        return detectron2(path, weights, style)
    if project is MMDETECTION:
        return mmdetection(path, weights, meta, style)
    return STYLES[style or "pytorch"]


def detectron2(path: Path, weights: Mapping[str, Tensor], style: str | None) -> dict[str, Any]:
    """From the constants that files until 2020 carry; without them caffe for a ResNet-50 or 101, as all that
    Detectron2 has published.
    """
    for level, stride in enumerate(STRIDES):
        anchors = weights.get(f"anchor_generator.cell_anchors.{level}")
        if anchors is not None and (
            anchors.shape != (9, 4) or not torch.allclose(anchors.float(), cell_anchors(stride), atol=0.05)
        ):
            raise CheckpointError(
                f"{path}: its anchors are not RetinaNet's nine of a cell, and others are not read from a "
                f"Detectron2 file"
            )
    if style is not None:
        return STYLES[style]
    if "pixel_mean" in weights and "pixel_std" in weights:
        mean, std = (
            tuple((weights[name].double().flatten() / 255).tolist()) for name in ("pixel_mean", "pixel_std")
        )
        step = -1 if mean[0] < mean[-1] else 1  # of ImageNet red is the brightest, so BGR rises
        usual = STYLES["caffe" if bool((weights["pixel_std"] == 1).all()) else "pytorch"]
        order = "bgr" if step == -1 else "rgb"
        return {**usual, "pixel_order": order, "pixel_mean": mean[::step], "pixel_std": std[::step]}
    middle = weights.get("backbone.bottom_up.res2.0.conv2.weight")
    if (
        "backbone.bottom_up.res2.0.conv3.weight" not in weights
        or middle is None
        or middle.shape[:2] != (64, 64)
    ):
        raise ConfigError(
            f"{path} does not tell how its backbone wants its pictures; give --style pytorch or caffe"
        )
    return STYLES["caffe"]


def mmdetection(
    path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any], style: str | None
) -> dict[str, Any]:
    """From the configuration in the file, a text in Python of which nothing is executed."""
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    model, pipeline = blocks(text, ("model", "img_norm_cfg", "test_cfg")), blocks(text, ("test_pipeline",))
    told = {name: found[-1] for name, pattern in TOLD.items() if (found := re.findall(pattern, model))}
    for name, (pattern, usual) in FIXED.items():
        odd = [
            found
            for found in re.findall(pattern, model + pipeline)
            if found.replace(" ", "").strip(",") not in usual
        ]
        if odd:
            raise CheckpointError(
                f"{path}: its configuration has {name} = {odd[-1][:50]}, which is not read here; only "
                f"{usual[0]} is"
            )
    chosen = style or told.get("style")
    if chosen not in STYLES:
        raise ConfigError(
            f"{path} does not tell what its backbone came from; give --style pytorch or caffe, as its "
            f"configuration has it"
        )
    same = weights["neck.fpn_convs.3.conv.weight"].shape == weights["neck.fpn_convs.4.conv.weight"].shape
    if same and told.get("extra") != "on_output":
        raise CheckpointError(f"{path}: its P6 comes neither from C5 nor, as far as the file tells, from P5")
    settings = mmdetection_settings(told)
    sides = re.findall(r"\b(?:img_)?scale\s*=\s*[\[(]+(\d+)\s*,\s*(\d+)", pipeline)
    if sides:
        settings |= {"scale": min(map(int, sides[-1])), "max_side": max(map(int, sides[-1]))}
    return {**settings, **STYLES[style]} if style else {**STYLES[chosen], **settings}


def blocks(text: str, names: tuple[str, ...]) -> str:
    """What is assigned to these names at the left margin, one after the other; of other parts (test-time
    augmentation) nothing.
    """
    found = []
    for start in re.finditer(rf"^(?:{'|'.join(names)})\s*=\s*(?:dict)?[(\[{{]", text, re.MULTILINE):
        depth, end = 1, start.end()
        while end < len(text) and depth:
            depth += (text[end] in "([{") - (text[end] in ")]}")
            end += 1
        found.append(text[start.start() : end])
    return "\n".join(found)


QUOTED = r"['\"](\w+)['\"]"
NUMBERS = r"[\[(]([^\])]*)[\])]"
IS = r"['\"]?\s*[=:]\s*"
TOLD: dict[str, str] = {
    "style": rf"\bstyle{IS}{QUOTED}",
    "pixel_mean": rf"\bmean{IS}{NUMBERS}",
    "pixel_std": rf"\bstd{IS}{NUMBERS}",
    "rgb": rf"\b(?:bgr_)?to_rgb{IS}(True|False)",
    "extra": rf"\badd_extra_convs{IS}['\"]?(\w+)",
    "p7_relu": rf"\brelu_before_extra_convs{IS}(True|False)",
    "padding_multiple": rf"\bpad_size_divisor{IS}(\d+)",
    "score_threshold": rf"\bscore_thr{IS}([\d.e-]+)",
    "nms_threshold": rf"\biou_thr(?:eshold)?{IS}([\d.e-]+)",
    "per_level": rf"\bnms_pre{IS}(\d+)",
    "max_detections": rf"\bmax_per_img{IS}(\d+)",
    "anchor_size": rf"\boctave_base_scale{IS}([\d.]+)",
    "octaves": rf"\bscales_per_octave{IS}(\d+)",
    "anchor_ratios": rf"\bratios{IS}{NUMBERS}",
}
"""How the configuration states what matters here. Of several the last one counts: older files hold all
inherited texts in a row.
"""
FIXED: dict[str, tuple[str, tuple[str, ...]]] = {
    "target_means": (rf"\btarget_means{IS}{NUMBERS}", ("0.0,0.0,0.0,0.0", ".0,.0,.0,.0", "0,0,0,0")),
    "target_stds": (rf"\btarget_stds{IS}{NUMBERS}", ("1.0,1.0,1.0,1.0", "1,1,1,1")),
    "strides": (
        rf"\bstrides{IS}[\[(](\s*\d+\s*(?:,\s*\d+\s*){{4,}})",
        ("8,16,32,64,128",),
    ),  # a backbone has four
    "center_offset": (rf"\bcenter_offset{IS}([\d.]+)", ("0", "0.0", "0.", ".0")),
    "base_sizes": (rf"\bbase_sizes{IS}{NUMBERS}", ("8,16,32,64,128",)),
    "anchor scales": (rf"\bscales{IS}{NUMBERS}", ("none, but octave_base_scale and scales_per_octave",)),
    "keep_ratio": (rf"\bkeep_ratio{IS}(\w+)", ("True",)),
}
"""What is always so in its RetinaNet; another value would give other boxes."""
OCTAVES = 64


def mmdetection_settings(told: Mapping[str, str]) -> dict[str, Any]:
    """Those in TOLD as settings of ours; mean and std are theirs in 0..255, in the order in which the network
    is given the colours.
    """
    settings: dict[str, Any] = {
        name: int(told[name]) for name in ("per_level", "max_detections", "padding_multiple") if name in told
    }
    settings |= {
        name: float(told[name])
        for name in ("score_threshold", "nms_threshold", "anchor_size")
        if name in told
    }
    if "p7_relu" in told:
        settings["p7_relu"] = told["p7_relu"] == "True"
    if "anchor_ratios" in told:
        settings["anchor_ratios"] = numbers(told["anchor_ratios"])
    if "octaves" in told:
        octaves = min(
            int(told["octaves"]), OCTAVES
        )  # a hostile number must not become as many anchors; 64 will not fit the weights
        settings["anchor_scales"] = tuple(2 ** (step / octaves) for step in range(octaves))
    if {"pixel_mean", "pixel_std", "rgb"} <= told.keys():
        step = 1 if told["rgb"] == "True" else -1
        settings["pixel_order"] = "rgb" if step == 1 else "bgr"
        settings |= {
            name: tuple(value / 255 for value in numbers(told[name]))[::step]
            for name in ("pixel_mean", "pixel_std")
        }
    return settings


def numbers(text: str) -> tuple[float, ...]:
    """0.5, 1.0, 2.0 -> (0.5, 1.0, 2.0)."""
    return tuple(float(number) for number in text.split(",") if number.strip())
