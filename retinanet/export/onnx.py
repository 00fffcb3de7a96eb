"""Our graph as ONNX, in fp32, and with convolutions of int8."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..inference.runtimes import extra
from ..weights.checkpoint import KEY
from .graph import INPUTS, OUTPUTS

OPSET = 18


def to_onnx(program: ExportedProgram, text: str) -> Any:
    """An onnx ModelProto of a traced `Graph`, with the card's JSON in its metadata."""
    extra("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        made = torch.onnx.export(
            program,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table={
                torch.ops.retinanet.keep.default: keep,
                torch.ops.aten.sort.stable: sort,
            },
            verbose=False,
        )
    assert made is not None
    proto = made.model_proto
    for node in (*proto.graph.node, *proto.graph.value_info):
        del node.metadata_props[:]  # where in our code it came from
    entry = proto.metadata_props.add()
    entry.key, entry.value = KEY, text
    return proto


def keep(boxes: Any, x: Any, labels: Any, classes: int, threshold: float, most: int) -> Any:
    """`nms_mask` in ONNX's operators: each class has a row of its own, so no box is shifted or rounded."""
    import numpy as np
    from onnxscript import opset18 as op

    lowest = float(np.finfo(np.float32).min)
    row = op.Constant(value_ints=list(range(classes)))
    own = op.Equal(
        op.Unsqueeze(labels, op.Constant(value_ints=[1])), op.Unsqueeze(row, op.Constant(value_ints=[0, 2]))
    )
    scores = op.Where(own, op.Unsqueeze(x, op.Constant(value_ints=[1])), op.Constant(value_float=-np.inf))
    limits = (
        op.Constant(value_ints=[most]),
        op.Constant(value_floats=[threshold]),
        op.Constant(value_floats=[lowest]),
    )
    found = op.NonMaxSuppression(boxes, scores, *limits)  # [S, 3]: image, class, box
    place = op.Gather(found, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(
        op.Constant(value_float=1.0),
        op.Slice(op.Shape(place), *(op.Constant(value_ints=[i]) for i in (0, 1))),
    )
    none = op.Expand(op.Constant(value_float=0.0), op.Shape(x))
    return op.Greater(op.ScatterND(none, place, ones), op.Constant(value_float=0.5))


def sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """A stable sort: of equal values TopK gives the first first."""
    from onnxscript import opset18 as op

    count = op.Slice(op.Shape(x), op.Constant(value_ints=[dim]), op.Constant(value_ints=[dim + 1]))
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def to_int8(proto: Any, batches: Iterable[tuple[Tensor, Tensor]], count: int) -> Any:
    """The same model with its network in int8; see `export.openvino.to_int8`."""
    nodes = ((node.name, node.op_type == "Conv", node.input, node.output) for node in proto.graph.node)
    return quantized(proto, batches, count, behind_the_network(nodes))


def behind_the_network(nodes: Iterable[tuple[str, bool, Iterable[str], Iterable[str]]]) -> list[str]:
    """Names of the nodes after the last convolution.

    nodes  in the order of the graph: name, whether it is a convolution, names of the values that it takes and
           makes
    """
    needed: set[str] = set()  # names of values that a convolution is made of
    behind = []
    for name, convolution, takes, makes in reversed(list(nodes)):
        if convolution or needed.intersection(makes):
            needed.update(takes)
        else:
            behind.append(name)
    return behind


def write_onnx(proto: Any, path: Path) -> None:
    """One file, weights and all."""
    extra("onnx").save(proto, str(path))


def quantized(model: Any, batches: Iterable[tuple[Tensor, Tensor]], count: int, ignored: list[str]) -> Any:
    """The same model with inputs and weights of its operations in int8, but for the `ignored` ones, by name.

    model     an onnx ModelProto or an openvino Model
    batches   at most `count` batches, images [B, 3, H, W] and sizes [B, 2], that set the ranges
    """
    os.environ.setdefault("NNCF_CI", "1")  # its telemetry stays off: nothing is reported to anyone
    nncf = extra("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    inputs = [{"images": images.contiguous().numpy(), "sizes": sizes.numpy()} for images, sizes in batches]
    scope = nncf.IgnoredScope(names=ignored, validate=False)
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        subset_size=count,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=scope,
    )
