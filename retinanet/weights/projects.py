"""What other projects' RetinaNets are: the names of their weights and their conventions. No other module
knows a project by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
        # written into the files until 2020: constants of the configuration, which `conventions` reads
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
        "padding_anchors": "kept",
        "p7_relu": False,
        "resize": "opencv",
        "empty_boxes": "dropped",
        "shrink_limit": True,
    },
    ratios_first=True,
)
"""mmdet/models/dense_heads/base_dense_head.py, necks/fpn.py, task_modules/coders and prior_generators;
mmcv/image/geometric.py.
"""

PROJECTS = (TORCHVISION, DETECTRON2, MMDETECTION)
