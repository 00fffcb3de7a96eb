"""Boxes on images: detections, the truth, anchors, and sheets of many images. Images are uint8 [3, H, W]."""

from __future__ import annotations

import colorsys
import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..structures import Detections

log = logging.getLogger("retinanet")

Colour = tuple[int, int, int]

Box = tuple[float, float, float, float]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Mark = tuple[Box, str, Colour]
"""A box inside the image, the text of its tag, its colour."""

PALETTE = [
    "ffc33b",
    "008df9",
    "e20134",
    "00c2f9",
    "ff6e3a",
    "8400cd",
    "00fccf",
    "ff5aaf",
    "009f81",
    "a40122",
    "ffb2fd",
    "9f0162",
]
"""Twelve colours for any colour blindness (after M. Krzywinski), neighbours far apart."""

LONGEST = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}
"""Pixels of a side that a format can have."""

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def colour(label: int) -> Colour:
    """The colour of a class, the same in every image; after twelve the colours repeat, paler and darker."""
    red, green, blue = bytes.fromhex(PALETTE[label % len(PALETTE)])
    if not (turn := label // len(PALETTE) % 5):
        return red, green, blue
    hue, light, strength = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    light = (0.0, 0.82, 0.28, 0.68, 0.42)[turn]
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, light, strength))  # type: ignore[return-value]


def draw(
    image: Tensor,
    boxes: Detections | Tensor,
    labels: Tensor | None = None,
    scores: Tensor | None = None,
    names: Sequence[str] = (),
    *,
    tags: bool = True,
) -> Tensor:
    """The image with its detections, or boxes [N, 4] with labels [N] and scores [N]; the best is on top.

    Lines and text grow with the image. `tags` writes the class and the score beside each box.
    """
    if isinstance(boxes, Detections):
        found = boxes
        boxes, labels, scores, names = found.boxes, found.labels, found.scores, found.names
    canvas, pen, line = _canvas(image)
    marks = _marks(canvas, boxes, labels, names, scores)
    for box, _, fill in marks:  # all frames first: a tag must not be crossed by the frame of another object
        _frame(pen, box, fill, line)
    if tags:
        _tags(pen, marks, line, canvas.size)
    return _close(canvas)


