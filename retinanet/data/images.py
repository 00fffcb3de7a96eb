"""A picture file -> uint8 RGB pixels as a person sees it, or an error that names the file; never a wrong
picture.

Pillow decodes everything. (torchvision's decoders gave the same pixels in the same time, 3.0 against 3.2 ms
for a 900x600 JPEG, but torchvision 0.29 deprecates them and says that they will go.) The plug-ins are chosen
by the file's own first bytes and not by `Image.open`: a wrong suffix does no harm, formats that run other
programs (EPS) stay shut, and the limit on pixels is ours alone.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Above this many pixels a picture is refused: half a gigabyte of RGB, the limit at which Pillow suspects an
attack.
"""

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo")

OTHER_SUFFIXES = (".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".pnm", ".ppm", ".pgm", ".pbm")

IMAGE_SUFFIXES = frozenset(JPEG_SUFFIXES + OTHER_SUFFIXES)

SIGNATURES: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
    (b"RIFF", WebPImagePlugin.WebPImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"II*\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", TiffImagePlugin.TiffImageFile),
    (b"II+\0", TiffImagePlugin.TiffImageFile),
    (b"MM\0+", TiffImagePlugin.TiffImageFile),
    *((b"P%d" % kind, PpmImagePlugin.PpmImageFile) for kind in range(1, 7)),
)

EIGHT_BIT = frozenset(
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)

ORIENTATION, WIDTH, HEIGHT, BITS, PHOTOMETRIC = 274, 256, 257, 258, 262  # tags of EXIF and TIFF

LARGE = Lock()

MOST_SCANS = 100
"""A JPEG of more scans is refused: each passes over all its pixels, so a small file can take minutes.
Ordinary ones have about ten.
"""

JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")

END, SCAN = 0xD9, 0xDA  # of JPEG's markers

LONGEST_SIDE = 2**31 - 1  # the product of two such sides is still an int64

# Pillow warns of metadata that it skips. Whether a picture can be used is told by an error, and by nothing
# else.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.")


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> Tensor:
    """The picture as uint8 [3, H, W], RGB, as shown (after any EXIF rotation); the memory is [H, W, 3], like
    channels_last.

    Grey is repeated over the channels, alpha is dropped and not blended (what a labelling tool shows below it
    is not known), the first
    of several frames is taken. 16-bit grey is divided by 257, so that 65535 becomes 255; of 16-bit colour the
    high byte is taken, which
    differs by at most 1. Pictures of 32-bit numbers have no agreed range and are refused. With `content`, the
    file's bytes, no file is
    opened and `path` only names it.
    """
    import torch

    return torch.from_numpy(read_pixels(path, max_pixels, content)).permute(2, 0, 1)


