"""Generated scenes: shapes on busy backgrounds, for the demo and the tests, written as a COCO data set."""

from __future__ import annotations

import colorsys
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ..errors import ConfigError
from .textures import Bytes, Floats, background, develop, gradient, planes, scribble

SPLITS: Mapping[str, int] = {"train": 800, "val": 100, "test": 100}

SIZE = ((320, 384), (320, 512))

ACROSS = (12, 256)
"""Pixels across the smallest and the largest outline. The paper's anchors match none below about 20."""

FULL = 0.4  # share of the image that the objects' squares cover at most, so that background is left
MIN_VISIBLE = 0.7  # of an object, at the least: what is hidden more has no fair box
MAX_OVERLAP = 0.25  # IoU of two boxes, at the most: NMS at 0.5 must be able to keep both
EMPTY = 0.03  # share of images without objects
USUAL_COLOUR = 0.9  # share of objects in the colour of their class: colour helps and does not decide
JPEG_QUALITY = 92

Size = tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
"""(height, width), or the range of each, both ends included."""

Points = NDArray[np.float64]


class Scene(NamedTuple):
    """An image and the truth about it."""

    image: Bytes
    """[H, W, 3] RGB."""
    boxes: Floats
    """[G, 4] xyxy in pixels: the smallest box around all pixels of the object, hidden ones too."""
    labels: NDArray[np.int64]
    """[G] positions in NAMES."""


def write_scenes(
    folder: Path,
    splits: Mapping[str, int] = SPLITS,
    size: Size = SIZE,
    seed: int = 0,
    across: tuple[float, float] = ACROSS,
) -> Path:
    """Write `splits` (name -> number of images) as annotations/NAME.json and NAME/000001.jpg, ...

    The same arguments give the same bytes, and a larger split begins with the images of a smaller one.
    """
    folder = Path(folder)
    indexes = {split: folder / "annotations" / f"{split}.json" for split in splits}
    if taken := [str(index) for index in indexes.values() if index.exists()]:
        raise ConfigError(
            f"{', '.join(taken)}: exists already; choose another folder, or delete this one first"
        )
    for split, count in splits.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            image, boxes, labels = scene((seed, zlib.crc32(split.encode()), number), size, across)
            name, (height, width, _) = f"{number:06d}.jpg", image.shape
            Image.fromarray(image).save(folder / split / name, quality=JPEG_QUALITY)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            for label, (left, top, right, bottom) in zip(labels.tolist(), boxes.tolist(), strict=True):
                ids = {"id": len(annotations) + 1, "image_id": number, "category_id": label + 1}
                area = (right - left) * (bottom - top)
                box = [left, top, right - left, bottom - top]
                annotations.append({**ids, "bbox": box, "area": area, "iscrowd": 0})
        index = {
            "info": {"description": f"retinanet's generated scenes, {split}, seed {seed}"},
            "images": images,
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": name} for label, name in enumerate(NAMES)],
        }
        # last of all: an index on disk means that all its images are there
        indexes[split].parent.mkdir(parents=True, exist_ok=True)
        indexes[split].write_text(json.dumps(index), encoding="utf-8")
    return folder


def scene(seed: int | Sequence[int], size: Size = SIZE, across: tuple[float, float] = ACROSS) -> Scene:
    """A pure function of its arguments; `across` is the range of the objects' sizes in pixels."""
    rng = np.random.default_rng(seed)
    height, width = (
        int(rng.integers(side[0], side[1] + 1)) if isinstance(side, tuple) else side for side in size
    )
    largest = min(across[1], 0.8 * min(height, width))
    if not 8 <= across[0] <= largest:
        raise ConfigError(
            f"no object of {across[0]} to {across[1]} pixels (8 at least) goes well into {height} x "
            f"{width}; change `size` or `across`"
        )
    canvas = background(rng, height, width)
    scribble(rng, canvas)
    placed = place(rng, height, width, across[0], largest)
    for one in placed:
        paint(rng, canvas, one)
    boxes = np.array([one.box for one in placed], dtype=np.float32).reshape(-1, 4)
    labels = np.array([one.label for one in placed], dtype=np.int64)
    return Scene(develop(rng, canvas), boxes, labels)


@dataclass(frozen=True)
class Placed:
    """An object in its place, not yet coloured."""

    label: int
    left: int
    top: int
    mask: Bytes
    """[h, w] how much of each pixel it covers, 0..255; its corner is (left, top), all of it in the image."""
    box: tuple[int, int, int, int]
    """xyxy around the pixels that it covers by half or more."""


def place(rng: np.random.Generator, height: int, width: int, smallest: float, largest: float) -> list[Placed]:
    """Objects in the order of painting; enough of each stays visible to recognise it."""
    if rng.uniform() < EMPTY:
        return []
    room, spans = FULL * height * width, np.empty(0)
    for share in rng.triangular(
        0, 0.6, 1, rng.integers(5, 15)
    ):  # most of a middle size, some tiny, some huge
        span = smallest * (largest / smallest) ** share
        if span**2 <= room:
            spans, room = np.append(spans, span), room - span**2
    # Large ones mostly go first, or they would hide the small ones and be refused.
    spans = spans[np.argsort(-spans * rng.uniform(0.4, 2.5, len(spans)))]
    owner = np.full((height, width), -1, dtype=np.int64)  # whose pixel is it
    placed: list[Placed] = []
    whole: list[int] = []  # pixels of each when nothing hides it
    for span in spans:
        label = int(rng.integers(len(SHAPES)))
        shape = render(rng, label, float(span))
        for _ in range(6):
            one = drop(rng, label, shape, height, width)
            if one is None or any(overlap(one.box, other.box) > MAX_OVERLAP for other in placed):
                continue
            solid = one.mask >= 128
            region = owner[one.top : one.top + solid.shape[0], one.left : one.left + solid.shape[1]]
            before = np.bincount(owner[owner >= 0], minlength=len(placed))
            hidden = np.bincount(region[solid & (region >= 0)], minlength=len(placed))
            if np.any(before - hidden < MIN_VISIBLE * np.array(whole)):
                continue
            region[solid] = len(placed)
            placed.append(one)
            whole.append(int(solid.sum()))
            break
    return placed


