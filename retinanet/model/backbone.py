"""The bottom-up pathway: any timm network with maps at 1/8, 1/16 and 1/32 of the image."""

from __future__ import annotations

from typing import Any

import timm
import torch
from timm.layers import GroupNorm, freeze_batch_norm_2d
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, unknown_name_error
from .fuse_bn import freeze_folded

REDUCTIONS = (8, 16, 32)

PINNED = {
    name: f"{name}.tv_in1k" for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x8d")
}
"""Weights that a bare name stands for: those behind the published COCO figures, not timm's newest."""

NORMS = ("frozen", "batch", "group")

STRIDES = ("3x3", "1x1")

HOST = "huggingface.co"


class Backbone(nn.Module):
    """A timm network: images [B, 3, H, W] -> [C3, C4, C5], maps at strides 8, 16 and 32.

    Args:
        name: A timm model.
        norm: frozen (batch norm with fixed statistics, for pretrained weights; `model.fuse_bn` folds it into
            the convolutions), batch (live batch norm) or group (group norm of 32).
        eps: Added to the variance of batch norm.
        stride: The convolution of a bottleneck that halves the map: 3x3 (timm, torchvision) or 1x1 (Caffe).

    Attributes:
        channels: Widths of C3, C4 and C5.

    Raises:
        ConfigError: There is no such model (the nearest names are given), or it lacks one of the three maps.
    """

    def __init__(
        self, name: str = "resnet50", norm: str = "frozen", eps: float = 1e-5, stride: str = "3x3"
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise unknown_name_error("backbone norm", norm, NORMS)
        if stride not in STRIDES:
            raise unknown_name_error("backbone stride", stride, STRIDES)
        self.name = name
        self.norm = norm
        indices, self.first_stage = probe(name)
        layers: dict[str, Any] = {"norm_layer": GroupNorm} if norm == "group" else {}
        try:
            body = timm.create_model(
                name, features_only=True, out_indices=indices, pretrained=False, **layers
            )
        except TypeError as error:  # timm's constructors do not all take a norm layer
            raise ConfigError(f"backbone {name!r} cannot be built with {norm} norm: {error}") from error
        self.body = freeze_batch_norm_2d(body) if norm == "frozen" else body
        for layer in self.body.modules():
            if hasattr(layer, "running_var"):
                layer.eps = eps
        if stride == "1x1":
            self._stride_first()
        if norm == "frozen":
            freeze_folded(self.body)
        self.channels: list[int] = self.body.feature_info.channels()

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [B, 3, H, W], normalised -> [C3, C4, C5]."""
        features: list[Tensor] = self.body(images)
        return features

    def _stride_first(self) -> None:
        """Move the stride of every bottleneck from its 3x3 convolution to the 1x1 before it."""
        halving = [
            block
            for block in self.body.modules()
            if getattr(getattr(block, "conv2", None), "stride", None) == (2, 2)
        ]
        if not halving or any(
            block.conv1.kernel_size != (1, 1) or block.conv2.kernel_size != (3, 3) for block in halving
        ):
            raise ConfigError(
                f"backbone {self.name!r} has no bottlenecks of 1x1 and 3x3, so no --backbone-stride 1x1"
            )
        for block in halving:
            block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)

    def freeze(self) -> None:
        """Stop training the stem and the first stage, up to the map at 1/4, as FPN does (Sec. 4.1)."""
        names = [name for name, _ in self.body.named_parameters()]
        stage = [i for i, name in enumerate(names) if self.first_stage and name.startswith(self.first_stage)]
        for name in names[: stage[-1] + 1] if stage else []:
            self.body.get_parameter(name).requires_grad_(False)

    def load_imagenet(self) -> None:
        """Load timm's ImageNet weights; CheckpointError within seconds if they cannot be had."""
        if self.norm == "group":
            raise ConfigError(
                "ImageNet weights belong to batch norm; use --backbone-norm frozen or batch, or --init none"
            )
        name = PINNED.get(self.name, self.name)
        source = timm.get_pretrained_cfg(name).to_dict().get("hf_hub_id")
        if not source:
            raise ConfigError(
                f"timm has no ImageNet weights for {name!r}; train from scratch with --init none"
            )
        check_network(str(source))
        donor = timm.create_model(
            name, features_only=True, out_indices=self.body.feature_info.out_indices, pretrained=True
        )
        missing, unexpected = self.body.load_state_dict(donor.state_dict(), strict=False)
        strangers = [key for key in (*missing, *unexpected) if not key.endswith("num_batches_tracked")]
        if strangers:
            raise CheckpointError(f"timm's weights of {name} do not fit: {', '.join(strangers[:5])}")


def probe(name: str) -> tuple[list[int], str | None]:
    """Indices of the maps at 1/8, 1/16 and 1/32 among timm's, and the parameter prefix of the stage at 1/4.

    The network is built and run on the meta device, which costs no arithmetic. Some timm models claim a
    reduction that their maps do not have (no padding, tokens, channels last); they would fail in the first
    step.
    """
    if name.split(".")[0] not in timm.list_models():
        raise unknown_name_error("backbone", name, timm.list_models())
    try:
        with torch.device("meta"):
            body = timm.create_model(
                name, features_only=True, pretrained=False
            ).eval()  # batch norm of one value cannot train
            levels = body.feature_info.get_dicts()
            indices = [
                max(i for i, level in enumerate(levels) if level["reduction"] == want) for want in REDUCTIONS
            ]
            maps = body(torch.empty(1, 3, 256, 320))
        shapes = [tuple(maps[i].shape[1:]) for i in indices]
        expected = [
            (levels[i]["num_chs"], 256 // want, 320 // want)
            for i, want in zip(indices, REDUCTIONS, strict=True)
        ]
        if shapes != expected:
            raise ValueError(f"its maps are {shapes}")
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        AssertionError,
        NotImplementedError,
    ) as error:
        raise ConfigError(
            f"backbone {name!r} has no maps [C, H, W] at 1/8, 1/16 and 1/32 of the image ({error}); "
            "resnet18, resnet50, resnext101_32x8d and convnext_tiny are some that do"
        ) from error
    stem = next((str(level["module"]) for level in levels if level["reduction"] == 4), None)
    # timm's feature lists flatten "stages.0" to "stages_0"; its other wrappers keep the dots
    flat = stem.replace(".", "_") if stem else None
    children = {child for child, _ in body.named_children()}
    prefix = flat if flat in children else stem
    return indices, f"{prefix}." if prefix else None


def check_network(source: str) -> None:
    """One short connection test: the libraries' own retries take most of a minute."""
    from huggingface_hub import try_to_load_from_cache

    from ..download import reachable  # only where weights are fetched

    if isinstance(try_to_load_from_cache(source, "model.safetensors"), str):
        return
    reason = reachable(HOST)
    if reason is not None:
        raise CheckpointError(
            f"no network ({reason}), so the ImageNet weights {source} cannot be fetched. Either put "
            f"model.safetensors of "
            f"https://{HOST}/{source} into this machine's Hugging Face cache (hf download {source}), or "
            f"train from scratch: --init none."
        )
