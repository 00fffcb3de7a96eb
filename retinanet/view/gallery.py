"""Many small pictures on one HTML page, each with a few lines of text: a gallery to look through."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .draw import Box
from .page import document

GRID = "display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 28px 20px; align-items: start;"
QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """One picture of a gallery: uint8 [3, H, W], what it shows in a few words, and lines of smaller print."""

    image: Tensor
    title: str
    lines: Sequence[str] = ()


def write_gallery(
    path: Path,
    title: str,
    intro: str,
    numbers: Sequence[tuple[str, str]],
    sections: Iterable[tuple[str, str, Iterable[Picture]]],
    table: str = "",
) -> None:
    """Write the page to `path`; its folder is made. Pictures are embedded one by one as they come, so that a
    generator of them is welcome.

    intro     paragraphs parted by an empty line
    numbers   (label, value) as they are to be read; the first is the headline
    sections  (heading, a sentence below it, its pictures)
    table     aligned text, shown before the sections
    """
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(' '.join(part.split()))}</p>" for part in intro.split("\n\n") if part.strip()),
    ]
    if numbers:
        cards = "\n".join(
            f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in numbers
        )
        parts.append(f"<dl>\n{cards}\n</dl>")
    for heading, sentence, pictures in sections:
        figures = "\n".join(map(_figure, pictures))
        parts.append(
            f'<h2>{escape(heading)}</h2>\n<p>{escape(sentence)}</p>\n<div style="{GRID}">\n{figures}\n</div>'
        )
    if table:
        parts.append(f"<h2>In numbers</h2>\n<pre><code>{escape(table)}</code></pre>")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(title, "\n".join(parts)), encoding="utf-8")


def crop(
    image: Tensor, around: Sequence[Box], side: int = 360, margin: float = 0.6, least: float = 48
) -> tuple[Tensor, float, Box]:
    """The part of a picture [3, H, W] around some boxes, enlarged or reduced to `side` pixels in its longer
    direction.

    margin   of the longer side of the boxes together, on each side of them, and at least
    least    pixels
    returns  the part, by what factor it was enlarged, and what it shows (xyxy in pixels of the picture);
             `placed` takes the last two
    """
    height, width = image.shape[1:]
    left, top = (min(box[i] for box in around) for i in (0, 1))
    right, bottom = (max(box[i] for box in around) for i in (2, 3))
    room = max(least, margin * max(right - left, bottom - top))
    first_x, first_y = min(max(0, int(left - room)), width - 1), min(max(0, int(top - room)), height - 1)
    last_x, last_y = (
        max(min(width, int(right + room) + 1), first_x + 1),
        max(min(height, int(bottom + room) + 1), first_y + 1),
    )
    part = image[:, first_y:last_y, first_x:last_x]
    scale = side / max(part.shape[1:])
    size = [max(1, round(length * scale)) for length in part.shape[1:]]
    enlarged = (
        F.interpolate(part[None].float(), size, mode="bilinear", antialias=scale < 1)[0]
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
    )
    return enlarged, scale, (first_x, first_y, last_x, last_y)


def placed(boxes: Tensor, scale: float, shown: Box) -> Tensor:
    """Boxes [N, 4] in pixels of a picture -> in pixels of a crop of it."""
    return (boxes - torch.tensor([*shown[:2], *shown[:2]], dtype=boxes.dtype)) * scale


def _figure(picture: Picture) -> str:
    """With its size, so that nothing jumps while the page is laid out."""
    file = io.BytesIO()
    pixels = np.ascontiguousarray(picture.image.permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    text = "".join(f"<br />{escape(line)}" for line in picture.lines)
    height, width = picture.image.shape[1:]
    return (
        f'<figure style="margin: 0">\n<img src="{source}" width="{width}" height="{height}" '
        f'alt="{escape(picture.title)}" />\n'
        f"<figcaption><strong>{escape(picture.title)}</strong>{text}</figcaption>\n</figure>"
    )
