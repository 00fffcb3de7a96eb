"""Images from files for a detector: decoded by loader processes, cut into parts, and run in batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import IterableDataset

from ..data.images import MAX_PIXELS, read_image
from ..device import load_items, pick_workers
from ..errors import DataError
from ..model.preprocess import Preprocess
from ..structures import Detections
from .detector import Detector, Part, parts_of
from .tiles import Tiling

KEPT = 1 << 28
"""Bytes of decoded images that are kept while they wait for their batch; one may have a quarter of them."""

Failure = tuple[int, str]
"""The position of an image, and why it cannot be read."""


def stream_with_images(
    detector: Detector,
    paths: Sequence[Path],
    batch: int = 8,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    keep: bool = True,
) -> Iterator[tuple[int, Detections | DataError, Tensor | None]]:
    """As `Detector.stream`, with the decoded image [3, H, W]; None where it is too large to be kept."""
    failed: list[tuple[int, DataError]] = []
    images: dict[int, Tensor] = {}

    def readable() -> Iterator[Part]:
        for part in load_parts(detector, paths, pick_workers(workers, detector.device), max_pixels, keep):
            if not isinstance(part, Part):
                failed.append((part[0], DataError(part[1])))
                continue
            image = part.image
            if image is not None and sum(one.nbytes for one in images.values()) + image.nbytes <= KEPT:
                images[part.position] = image
            yield part._replace(image=None)

    for index, found in detector.in_batches(readable(), batch):
        yield index, found, images.pop(index, None)
    for index, error in failed:
        yield index, error, None


def load_parts(
    detector: Detector, paths: Sequence[Path], workers: int, max_pixels: int, keep: bool
) -> Iterator[Part | Failure]:
    """The parts of all images in their order, for any number of loader processes.

    The processes take turns, image by image. Each holds one decoded image and sends its parts one by one.
    """
    turns = max(1, min(workers, len(paths)))
    size = (KEPT // 4 if keep else 0) + sum(one.most_bytes for one in detector.scales)
    sources: list[Iterator[Part | Failure]] = []
    for first in range(turns):
        positions = range(first, len(paths), turns)
        parts = _Parts(paths, positions, detector.scales, detector.tiling, max_pixels, keep)
        sources.append(load_items(parts, min(workers, 1), turns * size))
    for index in range(len(paths)):
        part = next(sources[index % turns])
        yield part
        if isinstance(part, Part):
            yield from itertools.islice(sources[index % turns], part.total - 1)


@dataclass(eq=False)
class _Parts(IterableDataset[Any]):
    """The parts of some images, or the failure of an image that cannot be read."""

    paths: Sequence[Path]
    positions: range
    scales: Sequence[Preprocess]
    tiling: Tiling | None
    max_pixels: int
    keep: bool

    def __iter__(self) -> Iterator[Part | Failure]:
        for index in self.positions:
            try:
                image = read_image(self.paths[index], self.max_pixels)
            except DataError as error:
                yield index, str(error)
                continue
            # a huge image would fill the memory that the processes share
            kept = image if self.keep and image.nbytes <= KEPT // 4 else None
            for part in parts_of(index, image, self.scales, self.tiling):
                yield part._replace(image=kept)
                kept = None
            del image  # before the next is decoded
