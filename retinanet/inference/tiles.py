"""Large pictures in tiles: small objects are answered at the size at which the detector knows them, and each
object once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, overload

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..data.images import MAX_PIXELS, read_image
from ..device import pick_workers
from ..errors import ConfigError, DataError
from ..model.preprocess import Preprocess
from ..ops.boxes import iou
from ..ops.nms import exact_nms
from ..structures import Detections
from .detector import Detector, gather, keep_image, may_send, one_or_several

TileBox = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, in its pixels."""

SIZES = (32, 1 << 16)

OVERLAP = 0.25

SLACK = 0.1
"""A box is cut where it comes this near to a seam, in parts of its own side: so far off a detector's boxes
may be.
"""

SMALL = 1 / 6
"""In parts of a tile: objects below this are left to the tiles. Larger ones may be of a better known size in
the look at the whole.
"""

EQUAL = 0.5
"""What makes a box larger must have this much of its score: a detector gives many boxes of low score around
every object.
"""

INF = math.inf

OPEN = torch.tensor([-INF, -INF, INF, INF])
"""The lines of a box that no seam cuts."""


class Tile(NamedTuple):
    """A part of a picture, prepared for the network."""

    position: int
    """Of the picture, in its list."""
    looks: int
    """How many the picture gets."""
    place: TileBox
    picture: tuple[int, int]
    """Height and width."""
    image: Tensor
    """[3, h, w]"""
    whole: Tensor | None = None
    """With the first look, if it is wanted and not too large: the image itself, [3, H, W]."""


Failure = tuple[int, str]
"""A picture's position and why it cannot be read."""


