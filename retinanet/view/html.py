"""A page of HTML that needs nothing from elsewhere: numbers, images, crops of images, a table."""

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

from ..files import write_atomically
from .draw import Box

STYLE = Path(__file__).with_name("page.css")

QUALITY = 85


@dataclass(frozen=True)
class Crop:
    """One crop: uint8 [3, H, W], what it shows in a few words, and lines of smaller print."""

    image: Tensor
    title: str
    lines: Sequence[str] = ()


def write_page(
    path: Path,
    title: str,
    intro: str,
    numbers: Sequence[tuple[str, str]],
    images: Sequence[tuple[str, Path | bytes]] = (),
    commands: Sequence[tuple[str, str]] = (),
    sections: Iterable[tuple[str, str, Iterable[Crop]]] = (),
    table: str = "",
) -> None:
    """Write the page to `path`; its folder is made. Images are embedded.

    intro      paragraphs parted by an empty line
    numbers    (label, value) as they are to be read: ("AP on 100 unseen scenes", "0.612"); the first is the
               headline
    images     (caption, a PNG, JPEG or WebP file, or its bytes); a file that is not there is left out
    commands   (explanation, shell command): what to do next; a click on a command selects it whole
    sections   (heading, a sentence below it, its crops); a generator of crops is welcome
    table      aligned text, shown last
    """
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<p>{escape(' '.join(part.split()))}</p>" for part in intro.split("\n\n") if part.strip()]
    if numbers:
        cards = (f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in numbers)
        parts += ["<dl>", *cards, "</dl>"]
    for caption, image in images:
        if isinstance(image, bytes) or image.exists():
            content = image if isinstance(image, bytes) else image.read_bytes()
            parts.append(_figure(content, escape(caption), caption))
    if commands:
        parts.append("<h2>What to do next</h2>\n<ol>")
        for why, command in commands:
            parts.append(f"<li><p>{escape(why)}</p><pre><code>{escape(command)}</code></pre></li>")
        parts.append("</ol>")
    for heading, sentence, crops in sections:
        parts.append(f'<h2>{escape(heading)}</h2>\n<p>{escape(sentence)}</p>\n<div class="crops">')
        parts += [*map(_crop_figure, crops), "</div>"]
    if table:
        parts.append(f"<h2>In numbers</h2>\n<pre><code>{escape(table)}</code></pre>")
    write_atomically(path, document(title, "\n".join(parts)).encode())


def document(title: str, body: str) -> str:
    """A whole HTML page around `body`, which is HTML already."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8" />
<meta name="viewport" content="width=device-width, initial-scale=1" />
<title>{escape(title)}</title>
<style>
{STYLE.read_text()}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _figure(content: bytes, caption: str, alt: str) -> str:
    """An image in the page itself, with its size, so that nothing jumps while the page is laid out."""
    with Image.open(io.BytesIO(content)) as header:
        kind, (width, height) = Image.MIME[header.format or ""], header.size
    source = f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    image = f'<img src="{source}" width="{width}" height="{height}" alt="{escape(alt)}" />'
    return f"<figure>\n{image}\n<figcaption>{caption}</figcaption>\n</figure>"


def _crop_figure(crop: Crop) -> str:
    file = io.BytesIO()
    pixels = np.ascontiguousarray(crop.image.permute(1, 2, 0).numpy())
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    lines = "".join(f"<br />{escape(line)}" for line in crop.lines)
    return _figure(file.getvalue(), f"<strong>{escape(crop.title)}</strong>{lines}", crop.title)


def crop(
    image: Tensor, around: Sequence[Box], side: int = 360, margin: float = 0.6, least: float = 48
) -> tuple[Tensor, float, Box]:
    """The part of an image [3, H, W] around some boxes, resized so that its longer side has `side` pixels.

    margin   on each side of the boxes, as a fraction of their longer side together; `least`: pixels
    returns  the part, its scale, and what it shows (xyxy in pixels of the image); `placed` takes the last two
    """
    height, width = image.shape[1:]
    left, top = (min(box[i] for box in around) for i in (0, 1))
    right, bottom = (max(box[i] for box in around) for i in (2, 3))
    room = max(least, margin * max(right - left, bottom - top))
    first_x, first_y = min(max(0, int(left - room)), width - 1), min(max(0, int(top - room)), height - 1)
    last_x = max(min(width, int(right + room) + 1), first_x + 1)
    last_y = max(min(height, int(bottom + room) + 1), first_y + 1)
    part = image[:, first_y:last_y, first_x:last_x]
    scale = side / max(part.shape[1:])
    size = [max(1, round(length * scale)) for length in part.shape[1:]]
    resized = F.interpolate(part[None].float(), size, mode="bilinear", antialias=scale < 1)[0]
    return resized.round().clamp(0, 255).to(torch.uint8), scale, (first_x, first_y, last_x, last_y)


def placed(boxes: Tensor, scale: float, shown: Box) -> Tensor:
    """Boxes [N, 4] in pixels of an image -> in pixels of a crop of it."""
    return (boxes - torch.tensor([*shown[:2], *shown[:2]], dtype=boxes.dtype)) * scale
