"""RetinaNet (Figure 3): (a) backbone, (b) feature pyramid, (c) class subnet, (d) box subnet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, unknown_name_error
from ..ops.anchors import RATIOS, SCALES, STRIDES, grid_anchors
from .backbone import Backbone

P6 = ("c5", "p5")


class Pyramid(nn.Module):
    """[C3, C4, C5] -> P3 .. P7, each of `channels` (Sec. 4, "Feature Pyramid Network Backbone", footnote 2).

    1x1 convolutions and the top-down path, then 3x3 convolutions. P6 comes from C5 (or P5), P7 from P6 after
    a ReLU (or without).
    """

    strides: dict[int, tuple[int, ...]] = {stride: (stride,) for stride in STRIDES}  # noqa: RUF012
    """Stride of each map -> the strides that the base sides of its anchors follow."""
    top_down = True
    """Coarser maps are added to finer ones."""

    def __init__(
        self, in_channels: Sequence[int], channels: int = 256, p6: str = "c5", p7_relu: bool = True
    ) -> None:
        super().__init__()
        if p6 not in P6:
            raise unknown_name_error("source of P6", p6, P6)
        self.p6_source, self.p7_relu = p6, p7_relu
        widths = in_channels[-1:] if min(self.strides) == 32 else in_channels
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in widths[: len(self.strides)]
        )
        if len(self.strides) > 1:
            self.p6 = nn.Conv2d(in_channels[-1] if p6 == "c5" else channels, channels, 3, stride=2, padding=1)
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)  # Xavier by fan-in, as in FPN's own code
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """C3, C4, C5 [B, C, H, W] -> the maps of the neck, finest first."""
        merged = [
            lateral(feature)
            for lateral, feature in zip(self.lateral, features[-len(self.lateral) :], strict=True)
        ]
        if self.top_down:
            for level in range(len(merged) - 1, 0, -1):
                finer = merged[level - 1]
                # to the finer map's size, not by a factor of 2: image sides need not be multiples of 32
                merged[level - 1] = finer + F.interpolate(
                    merged[level], size=finer.shape[-2:], mode="nearest"
                )
        maps = [output(level) for output, level in zip(self.output, merged[: len(self.output)], strict=True)]
        if len(maps) == 1:
            return maps
        p6 = stride2_conv(self.p6, features[-1] if self.p6_source == "c5" else maps[-1])
        return [*maps, p6, stride2_conv(self.p7, F.relu(p6) if self.p7_relu else p6)]


class Single(Pyramid):
    """P5 alone, from C5 alone: "baseline on conv5". It has a quarter of fpn's anchors."""

    strides = {32: STRIDES}  # noqa: RUF012


class Hierarchy(Pyramid):
    """P3 .. P7 without the top-down path, as in SSD: "bottom-up pyramid"."""

    top_down = False


class Finest(Pyramid):
    """P3 alone, at the end of the top-down path: "only finest level".

    It has 3.75 times fpn's anchors. With 80 classes at 800 x 1333 px the logits of an image take 0.24 GB in
    float32, and so does their gradient.
    """

    strides = {8: STRIDES}  # noqa: RUF012


NECKS: dict[str, Any] = {"fpn": Pyramid, "single": Single, "hierarchy": Hierarchy, "finest": Finest}
"""Name -> a module class: `neck(in_channels, channels, p6, p7_relu)` maps [C3, C4, C5] to maps, finest first;
its `strides`, as in `Pyramid`, decide the anchors. A new neck is such a class and an entry here.

single, hierarchy and finest are Table 1 (b), (d) and (f) of Lin et al. 2017, "Feature Pyramid Networks". On a
single map each cell has the anchors of all five sizes (Sec. 5.1 there). RetinaNet's paper has no such rows.
"""


NARROW = 2
"""Width of a map, in cells, up to which `stride2_conv` adds columns."""


