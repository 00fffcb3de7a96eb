"""The feature pyramid (Sec. 4, "Feature Pyramid Network Backbone" and footnote 2): C3..C5 -> P3..P7, and what
FPN was compared with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import unknown
from ..ops.anchors import PYRAMIDS

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
            raise unknown("source of P6", p6, P6)
        if design not in PYRAMIDS:
            raise unknown("pyramid", design, PYRAMIDS)
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
        p6 = halved(self.p6, features[-1] if self.p6_source == "c5" else maps[-1])
        return [*maps, p6, halved(self.p7, F.relu(p6) if self.p7_relu else p6)]


def halved(conv: nn.Module, level: Tensor) -> Tensor:
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
