"""A trained model with its preprocessing, its answers and its class names: what a user holds in the hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..data.images import MAX_PIXELS, from_pillow, read_image
from ..device import autocast, pick_workers
from ..errors import ConfigError, DataError
from ..model.fuse_bn import fused_copy
from ..model.postprocess import Postprocess
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..structures import Detections

T = TypeVar("T")

Picture = str | Path | np.ndarray | Tensor | Any

Prepared = tuple[int, list[Tensor], tuple[int, int]]
"""A picture's position, the picture [3, h, w] at each scale, its original height and width."""

KEPT = 1 << 28
"""Bytes of decoded images that `stream` keeps for its caller while they wait for their batch; one image may
have a quarter.
"""


class Runtime(Protocol):
    """An exported file that takes the place of network and post-processing; see `inference.runtimes`."""

    def answer(self, images: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes, scores and labels of each image of a batch, as `Postprocess` has them."""
        ...


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
        runtime: An exported file that replaces the network; then there is no `model`.

    Example:
        >>> detector = retinanet.load("runs/cells")
        >>> detections = detector.predict("slide.jpg")
        >>> detections.above(detector.threshold)
    """

    tiled: ClassVar[bool] = False
    """Whether images are cut into tiles, as `inference.tiles.Tiled` does."""

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

    @overload
    def predict(self, images: str | Path, batch: int = 8) -> Detections: ...
    @overload
    def predict(self, images: Any, batch: int = 8) -> Any: ...
    def predict(self, images: Any, batch: int = 8) -> Detections | list[Detections]:
        """Detect the objects in one image, or in several.

        Args:
            images: A path; an array [H, W, 3] or [H, W], uint8, RGB; a tensor [3, H, W], uint8 or float in
                0..1; a Pillow image; a list of these; an array [B, H, W, 3] or tensor [B, 3, H, W].
            batch: Images per batch. The images of a batch have one padded shape, so the detections of an
                image do not depend on the others.

        Returns:
            Everything above the model's own score threshold, best first; a list for several images.

        Raises:
            DataError: An image cannot be read.
        """
        found: Detections | list[Detections] = one_or_several(
            images,
            lambda images: self._in_batches((prepare(*image, self.scales) for image in images), batch),
        )
        return found

    @overload
    def stream(
        self, paths: Sequence[Path], batch: int = 8, workers: int | None = None, max_pixels: int = MAX_PIXELS
    ) -> Iterator[tuple[int, Detections | DataError]]: ...
    @overload
    def stream(
        self,
        paths: Sequence[Path],
        batch: int = 8,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        *,
        with_images: bool,
    ) -> Iterator[Any]: ...
    def stream(
        self,
        paths: Sequence[Path],
        batch: int = 8,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        *,
        with_images: bool = False,
    ) -> Iterator[Any]:
        """(position in `paths`, detections) as they come, not in order; an image that cannot be read gives
        its error and hurts no other.

        with_images   a third value: the decoded image [3, H, W], or None where it is too large to be kept
        """
        loader: DataLoader[Any] = DataLoader(
            _Images(paths, self.scales, max_pixels, with_images),
            batch_size=None,
            num_workers=pick_workers(workers, self.device),
        )
        failed: list[tuple[int, DataError]] = []
        images: dict[int, Tensor] = {}

        def prepared() -> Iterator[Prepared]:
            for index, scaled, size, image in loader:
                if isinstance(scaled, str):
                    failed.append((index, DataError(scaled)))
                else:
                    keep_image(images, index, image)
                    yield index, scaled, size

        for index, found in itertools.chain(self._in_batches(prepared(), batch), failed):
            yield (index, found, images.pop(index, None)) if with_images else (index, found)

    def _in_batches(self, prepared: Iterator[Prepared], batch: int) -> Iterator[tuple[int, Detections]]:
        def shapes(entry: Prepared) -> Hashable:
            return tuple(self.preprocess.padded([(image.shape[1], image.shape[2])]) for image in entry[1])

        for group in gather(prepared, shapes, batch):
            yield from self._run(group)

    def _run(self, group: list[Prepared]) -> Iterator[tuple[int, Detections]]:
        indices, images, originals = zip(*group, strict=True)
        batches = [self.preprocess.stack(scale) for scale in zip(*images, strict=True)]
        answers = (
            self.answer(*batches[0], originals) if len(batches) == 1 else self.merged(batches, originals)
        )
        yield from zip(indices, answers, strict=True)

    def answer(self, images: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]]) -> list[Detections]:
        """A padded uint8 batch [B, 3, H, W] of resized pictures, sizes [B, 2] -> detections in pixels of the
        originals (height, width).
        """
        with torch.inference_mode():
            if self.runtime is not None:
                return self.in_originals(self.runtime.answer(images, sizes), sizes, originals)
            logits, offsets, normalized = self.forward(images, sizes)
            return self.select(logits, offsets, normalized, sizes, originals)

    def merged(
        self, batches: Sequence[tuple[Tensor, Tensor]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """One answer for each picture from several scales: of every scale the batch and sizes that `answer`
        takes.

        An image pyramid (Lin et al. 2017, "Feature Pyramid Networks", Fig. 1a).
        The candidates of all scales go through one NMS, in pixels of the originals, with the scores that they
        have. With an NMS for each
        scale and another over what these leave, a box could go because of one that goes itself.
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

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """The network's logits and offsets per level for a padded uint8 batch, and the normalised
        pictures.
        """
        normalized = self.preprocess.normalize(images.to(self.device), sizes.to(self.device))
        with autocast(self.precision, self.device):
            logits, offsets = self.network(normalized)
        return logits, offsets, normalized

    def select(
        self,
        logits: list[Tensor],
        offsets: list[Tensor],
        normalized: Tensor,
        sizes: Tensor,
        originals: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """The answers for a batch, in pixels of the originals."""
        found = self.postprocess(logits, offsets, self.model.anchors(normalized), sizes.to(self.device))
        return self.in_originals(found, sizes, originals)

    def in_originals(
        self,
        found: Sequence[tuple[Tensor, Tensor, Tensor]],
        sizes: Tensor,
        originals: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Boxes, scores and labels of each picture of a batch, in pixels of the originals."""
        answers = []
        for (boxes, scores, labels), size, (height, width) in zip(
            found, sizes.tolist(), originals, strict=True
        ):
            limit = torch.tensor([width, height] * 2, dtype=torch.float32)
            # both sides of the picture were rounded to whole pixels, so each has its own factor
            scaled = boxes.cpu() * (limit / torch.tensor([size[1], size[0]] * 2))
            answers.append(Detections(torch.minimum(scaled, limit), scores.cpu(), labels.cpu(), self.names))
        return answers


class _Images(TorchDataset[Any]):
    """What `prepare` gives and the image if it is wanted, or (position, reason, size, None) for an image that
    cannot be read.
    """

    def __init__(
        self, paths: Sequence[Path], scales: Sequence[Preprocess], max_pixels: int, with_images: bool
    ) -> None:
        self.paths, self.scales = list(paths), scales
        self.max_pixels, self.with_images = max_pixels, with_images

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        try:
            image = read_image(self.paths[index], self.max_pixels)
        except DataError as error:
            return index, str(error), (0, 0), None
        return *prepare(index, image, self.scales), image if self.with_images and may_send(image) else None


def may_send(image: Tensor) -> bool:
    """Whether a loader's process sends this image along: a huge one would fill the memory they share."""
    return image.nbytes <= KEPT // 4


def keep_image(images: dict[int, Tensor], index: int, image: Tensor | None) -> None:
    """Put a decoded image with those that wait for their batch, unless they are many already."""
    if image is not None and sum(other.nbytes for other in images.values()) + image.nbytes <= KEPT:
        images[index] = image


def gather(entries: Iterable[T], shape: Callable[[T], Hashable], batch: int) -> Iterator[list[T]]:
    """Groups of entries of one shape: each when it has `batch` of them, and what is left at the end."""
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, not {batch}")
    waiting: dict[Hashable, list[T]] = {}
    for entry in entries:
        key = shape(entry)
        group = waiting.setdefault(key, [])
        group.append(entry)
        if len(group) == batch:
            yield waiting.pop(key)
    yield from waiting.values()


def one_or_several(
    images: Any, answer: Callable[[Iterator[tuple[int, Tensor]]], Iterable[tuple[int, Any]]]
) -> Any:
    """What `answer` finds in an image, or in each of several, which are read one by one: a thousand need not
    fit in memory.
    """
    several = isinstance(images, (list, tuple)) or (
        isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4
    )
    found = dict(answer(enumerate(map(as_picture, images if several else [images]))))
    return [found[index] for index in range(len(found))] if several else found[0]


def prepare(index: int, picture: Tensor, scales: Sequence[Preprocess]) -> Prepared:
    """A picture [3, H, W] uint8 at every scale."""
    return index, [one.resized(picture) for one in scales], (picture.shape[1], picture.shape[2])


def as_picture(image: Picture) -> Tensor:
    """Whatever a user calls a picture -> uint8 [3, H, W] RGB."""
    if isinstance(image, (str, Path)):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        return from_pillow(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 2:
            image = image[:, :, None]
        if image.ndim != 3 or image.shape[2] not in (1, 3):
            raise DataError(f"an array must be [H, W, 3] or [H, W], not {list(image.shape)}")
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise DataError(
            f"a picture is a path, an array, a tensor or a Pillow image, not {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise DataError(f"a tensor must be [3, H, W], not {list(image.shape)}")
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"a float picture must lie in 0..1, not {low:.3g}..{high:.3g}; give uint8 for 0..255"
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise DataError(f"a picture must be uint8, or float in 0..1, not {image.dtype}")
    return image.expand(3, -1, -1).cpu()