def stride2_conv(conv: nn.Module, level: Tensor) -> Tensor:
    """A 3x3 convolution with stride 2 and padding 1.

    On a CPU under bf16 autocast the gradient of its weights has memory that nobody wrote where the map is one
    cell wide (docs/known-issues.md). Columns of zeros, which are the convolution's own padding, make such a
    map three cells wide; of the answer's two columns the first is the same. A width of 2 is a margin.
    """
    width = level.shape[-1] if torch.is_autocast_enabled("cpu") else NARROW + 1
    if width > NARROW:
        halves: Tensor = conv(level)
        return halves
    wide: Tensor = conv(F.pad(level, (0, NARROW + 1 - width)))
    return wide[..., :1]


SUBNET_NORMS = ("none", "group")


def subnet(
    outputs: int, channels: int = 256, num_convs: int = 4, norm: str = "none", prior: float | None = None
) -> nn.Sequential:
    """`num_convs` times (3x3 conv of `channels`, norm, ReLU), then a 3x3 conv to `outputs` channels.

    Convolutions start from N(0, 0.01) and biases from 0 (Sec. 4.1, "Initialization").

    Args:
        outputs: Channels of the last convolution.
        channels: Width of the others.
        num_convs: Number of the others.
        norm: none (the paper's) or group (32 groups; fewer below 128 channels).
        prior: pi of Sec. 3.3. The last bias starts at -log((1 - pi) / pi), so every anchor first has the
            probability pi for each class. None: the bias starts at 0.
    """
    if norm not in SUBNET_NORMS:
        raise unknown_name_error("subnet norm", norm, SUBNET_NORMS)
    if norm == "group" and channels % 8:
        raise ConfigError(f"group norm needs channels that divide by 8, not {channels}")
    groups = math.gcd(
        32, channels // 4
    )  # four channels each: one value, on a map of one cell, has no variance
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=norm == "none"))
        if norm == "group":
            layers.append(nn.GroupNorm(groups, channels))
        layers.append(nn.ReLU(inplace=True))
    last = nn.Conv2d(channels, outputs, 3, padding=1)
    for layer in (*layers, last):
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    if prior is not None:
        assert last.bias is not None
        nn.init.constant_(last.bias, -math.log((1 - prior) / prior))
    return nn.Sequential(*layers, last)


STEPS = ("stride", "image")

KEPT_SHAPES = 32
"""Number of batch shapes whose anchors are cached: making anchors anew costs more than keeping them."""


