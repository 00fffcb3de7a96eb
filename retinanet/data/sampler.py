"""Rare classes: shown more often, or weighted more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..model.preprocess import Preprocess
from .dataset import Dataset, Flags, Floats, Integers


def repeat_factors(data: Dataset, threshold: float) -> Floats:
    """[N] how often each image should be shown in an epoch, so that rare classes are met more often.

    r_i = max over its classes c of max(1, sqrt(threshold / f_c)), f_c being the share of images that hold
    class c (Gupta et al., "LVIS", 2019, Sec. 5.1). An image without objects is shown once.
    """
    image = data.image_of_box()[~data.crowd]
    # an image counts once for a class
    pairs = np.unique(np.stack([image, data.labels[~data.crowd]], axis=1), axis=0)
    share = np.bincount(pairs[:, 1], minlength=len(data.names)) / max(1, len(data))
    factor = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    repeats = np.ones(len(data))
    np.maximum.at(repeats, pairs[:, 0], factor[pairs[:, 1]])
    return repeats


class Entry(NamedTuple):
    """A batch before it is loaded."""

    epoch: int
    indices: list[int]
    """Of the images in their data set."""
    turns: list[int]
    """How often each image was shown in this epoch before."""
    canvas: tuple[int, int]
    """Padded height and width, which the images share."""


@dataclass(frozen=True)
class Sampler:
    """The steps of a training, shuffled by epoch, tall and wide images apart; all epochs have as many steps.

    sizes     [N, 2] height and width of the images
    batch     images of a step, over all processes
    repeats   [N] how often an image is shown in an epoch, on average (`repeat_factors`); None: each once
    rank      this process among `world`: it gets its share of each step, padded like the whole of it

    Every image appears at least once in an epoch; the last step is filled up from the beginning of the order.
    """

    sizes: Integers
    batch: int
    seed: int
    preprocess: Preprocess
    repeats: Floats | None = None
    rank: int = 0
    world: int = 1

    def entries(self, start: int, stop: int) -> Iterator[Entry]:
        """This process's share of the steps start..stop-1, which may begin in the middle of an epoch."""
        epoch, steps = -1, list[tuple[Integers, Integers]]()
        share = self.batch // self.world
        mine = slice(self.rank * share, (self.rank + 1) * share)
        for iteration in range(start, stop):
            wanted, position = divmod(iteration, self.steps_per_epoch)
            if wanted != epoch:
                epoch, steps = wanted, self._steps(wanted)
            whole = self._entry(epoch, *steps[position])
            yield Entry(epoch, whole.indices[mine], whole.turns[mine], whole.canvas)

    @cached_property
    def steps_per_epoch(self) -> int:
        """A number that does not change from epoch to epoch."""
        tall, wide = (round(float(self._factors[group].sum())) for group in self._groups)
        batch = self.batch
        return wide // batch + tall // batch + -(-(wide % batch + tall % batch) // batch)

    def epoch(self, epoch: int) -> list[Entry]:
        """The whole steps of one epoch."""
        return [self._entry(epoch, *step) for step in self._steps(epoch)]

    def _steps(self, epoch: int) -> list[tuple[Integers, Integers]]:
        """Indices and turns [batch] of each step. All of COCO's entries at once would take 0.3 s."""
        generator = np.random.default_rng(random_seed(self.seed, epoch))
        counts = self._counts(generator)
        indices = np.repeat(np.arange(len(self.sizes)), counts)
        turns = np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)
        order = generator.permutation(len(indices))
        tall = self._tall[indices[order]]
        batch = self.batch
        groups = [order[~tall], order[tall]]
        full = [group[: len(group) - len(group) % batch].reshape(-1, batch) for group in groups]
        rest = np.concatenate([group[len(group) - len(group) % batch :] for group in groups])
        while len(rest) % batch:
            rest = np.concatenate([rest, order[: batch - len(rest) % batch]])
        steps = np.concatenate([*full, rest.reshape(-1, batch)])
        shuffled = np.random.default_rng(random_seed(self.seed, epoch, 1)).permutation(len(steps))
        return [(indices[step], turns[step]) for step in steps[shuffled]]

    def _entry(self, epoch: int, indices: Integers, turns: Integers) -> Entry:
        chosen = indices.tolist()
        canvas = self.preprocess.padded([self.preprocess.size(*map(int, self.sizes[i])) for i in chosen])
        return Entry(epoch, chosen, turns.tolist(), canvas)

    @cached_property
    def _tall(self) -> Flags:
        return np.asarray(self.sizes[:, 0] > self.sizes[:, 1])

    @cached_property
    def _groups(self) -> tuple[Integers, Integers]:
        return np.flatnonzero(self._tall), np.flatnonzero(~self._tall)

    @cached_property
    def _factors(self) -> Floats:
        """[N] the repeats, a little enlarged so that tall and wide images each add up to a whole number."""
        factors = np.ones(len(self.sizes)) if self.repeats is None else self.repeats.copy()
        for group in self._groups:
            if len(group):
                factors[group] *= np.ceil(factors[group].sum() - 1e-9) / factors[group].sum()
        return factors

    def _counts(self, generator: np.random.Generator) -> Integers:
        """[N] how often each image is shown: systematic sampling, with a fixed sum."""
        counts = np.ones(len(self.sizes), dtype=np.int64)
        if self.repeats is None:
            return counts
        for group in self._groups:
            ends = np.concatenate([[0.0], np.cumsum(self._factors[group])])
            ends[-1] = round(ends[-1])
            # the offset stays off 0 and 1, where the rounding of the sums would decide
            marks = np.floor(ends + generator.uniform(1e-6, 1 - 1e-6)).astype(np.int64)
            counts[group] = np.diff(marks)
        return counts


def evaluation_entries(
    sizes: Integers,
    batch: int,
    preprocess: Preprocess,
    rank: int = 0,
    world: int = 1,
    others: Sequence[Preprocess] = (),
) -> list[Entry]:
    """Every image once, over all processes; only images of one padded shape share a batch, since group norm
    sees the padding.

    Whole batches are dealt to the processes, so that their composition, and every bit of the detections, is
    that of one process. `others` are further scales of these images: there too their padded shape is one.
    """
    shapes: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        padded = tuple(one.padded([one.size(int(height), int(width))]) for one in (preprocess, *others))
        shapes.setdefault(padded, []).append(index)
    chunks = [
        Entry(0, chunk, [0] * len(chunk), padded[0])
        for padded, indices in shapes.items()
        for chunk in (indices[i : i + batch] for i in range(0, len(indices), batch))
    ]
    return chunks[rank::world]


def random_seed(*parts: int) -> int:
    """One 64-bit seed from several numbers, so that (seed, epoch, index) and (seed, index, epoch) differ."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
