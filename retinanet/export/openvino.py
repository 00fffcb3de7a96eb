"""Our graph as an OpenVINO model, made of its ONNX: in fp32, computed in bf16, or with int8 convolutions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..inference.runtimes import extra
from ..weights.checkpoint import KEY
from .onnx import behind_the_network, quantized

CARD = [KEY, "card"]
"""Where rt_info has the card's JSON."""


def to_openvino(onnx: Path, text: str) -> Any:
    """An openvino Model from an ONNX file."""
    model = extra("openvino").Core().read_model(str(onnx))  # convert_model would report it to the vendor
    model.set_rt_info(text, CARD)
    return model


def to_int8(model: Any, batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Any:
    """The same model with its network in int8: the inputs and weights of its convolutions.

    What comes after the last convolution decides about boxes and stays as it is. `batches`: batches of
    images [B, 3, H, W] and sizes [B, 2].
    """
    nodes = (
        (name, "Convolution" in operation.get_type_name(), taken(operation), [name])
        for operation in model.get_ordered_ops()
        if (name := operation.get_friendly_name())
    )
    return quantized(model, batches, count, behind_the_network(nodes))


def taken(operation: Any) -> list[str]:
    """Names of the operations whose values this one takes."""
    return [value.get_source_output().get_node().get_friendly_name() for value in operation.inputs()]


def write_openvino(model: Any, path: Path) -> None:
    """An .xml and a .bin with the weights in fp32: half precision would cost more than a tenth of a pixel."""
    extra("openvino").save_model(model, str(path), compress_to_fp16=False)
