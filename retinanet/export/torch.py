"""Our graph as a program of torch.export, in fp32 or bf16: what the others are made of, and a file by
itself.
"""

from __future__ import annotations

import io
import warnings

import torch
from torch import fx
from torch.export import Dim, ExportedProgram

from ..errors import ConfigError
from ..weights.checkpoint import KEY
from .graph import Graph

TRACED = (384, 256)
"""Height and width that are traced where any will do: every map of the pyramid has at least two cells each
way.
"""


def traced(graph: Graph, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph for any batch of pictures of `size` = height, width; None: of any multiples of the padding.

    ConfigError for a network that can be traced for one size only, such as timm's dla34.
    """
    batch, multiple = Dim("batch"), graph.pre.padding_multiple
    height, width = size or (-(-side // multiple) * multiple for side in TRACED)
    images = torch.zeros(2, 3, height, width, dtype=graph.pixels)
    sizes = torch.tensor([[float(height), float(width)]] * 2)
    sides = (
        {}
        if size
        else {
            2: multiple * Dim("rows", max=2**15 // multiple),
            3: multiple * Dim("columns", max=2**15 // multiple),
        }
    )
    shapes = {"images": {0: batch, **sides}, "sizes": {0: batch}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about itself
        try:
            program = torch.export.export(graph, (images, sizes), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch has many for what it cannot trace
            if size:
                raise
            raise ConfigError(
                f"torch cannot trace this network for pictures of any size; give --size ({str(error)[:200]})"
            ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of code with the paths of this machine
    # what the tracer takes for granted about maps of more than a cell; that it holds for one too is for the
    # proof to show
    program._guards_code = []
    return program


def to_bytes(program: ExportedProgram, text: str) -> bytes:
    """A .pt2, with the card's JSON in its archive."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights lie in memory channels first or last
        torch.export.save(program, buffer, extra_files={KEY: text})
    return buffer.getvalue()
