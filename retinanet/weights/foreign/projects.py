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
    **dict.fromkeys(("classification", "cls"), "class_subnet"),
    **dict.fromkeys(("regression", "bbox", "reg"), "box_subnet"),
}

LAST = {
    **dict.fromkeys(("cls_score", "cls_logits", "retina_cls"), "class_subnet"),
    **dict.fromkeys(("bbox_pred", "bbox_reg", "retina_reg"), "box_subnet"),
}

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

STYLES: dict[str, dict[str, Any]] = {
    "pytorch": {"pixel_order": "rgb", "pixel_mean": MEAN, "pixel_std": STD, "backbone_stride": "3x3"},
    "caffe": {
        "pixel_order": "bgr",
        "pixel_mean": MEAN,
        "pixel_std": (1 / 255,) * 3,
        "backbone_stride": "1x1",
    },
}
"""What a ResNet was trained on: RGB over its deviation, or BGR with the deviation in the first weights."""


COMMON = {"scale": 800, "max_side": 1333, "anchor_center": 0.0, "filter_padding": False}
"""What all three projects have, unlike ours."""


@dataclass(frozen=True)
class Project:
    """One project: the key that only its files have, rules for all its keys, conventions unlike ours."""

    name: str
    mark: str
    table: list[Rule]
    settings: Mapping[str, Any]
    ratios_first: bool
    """Whether the anchors of a cell are ordered by ratio first, not by scale first as ours."""


def _layer(kind: str, spacing: int = 1) -> Callable[[re.Match[str]], str]:
    """Layer `kind` of a subnet: theirs has one every `spacing` numbers, `convert.layer_name` places ours."""
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
        **COMMON,
        "anchor_rounding": True,
        "anchor_steps": "image",
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
    settings={**COMMON, "resize": "pillow", "clip_boxes": "after", "empty_boxes": "dropped"},
    ratios_first=False,
)
"""detectron2/modeling/meta_arch/retinanet.py, backbone/fpn.py, backbone/resnet.py, anchor_generator.py,
postprocessing.py."""

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
        **COMMON,
        "p7_relu": False,
        "resize": "opencv",
        "empty_boxes": "dropped",
        "clip_dwh_below": True,
    },
    ratios_first=True,
)
"""mmdet/models/dense_heads/base_dense_head.py, necks/fpn.py, task_modules/coders and prior_generators;
mmcv/image/geometric.py."""

PROJECTS = (TORCHVISION, DETECTRON2, MMDETECTION)


def conventions(
    path: Path, project: Project, weights: Mapping[str, Tensor], meta: Mapping[str, Any], style: str | None
) -> dict[str, Any]:
    """Settings that differ between the files of a project: normalisation, a bottleneck's stride.

    style  what the user says of the backbone, pytorch or caffe; None: what the file says
    """
    if style is not None and style not in STYLES:
        raise ConfigError(f"style is pytorch or caffe, not {style!r}")
    if project is DETECTRON2:
        return detectron2(path, weights, style)
    if project is MMDETECTION:
        return mmdetection(path, weights, meta, style)
    return STYLES[style or "pytorch"]


def detectron2(path: Path, weights: Mapping[str, Tensor], style: str | None) -> dict[str, Any]:
    """From the constants in files until 2020; without them caffe for a ResNet-50 or 101."""
    for level, stride in enumerate(STRIDES):
        anchors, ours = weights.get(f"anchor_generator.cell_anchors.{level}"), cell_anchors(stride)
        if anchors is not None and (
            anchors.shape != (9, 4) or not torch.allclose(anchors.float(), ours, atol=0.05)
        ):
            raise CheckpointError(
                f"{path}: its anchors are not RetinaNet's nine of a cell, and others are not read from a "
                f"Detectron2 file"
            )
    if style is not None:
        return STYLES[style]
    if "pixel_mean" in weights and "pixel_std" in weights:
        names = ("pixel_mean", "pixel_std")
        mean, std = (tuple((weights[name].double().flatten() / 255).tolist()) for name in names)
        rgb = mean[0] >= mean[-1]  # of ImageNet red is the brightest, so BGR rises
        order = slice(None, None, 1 if rgb else -1)
        usual = STYLES["caffe" if bool((weights["pixel_std"] == 1).all()) else "pytorch"]
        found = {"pixel_order": "rgb" if rgb else "bgr", "pixel_mean": mean[order], "pixel_std": std[order]}
        return usual | found
    middle = weights.get("backbone.bottom_up.res2.0.conv2.weight")
    bottleneck = "backbone.bottom_up.res2.0.conv3.weight" in weights
    if not bottleneck or middle is None or middle.shape[:2] != (64, 64):
        raise ConfigError(
            f"{path} does not say how its backbone wants its images; give --style pytorch or caffe"
        )
    return STYLES["caffe"]