def read_pixels(path: Path | str, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> Pixels:
    """The same without torch: uint8 [H, W, 3]."""
    with _opened(path, max_pixels, content) as image:
        height, width = _shown_size(image)
        if height * width > max_pixels:
            raise DataError(
                f"{path}: {width} x {height} pixels are more than the limit of {max_pixels}; --max-pixels "
                f"raises it"
            )
        if isinstance(image, JpegImagePlugin.JpegImageFile) and too_many_scans(image):
            raise DataError(
                f"{path}: a JPEG of more than {MOST_SCANS} scans, which takes too long to decode; save it "
                f"again"
            )
        tiff = isinstance(image, TiffImagePlugin.TiffImageFile)
        orientation = 1 if tiff else _orientation(image)  # Pillow turns a TIFF by itself while it loads it
        name, image.filename = (
            image.filename,
            "",
        )  # else Pillow maps an uncompressed TIFF into memory, a turned one with swapped sides
        with _our_limit_only(height * width, max_pixels):
            image.load()
        image.filename = name
        pixels = _upright(_rgb(image), orientation)
        if pixels.shape != (height, width, 3):
            raise DataError(
                f"{path}: the header says {width} x {height}, the picture is {pixels.shape[1]} x "
                f"{pixels.shape[0]}"
            )
    return pixels


def from_pillow(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 [3, H, W], by the same rules as a file."""
    import torch

    return torch.from_numpy(_upright(_rgb(image), image.getexif().get(ORIENTATION, 1))).permute(2, 0, 1)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as shown (after any EXIF rotation), from the header alone: 40 microseconds, where
    decoding takes milliseconds.
    """
    with _opened(path) as image:
        return _shown_size(image)


def too_many_scans(image: JpegImagePlugin.JpegImageFile) -> bool:
    """Whether there are more than MOST_SCANS before the end of the first picture; other data may follow
    it.
    """
    assert image.fp is not None
    image.fp.seek(0)
    data = image.fp.read()
    if data.count(bytes([0xFF, SCAN])) <= MOST_SCANS:
        return False
    scans, place = 0, 2
    while scans <= MOST_SCANS and (marker := JPEG_MARKER.search(data, place)) and marker[1][0] != END:
        scans += marker[1][0] == SCAN
        place = marker.end() + int.from_bytes(
            data[marker.end() : marker.end() + 2]
        )  # of the segment; after it, a scan's pixels
    return scans > MOST_SCANS


@contextmanager
def _opened(
    path: Path | str, max_pixels: int = MAX_PIXELS, content: bytes | None = None
) -> Iterator[ImageFile.ImageFile]:
    """The picture with its header read; whatever goes wrong inside the block is told as a DataError."""
    try:
        if content is None and not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: is no file")  # opening a pipe would wait for ever
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            head = file.read(16)
            reader = next((reader for signature, reader in SIGNATURES if head.startswith(signature)), None)
            if reader is None:
                what = (
                    "the file is empty"
                    if not head
                    else "not a JPEG, PNG, TIFF, BMP, WebP, GIF or PNM picture"
                )
                raise DataError(f"{path}: {what}")
            file.seek(0)
            with _our_limit_only(inf if reader is GifImagePlugin.GifImageFile else 0, max_pixels):
                image = reader(file, str(path))
            yield image
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{path}: more pixels than the limit of {max_pixels}; --max-pixels raises it"
        ) from None
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # a broken file makes Pillow raise anything from SyntaxError to zlib.error
        raise DataError(f"{path}: cannot be read: {error or type(error).__name__}") from error


@contextmanager
def _our_limit_only(pixels: float, max_pixels: int) -> Iterator[None]:
    """Pillow counts the pixels of a TIFF, and of a GIF's first frame, by its own limit; one at a time, since
    that limit is a global.

    Ours stands in its place: to open a GIF Pillow may need a canvas of its size.
    """
    if Image.MAX_IMAGE_PIXELS is None or pixels <= Image.MAX_IMAGE_PIXELS:
        yield
        return
    with LARGE:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _shown_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    if isinstance(
        image, TiffImagePlugin.TiffImageFile
    ):  # image.size is turned already, or not, depending on Pillow's version
        width, height, orientation = (
            image.tag_v2[WIDTH],
            image.tag_v2[HEIGHT],
            image.tag_v2.get(ORIENTATION, 1),
        )
    else:
        (width, height), orientation = image.size, _orientation(image)
    if not all(isinstance(side, int) and 0 < side <= LONGEST_SIDE for side in (width, height)):
        raise ValueError(f"its header says {width} x {height} pixels")
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's 1..8. Read here, since Pillow decodes the whole of a PNG to find it, and warns about broken
    blocks.
    """
    data = image.info.get("exif", b"")
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", data, entry)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), data, entry + 8)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:  # a block that ends too early says nothing
        pass
    return 1


def _rgb(image: Image.Image) -> Pixels:
    """The loaded picture as [H, W, 3], not yet turned."""
    if image.mode in EIGHT_BIT:
        image.info.pop(
            "transparency", None
        )  # one palette colour that is transparent: Pillow warns when it has to drop it
        if image.mode in ("La", "RGBa"):
            return np.array(image.convert(image.mode.upper()).convert("RGB"))
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        full, inverted = 65535, False
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            full, inverted = (
                (1 << image.tag_v2[BITS][0]) - 1,
                image.tag_v2.get(PHOTOMETRIC) == 0,
            )  # 0: white is zero
        grey = np.asarray(image).astype(np.uint32)
        grey = (np.minimum(grey, full) * 255 + full // 2) // full
        grey = 255 - grey if inverted else grey
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    kind = {"I": "32-bit or signed integers", "F": "floating point numbers", "LAB": "CIE Lab"}.get(
        image.mode, image.mode
    )
    raise DataError(
        f"{getattr(image, 'filename', 'the image')!s}: holds {kind}, whose range is not agreed on; save it "
        f"with 8 or 16 bits a channel"
    )


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """[H, W, 3] turned so that the first row is the top: EXIF's eight cases are a transposition, a mirror and
    a flip, each or not.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return (
        pixels if orientation == 1 else pixels.copy()
    )  # numpy calls a mirrored row of one pixel contiguous, torch does not
