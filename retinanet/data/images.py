"""An image file -> uint8 RGB pixels as a person sees it, or an error that names the file; never wrong pixels.

Pillow decodes everything. (torchvision's decoders gave the same pixels in the same time, 3.0 against 3.2 ms
for a 900x600 JPEG, but torchvision 0.29 deprecates them.) The file's own first bytes choose the plug-in, not
`Image.open`: a wrong suffix does no harm, formats that run other programs (EPS) stay shut, and the limit on
pixels is ours alone. HEIC takes Pillow's plug-in pillow-heif, AVIF a Pillow that has it: see `LATER`.
"""

from __future__ import annotations

import importlib
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
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TgaImagePlugin import TgaImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from ..errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970
"""Half a gigabyte of RGB, the limit at which Pillow suspects an attack."""

IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in re.findall(
        r"\w+",
        "jpg jpeg jpe jfif mpo png apng bmp dib tif tiff webp gif pnm ppm pgm pbm "
        "jp2 j2k j2c jpf jpx tga avif heic heif hif jxl",
    )
)
"""Of all that people call images. Some need a reader that may be missing, and JPEG XL has none: such a file
counts as an image that cannot be read."""

SIGNATURES: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"BM": BmpImageFile,
    b"RIFF": WebPImageFile,
    b"GIF8": GifImageFile,
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    **dict.fromkeys((b"P%d" % kind for kind in range(1, 7)), PpmImageFile),
    **dict.fromkeys((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"), Jpeg2KImageFile),
}

LATER = {
    "AVIF": (re.compile(b"avi[fs]"), "PIL.AvifImagePlugin", "AvifImageFile", "-U pillow"),
    "HEIC": (re.compile(b"he[iv].|m[is]f1"), "pillow_heif", "HeifImageFile", "pillow-heif"),
}
"""What is imported only for such a file: its brands (ISO 14496-12), module, class, and what pip installs.
An AVIF file may have a brand of HEIC's too, so it comes first."""

NO_IMAGES = {
    **dict.fromkeys(
        (b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL image, which cannot be read here; save it as JPEG or PNG"
    ),
    b"version https://git-lfs": "a pointer of Git LFS; fetch the image itself: git lfs pull",
    b"\x1f\x8b": "compressed by gzip; unpack it first",
}
"""What is often met in the place of an image, by its first bytes."""

NEEDS_READER = "needs a reader: "

HEAD = 256
"""Bytes that say what a file is; the brands of one are rarely more than ten, of four bytes each."""

EIGHT_BIT = frozenset(
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)

WITHOUT_RANGE = {"I": "32-bit or signed integers", "F": "floating point numbers", "LAB": "CIE Lab"}

ORIENTATION, WIDTH, HEIGHT, BITS, PHOTOMETRIC = 274, 256, 257, 258, 262  # tags of EXIF and TIFF

MOST_SCANS = 100
"""Of a JPEG; ordinary ones have ten. A scan passes over all pixels, so a small file can take minutes."""

ENDS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
"""The first bytes of a format -> the mark of its end."""

TAIL = 1 << 16
"""Bytes at the end of a file in which the mark is looked for: cameras write more behind it."""

JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")

END, SCAN = 0xD9, 0xDA  # of JPEG's markers

LONGEST_SIDE = 2**31 - 1  # the product of two such sides is still an int64

PILLOW_LIMIT = Lock()

# Pillow warns of metadata that it skips. An error alone says that an image cannot be used.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, module=r"PIL\.")


def is_image(name: str) -> bool:
    """Whether a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def missing_reader(reason: str) -> str:
    """The line that installs the reader for want of which an image could not be read; else empty."""
    return reason.partition(NEEDS_READER)[2]


def read_image(path: Path | str, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> Tensor:
    """The image as uint8 [3, H, W], RGB, as shown (after any EXIF rotation); the memory is [H, W, 3].

    Grey is repeated over the channels. Alpha is dropped and not blended, since it is not known what a
    labelling tool shows below it. The first of several frames is taken. 16-bit grey is divided by 257, so
    that 65535 becomes 255, as viewers show it; of 16-bit colour the high byte is taken, which differs by at
    most 1. Images of 32-bit numbers have no agreed range and are refused.

    Pillow's own `convert("RGB")`, which Detectron2 calls, cuts 16-bit grey off at 255: all that is brighter
    than 0.4 % of the range becomes white, so an ordinary image loses all its objects.

    content  the file's bytes: no file is opened then, and `path` only names it
    """
    return _as_tensor(read_pixels(path, max_pixels, content))


def read_pixels(path: Path | str, max_pixels: int = MAX_PIXELS, content: bytes | None = None) -> Pixels:
    """The same without torch: uint8 [H, W, 3]."""
    with _opened(path, max_pixels, content) as image:
        height, width = _shown_size(image)
        if height * width > max_pixels:
            raise DataError(
                f"{path}: {width} x {height} pixels are more than the limit of {max_pixels}; --max-pixels "
                f"raises it"
            )
        if isinstance(image, JpegImageFile) and too_many_scans(image):
            raise DataError(
                f"{path}: a JPEG of more than {MOST_SCANS} scans takes too long to decode; save it again"
            )
        # Pillow itself turns a TIFF while it loads it
        orientation = 1 if isinstance(image, TiffImageFile) else _orientation(image)
        # with a name Pillow maps an uncompressed TIFF into memory, a turned one with swapped sides
        name, image.filename = image.filename, ""
        with _our_limit_only(height * width, max_pixels):
            image.load()
        image.filename = name
        pixels = _upright(_rgb(image), orientation)
        if pixels.shape != (height, width, 3):
            is_wide, is_high = pixels.shape[1], pixels.shape[0]
            raise DataError(f"{path}: the header says {width} x {height}, the image is {is_wide} x {is_high}")
    return pixels


def from_pillow(image: Image.Image) -> Tensor:
    """A Pillow image as uint8 [3, H, W], by the same rules as a file."""
    return _as_tensor(_upright(_rgb(image), image.getexif().get(ORIENTATION, 1)))


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) as shown, from the header alone: 40 microseconds, where decoding takes milliseconds."""
    with _opened(path) as image:
        return _shown_size(image)


def has_end(path: Path) -> bool:
    """Whether a JPEG, PNG or WebP has the end that its format asks for; true for any other file.

    Without one it mostly breaks off in the middle, but decoders accept some such files."""
    with open(path, "rb") as stream:
        head, length = stream.read(12), stream.seek(0, os.SEEK_END)
        if head.startswith(b"RIFF"):
            return length >= 8 + int.from_bytes(head[4:8], "little")
        end = next((end for begin, end in ENDS.items() if head.startswith(begin)), b"")
        stream.seek(max(0, length - TAIL))
        return end in stream.read()


def too_many_scans(image: JpegImageFile) -> bool:
    """Whether there are more than MOST_SCANS before the end of the first image; other data may follow it."""
    assert image.fp is not None
    image.fp.seek(0)
    data = image.fp.read()
    if data.count(bytes([0xFF, SCAN])) <= MOST_SCANS:
        return False
    scans, place = 0, 2
    while scans <= MOST_SCANS and (marker := JPEG_MARKER.search(data, place)) and marker[1][0] != END:
        scans += marker[1][0] == SCAN
        length = int.from_bytes(
            data[marker.end() : marker.end() + 2]
        )  # of the segment; a scan's pixels follow
        place = marker.end() + length
    return scans > MOST_SCANS


def _as_tensor(pixels: Pixels) -> Tensor:
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1)


@contextmanager
def _opened(
    path: Path | str, max_pixels: int = MAX_PIXELS, content: bytes | None = None
) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read; whatever goes wrong inside the block becomes a DataError."""
    try:
        if content is None and not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(f"{path}: is no file")  # opening a pipe would wait for ever
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            reader = _reader(file.read(HEAD), path)
            file.seek(0)
            with _our_limit_only(inf if reader is GifImageFile else 0, max_pixels):
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
        raise DataError(f"{path}: cannot be read: {str(error) or type(error).__name__}") from error


def _reader(head: bytes, path: Path | str) -> type[ImageFile.ImageFile]:
    """Pillow's plug-in for a file that begins with `head`; DataError where there is none."""
    for start, reader in SIGNATURES.items():
        if head.startswith(start):
            return reader
    if head[4:8] == b"ftyp":
        brands = [head[place : place + 4] for place in range(8, min(int.from_bytes(head[:4]), HEAD), 4)]
        for kind, (known, module, name, package) in LATER.items():
            if any(map(known.fullmatch, brands)):
                try:
                    plugin = importlib.import_module(module)
                except ImportError:  # its library may be missing, too
                    plugin = None
                if plugin is None or not getattr(plugin, "SUPPORTED", True):
                    raise DataError(f"{path}: {kind} {NEEDS_READER}pip install {package}")
                return getattr(plugin, name)  # type: ignore[no-any-return]
    if str(path).lower().endswith(".tga") and head:  # which has no signature
        return TgaImageFile
    known_kinds = "JPEG, PNG, TIFF, BMP, WebP, GIF, PNM, JPEG 2000, AVIF or HEIC"
    other = next((what for start, what in NO_IMAGES.items() if head.startswith(start)), None)
    raise DataError(f"{path}: {other or (f'not a {known_kinds} image' if head else 'the file is empty')}")


@contextmanager
def _our_limit_only(pixels: float, max_pixels: int) -> Iterator[None]:
    """Pillow holds a TIFF, and a GIF's first frame, against its own limit: ours takes its place meanwhile, in
    one thread at a time, since Pillow's is a global. (To open a GIF Pillow may need a canvas of its size.)"""
    if Image.MAX_IMAGE_PIXELS is None or pixels <= Image.MAX_IMAGE_PIXELS:
        yield
        return
    with PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _shown_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    if isinstance(image, TiffImageFile):  # its image.size is turned or not, by Pillow's version
        width, height = image.tag_v2[WIDTH], image.tag_v2[HEIGHT]
        orientation = image.tag_v2.get(ORIENTATION, 1)
    else:
        (width, height), orientation = image.size, _orientation(image)
    if not all(isinstance(side, int) and 0 < side <= LONGEST_SIDE for side in (width, height)):
        raise ValueError(f"its header says {width} x {height} pixels")
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _orientation(image: ImageFile.ImageFile) -> int:
    """EXIF's 1..8. Pillow would decode the whole of a PNG to find it, and warns about broken blocks."""
    data = (image.info.get("exif") or b"").removeprefix(b"Exif\0\0")  # pillow-heif has None
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
    """The loaded image as [H, W, 3], not yet turned."""
    if image.mode in EIGHT_BIT:
        image.info.pop("transparency", None)  # of a palette: Pillow warns when it has to drop it
        if image.mode in ("La", "RGBa"):
            image = image.convert(image.mode.upper())
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        full, inverted = 65535, False
        if isinstance(image, TiffImageFile):
            full = (1 << image.tag_v2[BITS][0]) - 1
            inverted = image.tag_v2.get(PHOTOMETRIC) == 0  # white is zero
        grey = np.asarray(image).astype(np.uint32)
        grey = (np.minimum(grey, full) * 255 + full // 2) // full
        grey = 255 - grey if inverted else grey
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    name, kind = getattr(image, "filename", "the image"), WITHOUT_RANGE.get(image.mode, image.mode)
    raise DataError(
        f"{name}: holds {kind}, whose range is not agreed on; save it with 8 or 16 bits a channel"
    )


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """[H, W, 3] turned so that the first row is the top: EXIF's eight cases."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    # numpy calls a mirrored row of one pixel contiguous, torch does not
    return pixels if orientation == 1 else pixels.copy()
