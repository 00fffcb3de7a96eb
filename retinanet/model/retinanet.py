"""The network of Figure 3: backbone, pyramid, class subnet, box subnet. It predicts; it neither scores nor
answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError, unknown
from ..ops.anchors import PYRAMIDS, RATIOS, SCALES, grid_anchors
from .backbone import Backbone
from .pyramid import Pyramid
from .subnets import subnet

STEPS = ("stride", "picture")
KEPT_SHAPES = 32
"""Shapes whose anchors are kept: aspect ratios vary from batch to batch, and making anchors anew costs more
than keeping them.
"""


class RetinaNet(nn.Module):
    """A plain module: pictures in, class logits and box offsets of every anchor out.

    num_classes    K; there is no background class
    backbone       a timm model with maps at 1/8, 1/16 and 1/32
    backbone_norm  frozen (batch norm with fixed statistics, for pretrained weights), batch or group (from
                   scratch)
    channels       width of the pyramid and the subnets
    depth          3x3 convolutions of a subnet before its last
    subnet_norm    none (the paper's) or group
    prior          pi, the probability with which every anchor first says "object" (Sec. 3.3)
    pyramid        fpn, single, hierarchy or finest: see `Pyramid`
    anchor_size    side of the smallest anchor of a level, in strides: 4 gives 32 px on P3
    anchor_scales  octave steps; anchor_ratios: height over width; their product is the number of anchors of a
                   cell, five times that
                   where the pyramid is one map
    anchor_center  where in its cell an anchor stands, 0.5 being the middle
    anchor_rounding, anchor_steps   see `ops.anchors`: whole pixels; cells a stride apart, or the padded
    picture over the map
    p6, p7_relu    what P6 is computed from: c5 (as printed, footnote 2) or p5; whether a ReLU comes before P7
    backbone_eps, backbone_stride   see `Backbone`
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str = "resnet50",
        backbone_norm: str = "frozen",
        channels: int = 256,
        depth: int = 4,
        subnet_norm: str = "none",
        prior: float = 0.01,
        anchor_size: float = 4.0,
        anchor_scales: Sequence[float] = SCALES,
        anchor_ratios: Sequence[float] = RATIOS,
        anchor_center: float = 0.5,
        anchor_rounding: bool = False,
        anchor_steps: str = "stride",
        p6: str = "c5",
        p7_relu: bool = True,
        backbone_eps: float = 1e-5,
        backbone_stride: str = "3x3",
        pyramid: str = "fpn",
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"a detector needs at least one class, not {num_classes}")
        self.num_classes = num_classes
        if anchor_steps not in STEPS:
            raise unknown("anchor steps", anchor_steps, STEPS)
        self.anchor_settings = (anchor_size, tuple(anchor_scales), tuple(anchor_ratios), anchor_center)
        self.anchor_rounding, self.anchor_steps = anchor_rounding, anchor_steps
        self.backbone = Backbone(backbone, backbone_norm, backbone_eps, backbone_stride)
        self.pyramid = Pyramid(self.backbone.channels, channels, p6, p7_relu, pyramid)
        self.bases = PYRAMIDS[pyramid]
        per_cell = len(anchor_scales) * len(anchor_ratios) * len(next(iter(self.bases.values())))
        self.class_subnet = subnet(per_cell * num_classes, channels, depth, subnet_norm, prior)
        self.box_subnet = subnet(per_cell * 4, channels, depth, subnet_norm)
        self._anchors: dict[tuple[int, int, torch.device], list[Tensor]] = {}

    @property
    def levels(self) -> list[str]:
        """Names of the maps: P3 to P7, or the one of a single map; Pl has the stride 2^l."""
        return [f"P{stride.bit_length() - 1}" for stride in self.bases]

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """images [B, 3, H, W], normalised -> per level logits [B, HWA, K] and offsets [B, HWA, 4], in the
        order of `anchors`.
        """
        features = self.backbone(images)  # (a) C3, C4, C5
        pyramid = self.pyramid(features)  # (b) P3 .. P7
        logits = [per_anchor(self.class_subnet(level), self.num_classes) for level in pyramid]  # (c)
        offsets = [per_anchor(self.box_subnet(level), 4) for level in pyramid]  # (d)
        return logits, offsets

    def anchors(self, images: Tensor) -> list[Tensor]:
        """Per level the anchors [HWA, 4] for pictures [B, 3, H, W]; kept for the shapes met last."""
        height, width = images.shape[-2:]
        key = (height, width, images.device)
        if key not in self._anchors:
            # every map is the ceiling of the picture over its stride, whether by pooling or by stride-2
            # convolutions
            shapes = [(-(-height // stride), -(-width // stride)) for stride in self.bases]
            size, scales, ratios, center = self.anchor_settings
            if len(self._anchors) >= KEPT_SHAPES:
                self._anchors.pop(next(iter(self._anchors)))
            with torch.inference_mode(False):  # made in an evaluation, they must still serve in training
                picture = (height, width) if self.anchor_steps == "picture" else None
                settings = (
                    size,
                    scales,
                    ratios,
                    center,
                    images.device,
                    self.anchor_rounding,
                    picture,
                    list(self.bases.values()),
                )
                self._anchors[key] = grid_anchors(shapes, list(self.bases), *settings)
        return self._anchors[key]


def per_anchor(level: Tensor, size: int) -> Tensor:
    """[B, A * size, H, W] -> [B, HWA, size]: rows, columns, anchors. A view, not a copy, when the map is
    channels_last.
    """
    rows: Tensor = level.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (-1, size)).flatten(1, 2)
    return rows
