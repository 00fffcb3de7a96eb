"""What is known about other projects' files: their names for layers, their conventions, COCO's classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, ConfigError
from ...ops.anchors import STRIDES, cell_anchors

Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]
"""A pattern for the whole of their key -> ours; None: known, and not needed."""

SUBNETS = {
    "classification": "class_subnet",
    "cls": "class_subnet",
    "regression": "box_subnet",
    "bbox": "box_subnet",
    "reg": "box_subnet",
}

LAST = {"cls_score": "class_subnet", "cls_logits": "class_subnet", "retina_cls": "class_subnet"}

LAST |= {"bbox_pred": "box_subnet", "bbox_reg": "box_subnet", "retina_reg": "box_subnet"}

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

STYLES: dict[str, dict[str, Any]] = {
    "pytorch": {"pixel_order": "rgb", "pixel_mean": MEAN, "pixel_std": STD, "backbone_stride": "3x3"},
    "caffe": {
        "pixel_order": "bgr",
        "pixel_mean": MEAN,
        "pixel_std": (1 / 255, 1 / 255, 1 / 255),
        "backbone_stride": "1x1",
    },
}
"""What a ResNet learned ImageNet from: RGB divided by its deviation, or BGR with the deviation in the first
weights, halved in the 1x1.
"""


@dataclass(frozen=True)
class Project:
    """One project: the key that only its files have, the rules for all its keys, its conventions where they
    are not ours.
    """

    name: str
    mark: str
    table: list[Rule]
    settings: Mapping[str, Any]
    ratios_first: bool
    """Whether the anchors of a cell are ordered by ratio and then by scale; ours: by scale and then by
    ratio.
    """


def _layer(kind: str, spacing: int = 1) -> Callable[[re.Match[str]], str]:
    """Layer `kind` of a subnet, of which theirs have one every `spacing` numbers; its place in ours is found
    in `convert.placed`.
    """
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
        # before torchvision 0.13 a convolution and its ReLU stood side by side; the published v1 file is of
        # that time
        (HEAD + r"\.([0246])" + END, _layer("conv", 2)),
        (r"head\.(?:classification|regression)_head\.(cls_logits|bbox_reg)" + END, _last),
    ],
    settings={
        "scale": 800,
        "max_side": 1333,
        "anchor_center": 0.0,
        "anchor_rounding": True,
        "anchor_steps": "image",
        "filter_padding": False,
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
        # written into the files until 2020: constants of the configuration, which `conventions` reads
        (r"pixel_(?:mean|std)", None),
        (r"anchor_generator\.cell_anchors\.\d", None),
    ],
    settings={
        "scale": 800,
        "max_side": 1333,
        "anchor_center": 0.0,
        "filter_padding": False,
        "resize": "pillow",
        "clip_boxes": "after",
        "empty_boxes": "dropped",
    },
    ratios_first=False,
)
"""detectron2/modeling/meta_arch/retinanet.py, backbone/fpn.py, backbone/resnet.py, anchor_generator.py,
postprocessing.py.
"""

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
        "filter_padding": False,
        "p7_relu": False,
        "resize": "opencv",
        "empty_boxes": "dropped",
        "clip_dwh_below": True,
    },
    ratios_first=True,
)
"""mmdet/models/dense_heads/base_dense_head.py, necks/fpn.py, task_modules/coders and prior_generators;
mmcv/image/geometric.py.
"""

PROJECTS = (TORCHVISION, DETECTRON2, MMDETECTION)


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
    "topk_candidates": rf"\bnms_pre{IS}(\d+)",
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
        name: int(told[name])
        for name in ("topk_candidates", "max_detections", "padding_multiple")
        if name in told
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


COCO = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat", 10: "traffic light",
    11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep",
    21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie",
    33: "suitcase", 34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove",
    41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog",
    59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet",
    72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster",
    81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier",
    90: "toothbrush",
}  # fmt: skip