def mmdetection(
    path: Path, weights: Mapping[str, Tensor], meta: Mapping[str, Any], style: str | None
) -> dict[str, Any]:
    """From the configuration in the file, a text in Python of which nothing is executed."""
    text = next((meta[key] for key in ("cfg", "config") if isinstance(meta.get(key), str)), "")
    model, pipeline = blocks(text, ("model", "img_norm_cfg", "test_cfg")), blocks(text, ("test_pipeline",))
    settings = {
        name: read(found[-1])
        for name, (pattern, read) in READ_FROM_CONFIG.items()
        if (found := re.findall(pattern, model))
    }
    for name, (pattern, usual) in FIXED.items():
        found = re.findall(pattern, model + pipeline)
        odd = [value for value in found if value.replace(" ", "").strip(",") not in usual]
        if odd:
            raise CheckpointError(
                f"{path}: its configuration has {name} = {odd[-1][:50]}, which is not read here; only "
                f"{usual[0]} is"
            )
    stated = settings.pop("style", None)
    chosen = style or stated
    if chosen not in STYLES:
        raise ConfigError(
            f"{path} does not say what its backbone came from; give --style pytorch or caffe, as its "
            f"configuration has it"
        )
    p6, p7 = (weights[f"neck.fpn_convs.{level}.conv.weight"] for level in (3, 4))
    if settings.pop("extra", None) != "on_output" and p6.shape == p7.shape:
        raise CheckpointError(f"{path}: its P6 comes neither from C5 nor, as far as the file says, from P5")
    if "octaves" in settings:
        octaves = settings.pop("octaves")
        settings["anchor_scales"] = tuple(2 ** (step / octaves) for step in range(octaves))
    # mean and std are theirs in 0..255, in the order in which the network is given the colours
    mean, std, rgb = (settings.pop(name, None) for name in ("pixel_mean", "pixel_std", "rgb"))
    if None not in (mean, std, rgb):
        order = slice(None, None, 1 if rgb else -1)
        settings["pixel_order"] = "rgb" if rgb else "bgr"
        settings["pixel_mean"] = tuple(value / 255 for value in mean)[order]
        settings["pixel_std"] = tuple(value / 255 for value in std)[order]
    sides = re.findall(r"\b(?:img_)?scale\s*=\s*[\[(]+(\d+)\s*,\s*(\d+)", pipeline)
    if sides:
        short, long = sorted(map(int, sides[-1]))
        settings |= {"scale": short, "max_side": long}
    return settings | STYLES[style] if style else STYLES[chosen] | settings


def blocks(text: str, names: tuple[str, ...]) -> str:
    """What is assigned to these names at the left margin, one after the other."""
    found = []
    for start in re.finditer(rf"^(?:{'|'.join(names)})\s*=\s*(?:dict)?[(\[{{]", text, re.MULTILINE):
        depth, end = 1, start.end()
        while end < len(text) and depth:
            depth += (text[end] in "([{") - (text[end] in ")]}")
            end += 1
        found.append(text[start.start() : end])
    return "\n".join(found)


def numbers(text: str) -> tuple[float, ...]:
    """0.5, 1.0, 2.0 -> (0.5, 1.0, 2.0)."""
    return tuple(float(number) for number in text.split(",") if number.strip())


QUOTED = r"['\"](\w+)['\"]"

NUMBERS = r"[\[(]([^\])]*)[\])]"

IS = r"['\"]?\s*[=:]\s*"

READ_FROM_CONFIG: dict[str, tuple[str, Callable[[str], Any]]] = {
    "style": (rf"\bstyle{IS}{QUOTED}", str),
    "pixel_mean": (rf"\bmean{IS}{NUMBERS}", numbers),
    "pixel_std": (rf"\bstd{IS}{NUMBERS}", numbers),
    "rgb": (rf"\b(?:bgr_)?to_rgb{IS}(True|False)", "True".__eq__),
    "extra": (rf"\badd_extra_convs{IS}['\"]?(\w+)", str),
    "p7_relu": (rf"\brelu_before_extra_convs{IS}(True|False)", "True".__eq__),
    "padding_multiple": (rf"\bpad_size_divisor{IS}(\d+)", int),
    "score_threshold": (rf"\bscore_thr{IS}([\d.e-]+)", float),
    "nms_threshold": (rf"\biou_thr(?:eshold)?{IS}([\d.e-]+)", float),
    "topk_candidates": (rf"\bnms_pre{IS}(\d+)", int),
    "max_detections": (rf"\bmax_per_img{IS}(\d+)", int),
    "anchor_size": (rf"\boctave_base_scale{IS}([\d.]+)", float),
    # a hostile number must not become as many anchors; 64 will not fit the weights
    "octaves": (rf"\bscales_per_octave{IS}(\d+)", lambda number: min(int(number), 64)),
    "anchor_ratios": (rf"\bratios{IS}{NUMBERS}", numbers),
}
"""How the configuration states what matters here, and how it is read. The last match counts: older files hold
all inherited texts in a row."""

FIXED: dict[str, tuple[str, tuple[str, ...]]] = {
    "target_means": (rf"\btarget_means{IS}{NUMBERS}", ("0.0,0.0,0.0,0.0", ".0,.0,.0,.0", "0,0,0,0")),
    "target_stds": (rf"\btarget_stds{IS}{NUMBERS}", ("1.0,1.0,1.0,1.0", "1,1,1,1")),
    # five of them: a backbone has four
    "strides": (rf"\bstrides{IS}[\[(](\s*\d+\s*(?:,\s*\d+\s*){{4,}})", ("8,16,32,64,128",)),
    "center_offset": (rf"\bcenter_offset{IS}([\d.]+)", ("0", "0.0", "0.", ".0")),
    "base_sizes": (rf"\bbase_sizes{IS}{NUMBERS}", ("8,16,32,64,128",)),
    "anchor scales": (rf"\bscales{IS}{NUMBERS}", ("none, but octave_base_scale and scales_per_octave",)),
    "keep_ratio": (rf"\bkeep_ratio{IS}(\w+)", ("True",)),
}
"""What is always so in its RetinaNet; another value would give other boxes."""

NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -,
backpack, umbrella, -, -, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
baseball glove, skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl,
banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant,
bed, -, dining table, -, -, toilet, -, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven,
toaster, sink, refrigerator, -, book, clock, vase, scissors, teddy bear, hair drier, toothbrush
"""

COCO = {number: name.strip() for number, name in enumerate(NAMES.split(","), 1) if name.strip() != "-"}
"""Category id -> name: 80 of 90."""
