"""torchvision's detectors with our backbone in them: the two-stage and the other one-stage detector of Table
2, and its own RetinaNet.

They take our batches as they are (`Pictures`) and answer in their pixels. Pyramids are as wide as ours and
anchors begin at the same `anchor_size`; everything else, heads, losses and sampling, is torchvision's
default.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import GroupNorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from ..config import ModelConfig
from ..errors import ConfigError, unknown
from ..model.backbone import Backbone
from ..model.folding import freeze_folded
from ..model.pyramid import halved

SSD_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
"""Sides of SSD300's default boxes by level, in sides of the padded picture (torchvision's, for COCO); the
last serves the sixth level.
"""
SSD_RATIOS = ([2], [2, 3], [2, 3], [2, 3], [2], [2])
SSD_EXTRA = (512, 256, 256)
"""Widths of the maps at 1/64, 1/128 and 1/256."""


class Pictures(ImageList):
    """A padded and normalised batch [B, 3, H, W] in the place of a list of pictures; `sizes` [B, 2] are
    theirs without the padding.
    """

    def __init__(self, images: Tensor, sizes: Tensor) -> None:
        super().__init__(images, [(int(height), int(width)) for height, width in sizes.tolist()])

    def __iter__(self) -> Iterator[Tensor]:
        return (
            image[:, :height, :width]
            for image, (height, width) in zip(self.tensors, self.image_sizes, strict=True)
        )


class Untouched(nn.Module):
    """In the place of torchvision's transform: `Pictures` are resized, normalised and padded, and answers
    stay in their pixels.
    """

    def forward(self, pictures: Pictures, targets: Any = None) -> tuple[Pictures, Any]:
        """Both as they are."""
        return pictures, targets

    def postprocess(self, answers: Any, sizes: Any, originals: Any) -> Any:
        """The answers as they are; `Rival.answer` knows the originals."""
        return answers


class FinerBackbone(Backbone):
    """`Backbone` with C2, the map at 1/4, before the others, and with the same first weights: the pyramid of
    Faster R-CNN begins there.
    """

    def __init__(self, name: str, norm: str, eps: float, stride: str) -> None:
        super().__init__(name, norm, eps, stride)
        info = self.body.feature_info
        quarters = [i for i, level in enumerate(info.info) if level["reduction"] == 4]
        if not quarters:
            raise ConfigError(
                f"backbone {name!r} has no map at 1/4 of the picture, where the pyramid of Faster R-CNN "
                f"begins"
            )
        layers: dict[str, Any] = {"norm_layer": GroupNorm} if norm == "group" else {}
        body = timm.create_model(
            name,
            features_only=True,
            out_indices=[quarters[-1], *info.out_indices],
            pretrained=False,
            **layers,
        )
        body = freeze_batch_norm_2d(body) if norm == "frozen" else body
        for layer in body.modules():
            if hasattr(layer, "running_var"):
                layer.eps = eps
        body.load_state_dict(self.body.state_dict())
        self.body = body
        if stride == "1x1":
            self._stride_first()
        if norm == "frozen":
            freeze_folded(body)
        self.channels = body.feature_info.channels()


class Maps(nn.Module):
    """images [B, 3, H, W] -> the maps that a head sees, by name: those of `body`, through `neck`;
    `out_channels` tells their width.
    """

    def __init__(self, body: Backbone, neck: nn.Module, out_channels: int | list[int]) -> None:
        super().__init__()
        self.body, self.neck, self.out_channels = body, neck, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Finest first, named "0", "1", ... as torchvision's RoI pooling expects them."""
        maps: dict[str, Tensor] = self.neck(
            OrderedDict((str(i), level) for i, level in enumerate(self.body(images)))
        )
        return maps


