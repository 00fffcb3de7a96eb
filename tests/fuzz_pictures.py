"""Small pictures in every format and mode with the pixels that they show. Used by fuzz.py."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, features

MODES = {
    "png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "jpg": ("RGB", "L", "CMYK"),
    "tif": ("RGB", "RGBA", "L", "I;16", "CMYK", "1"),
    "bmp": ("RGB", "L", "P", "1"),
    "webp": ("RGB", "RGBA"),
    "gif": ("P", "L"),
    "ppm": ("RGB", "L", "1", "I;16"),
    "jp2": ("RGB", "RGBA", "L", "I;16"),
}
if features.check("avif"):
    MODES["avif"] = ("RGB", "RGBA", "L")
TURNED = {"png", "jpg", "tif", "webp", "avif"}
"""Formats with an EXIF orientation."""


def make_picture(rng: random.Random) -> tuple[str, bytes, np.ndarray]:
    """(suffix, content, pixels [H, W, 3] as shown); for lossy formats the pixels are those of Pillow."""
    suffix = rng.choice(list(MODES))
    mode = rng.choice(MODES[suffix])
    numbers = np.random.default_rng(rng.randrange(1 << 32))
    height, width = rng.randrange(1, 40), rng.randrange(1, 40)
    image, shown = make_mode(mode, height, width, numbers)
    options: dict[str, object] = {}
    if suffix == "jpg":
        options = {"quality": rng.choice((50, 95)), "progressive": rng.random() < 0.3}
    elif suffix == "webp":
        options = {"lossless": rng.random() < 0.7, "exact": True}
    elif suffix == "tif":
        options = {"compression": rng.choice((None, "tiff_lzw", "tiff_adobe_deflate", "packbits"))}
    elif suffix == "png" and mode == "P" and rng.random() < 0.5:
        options = {"transparency": rng.choice((1, b"\x00\x80\xff"))}
    elif suffix == "gif" and rng.random() < 0.5:
        options = {"save_all": True, "append_images": [Image.new(image.mode, image.size, 3)]}
    orientation = 1
    if suffix in TURNED and mode != "1" and rng.random() < 0.4:
        orientation = rng.randrange(1, 9)
        exif = Image.Exif()
        exif[274] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(
        stream, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper()), **options
    )
    if suffix in ("jpg", "avif") or (suffix == "webp" and not options["lossless"]):
        with Image.open(stream) as viewed:
            shown = np.array(ImageOps.exif_transpose(viewed).convert("RGB"))
    else:
        shown = turned(shown, orientation)
    return suffix, stream.getvalue(), shown


def promising(png: bytes, rng: random.Random) -> bytes:
    """A PNG whose header, correctly summed, promises another size."""
    sides = (0, 1, 50, 3000, 20_000, 2**31 - 1, 2**31, 2**32 - 1)
    header = b"IHDR" + struct.pack(">II", rng.choice(sides), rng.choice(sides)) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def make_mode(
    mode: str, height: int, width: int, numbers: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """A picture of a mode, and its pixels as RGB."""
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}.get(mode, 1)
    values = numbers.integers(0, 256, (height, width, channels), dtype=np.uint8)
    if mode == "1":
        values &= 1
        return Image.fromarray(values[:, :, 0] * 255).convert("1", dither=Image.Dither.NONE), np.repeat(
            values * 255, 3, axis=2
        )
    if mode == "I;16":
        deep = numbers.integers(0, 65536, (height, width, 1), dtype=np.uint16)
        return Image.fromarray(deep[:, :, 0]), np.repeat(np.round(deep / 257).astype(np.uint8), 3, axis=2)
    if mode == "P":
        palette = numbers.integers(0, 256, (256, 3), dtype=np.uint8)
        image = Image.fromarray(values[:, :, 0])
        image.putpalette(palette.tobytes())
        return image, palette[values[:, :, 0]]
    if mode == "CMYK":
        ink = values.astype(int)
        white = 255 - ink[:, :, 3:]
        shown = np.clip(white - (ink[:, :, :3] * white + 127) // 255, 0, 255)
        return Image.fromarray(values, "CMYK"), shown.astype(np.uint8)
    image = Image.merge(
        mode, [Image.fromarray(np.ascontiguousarray(values[:, :, channel])) for channel in range(channels)]
    )
    colours = values[:, :, :1] if channels < 3 else values[:, :, :3]
    return image, np.broadcast_to(colours, (height, width, 3))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a viewer shows for an EXIF orientation, in counter-clockwise quarter turns and mirrors."""
    turns, mirror = {1: (0, 0), 2: (0, 1), 3: (2, 0), 4: (2, 1), 5: (3, 1), 6: (3, 0), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    pixels = np.rot90(pixels, turns)
    return pixels[:, ::-1] if mirror else pixels
