"""Batches. A sample is a pure function of (seed, epoch, index): workers and their number do not matter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ..device import load_items, shared_memory
from ..errors import DataError
from ..model.preprocess import Preprocess
from ..structures import Targets
from .augment import Augment
from .dataset import Dataset, Shared, share
from .images import MAX_PIXELS, read_image
from .sampler import Entry, Sampler, evaluation_entries, random_seed


@dataclass(frozen=True)
class Batch:
    """Images of one step.

    images   [B, 3, H, W] uint8, padded
    targets  boxes in pixels of the padded batch
    indices  [B] of the images in their data set
    """

    images: Tensor
    targets: Targets
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.images[rows], self.targets[rows], self.indices[rows])

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; asynchronous from page-locked memory."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.indices,
        )

    def pin_memory(self) -> Batch:
        """Called by the data loader."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.indices)


class _Samples(TorchDataset[Batch | DataError]):
    """Turns an entry of a plan, with its epoch, into a batch; runs in the workers."""

    def __init__(
        self, data: Dataset, preprocess: Preprocess, augment: Augment | None, seed: int, max_pixels: int
    ) -> None:
        self.data, self.preprocess, self.augment = data, preprocess, augment
        self.seed, self.max_pixels = seed, max_pixels
        self._shared: Shared | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked, on systems where that is not usual: they open the same memory."""
        if self._shared is None:
            columns = [one for one in vars(self.data).values() if isinstance(one, np.ndarray)]
            if 2 * sum(one.nbytes for one in columns) > shared_memory():
                return self.__dict__  # a copy for each worker
            self._shared = share(self.data)
        return self.__dict__ | {"data": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        if self._shared is not None:
            self.data = self._shared.opened()

    def __getitem__(self, entry: Entry) -> Batch | DataError:
        pairs = list(zip(entry.indices, entry.turns, strict=True))
        try:
            samples = [self.sample(entry.epoch, *pair, entry.canvas) for pair in pairs]
        except DataError as error:
            return error  # raised by a worker it would come with the worker's traceback
        images, boxes, labels = zip(*samples, strict=True)
        stacked, sizes = self.preprocess.stack(list(images), entry.canvas)
        targets = Targets.pad(list(boxes), list(labels), [(int(h), int(w)) for h, w in sizes.tolist()])
        seeds = torch.tensor([random_seed(self.seed, entry.epoch, *pair, 1) for pair in pairs])
        return Batch(stacked, replace(targets, seeds=seeds), torch.tensor(entry.indices))

    def sample(
        self, epoch: int, index: int, turn: int, canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One image at network size [3, h, w] uint8, its boxes [G, 4] and labels [G], without crowds."""
        image = read_image(self.data.path(index), self.max_pixels)
        rows = self.data.rows(index)
        single = ~self.data.crowd[rows]
        boxes = torch.from_numpy(self.data.boxes[rows][single]).float()
        labels = torch.from_numpy(self.data.labels[rows][single])
        if self.augment is None:
            height, width = image.shape[-2:]
            image = self.preprocess.resized(image)
            factors = torch.tensor([image.shape[-1] / width, image.shape[-2] / height] * 2)
            return image, boxes * factors, labels
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            # not torch.manual_seed: that seeds every device too, and costs more than the flip
            parts = (epoch, index, turn) if turn else (epoch, index)
            torch.default_generator.manual_seed(random_seed(self.seed, *parts))
            return self.augment(image, boxes, labels, self.preprocess, canvas)


def training_batches(
    data: Dataset,
    preprocess: Preprocess,
    augment: Augment,
    sampler: Sampler,
    start: int,
    stop: int,
    workers: int = 0,
    pin: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Batch]:
    """The batches of iterations start..stop-1. DataError names an image that cannot be decoded."""
    samples = _Samples(data, preprocess, augment, sampler.seed, max_pixels)
    share = sampler.batch // sampler.world
    return _load(samples, sampler.entries(start, stop), share, workers, pin)


def evaluation_batches(
    data: Dataset,
    preprocess: Preprocess,
    batch: int,
    workers: int = 0,
    pin: bool = False,
    max_pixels: int = MAX_PIXELS,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Every image once (over `world` processes), not augmented, in batches of one padded shape."""
    order = evaluation_entries(data.sizes, batch, preprocess, rank, world)
    return _load(_Samples(data, preprocess, None, 0, max_pixels), order, batch, workers, pin)


def _load(samples: _Samples, order: Iterable[Entry], batch: int, workers: int, pin: bool) -> Iterator[Batch]:
    # an entry of the order is a whole batch already
    size = batch * samples.preprocess.most_bytes
    for loaded in load_items(samples, workers, size, pin=pin, sampler=order):
        if isinstance(loaded, DataError):
            raise loaded
        yield loaded