def draw_truth(image: Tensor, boxes: Tensor, labels: Tensor | None = None) -> Tensor:
    """The image with the annotated boxes [G, 4], dashed, unlike those of `draw`."""
    canvas, pen, line = _canvas(image)
    for box, _, fill in _marks(canvas, boxes, labels):
        _dashes(pen, box, fill, max(1, line // 2))
    return _close(canvas)


def draw_both(
    image: Tensor, boxes: Tensor, labels: Tensor, found: Detections, names: Sequence[str]
) -> Tensor:
    """The image with annotated boxes [G, 4], dashed, and with detections, solid; no tag hides another."""
    canvas, pen, line = _canvas(image)
    detected = _marks(canvas, found.boxes, found.labels, found.names, found.scores)
    annotated = _marks(canvas, boxes, labels, names)
    for box, _, fill in detected:
        _frame(pen, box, fill, line)
    for box, _, fill in annotated:
        _dashes(pen, box, fill, line)
    _tags(pen, detected + annotated, line, canvas.size)
    return _close(canvas)


def anchors_picture(
    image: Tensor, boxes: Tensor, labels: Tensor, names: Sequence[str], anchors: Tensor
) -> Tensor:
    """A training image with its boxes [G, 4], thick, and its positive anchors [P, 4], thin and white.

    More than 300 anchors are thinned out evenly, since they would hide the image.
    """
    canvas, pen, _ = _canvas(image)
    for values in anchors[:: max(1, math.ceil(len(anchors) / 300))].detach().cpu().float().tolist():
        pen.rectangle(_ordered(values), outline=(*WHITE, 150))  # also where it reaches over the border
    return draw(_close(canvas), boxes, labels, names=names)


def sheet(images: Sequence[Tensor], columns: int = 4, width: int = 1600) -> Tensor:
    """Many images [3, H, W] of any sizes in even cells on one sheet, row by row."""
    columns = max(1, min(columns, len(images)))
    gap = max(4, width // 150)
    cell = max(1, (width - gap * (columns + 1)) // columns)
    # the median shape: one panorama among forty photographs gets bars, not all the others
    shapes = sorted(image.shape[1] / image.shape[2] for image in images)
    tall = max(1, round(cell * shapes[len(shapes) // 2])) if shapes else 0
    rows = math.ceil(len(images) / columns)
    page = Image.new("RGB", (width, max(1, gap + rows * (tall + gap))), WHITE)
    pen = ImageDraw.Draw(page)
    for i, image in enumerate(images):
        left, top = gap + i % columns * (cell + gap), gap + i // columns * (tall + gap)
        one = _open(image)
        scale = min(cell / one.width, tall / one.height)
        size = (max(1, round(one.width * scale)), max(1, round(one.height * scale)))
        pen.rectangle((left, top, left + cell - 1, top + tall - 1), fill=(236, 238, 241))
        place = (left + (cell - size[0]) // 2, top + (tall - size[1]) // 2)
        page.paste(one.resize(size, Image.Resampling.LANCZOS), place)
    return _close(page)


def save(path: Path | str, image: Tensor) -> None:
    """Write [3, H, W] uint8 in the format of the suffix (.png, .jpg, .webp ...); its folder is made.

    An image with a longer side than the format can have is written smaller, which is told.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas, longest = _open(image), LONGEST.get(path.suffix.lower())
    options: dict[str, Any] = {} if longest is None else {"quality": 92}
    if longest is not None and max(canvas.size) > longest:
        wide, tall = (max(1, side * longest // max(canvas.size)) for side in canvas.size)
        log.warning("%s is %d x %d px, for its format has no longer sides than %d", path, wide, tall, longest)
        canvas = canvas.resize((wide, tall))
    canvas.save(path, **options)


def place_tag(
    box: Box, tag: tuple[int, int], size: tuple[int, int], taken: Sequence[Box] = ()
) -> tuple[int, int]:
    """Left and top of a tag (width, height) for a box, wholly inside an image of `size` (width, height).

    Above the box, below it, or just inside it: the first place that hides none of the tags in `taken`, else
    the first that fits.
    """
    wide, tall = tag
    left = round(min(max(box[0], 0), max(size[0] - wide, 0)))
    lowest = max(size[1] - tall, 0)
    beside = [top for top in (math.floor(box[1]) - tall, math.ceil(box[3])) if 0 <= top <= lowest]
    tops = [*beside, *(min(max(top, 0), lowest) for top in (math.ceil(box[1]), math.floor(box[3]) - tall))]
    for top in tops:
        hidden = (left < x2 and x1 < left + wide and top < y2 and y1 < top + tall for x1, y1, x2, y2 in taken)
        if not any(hidden):
            return left, top
    return left, tops[0]


def _tags(pen: ImageDraw.ImageDraw, marks: Sequence[Mark], line: int, size: tuple[int, int]) -> None:
    """A text on a filled ground at each box, the last on top: black or white, whichever contrasts more."""
    pad, font = max(2, line), _font(max(10, round(_extent(size) / 38)))
    _, rise, _, fall = font.getbbox("Ag", anchor="ls")  # the same for every text: all tags have one height
    tall = math.ceil(fall - rise) + 2 * pad
    if tall > size[1]:
        return
    placed: list[tuple[int, int, int, int]] = []
    drawn = []
    for box, full, fill in reversed(marks):  # the best choose their places first, and are painted last
        if text := _fitted(full, font, size[0] - 2 * pad):
            wide = math.ceil(font.getlength(text)) + 2 * pad
            left, top = place_tag((box[0] - line // 2, *box[1:]), (wide, tall), size, placed)
            placed.append((left, top, left + wide, top + tall))
            drawn.append((text, fill))
    for (left, top, right, bottom), (text, fill) in zip(reversed(placed), reversed(drawn), strict=True):
        pen.rectangle((left, top, right - 1, bottom - 1), fill=fill)
        ink = BLACK if _luminance(fill) > 0.18 else WHITE
        pen.text((left + pad, top + pad - rise), text, fill=ink, font=font, anchor="ls")


def _canvas(image: Tensor) -> tuple[Image.Image, ImageDraw.ImageDraw, int]:
    """A copy of the image, a pen for it, and the width of its lines."""
    canvas = _open(image)
    return canvas, ImageDraw.Draw(canvas, "RGBA"), max(1, round(_extent(canvas.size) / 240))


def _marks(
    canvas: Image.Image,
    boxes: Tensor,
    labels: Tensor | None,
    names: Sequence[str] = (),
    scores: Tensor | None = None,
) -> list[Mark]:
    """What to draw for boxes [N, 4]: those that lie in the image, the lowest score first."""
    classes = [0] * len(boxes) if labels is None else labels.tolist()
    if len(classes) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes do not go with {len(classes)} labels")
    order: Sequence[int] = range(len(classes))
    if scores is not None:
        order = torch.argsort(scores.detach().cpu().float(), stable=True).tolist()
    corners = boxes.detach().cpu().float().tolist()
    marks = []
    for i in order:
        label = int(classes[i])
        text = names[label] if 0 <= label < len(names) else str(label)
        if scores is not None:
            text += f" {float(scores[i]):.2f}"
        if box := _inside(corners[i], canvas.size):
            marks.append((box, text, colour(label)))
    return marks


def _frame(pen: ImageDraw.ImageDraw, box: Box, fill: Colour, line: int) -> None:
    """A rectangle with a shadow on either side: a yellow frame on sand stays visible."""
    left, top, right, bottom = _pixels(box)
    out = line // 2
    shadow = (left - out - 1, top - out - 1, right + out + 1, bottom + out + 1)
    pen.rectangle(shadow, outline=(*BLACK, 90), width=line + 2)
    pen.rectangle((left - out, top - out, right + out, bottom + out), outline=fill, width=line)


def _dashes(pen: ImageDraw.ImageDraw, box: Box, fill: Colour, line: int) -> None:
    """A rectangle of dashes on a dark line."""
    left, top, right, bottom = _pixels(box)
    dash = 4 * line + 2
    pen.rectangle((left, top, right, bottom), outline=BLACK, width=line)
    for x in range(left, right + 1, 2 * dash):
        for y in (top, bottom - line + 1):
            pen.rectangle((x, y, min(x + dash, right), y + line - 1), fill=fill)
    for y in range(top, bottom + 1, 2 * dash):
        for x in (left, right - line + 1):
            pen.rectangle((x, y, x + line - 1, min(y + dash, bottom)), fill=fill)


def _inside(values: Sequence[float], size: tuple[int, int]) -> Box | None:
    """The part of a box that lies in the image; None where nothing does, or where it is not finite."""
    if not all(map(math.isfinite, values)):
        return None
    left, top, right, bottom = _ordered(values)
    if right < 0 or bottom < 0 or left > size[0] or top > size[1]:
        return None
    return max(left, 0.0), max(top, 0.0), min(right, float(size[0])), min(bottom, float(size[1]))


def _ordered(values: Sequence[float]) -> Box:
    """Pillow refuses a box whose corners are swapped."""
    x1, y1, x2, y2 = values
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _pixels(box: Box) -> tuple[int, int, int, int]:
    """First and last pixel of a box in either direction: [0, 10] covers the pixels 0 to 9."""
    left, top = round(box[0]), round(box[1])
    return left, top, max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)


def _extent(size: tuple[int, int]) -> float:
    """The side of a square as large as the image: lines and letters grow with it."""
    return math.sqrt(size[0] * size[1])


def _luminance(fill: Colour) -> float:
    """WCAG's relative luminance; above 0.18 black text has the greater contrast."""
    red, green, blue = (
        (part / 255 / 12.92) if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in fill
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@lru_cache(maxsize=32)
def _font(height: int) -> Font:
    return ImageFont.load_default(height)


def _fitted(text: str, font: Font, width: float) -> str:
    """One line of text, shortened to the width."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…" if text else ""


def _open(image: Tensor) -> Image.Image:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"an image is a uint8 tensor [3, H, W], not {image.dtype} {list(image.shape)}")
    pixels = image.detach().cpu().expand(3, -1, -1).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


def _close(canvas: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()
