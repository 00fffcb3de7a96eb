"""Post-training quantisation by NNCF, alike for ONNX and OpenVINO."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ..weights.runtimes import extra


def quantized(model: Any, pictures: Iterable[tuple[Tensor, Tensor]], count: int, ignored: list[str]) -> Any:
    """The same model with 8 bits for what its operations take and for their weights, but for the `ignored`
    ones, by name.

    model     an onnx ModelProto or an openvino Model
    pictures  at most `count` batches as the model takes them, images [B, 3, H, W] and sizes [B, 2]: their
              numbers set the ranges
    """
    os.environ.setdefault("NNCF_CI", "1")  # its telemetry stays off: nothing is reported to anyone
    nncf = extra("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    batches = [{"images": images.contiguous().numpy(), "sizes": sizes.numpy()} for images, sizes in pictures]
    scope = nncf.IgnoredScope(names=ignored, validate=False)
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=count,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=scope,
    )
