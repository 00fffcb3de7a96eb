"""Batches. What a step learns from is a pure function of (seed, epoch, index): no worker's state, nor their number, matters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from ..errors import DataError
from ..model.preprocess import Preprocess
from ..structures import Targets
from .augment import Augment
from .dataset import Dataset
from .images import MAX_PIXELS, read_image

Plan = list[tuple[list[int], tuple[int, int]]]
"""Batches as (indices, canvas): the pictures of a batch and the padded height and width that they share."""


@dataclass(frozen=True)
class Batch:
    """Pictures of one step.

    images   [B, 3, H, W] uint8, padded
    targets  boxes in pixels of the padded batch
    indices  [B] of the pictures in their data set
    """

    images: Tensor
    targets: Targets
    indices: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device; asynchronous from page-locked memory."""
        return Batch(self.images.to(device, non_blocking=True), self.targets.to(device, non_blocking=True), self.indices)

    def pin_memory(self) -> Batch:
        """Called by the data loader."""
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.indices)


def random_seed(*parts: int) -> int:
    """One 64-bit seed from several numbers, so that (seed, epoch, index) and (seed, index, epoch) differ."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def training_plan(sizes: np.ndarray, batch: int, seed: int, epoch: int, preprocess: Preprocess) -> Plan:
    """The batches of one epoch, from image sizes [N, 2] (height, width): shuffled, tall and wide pictures apart.

    Every picture appears at least once; the last batch is filled up from the beginning of the order.
    """
    order = np.random.default_rng(random_seed(seed, epoch)).permutation(len(sizes))
    tall = sizes[order, 0] > sizes[order, 1]
    groups = [order[~tall], order[tall]]
    full = [list(chunk) for group in groups for chunk in np.split(group, range(batch, len(group), batch)) if len(chunk) == batch]
    rest = np.concatenate([group[len(group) - len(group) % batch :] for group in groups])
    while len(rest) % batch:
        rest = np.concatenate([rest, order[: batch - len(rest) % batch]])
    full += [list(chunk) for chunk in rest.reshape(-1, batch)]
    shuffled = np.random.default_rng(random_seed(seed, epoch, 1)).permutation(len(full))
    plan = []
    for position in shuffled:
        indices = [int(i) for i in full[position]]
        plan.append((indices, preprocess.padded([preprocess.size(*map(int, sizes[i])) for i in indices])))
    return plan


def evaluation_plan(sizes: np.ndarray, batch: int, preprocess: Preprocess) -> Plan:
    """Every picture once; only pictures of the same padded shape share a batch, since group norm sees the padding."""
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        shape = preprocess.padded([preprocess.size(int(height), int(width))])
        shapes.setdefault(shape, []).append(index)
    return [(indices[i : i + batch], shape) for shape, indices in shapes.items() for i in range(0, len(indices), batch)]


class _Samples(TorchDataset[Batch | DataError]):
    """Turns an entry of a plan, with its epoch, into a batch; runs in the workers."""

    def __init__(self, data: Dataset, preprocess: Preprocess, augment: Augment | None, seed: int, max_pixels: int) -> None:
        self.data, self.preprocess, self.augment, self.seed, self.max_pixels = data, preprocess, augment, seed, max_pixels

    def __getitem__(self, entry: tuple[int, list[int], tuple[int, int]]) -> Batch | DataError:
        epoch, indices, canvas = entry
        try:
            samples = [self.sample(epoch, index, canvas) for index in indices]
        except DataError as error:
            return error  # raised by a worker it would come with the worker's traceback
        images, sizes = self.preprocess.stack([image for image, _, _ in samples], canvas)
        size_pairs = [(int(height), int(width)) for height, width in sizes.tolist()]
        targets = Targets.pad([boxes for _, boxes, _ in samples], [labels for _, _, labels in samples], size_pairs)
        return Batch(images, targets, torch.tensor(indices))

    def sample(self, epoch: int, index: int, canvas: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """One picture at network size [3, h, w] uint8, its boxes [G, 4] and labels [G]; crowds are not for training."""
        image = read_image(self.data.path(index), self.max_pixels)
        rows = self.data.rows(index)
        single = ~self.data.crowd[rows]
        boxes = torch.from_numpy(self.data.boxes[rows][single]).float()
        labels = torch.from_numpy(self.data.labels[rows][single])
        if self.augment is None:
            height, width = image.shape[-2:]
            image = self.preprocess.resize(image)
            return image, boxes * torch.tensor([image.shape[-1] / width, image.shape[-2] / height] * 2), labels
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            torch.manual_seed(random_seed(self.seed, epoch, index))
            return self.augment(image, boxes, labels, self.preprocess, canvas)


class _Order:
    """Hands the loader the entries of a plan, epoch after epoch, beginning at any iteration."""

    def __init__(self, data: Dataset, batch: int, seed: int, preprocess: Preprocess, start: int, stop: int) -> None:
        self.data, self.batch, self.seed, self.preprocess, self.start, self.stop = data, batch, seed, preprocess, start, stop

    def __iter__(self) -> Iterator[tuple[int, list[int], tuple[int, int]]]:
        epoch, plan = -1, Plan()
        for iteration in range(self.start, self.stop):
            wanted, position = divmod(iteration, steps_per_epoch(self.data, self.batch))
            if wanted != epoch:
                epoch, plan = wanted, training_plan(self.data.sizes, self.batch, self.seed, wanted, self.preprocess)
            yield (epoch, *plan[position])

    def __len__(self) -> int:
        return self.stop - self.start


def steps_per_epoch(data: Dataset, batch: int) -> int:
    """Batches of one epoch; a number that does not change from epoch to epoch."""
    tall = int((data.sizes[:, 0] > data.sizes[:, 1]).sum())
    wide = len(data) - tall
    return wide // batch + tall // batch + -(-(wide % batch + tall % batch) // batch)


def training_batches(
    data: Dataset,
    preprocess: Preprocess,
    augment: Augment,
    batch: int,
    seed: int,
    start: int,
    stop: int,
    workers: int = 0,
    pin: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Batch]:
    """The batches of iterations start..stop-1. A picture that cannot be decoded is a DataError that names it."""
    order = _Order(data, batch, seed, preprocess, start, stop)
    return _load(_Samples(data, preprocess, augment, seed, max_pixels), order, workers, pin)


def evaluation_batches(
    data: Dataset, preprocess: Preprocess, batch: int, workers: int = 0, pin: bool = False, max_pixels: int = MAX_PIXELS
) -> Iterator[Batch]:
    """Every picture once, not augmented, in batches of one padded shape."""
    order = [(0, indices, shape) for indices, shape in evaluation_plan(data.sizes, batch, preprocess)]
    return _load(_Samples(data, preprocess, None, 0, max_pixels), order, workers, pin)


def _load(samples: _Samples, order: Any, workers: int, pin: bool) -> Iterator[Batch]:
    # an entry of the order is a whole batch already
    for batch in DataLoader(samples, sampler=order, batch_size=None, num_workers=workers, pin_memory=pin):
        if isinstance(batch, DataError):
            raise batch
        yield batch
