"""A trained model with its preprocessing, postprocessing and class names."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload

import torch
from torch import Tensor

from ..data.images import MAX_PIXELS
from ..device import autocast
from ..errors import ConfigError, DataError
from ..model.fuse_bn import fused_copy
from ..model.postprocess import Postprocess
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..structures import Detections
from .inputs import as_images

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from ..evaluation.evaluate import Evaluation
    from ..weights.checkpoint import ModelInfo
    from .tiles import Tiling

Outputs = tuple[list[Tensor], list[Tensor], Tensor]
"""Logits and offsets per level, and the normalised images."""

Found = tuple[Tensor, Tensor, Tensor]
"""Boxes, scores and labels of an image, in pixels of the resized image."""


class Runtime(Protocol):
    """An exported file that replaces network and postprocessing; see `inference.runtimes`."""

    def run(self, images: Tensor, sizes: Tensor) -> list[Found]:
        """The detections of each image of a batch, as `Postprocess` returns them."""


class Part(NamedTuple):
    """A whole image or one of its tiles, resized for the network."""

    position: int  # of the image in its list
    total: int  # how many parts the image has
    box: tuple[int, int, int, int]  # left, top, right and bottom in the image
    image_size: tuple[int, int]  # height and width of the image
    scaled: list[Tensor]  # [3, h, w] uint8 at each scale
    image: Tensor | None = None  # the decoded image, with its first part, if the caller wants it


class Detector:
    """A trained model with its preprocessing, postprocessing and class names. Images in, `Detections` out.

    Attributes:
        names: The K class names; `names[label]` is a class.
        category_ids: The ids that the training data used for them.
        threshold: The score of best F1 in validation. Use it to draw; `predict` never applies it.
        model: The network as it was trained.
        network: The inference copy of `model`: batch norm fused, bf16 if requested. It does not follow later
            changes of `model`.
        scales: One preprocessing for each scale at which the network runs; usually `preprocess` alone.
        tiling: How large images are cut into tiles; None: they are not. See `inference.tiles.in_tiles`.
        info: What the file of weights says about the model, if `load` opened one.
        runtime: An exported file that replaces the network; then there is no `model`.

    Example:
        >>> detector = retinanet.load("runs/cells")
        >>> detections = detector.predict("slide.jpg")
        >>> detections.above(detector.threshold)
    """

    def __init__(
        self,
        model: RetinaNet | Runtime,
        preprocess: Preprocess,
        postprocess: Postprocess,
        names: Sequence[str],
        category_ids: Sequence[int],
        threshold: float = 0.5,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        others: Sequence[Preprocess] = (),
    ) -> None:
        self.device = torch.device(device)
        self.runtime = None if isinstance(model, RetinaNet) else model
        if isinstance(model, RetinaNet):
            self.model = model.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            self.network = fused_copy(self.model, precision=precision)
        self.preprocess, self.postprocess = preprocess, postprocess
        self.scales = (preprocess, *others)
        self.names, self.category_ids, self.threshold = list(names), list(category_ids), threshold
        self.precision = precision
        self.tiling: Tiling | None = None
        self.info: ModelInfo | None = None

    @overload
    def predict(self, images: str | Path, batch: int = 8) -> Detections: ...
    @overload
    def predict(self, images: Any, batch: int = 8) -> Any: ...
    def predict(self, images: Any, batch: int = 8) -> Detections | list[Detections]:
        """Detect the objects in one image, or in several.

        Args:
            images: A path; an array [H, W, 3] or [H, W] or a tensor [3, H, W], RGB, uint8, uint16 or float in
                0..1; a Pillow image; the bytes of a file, or an open one. Several: a list, a generator, an
                array [B, H, W, 3] or a tensor [B, 3, H, W]. Alpha is dropped.
            batch: Images (or tiles) per batch. The images of a batch have one padded shape, so the detections
                of an image do not depend on the others.

        Returns:
            Everything above the model's own score threshold, best first; a list for several images.

        Raises:
            DataError: An image cannot be read, or is none; the message names the call that works.
        """
        several, given = as_images(images)
        parts = (
            part
            for index, image in enumerate(given)
            for part in parts_of(index, image, self.scales, self.tiling)
        )
        found = dict(self.in_batches(parts, batch))
        return [found[index] for index in range(len(found))] if several else found[0]

    def stream(
        self, paths: Sequence[Path], batch: int = 8, workers: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Iterator[tuple[int, Detections | DataError]]:
        """(position in `paths`, detections) as they come, not in order.

        An image that cannot be read gives its error and does not affect the others.
        """
        from .stream import stream_with_images

        for index, found, _ in stream_with_images(self, paths, batch, workers, max_pixels, keep=False):
            yield index, found

    def in_batches(self, parts: Iterable[Part], batch: int) -> Iterator[tuple[int, Detections]]:
        """Run the network over batches of one padded shape; give an image when all its parts are done."""
        done: dict[int, list[tuple[tuple[int, int, int, int], Detections]]] = {}
        rounds: Iterable[tuple[Any, Iterable[Part]]] = [(0, parts)]
        if self.tiling is not None:
            # what is left is run after every `batch` images: nothing depends on what comes after these
            rounds = itertools.groupby(parts, key=lambda part: part.position // max(1, batch))
        for _, some in rounds:
            for group in self._groups(some, batch):
                for part, found in zip(group, self._run(group), strict=True):
                    pieces = done.setdefault(part.position, [])
                    pieces.append((part.box, found))
                    if len(pieces) == part.total:
                        yield part.position, self._merge(done.pop(part.position), part.image_size)

    def _groups(self, parts: Iterable[Part], batch: int) -> Iterator[list[Part]]:
        """Parts of one padded shape, whenever there are `batch` of them; at the end what is left."""
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, not {batch}")
        waiting: dict[Any, list[Part]] = {}
        for part in parts:
            shape = tuple(self.preprocess.padded([(one.shape[1], one.shape[2])]) for one in part.scaled)
            group = waiting.setdefault(shape, [])
            group.append(part)
            if len(group) == batch:
                yield waiting.pop(shape)
        yield from waiting.values()

    def _run(self, group: list[Part]) -> list[Detections]:
        """The detections of parts of one padded shape, each in pixels of its own part."""
        sizes = [(bottom - top, right - left) for left, top, right, bottom in (part.box for part in group)]
        scales = zip(*(part.scaled for part in group), strict=True)
        batches = [self.preprocess.stack(scale) for scale in scales]
        if len(batches) > 1:
            return self._multi_scale(batches, sizes)
        return self.predict_batch(*batches[0], sizes)

    def _merge(self, pieces: list[tuple[Any, Detections]], image_size: tuple[int, int]) -> Detections:
        """The detections of one image from those of its parts, (box, detections)."""
        if self.tiling is None or len(pieces) == 1:
            return pieces[0][1]
        boxes, found = zip(*sorted(pieces, key=lambda piece: piece[0]), strict=True)
        return self.tiling.merge(boxes, found, image_size, self.postprocess.nms_threshold)

    def predict_batch(
        self, images: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """A padded uint8 batch [B, 3, H, W] of resized images, sizes [B, 2] -> detections in pixels of the
        originals (height, width)."""
        with torch.inference_mode():
            if self.runtime is not None:
                return self._rescale(self.runtime.run(images, sizes), sizes, originals)
            return self.select(self.forward(images, sizes), sizes, originals)

    def _multi_scale(
        self, batches: Sequence[tuple[Tensor, Tensor]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The detections of each image from several scales; `batches`: images and sizes of every scale.

        An image pyramid (Lin et al. 2017, "Feature Pyramid Networks", Fig. 1a). The candidates of all scales
        go through one NMS, in pixels of the originals, with the scores that they have. With an NMS for each
        scale and another over what these leave, a box that is itself suppressed could suppress another.
        """
        limits = torch.tensor(originals, dtype=torch.float32, device=self.device)  # [B, 2] height, width
        parts = []
        with torch.inference_mode():
            for images, sizes in batches:
                logits, offsets, normalized = self.forward(images, sizes)
                sizes = sizes.to(self.device)
                boxes, x, labels = self.postprocess.candidates(
                    logits, offsets, self.model.anchors(normalized), sizes
                )
                factors = (limits / sizes).flip(1).repeat(1, 2)  # [B, 4] of x, y, x, y
                parts.append((boxes * factors[:, None], x, labels))
            boxes, x, labels = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
            found = self.postprocess.suppress(boxes, x, labels, limits)
        corners = limits.flip(1).repeat(1, 2)[:, None].cpu()  # rounding may have gone beyond these
        return [
            Detections(torch.minimum(boxes.cpu(), corner), scores.cpu(), labels.cpu(), self.names)
            for (boxes, scores, labels), corner in zip(found, corners, strict=True)
        ]

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Logits and offsets per level for a padded uint8 batch, and the normalised images."""
        normalized = self.preprocess.normalize(images.to(self.device), sizes.to(self.device))
        with autocast(self.precision, self.device):
            logits, offsets = self.network(normalized)
        return logits, offsets, normalized

    def select(
        self, outputs: Outputs, sizes: Tensor, originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """What `forward` returns for a batch -> detections in pixels of the originals."""
        logits, offsets, normalized = outputs
        found = self.postprocess(logits, offsets, self.model.anchors(normalized), sizes.to(self.device))
        return self._rescale(found, sizes, originals)

    def _rescale(
        self, found: Sequence[Found], sizes: Tensor, originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Boxes, scores and labels in pixels of resized images -> detections in pixels of the originals."""
        detections = []
        for (boxes, scores, labels), size, original in zip(found, sizes.tolist(), originals, strict=True):
            # both sides of the image were rounded to whole pixels, so each has its own factor
            limit = torch.tensor(original[::-1] * 2, dtype=torch.float32)
            scaled = torch.minimum(boxes.cpu() * (limit / torch.tensor(size[::-1] * 2)), limit)
            detections.append(Detections(scaled, scores.cpu(), labels.cpu(), self.names))
        return detections

    def evaluate(self, data: Dataset | str | Path, split: str | None = None, batch: int = 8) -> Evaluation:
        """Measure COCO AP on a data set, or on a split of the one at a path; see `retinanet.evaluate`.

        Example:
            >>> detector.evaluate("data/cells").metrics["AP50"]
        """
        from ..evaluation.evaluate import evaluate

        return evaluate(self, data, split=split, batch=batch)

    def export(self, path: str | Path, format: str | None = None) -> Path:
        """Write the model for another runtime, and keep the file only if it gives the same detections.

        `path` ends in .onnx for ONNX or in .xml for OpenVINO; `format` is "onnx" or "openvino" and follows
        from it. The report of the comparison is beside the file. ConfigError says why there is no file.

        Example:
            >>> detector.export("cells.onnx")
        """
        from ..export.write import export

        return export(self, path, format)


def parts_of(
    index: int, image: Tensor, scales: Sequence[Preprocess], tiling: Tiling | None = None
) -> Iterator[Part]:
    """An image [3, H, W] in parts, one by one: all tiles of a huge image, resized, may be larger than it."""
    height, width = image.shape[1:]
    boxes = [(0, 0, width, height)] if tiling is None else tiling.grid(height, width)
    for left, top, right, bottom in boxes:
        part = image[:, top:bottom, left:right]
        if part.shape != image.shape:
            part = part.clone()  # a view that is sent to another process takes the whole image along
        scaled = [one.resized(part) for one in scales]
        yield Part(index, len(boxes), (left, top, right, bottom), (height, width), scaled)
