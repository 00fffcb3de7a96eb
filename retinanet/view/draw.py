"""Boxes on pictures: detections, the truth, anchors, and sheets of many pictures. Pictures are uint8 tensors
[3, H, W].
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..structures import Detections

Colour = tuple[int, int, int]

Box = tuple[float, float, float, float]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Twelve colours that people with any of the colour blindnesses tell apart (after M. Krzywinski), neighbours
# far apart.
PALETTE = (
    "#ffc33b",
    "#008df9",
    "#e20134",
    "#00c2f9",
    "#ff6e3a",
    "#8400cd",
    "#00fccf",
    "#ff5aaf",
    "#009f81",
    "#a40122",
    "#ffb2fd",
    "#9f0162",
)

BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def colour(label: int) -> Colour:
    """The colour of a class: the same one in every picture. Beyond twelve classes the palette returns, paler
    and darker.
    """
    value = PALETTE[label % len(PALETTE)]
    red, green, blue = (int(value[i : i + 2], 16) for i in (1, 3, 5))
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
    """The picture with its detections, or boxes [N, 4] with labels [N] and perhaps scores [N]; the best lies
    on top.

    Width and text grow with the picture. `tags` writes the class and the score beside each box.
    """
    if isinstance(boxes, Detections):
        found = boxes
        boxes, labels, scores, names = found.boxes, found.labels, found.scores, found.names
    classes = _labels(boxes, labels)
    order = (
        range(len(classes))
        if scores is None
        else torch.argsort(scores.detach().cpu().float(), stable=True).tolist()
    )
    corners = boxes.detach().cpu().float().tolist()
    canvas = _open(image)
    pen = ImageDraw.Draw(canvas, "RGBA")
    line = _line(canvas.size)
    visible = [(i, box) for i in order if (box := _inside(corners[i], canvas.size))]
    # All frames first: a tag must not be crossed by another object's frame.
    for i, box in visible:
        _frame(pen, box, colour(classes[i]), line)
    if tags:
        values = [None] * len(classes) if scores is None else scores.tolist()
        _tags(
            pen,
            [(box, _text(classes[i], names, values[i]), colour(classes[i])) for i, box in visible],
            line,
            canvas.size,
        )
    return _close(canvas)


def draw_truth(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor | None = None,
    names: Sequence[str] = (),
    *,
    tags: bool = False,
) -> Tensor:
    """The picture with the annotated boxes [G, 4], dashed, so that `draw` on top of it can be told from
    them.
    """
    canvas = _open(image)
    pen = ImageDraw.Draw(canvas)
    line = max(1, _line(canvas.size) // 2)
    corners, classes = boxes.detach().cpu().float().tolist(), _labels(boxes, labels)
    visible = [
        (box, label)
        for values, label in zip(corners, classes, strict=True)
        if (box := _inside(values, canvas.size))
    ]
    for box, label in visible:
        _dashes(pen, box, colour(label), line)
    if tags:
        _tags(pen, [(box, _text(label, names), colour(label)) for box, label in visible], line, canvas.size)
    return _close(canvas)


def draw_both(
    image: Tensor, boxes: Tensor, labels: Tensor, found: Detections, names: Sequence[str]
) -> Tensor:
    """The picture with annotated boxes [G, 4], dashed, and with detections, drawn through, each with its tag;
    no tag hides another.
    """
    canvas = _open(image)
    pen = ImageDraw.Draw(canvas, "RGBA")
    line = _line(canvas.size)
    tags: list[tuple[Box, str, Colour]] = []
    for name, score, corners in found:
        if box := _inside(corners, canvas.size):
            fill = colour(found.names.index(name))
            _frame(pen, box, fill, line)
            tags.append((box, f"{name} {score:.2f}", fill))
    for label, corners in zip(_labels(boxes, labels), boxes.detach().cpu().float().tolist(), strict=True):
        if box := _inside(corners, canvas.size):
            _dashes(pen, box, colour(label), line)
            tags.append((box, _text(label, names), colour(label)))
    _tags(pen, tags, line, canvas.size)
    return _close(canvas)


def anchors_picture(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str],
    anchors: Tensor,
    matches: Tensor | None = None,
    *,
    limit: int = 300,
) -> Tensor:
    """A training picture with its boxes [G, 4] (thick) and its positive anchors [P, 4] (thin).

    `matches` [P] says which box each anchor answers for, and gives it that box's colour; without it anchors
    are white.
    More than `limit` anchors are thinned out evenly, since they would hide the picture.
    """
    canvas = _open(image)
    pen = ImageDraw.Draw(canvas, "RGBA")
    step = max(1, math.ceil(len(anchors) / limit))
    classes = _labels(boxes, labels)
    owners = [-1] * len(anchors) if matches is None else matches.tolist()
    for values, owner in list(zip(anchors.detach().cpu().float().tolist(), owners, strict=True))[::step]:
        if all(
            map(math.isfinite, values)
        ):  # not cut to the picture: where an anchor reaches over the edge is worth seeing
            pen.rectangle(_ordered(values), outline=(*(colour(classes[owner]) if owner >= 0 else WHITE), 150))
    return draw(_close(canvas), boxes, labels, names=names)


def sheet(
    pictures: Sequence[Tensor], columns: int = 4, titles: Sequence[str] | None = None, width: int = 1600
) -> Tensor:
    """Many pictures [3, H, W] of any sizes in even cells on one sheet, row by row, each perhaps with a title
    below.
    """
    columns = max(1, min(columns, len(pictures)))
    gap = max(4, width // 150)
    cell = max(1, (width - gap * (columns + 1)) // columns)
    # The middle shape of all: one panorama among forty photographs gets bars, not all the others.
    shapes = sorted(picture.shape[1] / picture.shape[2] for picture in pictures)
    tall = max(1, round(cell * shapes[len(shapes) // 2])) if shapes else 0
    text = max(11, cell // 22)
    font, caption = _font(text), (round(1.8 * text) if titles else 0)
    rows = math.ceil(len(pictures) / columns)
    page = Image.new("RGB", (width, max(1, gap + rows * (tall + caption + gap))), WHITE)
    pen = ImageDraw.Draw(page)
    for i, picture in enumerate(pictures):
        left, top = gap + i % columns * (cell + gap), gap + i // columns * (tall + caption + gap)
        one = _open(picture)
        scale = min(cell / one.width, tall / one.height)
        size = (max(1, round(one.width * scale)), max(1, round(one.height * scale)))
        pen.rectangle((left, top, left + cell - 1, top + tall - 1), fill=(236, 238, 241))
        page.paste(
            one.resize(size, Image.Resampling.LANCZOS),
            (left + (cell - size[0]) // 2, top + (tall - size[1]) // 2),
        )
        if titles and i < len(titles):
            pen.text(
                (left, top + tall + caption / 2),
                _fitted(titles[i], font, cell),
                fill=(40, 44, 52),
                font=font,
                anchor="lm",
            )
    return _close(page)


def save(path: Path | str, image: Tensor) -> None:
    """Write [3, H, W] uint8; the suffix says the format (.png, .jpg, .webp ...). Folders on the way are
    made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        _open(image).save(path, quality=92)
    else:
        _open(image).save(path)