class RetinaNet(nn.Module):
    """A plain module: normalised images in, class logits and box offsets of every anchor out.

    Args:
        num_classes: K. There is no background class.
        backbone: Name of a timm model with maps at 1/8, 1/16 and 1/32, or a module that maps images to
            [C3, C4, C5] and lists their widths in `channels`.
        backbone_norm: frozen (batch norm with fixed statistics, for pretrained weights), batch or group (both
            for training from scratch).
        channels: Width of the pyramid and of the subnets.
        num_convs: 3x3 convolutions of a subnet before its last.
        subnet_norm: none (the paper's) or group.
        prior: pi, the probability of each class that every anchor starts with (Sec. 3.3).
        pyramid: A key of `NECKS`: fpn, single, hierarchy or finest.
        anchor_size: Side of a level's smallest anchor, in strides: 4 gives 32 px on P3.
        anchor_scales: Octave steps of the anchors' sides.
        anchor_ratios: Height over width of the anchors.
        anchor_center: Place of an anchor in its cell; 0.5 is the middle.
        anchor_rounding: Anchors have whole pixels; see `ops.anchors`.
        anchor_steps: Distance between anchors: stride, or image for the padded image's side over the map's.
        p6: What P6 is computed from: c5 (as printed, footnote 2) or p5.
        p7_relu: A ReLU stands between P6 and P7.
        backbone_eps: See `Backbone`.
        backbone_stride: See `Backbone`.

    Raises:
        ConfigError: A name is unknown, or the backbone lacks one of the three maps.

    Example:
        >>> model = RetinaNet(num_classes=3, backbone="resnet18", backbone_norm="batch")
        >>> images = torch.randn(2, 3, 256, 320)
        >>> logits, offsets = model(images)  # per level [B, HWA, K] and [B, HWA, 4]
    """

    def __init__(
        self,
        num_classes: int,
        backbone: str | nn.Module = "resnet50",
        backbone_norm: str = "frozen",
        channels: int = 256,
        num_convs: int = 4,
        subnet_norm: str = "none",
        prior: float = 0.01,
        pyramid: str = "fpn",
        anchor_size: float = 4.0,
        anchor_scales: Sequence[float] = SCALES,
        anchor_ratios: Sequence[float] = RATIOS,
        anchor_center: float = 0.5,
        anchor_rounding: bool = False,
        anchor_steps: str = "stride",
        p6: str = "c5",
        p7_relu: bool = True,
        backbone_stride: str = "3x3",
        backbone_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"a detector needs at least one class, not {num_classes}")
        if pyramid not in NECKS:
            raise unknown_name_error("pyramid", pyramid, NECKS)
        if anchor_steps not in STEPS:
            raise unknown_name_error("anchor steps", anchor_steps, STEPS)
        self.num_classes = num_classes
        self.anchor_settings = (anchor_size, tuple(anchor_scales), tuple(anchor_ratios), anchor_center)
        self.anchor_rounding, self.anchor_steps = anchor_rounding, anchor_steps
        self.backbone: Any = (
            Backbone(backbone, backbone_norm, backbone_eps, backbone_stride)
            if isinstance(backbone, str)
            else backbone
        )
        self.pyramid = NECKS[pyramid](self.backbone.channels, channels, p6=p6, p7_relu=p7_relu)
        self.strides: dict[int, tuple[int, ...]] = self.pyramid.strides
        if len({len(bases) for bases in self.strides.values()}) > 1:
            raise ConfigError(
                f"pyramid {pyramid!r}: the subnets are shared, so each map needs as many base sides"
            )
        per_cell = len(anchor_scales) * len(anchor_ratios) * len(next(iter(self.strides.values())))
        self.class_subnet = subnet(per_cell * num_classes, channels, num_convs, subnet_norm, prior)
        self.box_subnet = subnet(per_cell * 4, channels, num_convs, subnet_norm)
        self._anchors: dict[tuple[int, int, torch.device], list[Tensor]] = {}

    @property
    def levels(self) -> list[str]:
        """Names of the maps, such as P3 .. P7; Pl has the stride 2^l."""
        return [f"P{stride.bit_length() - 1}" for stride in self.strides]

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Normalised images [B, 3, H, W] -> per level logits [B, HWA, K] and offsets [B, HWA, 4]."""
        features = self.backbone(images)  # (a) C3, C4, C5
        pyramid = self.pyramid(features)  # (b) P3 .. P7
        logits = [per_anchor(self.class_subnet(level), self.num_classes) for level in pyramid]  # (c)
        offsets = [per_anchor(self.box_subnet(level), 4) for level in pyramid]  # (d)
        return logits, offsets

    def anchors(self, images: Tensor) -> list[Tensor]:
        """Per level the anchors [HWA, 4] for images [B, 3, H, W]; those of the last shapes are cached."""
        height, width = images.shape[-2:]
        key = (height, width, images.device)
        if key not in self._anchors:
            if len(self._anchors) >= KEPT_SHAPES:
                self._anchors.pop(next(iter(self._anchors)))
            # every map is the ceiling of the image over its stride, by pooling and by stride-2 convolutions
            shapes = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
            with torch.inference_mode(False):  # made in an evaluation, they must still serve in training
                self._anchors[key] = grid_anchors(
                    shapes,
                    list(self.strides),
                    *self.anchor_settings,
                    device=images.device,
                    rounded=self.anchor_rounding,
                    image=(height, width) if self.anchor_steps == "image" else None,
                    bases=list(self.strides.values()),
                )
        return self._anchors[key]


def per_anchor(level: Tensor, size: int) -> Tensor:
    """[B, A * size, H, W] -> [B, HWA, size]: rows, columns, anchors. A view when the map is channels_last."""
    rows: Tensor = level.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (-1, size)).flatten(1, 2)
    return rows
