"""What an exported file computes: images of bytes in, boxes out.

The shapes of its normalisation and postprocessing do not depend on the values, so one graph serves any batch.
`model.preprocess` and `model.postprocess` are the reference: tests hold the detections equal.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from ..errors import ConfigError
from ..inference.detector import Detector
from ..model.postprocess import rows
from ..ops.anchors import cell_anchors, inside
from ..ops.boxes import area, clip, decode
from ..ops.nms import nms_mask

INPUTS = ("images", "sizes")

OUTPUTS = ("boxes", "scores", "labels", "counts")

TRACED = (353, 225)
"""Height and width of the traced images: no multiples of the padding, and every map of the pyramid has at
least two cells each way."""

LEAST = 129
"""The least side of which the tracer knows that every map has two cells."""


class Graph(nn.Module):
    """A detector as one module of tensors.

    images   [B, 3, H, W] RGB, uint8 (float32 in 0..255 where the model's images are resized as floats), each
             in the upper left corner; H and W may be any
    sizes    [B, 2] float32, height and width of each image inside the batch; the rest is padding
    returns  boxes [B, N, 4] float32, xyxy in pixels of the batch; scores [B, N] float32, best first; labels
             [B, N] int64; counts [B] int64: how many of the N = max_detections rows are detections; the
             others are 0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.network, self.model = detector.network, [detector.model]
        self.post, self.pre = detector.postprocess, detector.preprocess
        self.pixels = torch.float32 if self.pre.resize == "plain" else torch.uint8
        size, scales, ratios, self.center = detector.model.anchor_settings
        rounded = detector.model.anchor_rounding
        self.strides = list(detector.model.strides)
        for level, bases in enumerate(detector.model.strides.values()):
            cell = torch.cat([cell_anchors(base, size, scales, ratios, rounded) for base in bases])
            self.register_buffer(f"cell{level}", cell, persistent=False)
        order = 1 if self.pre.pixel_order == "rgb" else -1
        for name, values in (("mean", self.pre.pixel_mean), ("std", self.pre.pixel_std)):
            made = torch.tensor([255 * value for value in values][::order])[:, None, None]
            self.register_buffer(name, made, persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = self.padded(images)
        height, width = images.shape[-2:]
        normalized = self.normalize(images, sizes)
        logits, offsets = self.network(normalized)
        levels = zip(logits, offsets, self.anchors(height, width, sizes), strict=True)
        best = [self.candidates(*level, sizes) for level in levels]
        x, labels, chosen, bases = (torch.cat(parts, dim=1) for parts in zip(*best, strict=True))
        return self.answers(decode(chosen, bases, self.post.clip_dwh_below), x, labels, sizes)

    def padded(self, images: Tensor) -> Tensor:
        """With sides as `Preprocess.stack` makes them: at others the boxes differ, and no runtime says so."""
        multiple = self.pre.padding_multiple
        down, across = (
            (side + multiple - 1) // multiple * multiple - side  # ONNX divides towards 0, so not -(-a // b)
            for side in images.shape[-2:]
        )
        known = isinstance(down, int) and isinstance(across, int)  # not while any size is traced
        return images if known and down == across == 0 else F.pad(images, (0, across, 0, down))

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """As `Preprocess.normalize`."""
        images = images.float()
        if self.pre.pixel_order == "bgr":
            images = images.flip(1)
        height, width = images.shape[-2:]
        down = torch.arange(height, device=images.device) < sizes[:, 0, None]
        across = torch.arange(width, device=images.device) < sizes[:, 1, None]
        return torch.where(
            (down[:, :, None] & across[:, None])[:, None], (images - self.mean) / self.std, 0.0
        )

    def anchors(self, height: int, width: int, like: Tensor) -> list[Tensor]:
        """As `RetinaNet.anchors`: per level [HWA, 4]."""
        levels = []
        for level, stride in enumerate(self.strides):
            down, across = (height + stride - 1) // stride, (width + stride - 1) // stride
            steps = (stride, stride)
            if self.model[0].anchor_steps != "stride":
                steps = (height // down, width // across)
            y = (torch.arange(down, device=like.device) + self.center) * steps[0]
            x = (torch.arange(across, device=like.device) + self.center) * steps[1]
            y, x = y[:, None].expand(down, across), x[None].expand(down, across)
            cell = getattr(self, f"cell{level}")
            levels.append((torch.stack([x, y, x, y], dim=-1)[:, :, None] + cell).reshape(-1, 4))
        return levels

    def candidates(
        self, logits: Tensor, offsets: Tensor, anchors: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best pairs of one level, as `Postprocess.candidates` has them: logits and labels [B, P],
        offsets and anchors [B, P, 4].

        P is `topk_candidates` whatever the level's size: a short level is padded with anchors of score 0.
        """
        _, count, classes = logits.shape
        most = self.post.topk_candidates
        best = logits.amax(dim=2).float()
        if self.post.filter_padding:
            best = torch.where(inside(anchors, sizes), best, -torch.inf)
        best, kept = F.pad(best, (0, most), value=-torch.inf).topk(most, dim=1)
        kept = kept.clamp(max=count - 1)
        pairs = torch.where(best[..., None] == -torch.inf, -torch.inf, rows(logits, kept).float())
        x, index = pairs.flatten(1).topk(most, dim=1)
        anchor = kept.gather(1, index // classes)
        bases = rows(anchors[None], anchor.reshape(1, -1)).reshape(*anchor.shape, 4)
        return x, index % classes, rows(offsets, anchor).float(), bases

    def answers(
        self, boxes: Tensor, x: Tensor, labels: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Candidates -> what a call returns, as `Postprocess.suppress`."""
        alive = (x > self.post.logit_threshold) & boxes.isfinite().all(dim=2)
        if self.post.clip_boxes == "before":
            boxes = clip(boxes, sizes)
            if self.post.empty_boxes == "dropped":
                alive = alive & (area(boxes) > 0)
        x = torch.where(alive, x, -torch.inf)
        boxes = torch.where(alive[..., None], boxes, 0.0)
        left = nms_mask(
            boxes, x, labels, self.network.num_classes, self.post.nms_threshold, self.post.max_detections
        )
        boxes, x, labels = self.best(boxes, torch.where(left, x, -torch.inf), labels)
        if self.post.clip_boxes == "after":
            boxes = clip(boxes, sizes)
            if self.post.empty_boxes == "dropped":
                boxes, x, labels = self.best(boxes, torch.where(area(boxes) > 0, x, -torch.inf), labels)
        found = x > -torch.inf
        # the sigmoid of -inf is 0 already
        return boxes * found[..., None], x.sigmoid(), labels * found, found.sum(dim=1)

    def best(self, boxes: Tensor, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The `max_detections` with the highest x, best first, of equal ones the first."""
        ordered = x.sort(dim=1, descending=True, stable=True)
        x, index = (part[:, : self.post.max_detections] for part in ordered)
        return rows(boxes, index), x, labels.gather(1, index)


def traced(graph: Graph, size: tuple[int, int] | None) -> ExportedProgram:
    """The graph for any batch of images of `size` = height, width; None: of any.

    ConfigError for a network that can be traced for one size only, such as timm's dla34.
    """
    batch, (height, width) = Dim("batch"), size or TRACED
    images = torch.zeros(2, 3, height, width, dtype=graph.pixels)
    sizes = torch.tensor([[float(height), float(width)]] * 2)
    shapes: dict[str, dict[int, Any]] = {"images": {0: batch}, "sizes": {0: batch}}
    if not size:
        for dim, name in ((2, "rows"), (3, "columns")):
            shapes["images"][dim] = Dim(name, min=LEAST, max=2**15)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about itself
        try:
            program = torch.export.export(graph, (images, sizes), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch has many for what it cannot trace
            if size:
                raise
            raise ConfigError(
                f"torch cannot trace this network for images of any size; give --size ({str(error)[:200]})"
            ) from error
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of code with the paths of this machine
    # what the tracer takes for granted about maps of more than a cell; that it holds for one too is for the
    # proof to show
    program._guards_code = []
    return program
