"""The class subnet and the box subnet (Sec. 4): a few 3x3 convolutions, the same weights on every pyramid
level.
"""

from __future__ import annotations

import math

from torch import nn

from ..errors import ConfigError, unknown

NORMS = ("none", "group")


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
    if norm not in NORMS:
        raise unknown("subnet norm", norm, NORMS)
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