def drop(rng: np.random.Generator, label: int, shape: Bytes, height: int, width: int) -> Placed | None:
    """Put a shape [h, w] somewhere, perhaps over the edge of the image; None when too little stays inside."""
    tall, wide = shape.shape
    edge = 0.25 if rng.uniform() < 0.15 else 0.0
    top = int(rng.integers(-int(edge * tall), height - int((1 - edge) * tall) + 1))
    left = int(rng.integers(-int(edge * wide), width - int((1 - edge) * wide) + 1))
    inside = shape[max(-top, 0) : height - top, max(-left, 0) : width - left]
    top, left = max(top, 0), max(left, 0)
    solid = inside >= 128
    if solid.sum() < 0.6 * (shape >= 128).sum():
        return None
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    box = (left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1)
    return Placed(label, left, top, inside, box)


def overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """IoU of two boxes."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    tall = min(one[3], other[3]) - max(one[1], other[1])
    if wide <= 0 or tall <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return wide * tall / (areas - wide * tall)


def disc(rng: np.random.Generator, radius: float = 1.0, x: float = 0.0) -> Points:
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.stack([radius * np.cos(angle) + x, radius * np.sin(angle)], axis=1)


def ring(rng: np.random.Generator) -> tuple[Points, Points]:
    return disc(rng), disc(rng, rng.uniform(0.45, 0.68))


def block(rng: np.random.Generator) -> Points:
    return np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])


def triangle(rng: np.random.Generator) -> Points:
    return np.array([(rng.uniform(-0.3, 0.3), -0.9), (1.0, 0.8), (-1.0, 0.8)])


def star(rng: np.random.Generator) -> Points:
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    radius = np.where(np.arange(10) % 2, rng.uniform(0.38, 0.48), 1.0)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def cross(rng: np.random.Generator) -> Points:
    arm = rng.uniform(0.22, 0.4)
    quarter = np.array([(-arm, -1.0), (arm, -1.0), (arm, -arm)])
    return np.concatenate([quarter @ np.linalg.matrix_power(QUARTER_TURN, turns) for turns in range(4)])


QUARTER_TURN = np.array([(0.0, 1.0), (-1.0, 0.0)])

Shape = Callable[[np.random.Generator], Points | tuple[Points, Points]]

SHAPES: tuple[Shape, ...] = (disc, ring, block, triangle, star, cross)
"""The outline [P, 2] of each class, about -1..1, y downwards; of some also that of its hole."""

NAMES = tuple(shape.__name__ for shape in SHAPES)

STRETCHED = (disc, block, triangle)  # these stay what they are when drawn wider or taller


def render(rng: np.random.Generator, label: int, span: float) -> Bytes:
    """[h, w] the cover 0..255 of a shape whose outline is `span` pixels long in its longer direction."""
    drawn = SHAPES[label](rng)
    stretch = rng.uniform(-1, 1) * (0.25 if SHAPES[label] in STRETCHED else 0.1)
    angle = rng.uniform(-0.3, 0.3)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    outlines = drawn if isinstance(drawn, tuple) else (drawn,)
    parts = [part * (np.exp(stretch), np.exp(-stretch)) @ turn for part in outlines]
    low, extent = parts[0].min(axis=0), np.ptp(parts[0], axis=0)
    wide, tall = (int(side) + 2 for side in span * extent / extent.max())
    fine = 4 if span < 64 else 2  # drawn larger and averaged down: Pillow's polygons have hard edges
    ink = Image.new("L", (wide * fine, tall * fine))
    shift = rng.uniform(0, 1, 2)  # no shape is aligned with the pixels
    for part, value in zip(parts, (255, 0), strict=False):
        points = ((part - low) * (span / extent.max()) + shift) * fine
        ImageDraw.Draw(ink).polygon([(x, y) for x, y in points.tolist()], fill=value)
    return np.asarray(ink.reduce(fine))


def hue(turn: float) -> NDArray[np.float64]:
    """[3] RGB of a strong colour, somewhere on the circle 0..1."""
    return 255 * np.array(colorsys.hsv_to_rgb(turn, 0.9, 0.95))


def paint(rng: np.random.Generator, canvas: Floats, one: Placed) -> None:
    """Colour an object so that it stands out from what lies behind it: plain, shaded, or with a border."""
    tall, wide = one.mask.shape
    region = canvas[:, one.top : one.top + tall, one.left : one.left + wide]
    cover = one.mask.astype(np.float32) / 255
    behind = (region * cover).sum(axis=(1, 2)) / cover.sum()
    choices = rng.uniform(0, 255, (6, 3))
    colour, border = choices[np.argsort(-np.linalg.norm(choices - behind, axis=1))[:2]]
    usual = hue(one.label / len(SHAPES))
    if rng.uniform() < USUAL_COLOUR and np.linalg.norm(usual - behind) > 60:
        colour = usual
    fill = planes(colour) + (gradient(rng, tall, wide) - 0.5) * rng.uniform(0, 70)
    if rng.uniform() < 0.3:
        soft = Image.fromarray(one.mask).filter(ImageFilter.BoxBlur(1 + max(tall, wide) / 24))
        inside = np.clip((np.asarray(soft, dtype=np.float32) - 215) / 25, 0, 1)
        fill = planes(border) + (fill - planes(border)) * inside
    region += cover * (fill - region)