class Tiled:
    """A detector that answers large pictures tile by tile, to be used in its place.

    size     side of a tile in pixels of the picture: each is resized as if it were a picture, so small tiles
             make objects large
    overlap  the share of a tile that the next one sees too: an object up to this part of a tile is seen whole
             by one of them

    A picture that is no larger than a tile is answered by the detector as ever. A larger one is looked at in
    tiles of one size, evenly
    laid, and once more as a whole, for the objects that are too large for a tile. See `merge` for what
    becomes of the answers.
    """

    tiled: ClassVar[bool] = True

    def __init__(self, detector: Detector, size: int, overlap: float = OVERLAP) -> None:
        check_tiles(size, overlap, len(detector.scales))
        self.detector, self.size, self.overlap = detector, size, overlap
        self.names, self.category_ids, self.threshold = (
            detector.names,
            detector.category_ids,
            detector.threshold,
        )
        self.device, self.precision = detector.device, detector.precision
        self.preprocess, self.postprocess, self.scales = (
            detector.preprocess,
            detector.postprocess,
            detector.scales,
        )

    @overload
    def predict(self, images: str | Path, batch: int = 8) -> Detections: ...
    @overload
    def predict(self, images: Any, batch: int = 8) -> Any: ...
    def predict(self, images: Any, batch: int = 8) -> Detections | list[Detections]:
        """The objects in one picture, or a list of `Detections` for several: as `Detector.predict`, and
        `batch` counts tiles.
        """

        def answer(images: Iterator[tuple[int, Tensor]]) -> Iterator[tuple[int, Detections]]:
            looks = (crop_tiles(*image, self.size, self.overlap, self.preprocess) for image in images)
            return self._answers(itertools.chain.from_iterable(looks), batch)

        found: Detections | list[Detections] = one_or_several(images, answer)
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
        """(position in `paths`, detections) as they come: as `Detector.stream`, and `batch` counts tiles.

        Each loader process holds one decoded image, of which it sends the tiles one by one.
        """
        failed: list[tuple[int, DataError]] = []
        images: dict[int, Tensor] = {}

        def looks() -> Iterator[Tile]:
            for look in self._loaded(paths, pick_workers(workers, self.device), max_pixels, with_images):
                if isinstance(look, Tile):
                    keep_image(images, look.position, look.whole)
                    yield look._replace(whole=None)
                else:
                    failed.append((look[0], DataError(look[1])))

        for index, found in itertools.chain(self._answers(looks(), batch), failed):
            yield (index, found, images.pop(index, None)) if with_images else (index, found)

    def _loaded(
        self, paths: Sequence[Path], workers: int, max_pixels: int, with_images: bool
    ) -> Iterator[Tile | Failure]:
        """The looks of all pictures in their order, for any number of loader processes: these take turns,
        picture by picture.
        """
        turns = max(1, min(workers, len(paths)))
        sources: list[Iterator[Tile | Failure]] = []
        for first in range(turns):
            positions = range(first, len(paths), turns)
            looks = _Tiles(
                *(paths, positions, self.size, self.overlap, self.preprocess, max_pixels, with_images)
            )
            sources.append(
                iter(DataLoader(looks, batch_size=None, num_workers=min(workers, 1), collate_fn=_as_it_is))
            )
        for index in range(len(paths)):
            source = sources[index % turns]
            look = next(source)
            yield look
            if isinstance(look, Tile):
                for _ in range(look.looks - 1):
                    yield next(source)

    def _answers(self, looks: Iterator[Tile], batch: int) -> Iterator[tuple[int, Detections]]:
        """Gather looks by padded shape, also those of several images; give an image when no look is missing.

        What is left is run after every `batch` images, so that nothing depends on what comes after these.
        """

        def shape(look: Tile) -> tuple[int, int]:
            return self.preprocess.padded([(look.image.shape[1], look.image.shape[2])])

        found: dict[int, list[tuple[Tile, Detections]]] = {}
        for _, some in itertools.groupby(looks, key=lambda look: look.position // max(1, batch)):
            for group in gather(some, shape, batch):
                for look, answer in zip(group, self._run(group), strict=True):
                    parts = found.setdefault(look.position, [])
                    parts.append((look, answer))
                    if len(parts) == look.looks:
                        yield look.position, self._merged(found.pop(look.position))

    def _run(self, looks: list[Tile]) -> list[Detections]:
        """The answers of looks of one padded shape, each in pixels of its own place."""
        batch, sizes = self.preprocess.stack([look.image for look in looks])
        places = [(bottom - top, right - left) for left, top, right, bottom in (look.place for look in looks)]
        return self.detector.answer(batch, sizes, places)

    def _merged(self, parts: list[tuple[Tile, Detections]]) -> Detections:
        if len(parts) == 1:
            return parts[0][1]
        parts.sort(key=lambda part: part[0].place)  # whichever was answered first
        looks, answers = zip(*parts, strict=True)
        places = [look.place for look in looks]
        return merge(
            places,
            answers,
            looks[0].picture,
            self.size,
            self.overlap,
            self.detector.postprocess.nms_threshold,
        )


class _Tiles(IterableDataset[Any]):
    """The looks of some pictures, one after the other, or (position, reason) of one that cannot be read. One
    is decoded at a time.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        positions: range,
        size: int,
        overlap: float,
        preprocess: Preprocess,
        max_pixels: int,
        with_images: bool,
    ) -> None:
        self.paths, self.positions, self.max_pixels = list(paths), positions, max_pixels
        self.with_images = with_images
        self.size, self.overlap, self.preprocess = size, overlap, preprocess

    def __iter__(self) -> Iterator[Tile | Failure]:
        for index in self.positions:
            try:
                picture = read_image(self.paths[index], self.max_pixels)
            except DataError as error:
                yield index, str(error)
                continue
            whole = picture if self.with_images and may_send(picture) else None
            for look in crop_tiles(index, picture, self.size, self.overlap, self.preprocess):
                yield look._replace(whole=whole)
                whole = None
            del picture  # before the next is decoded


def _as_it_is(look: Any) -> Any:
    """The loader's own would make lists of tuples."""
    return look


def check_tiles(size: int | None, overlap: float, scales: int = 1) -> None:
    """ConfigError for tiles that cannot be meant; `scales`: at how many the detector answers."""
    if size is None:
        if overlap != OVERLAP:
            raise ConfigError(f"--overlap {overlap:g} is that of tiles: say how large these are with --tiles")
        return
    if not SIZES[0] <= size <= SIZES[1]:
        raise ConfigError(f"tiles must have a side of {SIZES[0]} to {SIZES[1]} pixels, not {size}")
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap must be a share of a tile, from 0 to below 1, not {overlap:g}")
    if scales > 1:
        raise ConfigError("either tiles or several scales, not both: tiles are answered at one --scale")


def in_tiles(detector: Detector, size: int | None, overlap: float = OVERLAP) -> Detector | Tiled:
    """The detector, answering in tiles when their size is told."""
    return detector if size is None else Tiled(detector, size, overlap)


def tile_offsets(length: int, size: int, overlap: float = OVERLAP) -> list[int]:
    """Where tiles begin along a side: evenly spread, the last ends with the picture, neighbours share
    `overlap` of a tile or more.
    """
    if length <= size:
        return [0]
    step = max(1, size - math.ceil(size * overlap))
    gaps = math.ceil((length - size) / step)
    return [number * (length - size) // gaps for number in range(gaps + 1)]


def tile_grid(height: int, width: int, size: int, overlap: float = OVERLAP) -> list[TileBox]:
    """The tiles of a picture, row by row, after the whole of it; this alone when it is no larger than a
    tile.
    """
    rows, columns = tile_offsets(height, size, overlap), tile_offsets(width, size, overlap)
    tiles = [
        (left, top, min(left + size, width), min(top + size, height)) for top in rows for left in columns
    ]
    return [(0, 0, width, height), *(tiles if len(tiles) > 1 else [])]


def crop_tiles(
    index: int, picture: Tensor, size: int, overlap: float, preprocess: Preprocess
) -> Iterator[Tile]:
    """The looks of a picture [3, H, W], one by one: of a huge one its tiles together, resized, may be larger
    than it is.
    """
    height, width = picture.shape[1:]
    tiles = tile_grid(height, width, size, overlap)
    for left, top, right, bottom in tiles:
        part = picture[:, top:bottom, left:right]
        # a copy: a view that is sent to another process takes the whole picture along
        image = preprocess.resized(part if len(tiles) == 1 or part.shape == picture.shape else part.clone())
        yield Tile(index, len(tiles), (left, top, right, bottom), (height, width), image)


def merge(
    looks: Sequence[TileBox],
    answers: Sequence[Detections],
    picture: tuple[int, int],
    size: int,
    overlap: float,
    threshold: float,
) -> Detections:
    """The answers of a picture's looks, in pixels of their own, as one: every object once, and whole.

    looks      where they lie; that of the whole picture may be among them
    picture    its height and width
    size, overlap   of the tiles
    threshold  IoU above which two boxes of one class are one object

    1. A box that a seam cuts goes where another tile sees all of it: that tile's answer counts, also if it is
    that there is nothing. So
       does a small box that comes from the coarse look at the whole. This settles every object that is
       smaller than the overlap.
    2. Pieces of one object, each cut where the other goes on, become one box, with the best of their scores.
    See `stitch`.
    3. Pieces that stay alone go where a whole box is the object's, if its score is half of theirs.
    4. Non-maximum suppression within each class.

    All that is left is kept: there may be `max_detections` of every look.
    """
    height, width = picture
    boxes = torch.cat(
        [answer.boxes + torch.tensor(place[:2] * 2) for place, answer in zip(looks, answers, strict=True)]
    )
    scores, labels = (
        torch.cat([getattr(answer, name) for answer in answers]) for name in ("scores", "labels")
    )
    counts = torch.tensor([len(answer) for answer in answers])
    own = torch.tensor(looks).repeat_interleave(counts, dim=0).to(boxes)  # [N, 4] the look of each box
    lines = torch.cat(
        [cut_lines(boxes[:, axis::2], own[:, axis::2], side) for axis, side in ((0, width), (1, height))],
        dim=1,
    )
    lines = lines[:, [0, 2, 1, 3]]
    coarse = (own == torch.tensor([0, 0, width, height])).all(dim=1) & (len(looks) > 1)
    small = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1) < SMALL * size
    elsewhere = torch.ones(len(boxes), dtype=torch.bool)
    for axis, side in ((0, width), (1, height)):
        first = torch.tensor(tile_offsets(side, size, overlap), dtype=boxes.dtype)
        tiles = torch.stack([first, (first + size).clamp(max=side)], dim=1)
        elsewhere &= (cut_lines(boxes[:, None, axis::2], tiles, side) == OPEN[[0, 2]]).all(dim=2).any(dim=1)
    order = scores.argsort(descending=True, stable=True)
    order = order[~(elsewhere & ((lines != OPEN).any(dim=1) | coarse & small))[order]]
    boxes, scores, labels, lines = boxes[order], scores[order], labels[order], lines[order]

    pieces = (lines != OPEN).any(dim=1)
    whole, pieces = (~pieces).nonzero()[:, 0], pieces.nonzero()[:, 0]
    whole = whole[exact_nms(boxes[whole], labels[whole], threshold, len(whole))]
    stay, stitched, left = stitch(boxes[pieces], scores[pieces], labels[pieces], lines[pieces], threshold)
    pieces = pieces[stay]
    boxes[pieces], lines[pieces] = stitched, left
    rest = []
    for piece in pieces.tolist():
        rivals = whole[(labels[whole] == labels[piece]) & (scores[whole] >= EQUAL * scores[piece])]
        complete = bool((lines[piece] == OPEN).all())
        if (
            complete
            or not same_object(boxes[piece], lines[piece], boxes[rivals], lines[rivals], threshold).any()
        ):
            rest.append(piece)
    kept = torch.cat([whole, torch.tensor(rest, dtype=torch.long)]).sort().values
    kept = kept[exact_nms(boxes[kept], labels[kept], threshold, len(kept))]
    return Detections(boxes[kept], scores[kept], labels[kept], answers[0].names)


def cut_lines(sides: Tensor, tiles: Tensor, length: int) -> Tensor:
    """Where seams cut boxes, along one axis of a picture of this length: [..., 2], the places of the seams;
    -inf and inf where none does.

    sides  [..., 2] begin and end of boxes;  tiles  [..., 2] of the tiles that are asked. The picture's own
           borders are no seams.
    """
    slack = SLACK * (sides[..., 1] - sides[..., 0])
    low = torch.where((tiles[..., 0] > 0) & (sides[..., 0] - tiles[..., 0] <= slack), tiles[..., 0], -INF)
    high = torch.where(
        (tiles[..., 1] < length) & (tiles[..., 1] - sides[..., 1] <= slack), tiles[..., 1], INF
    )
    return torch.stack([low, high], dim=-1)


def same_object(box: Tensor, lines: Tensor, others: Tensor, other_lines: Tensor, threshold: float) -> Tensor:
    """[N] whether a box [4] and others [N, 4] show one object: by their IoU, each being cut where its tile
    has cut the other.

    For boxes that no seam cuts, whose `lines` are OPEN, this is what NMS asks.
    """
    return iou(_cut(box, other_lines), _cut(others, lines)) > threshold


def _cut(boxes: Tensor, lines: Tensor) -> Tensor:
    return torch.cat(
        [torch.maximum(boxes[..., :2], lines[..., :2]), torch.minimum(boxes[..., 2:], lines[..., 2:])], dim=-1
    )


def stitch(
    boxes: Tensor, scores: Tensor, labels: Tensor, lines: Tensor, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces [N], best first -> the positions [P] of those that stay, their boxes [P, 4], and the lines [P,
    4] that still cut these.

    Each in turn takes its cut sides from the best piece of the same object that goes on there; all pieces of
    the object go.
    """
    boxes, lines = boxes.clone(), lines.clone()
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for piece in range(len(boxes)):
        if not alive[piece]:
            continue
        others = alive & (labels == labels[piece])
        others[: piece + 1] = False
        same = others & same_object(boxes[piece], lines[piece], boxes, lines, threshold)
        while grown := grow(piece, same & (scores >= EQUAL * scores[piece]), lines):
            side, other = grown
            boxes[piece, side], lines[piece, side] = boxes[other, side], lines[other, side]
            same |= others & same_object(boxes[piece], lines[piece], boxes, lines, threshold)
        alive &= ~same
    stay = alive.nonzero()[:, 0]
    return stay, boxes[stay], lines[stay]


def grow(piece: int, others: Tensor, lines: Tensor) -> tuple[int, int] | None:
    """A side at which a piece is cut, and the first of the `others` [N] that goes on there; None where none
    does.
    """
    further = (
        torch.cat([lines[:, :2] < lines[piece, :2], lines[:, 2:] > lines[piece, 2:]], dim=1) & others[:, None]
    )
    for side in range(4):
        if further[:, side].any():
            return side, int(further[:, side].nonzero()[0])
    return None