def place_tag(
    box: Box, tag: tuple[int, int], picture: tuple[int, int], taken: Sequence[Box] = ()
) -> tuple[int, int]:
    """Left and top of a tag (width, height) for a box in a picture (width, height), wholly inside the
    picture.

    On top of the box, below it, or just inside it: the first place that hides none of the tags in `taken`,
    else the first that fits.
    """
    wide, tall = tag
    left = round(min(max(box[0], 0), max(picture[0] - wide, 0)))
    lowest = max(picture[1] - tall, 0)
    beside = [top for top in (math.floor(box[1]) - tall, math.ceil(box[3])) if 0 <= top <= lowest]
    tops = [*beside, *(min(max(top, 0), lowest) for top in (math.ceil(box[1]), math.floor(box[3]) - tall))]
    for top in tops:
        if not any(
            left < x2 and x1 < left + wide and top < y2 and y1 < top + tall for x1, y1, x2, y2 in taken
        ):
            return left, top
    return left, tops[0]


def _tags(
    pen: ImageDraw.ImageDraw, wanted: Sequence[tuple[Box, str, Colour]], line: int, picture: tuple[int, int]
) -> None:
    """A text on a filled ground at each box, the last one uppermost: black or white, whichever is easier to
    read on the ground.
    """
    pad, font = max(2, line), _font(max(10, round(_extent(picture) / 38)))
    _, rise, _, fall = font.getbbox(
        "Ag", anchor="ls"
    )  # the same for every text, so that tags in a row have one height
    tall = math.ceil(fall - rise) + 2 * pad
    if tall > picture[1]:
        return
    placed: list[tuple[int, int, int, int]] = []
    drawn = []
    for box, full, fill in reversed(wanted):  # the best choose their places first, and are painted last
        if text := _fitted(full, font, picture[0] - 2 * pad):
            wide = math.ceil(font.getlength(text)) + 2 * pad
            left, top = place_tag((box[0] - line // 2, *box[1:]), (wide, tall), picture, placed)
            placed.append((left, top, left + wide, top + tall))
            drawn.append((text, fill))
    for (left, top, right, bottom), (text, fill) in zip(reversed(placed), reversed(drawn), strict=True):
        pen.rectangle((left, top, right - 1, bottom - 1), fill=fill)
        pen.text(
            (left + pad, top + pad - rise),
            text,
            fill=BLACK if _luminance(fill) > 0.18 else WHITE,
            font=font,
            anchor="ls",
        )


def _text(label: int, names: Sequence[str], score: float | None = None) -> str:
    name = names[label] if 0 <= label < len(names) else str(label)
    return name if score is None else f"{name} {score:.2f}"


def _frame(pen: ImageDraw.ImageDraw, box: Box, fill: Colour, line: int) -> None:
    """A rectangle with a shadow on either side: a yellow frame on sand stays visible."""
    left, top, right, bottom = _pixels(box)
    out = line // 2
    pen.rectangle(
        (left - out - 1, top - out - 1, right + out + 1, bottom + out + 1),
        outline=(*BLACK, 90),
        width=line + 2,
    )
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


def _inside(values: Sequence[float], picture: tuple[int, int]) -> Box | None:
    """The part of a box that lies in the picture; None where nothing does, or where it is no number."""
    if not all(map(math.isfinite, values)):
        return None
    left, top, right, bottom = _ordered(values)
    if right < 0 or bottom < 0 or left > picture[0] or top > picture[1]:
        return None
    return max(left, 0.0), max(top, 0.0), min(right, float(picture[0])), min(bottom, float(picture[1]))


def _ordered(values: Sequence[float]) -> Box:
    """Pillow refuses a box whose corners are swapped."""
    return (
        min(values[0], values[2]),
        min(values[1], values[3]),
        max(values[0], values[2]),
        max(values[1], values[3]),
    )


def _pixels(box: Box) -> tuple[int, int, int, int]:
    """First and last pixel of a box in either direction: [0, 10] covers the pixels 0 to 9."""
    left, top = round(box[0]), round(box[1])
    return left, top, max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)


def _labels(boxes: Tensor, labels: Tensor | None) -> list[int]:
    if labels is not None and len(labels) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes do not go with {len(labels)} labels")
    return [0] * len(boxes) if labels is None else [int(label) for label in labels.tolist()]


def _extent(picture: tuple[int, int]) -> float:
    """The side of a square as large as the picture: lines and letters grow with it."""
    return math.sqrt(picture[0] * picture[1])


def _line(picture: tuple[int, int]) -> int:
    return max(1, round(_extent(picture) / 240))


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
        raise ValueError(f"a picture is a uint8 tensor [3, H, W], not {image.dtype} {list(image.shape)}")
    return Image.fromarray(
        np.ascontiguousarray(image.detach().cpu().expand(3, -1, -1).permute(1, 2, 0).numpy())
    )


def _close(canvas: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous()
