"""The feature pyramid (Sec. 4, "Feature Pyramid Network Backbone" and footnote 2): C3..C5 -> P3..P7, and what
FPN was compared with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, unknown_name_error
from ..ops.anchors import PYRAMIDS, RATIOS, SCALES, grid_anchors
from .backbone import Backbone

P6 = ("c5", "p5")


class Pyramid(nn.Module):
    """[C3, C4, C5] -> the maps that the subnets see, each of `channels`.

    design  fpn        P3 .. P7: 1x1 convolutions and the top-down path, then 3x3 convolutions; P6 from C5 (or
            P5), P7 from P6 after
                       a ReLU (or without)
            single     P5 alone, of C5 alone: "baseline on conv5"
            hierarchy  P3 .. P7 without the top-down path, as SSD has it: "bottom-up pyramid"
            finest     P3 alone, at the end of the top-down path: "only finest level"

    The words are those of Lin et al. 2017, "Feature Pyramid Networks", Table 1 (b), (d) and (f), whose RPN
    these rows are about; its
    convolutions and, on one map, the anchors of all five sizes in each cell (Sec. 5.1) are taken over.
    RetinaNet's paper has no such rows.

    finest has 5 times the anchors of P3, so 3.75 times those of fpn, and a step needs memory for as many
    logits: with 80 classes at
    800 x 1333 px 0.24 GB a picture in float32, and their gradient as much. single has a quarter of fpn's
    anchors.
    """

    def __init__(
        self,
        in_channels: list[int],
        channels: int = 256,
        p6: str = "c5",
        p7_relu: bool = True,
        design: str = "fpn",
    ) -> None:
        super().__init__()
        if p6 not in P6:
            raise unknown_name_error("source of P6", p6, P6)
        if design not in PYRAMIDS:
            raise unknown_name_error("pyramid", design, PYRAMIDS)
        self.design, self.p6_source, self.p7_relu = design, p6, p7_relu
        widths = in_channels[-1:] if design == "single" else in_channels
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in widths[: len(PYRAMIDS[design])]
        )
        if len(PYRAMIDS[design]) > 1:
            self.p6 = nn.Conv2d(in_channels[-1] if p6 == "c5" else channels, channels, 3, stride=2, padding=1)
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # Xavier by fan-in, as FPN's own code has it
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps [B, C, H, W] of C3, C4, C5, finest first -> those of the design, finest first."""
        merged = [
            lateral(feature)
            for lateral, feature in zip(self.lateral, features[-len(self.lateral) :], strict=True)
        ]
        if self.design != "hierarchy":
            for level in range(len(merged) - 1, 0, -1):
                finer = merged[level - 1]
                # to the finer map's size, not by a factor of 2: pictures need not be a multiple of 32
                merged[level - 1] = finer + F.interpolate(
                    merged[level], size=finer.shape[-2:], mode="nearest"
                )
        maps = [output(level) for output, level in zip(self.output, merged[: len(self.output)], strict=True)]
        if len(maps) == 1:
            return maps
        p6 = stride2_conv(self.p6, features[-1] if self.p6_source == "c5" else maps[-1])
        return [*maps, p6, stride2_conv(self.p7, F.relu(p6) if self.p7_relu else p6)]


def stride2_conv(conv: nn.Module, level: Tensor) -> Tensor:
    """A 3x3 convolution with stride 2. In training, on a map of one cell, it is computed in float32 whatever
    autocast says.

    There, on a CPU under bf16 (torch 2.15), the gradient of its weights comes from memory that nobody wrote:
    NaN in 38 of 40 tries.
    """
    if not torch.is_grad_enabled() or level.shape[-2:] != (1, 1):
        halves: Tensor = conv(level)
        return halves
    with torch.autocast(level.device.type, enabled=False):
        single: Tensor = conv(level.to(next(conv.parameters()).dtype))
        return single


SUBNET_NORMS = ("none", "group")


def subnet(
    outputs: int, channels: int = 256, depth: int = 4, norm: str = "none", prior: float | None = None
) -> nn.Sequential:
    """`depth` times (3x3 conv of `channels`, norm, ReLU), then a 3x3 conv to `outputs` channels.

    norm   none (the paper's) or group (32 groups, fewer below 128 channels)
    prior  pi of Sec. 3.3: the last bias starts at -log((1 - pi) / pi), so that every anchor first says
           "class" with
           probability pi; None leaves it at 0
    All convolutions start from N(0, 0.01), biases from 0 (Sec. 4.1, "Initialization").
    """
    if norm not in SUBNET_NORMS:
        raise unknown_name_error("subnet norm", norm, SUBNET_NORMS)
    if norm == "group" and channels % 8:
        raise ConfigError(f"group norm needs channels that divide by 8, not {channels}")
    groups = math.gcd(
        32, channels // 4
    )  # at least four channels each: a group of one value, on a map of one cell, has no variance
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"))
        if norm == "group":
            layers.append(nn.GroupNorm(groups, channels))
        layers.append(nn.ReLU(inplace=True))
    last = nn.Conv2d(channels, outputs, 3, padding=1)
    layers.append(last)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if prior is not None:
        assert last.bias is not None
        nn.init.constant_(last.bias, -math.log((1 - prior) / prior))
    return nn.Sequential(*layers)


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

    Example:
        >>> model = RetinaNet(num_classes=3, backbone="resnet18", backbone_norm="batch")
        >>> images = torch.randn(2, 3, 256, 320)
        >>> logits, offsets = model(images)  # per level [B, HWA, K] and [B, HWA, 4]
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
            raise unknown_name_error("anchor steps", anchor_steps, STEPS)
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