class P6P7(LastLevelP6P7):
    """torchvision's, always on C5, with the care of `halved`."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """P3..P5, C3..C5 and the names of the levels -> P3..P7 and theirs."""
        p6 = halved(self.p6, c[-1])
        return [*p, p6, halved(self.p7, F.relu(p6))], [*names, "p6", "p7"]


class Coarser(nn.Module):
    """The maps of a backbone and three more, each half as fine: 1x1, ReLU, 3x3 with stride 2, ReLU, as in
    SSD300.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        widths = (in_channels, *SSD_EXTRA)
        self.narrow = nn.ModuleList(
            nn.Conv2d(before, after // 2, 1) for before, after in zip(widths, SSD_EXTRA, strict=False)
        )
        self.halve = nn.ModuleList(
            nn.Conv2d(after // 2, after, 3, stride=2, padding=1) for after in SSD_EXTRA
        )
        for conv in (*self.narrow, *self.halve):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """C3..C5 -> C3..C5 and the maps at 1/64, 1/128 and 1/256."""
        levels = list(maps.values())
        for narrow, halve in zip(self.narrow, self.halve, strict=True):
            levels.append(F.relu(halved(halve, F.relu(narrow(levels[-1])))))
        return OrderedDict((str(i), level) for i, level in enumerate(levels))


def faster_rcnn_fpn(config: ModelConfig, classes: int) -> nn.Module:
    """Faster R-CNN on P2..P6. As in the FPN paper: anchors of one size a level, twice as many pixels from
    level to level.
    """
    body = FinerBackbone(config.backbone, config.backbone_norm, config.backbone_eps, config.backbone_stride)
    neck = FeaturePyramidNetwork(body.channels, config.channels, LastLevelMaxPool())
    # 32 px on P2 where ours are 32 px on P3
    anchors = AnchorGenerator(
        tuple((config.anchor_size * 8 * 2**level,) for level in range(5)), (config.anchor_ratios,) * 5
    )
    answers = {"box_score_thresh": config.score_threshold, "box_detections_per_img": config.max_detections}
    model: nn.Module = FasterRCNN(
        Maps(body, neck, config.channels), classes + 1, rpn_anchor_generator=anchors, **answers
    )
    return model


def ssd(config: ModelConfig, classes: int) -> nn.Module:
    """SSD on C3..C5 and three coarser maps, with the default boxes of SSD300: shares of the padded picture,
    whatever `anchor_size` is.
    """
    body = Backbone(config.backbone, config.backbone_norm, config.backbone_eps, config.backbone_stride)
    maps = Maps(body, Coarser(body.channels[-1]), [*body.channels, *SSD_EXTRA])
    boxes = DefaultBoxGenerator(list(SSD_RATIOS), scales=list(SSD_SCALES))
    answers = {"score_thresh": config.score_threshold, "detections_per_img": config.max_detections}
    model: nn.Module = SSD(maps, boxes, (config.scale, config.scale), classes + 1, **answers)
    return model


def retinanet_torchvision(config: ModelConfig, classes: int) -> nn.Module:
    """torchvision's own RetinaNet on P3..P7: four convolutions a subnet, L1, each picture divided by its own
    positives.
    """
    body = Backbone(config.backbone, config.backbone_norm, config.backbone_eps, config.backbone_stride)
    neck = FeaturePyramidNetwork(body.channels, config.channels, P6P7(body.channels[-1], config.channels))
    sizes = tuple(
        tuple(config.anchor_size * 8 * 2**level * scale for scale in config.anchor_scales)
        for level in range(5)
    )
    anchors = AnchorGenerator(sizes, (config.anchor_ratios,) * 5)
    answers = {"score_thresh": config.score_threshold, "detections_per_img": config.max_detections}
    # its head is all sigmoids, so that the labels 0..K-1 need no background class
    model: nn.Module = RetinaNet(
        Maps(body, neck, config.channels), classes, anchor_generator=anchors, **answers
    )
    return model


RIVALS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "faster_rcnn_fpn": faster_rcnn_fpn,
    "ssd": ssd,
    "retinanet_torchvision": retinanet_torchvision,
}
BACKGROUND = {"faster_rcnn_fpn": 1, "ssd": 1, "retinanet_torchvision": 0}
"""How many labels the background takes before the classes."""


def build_rival(name: str, config: ModelConfig, classes: int) -> nn.Module:
    """A rival with fresh weights that takes `Pictures` and answers in their pixels; ConfigError for an
    unknown name.
    """
    if name not in RIVALS:
        raise unknown("rival", name, RIVALS)
    model = RIVALS[name](config, classes)
    model.transform = Untouched()
    heads = ("rpn.head", "roi_heads.box_predictor") if name == "faster_rcnn_fpn" else ("head",)
    for part in map(model.get_submodule, ("backbone", *heads)):
        # torchvision makes anchors in the number format of the maps and boxes in that of the offsets: bf16
        # would round them to 2 px
        part.register_forward_hook(in_fp32)
    return model


def in_fp32(module: nn.Module, given: Any, made: Any) -> Any:
    """A hook: what a module made, a tensor or a dict, list or tuple of them, in fp32."""
    if isinstance(made, Tensor):
        return made.float()
    if isinstance(made, dict):
        return OrderedDict((name, in_fp32(module, given, value)) for name, value in made.items())
    return type(made)(in_fp32(module, given, value) for value in made)
