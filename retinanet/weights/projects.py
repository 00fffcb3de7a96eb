"""What other projects' RetinaNets are: the names of their weights and their conventions. No other module knows a project by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, ConfigError

Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]
"""A pattern for the whole of their key -> ours; None: known, and not needed."""

SUBNETS = {"classification": "class_subnet", "cls": "class_subnet", "regression": "box_subnet", "bbox": "box_subnet", "reg": "box_subnet"}
LAST = {"cls_score": "class_subnet", "cls_logits": "class_subnet", "retina_cls": "class_subnet"}
LAST |= {"bbox_pred": "box_subnet", "bbox_reg": "box_subnet", "retina_reg": "box_subnet"}

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STYLES: dict[str, dict[str, Any]] = {
    "pytorch": {"pixel_order": "rgb", "pixel_mean": MEAN, "pixel_std": STD, "backbone_stride": "3x3"},
    "caffe": {"pixel_order": "bgr", "pixel_mean": MEAN, "pixel_std": (1 / 255, 1 / 255, 1 / 255), "backbone_stride": "1x1"},
}
"""What a ResNet learned ImageNet from: RGB divided by its deviation, or BGR with the deviation in the first weights, halved in the 1x1."""


@dataclass(frozen=True)
class Project:
    """One project: the key that only its files have, the rules for all its keys, its conventions where they are not ours."""

    name: str
    mark: str
    table: list[Rule]
    settings: Mapping[str, Any]
    ratios_first: bool
    """Whether the anchors of a cell are ordered by ratio and then by scale; ours: by scale and then by ratio."""


def _layer(kind: str, spacing: int = 1) -> Callable[[re.Match[str]], str]:
    """Layer `kind` of a subnet, of which theirs have one every `spacing` numbers; its place in ours is found in `convert.placed`."""
    return lambda found: f"{SUBNETS[found[1]]}.{kind}{int(found[2]) // spacing}.{found[3]}"


def _last(found: re.Match[str]) -> str:
    return f"{LAST[found[1]]}.last.{found[2]}"


def _less(pattern: str, by: int) -> Callable[[re.Match[str]], str]:
    """`pattern` with {0} for the first group less `by`, {1}, {2} ... for the others."""
    return lambda found: pattern.format(int(found[1]) - by, *found.groups()[1:])


END = r"\.(weight|bias)"
HEAD = r"head\.(classification|regression)_head\.conv"
TORCHVISION = Project(
    name="torchvision",
    mark="head.classification_head.cls_logits.weight",
    table=[
        (r"backbone\.body\.(.*)", r"backbone.body.\1"),
        (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?" + END, r"pyramid.lateral.\1.\2"),
        (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?" + END, r"pyramid.output.\1.\2"),
        (r"backbone\.fpn\.extra_blocks\.(p[67])" + END, r"pyramid.\1.\2"),
        (HEAD + r"\.(\d)\.0" + END, _layer("conv")),
        (HEAD + r"\.(\d)\.1" + END, _layer("norm")),
        # before torchvision 0.13 a convolution and its ReLU stood side by side; the published v1 file is of that time
        (HEAD + r"\.([0246])" + END, _layer("conv", 2)),
        (r"head\.(?:classification|regression)_head\.(cls_logits|bbox_reg)" + END, _last),
    ],
    settings={
        "scale": 800,
        "max_side": 1333,
        "anchor_center": 0.0,
        "anchor_rounding": True,
        "anchor_steps": "picture",
        "padding_anchors": "kept",
        "resize": "plain",
        "max_detections": 300,
    },
    ratios_first=True,
)
"""torchvision/models/detection/retinanet.py, anchor_utils.py, transform.py."""

STAGE = r"backbone\.bottom_up\.res(\d)\.(\d+)"
DETECTRON2 = Project(
    name="Detectron2",
    mark="head.cls_score.weight",
    table=[
        (r"backbone\.bottom_up\.stem\.conv1\.weight", "backbone.body.conv1.weight"),
        (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
        (STAGE + r"\.conv(\d)\.weight", _less("backbone.body.layer{0}.{1}.conv{2}.weight", 1)),
        (STAGE + r"\.conv(\d)\.norm\.(\w+)", _less("backbone.body.layer{0}.{1}.bn{2}.{3}", 1)),
        (STAGE + r"\.shortcut\.weight", _less("backbone.body.layer{0}.{1}.downsample.0.weight", 1)),
        (STAGE + r"\.shortcut\.norm\.(\w+)", _less("backbone.body.layer{0}.{1}.downsample.1.{2}", 1)),
        (r"backbone\.fpn_lateral([345])" + END, _less("pyramid.lateral.{0}.{1}", 3)),
        (r"backbone\.fpn_output([345])" + END, _less("pyramid.output.{0}.{1}", 3)),
        (r"backbone\.top_block\.(p[67])" + END, r"pyramid.\1.\2"),
        (r"head\.(cls|bbox)_subnet\.(\d*[02468])" + END, _layer("conv", 2)),
        (r"head\.(cls_score|bbox_pred)" + END, _last),
        # written into the files until 2020: constants of the configuration, of which `style_of` reads the deviation
        (r"pixel_(?:mean|std)", None),
        (r"anchor_generator\.cell_anchors\.\d", None),
    ],
    settings={
        "scale": 800,
        "max_side": 1333,
        "anchor_center": 0.0,
        "padding_anchors": "kept",
        "resize": "pillow",
        "clip_boxes": "after",
        "empty_boxes": "dropped",
    },
    ratios_first=False,
)
"""detectron2/modeling/meta_arch/retinanet.py, backbone/fpn.py, backbone/resnet.py, anchor_generator.py, postprocessing.py."""

MMDETECTION = Project(
    name="MMDetection",
    mark="bbox_head.retina_cls.weight",
    table=[
        (r"backbone\.((?:conv1|bn1|layer\d)\..*)", r"backbone.body.\1"),
        (r"neck\.lateral_convs\.([012])\.conv" + END, r"pyramid.lateral.\1.\2"),
        (r"neck\.fpn_convs\.([012])\.conv" + END, r"pyramid.output.\1.\2"),
        (r"neck\.fpn_convs\.([34])\.conv" + END, _less("pyramid.p{0}.{1}", -3)),
        (r"bbox_head\.(cls|reg)_convs\.(\d+)\.conv" + END, _layer("conv")),
        (r"bbox_head\.(retina_cls|retina_reg)" + END, _last),
    ],
    settings={
        "scale": 800,
        "max_side": 1333,
        "anchor_center": 0.0,
        "padding_anchors": "kept",
        "p7_relu": False,
        "resize": "opencv",
        "empty_boxes": "dropped",
        "shrink_limit": True,
    },
    ratios_first=True,
)
"""mmdet/models/dense_heads/base_dense_head.py, necks/fpn.py, task_modules/coders and prior_generators; mmcv/image/geometric.py."""

PROJECTS = (TORCHVISION, DETECTRON2, MMDETECTION)


def conventions(path: Path, project: Project, weights: Mapping[str, Tensor], meta: Mapping[str, Any], style: str | None) -> dict[str, Any]:
    """What a file tells of its project's changeable conventions: the style of its backbone, and what goes with it."""
    if style is not None and style not in STYLES:
        raise ConfigError(f"style is pytorch or caffe, not {style!r}")
    if project is TORCHVISION:
        return STYLES[style or "pytorch"]
    if project is DETECTRON2:
        return STYLES[style or detectron2_style(weights)]
    told = mmdetection_told(meta)
    found = style or told.get("style")
    if found not in STYLES:
        raise ConfigError(f"{path} does not tell what its backbone came from; give --style pytorch or caffe, as its configuration has it")
    if weights["neck.fpn_convs.3.conv.weight"].shape == weights["neck.fpn_convs.4.conv.weight"].shape and told.get("extra") != "on_output":
        raise CheckpointError(f"{path}: its P6 comes neither from C5 nor, as far as the file tells, from P5")
    settings = mmdetection_settings(told)
    return {**settings, **STYLES[style]} if style else {**STYLES[found], **settings}


