"""The baselines of Table 2: torchvision's Faster R-CNN with FPN and SSD, on the backbone of RetinaNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import timm
import torch.nn.functional as F
from timm.layers import GroupNorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ..config.schema import ModelConfig
from ..errors import ConfigError, unknown_name_error
from ..model.backbone import Backbone
from ..model.fuse_bn import freeze_folded
from ..model.retinanet import stride2_conv


class Padded(ImageList):
    """A padded and normalised batch [B, 3, H, W] in the place of torchvision's list of images; `sizes` [B, 2]
    are those without the padding."""

    def __init__(self, images: Tensor, sizes: Tensor) -> None:
        super().__init__(images, [(int(height), int(width)) for height, width in sizes.tolist()])

    def __iter__(self) -> Iterator[Tensor]:
        for image, (height, width) in zip(self.tensors, self.image_sizes, strict=True):
            yield image[:, :height, :width]


class Untouched(nn.Module):
    """In the place of torchvision's transform: `Padded` images need none, and boxes stay in their pixels."""

    def forward(self, images: Padded, targets: Any = None) -> tuple[Padded, Any]:
        """Both as they are."""
        return images, targets

    def postprocess(self, detections: Any, sizes: Any, originals: Any) -> Any:
        """The detections as they are; `Detector` knows the originals."""
        return detections


class FinerBackbone(Backbone):
    """`Backbone` with C2, the map at 1/4, before the others, and with the same first weights: the pyramid of
    Faster R-CNN begins there."""

    def __init__(self, name: str, norm: str, eps: float, stride: str) -> None:
        super().__init__(name, norm, eps, stride)
        info = self.body.feature_info
        quarters = [i for i, level in enumerate(info.info) if level["reduction"] == 4]
        if not quarters:
            raise ConfigError(
                f"backbone {name!r} has no map at 1/4 of the image, where the pyramid of Faster R-CNN begins"
            )
        layers: dict[str, Any] = {"norm_layer": GroupNorm} if norm == "group" else {}
        indices = [quarters[-1], *info.out_indices]
        body = timm.create_model(name, features_only=True, out_indices=indices, pretrained=False, **layers)
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
    """images [B, 3, H, W] -> the maps that a head sees, from `body` through `neck`, `out_channels` wide."""

    def __init__(self, body: Backbone, neck: nn.Module, out_channels: int | list[int]) -> None:
        super().__init__()
        self.body, self.neck, self.out_channels = body, neck, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Finest first, named "0", "1", ... as torchvision's RoI pooling expects them."""
        maps: dict[str, Tensor] = self.neck(numbered(self.body(images)))
        return maps


def numbered(levels: Sequence[Tensor]) -> OrderedDict[str, Tensor]:
    """Maps by the names "0", "1", ..."""
    return OrderedDict((str(i), level) for i, level in enumerate(levels))


class Coarser(nn.Module):
    """The maps of a backbone and three more, each halved by 1x1, ReLU, 3x3 with stride 2, ReLU (SSD300)."""

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
            levels.append(F.relu(stride2_conv(halve, F.relu(narrow(levels[-1])))))
        return numbered(levels)


def faster_rcnn_fpn(config: ModelConfig, classes: int) -> nn.Module:
    """Faster R-CNN on P2..P6. As in the FPN paper each level has anchors of one size, which doubles from
    level to level; 32 px are on P2, where RetinaNet has them on P3."""
    net, post = config.network, config.postprocess
    body = FinerBackbone(net.backbone, net.backbone_norm, net.backbone_eps, net.backbone_stride)
    neck = FeaturePyramidNetwork(body.channels, net.channels, LastLevelMaxPool())
    sizes = tuple((net.anchor_size * 8 * 2**level,) for level in range(5))
    model: nn.Module = FasterRCNN(
        Maps(body, neck, net.channels),
        classes + 1,
        rpn_anchor_generator=AnchorGenerator(sizes, (net.anchor_ratios,) * 5),
        box_score_thresh=post.score_threshold,
        box_detections_per_img=post.max_detections,
    )
    return model


SSD_SCALES = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
"""Sides of SSD300's default boxes by level, in sides of the padded image (torchvision's, for COCO); the last
serves the sixth level."""

SSD_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]

SSD_EXTRA = (512, 256, 256)
"""Widths of the maps at 1/64, 1/128 and 1/256."""


def ssd(config: ModelConfig, classes: int) -> nn.Module:
    """SSD on C3..C5 and three coarser maps, with the default boxes of SSD300, whatever `anchor_size` is."""
    net, post, scale = config.network, config.postprocess, config.preprocess.scale
    body = Backbone(net.backbone, net.backbone_norm, net.backbone_eps, net.backbone_stride)
    model: nn.Module = SSD(
        Maps(body, Coarser(body.channels[-1]), [*body.channels, *SSD_EXTRA]),
        DefaultBoxGenerator(SSD_RATIOS, scales=SSD_SCALES),
        (scale, scale),
        classes + 1,
        score_thresh=post.score_threshold,
        detections_per_img=post.max_detections,
    )
    return model


BASELINES = {
    "faster_rcnn_fpn": (faster_rcnn_fpn, ("rpn.head", "roi_heads.box_predictor")),
    "ssd": (ssd, ("head",)),
}
"""Name -> what builds it from config and number of classes, and the names of its heads."""


def build_baseline(name: str, config: ModelConfig, classes: int) -> nn.Module:
    """A baseline with fresh weights that takes `Padded` images; ConfigError for an unknown name."""
    if name not in BASELINES:
        raise unknown_name_error("baseline", name, BASELINES)
    build, heads = BASELINES[name]
    model = build(config, classes)
    model.transform = Untouched()
    for part in ("backbone", *heads):
        # torchvision makes anchors in the type of the maps and boxes in that of the offsets: bf16 would round
        # them to 2 px
        model.get_submodule(part).register_forward_hook(in_fp32)
    return model


def in_fp32(module: nn.Module, given: Any, made: Any) -> Any:
    """A hook: what a module made, a tensor or a dict, list or tuple of them, in fp32."""
    if isinstance(made, Tensor):
        return made.float()
    if isinstance(made, dict):
        return OrderedDict((name, in_fp32(module, given, value)) for name, value in made.items())
    return type(made)(in_fp32(module, given, value) for value in made)