QUOTED = r"['\"](\w+)['\"]"
NUMBERS = r"[\[(]([^\])]*)[\])]"
TOLD: dict[str, str] = {
    "style": r"\bstyle['\"]?\s*[=:]\s*" + QUOTED,
    "pixel_mean": r"\bmean['\"]?\s*[=:]\s*" + NUMBERS,
    "pixel_std": r"\bstd['\"]?\s*[=:]\s*" + NUMBERS,
    "rgb": r"\b(?:bgr_)?to_rgb['\"]?\s*[=:]\s*(True|False)",
    "extra": r"\badd_extra_convs['\"]?\s*[=:]\s*['\"]?(\w+)",
    "score_threshold": r"\bscore_thr['\"]?\s*[=:]\s*([\d.e-]+)",
    "nms_threshold": r"\biou_thr(?:eshold)?['\"]?\s*[=:]\s*([\d.e-]+)",
    "per_level": r"\bnms_pre['\"]?\s*[=:]\s*(\d+)",
    "max_detections": r"\bmax_per_img['\"]?\s*[=:]\s*(\d+)",
    "anchor_size": r"\boctave_base_scale['\"]?\s*[=:]\s*([\d.]+)",
    "octaves": r"\bscales_per_octave['\"]?\s*[=:]\s*(\d+)",
    "anchor_ratios": r"\bratios['\"]?\s*[=:]\s*" + NUMBERS,
}
"""How MMDetection's configuration, a Python text that its files carry, states what matters here. Of several the last one counts: older
files hold all inherited texts one after the other."""


def mmdetection_told(meta: Mapping[str, Any]) -> dict[str, str]:
    """What the configuration in the `meta` of an MMDetection file says of the settings in TOLD; nothing of it is executed."""
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    found = {name: re.findall(pattern, text) for name, pattern in TOLD.items()}
    return {name: values[-1] for name, values in found.items() if values}


def mmdetection_settings(told: Mapping[str, str]) -> dict[str, Any]:
    """The same as settings of ours; mean and std are theirs in 0..255, in the order in which the network is given the colours."""
    settings: dict[str, Any] = {name: int(told[name]) for name in ("per_level", "max_detections") if name in told}
    settings |= {name: float(told[name]) for name in ("score_threshold", "nms_threshold", "anchor_size") if name in told}
    if "anchor_ratios" in told:
        settings["anchor_ratios"] = _numbers(told["anchor_ratios"])
    if "octaves" in told:
        settings["anchor_scales"] = tuple(2 ** (step / int(told["octaves"])) for step in range(int(told["octaves"])))
    if {"pixel_mean", "pixel_std", "rgb"} <= told.keys():
        step = 1 if told["rgb"] == "True" else -1
        settings["pixel_order"] = "rgb" if step == 1 else "bgr"
        settings |= {name: tuple(value / 255 for value in _numbers(told[name]))[::step] for name in ("pixel_mean", "pixel_std")}
    return settings


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(",") if number.strip())


def detectron2_style(weights: Mapping[str, Tensor]) -> str:
    """caffe, as all that Detectron2 has published, unless the file carries another deviation than 1."""
    std = weights.get("pixel_std")
    return "caffe" if std is None or bool((std == 1).all()) else "pytorch"
