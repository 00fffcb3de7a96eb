"""What is given as an image in Python -> uint8 [3, H, W] RGB, or an error that names the call that works."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.images import from_pillow, read_image
from ..errors import DataError

FILE = (str, os.PathLike)

BYTES = (bytes, bytearray, memoryview)

CHANNELS = (1, 3, 4)
"""Grey, RGB, RGB with alpha, which is dropped."""


def as_images(images: Any) -> tuple[bool, Iterator[Tensor]]:
    """Whether several images are meant, and each as uint8 [3, H, W], made when its turn comes.

    Several are a list, a tuple, an iterator, or an array or tensor with a batch axis.
    """
    if isinstance(images, (np.ndarray, Tensor)):
        several = images.ndim == 4
    else:
        single = (*FILE, *BYTES, Image.Image, Mapping, set, frozenset)
        several = isinstance(images, Iterable) and not isinstance(images, single) and not is_file(images)
    return several, map(as_image, images if several else [images])


def as_image(image: Any) -> Tensor:
    """An image in any form that `Detector.predict` takes -> uint8 [3, H, W] RGB."""
    if isinstance(image, FILE):
        return _from_path(os.fsdecode(image))
    if isinstance(image, BYTES):
        return read_image(f"the image of {len(image)} bytes", content=bytes(image))
    if isinstance(image, Image.Image):
        with _errors_of(getattr(image, "filename", "") or "the Pillow image"):
            return from_pillow(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image, channels_first=True)
    if is_file(image):
        return _from_file(image)
    if isinstance(image, (list, tuple)):
        raise DataError(
            "an image in the list is a list itself; give one flat list of images, or "
            "np.array(image, dtype='uint8') for one that holds pixels"
        )
    hints = {
        type(None): "; cv2.imread gives None where it cannot read a file: give the path instead",
        int: "; for a camera or a video give its frames, as arrays in RGB",
    }
    raise DataError(
        f"an image is a path, bytes, an open file, an array, a tensor or a Pillow image, not "
        f"{image if type(image) in hints else type(image).__name__}{hints.get(type(image), '')}"
    )


def is_file(image: Any) -> bool:
    """Whether it can be read like an open file."""
    return hasattr(image, "read") and not isinstance(image, (Image.Image, np.ndarray, Tensor))


@contextmanager
def _errors_of(name: object) -> Iterator[None]:
    """Whatever a file or Pillow raises becomes a DataError that names the image."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{name}: cannot be read: {str(error) or type(error).__name__}") from error


def _from_path(name: str) -> Tensor:
    if re.match(r"(https?|ftp|file|s3|gs):/", name):
        raise DataError(
            f"{name}: nothing is fetched here; download it first, or give "
            f"urllib.request.urlopen({name!r}), whose bytes are read"
        )
    if name.startswith("data:"):
        raise DataError("a data URI is no path; give its bytes: base64.b64decode(uri.partition(',')[2])")
    if not os.path.exists(name):
        name = os.path.expanduser(name)
    if os.path.isdir(name):
        raise DataError(
            f"{name}: is a folder; give a list of its images, such as sorted(Path({name!r}).glob('*.jpg'))"
        )
    if any(sign in name for sign in "*?[") and not os.path.exists(name):
        raise DataError(f"{name}: no such file; for all that it matches give sorted(glob.glob({name!r}))")
    return read_image(Path(name))


def _from_file(file: Any) -> Tensor:
    """From its beginning, as Pillow reads it: what was just written into a BytesIO stands before its end."""
    name = getattr(file, "name", type(file).__name__)
    with _errors_of(name):
        if getattr(file, "seekable", bool)():
            file.seek(0)
        content = file.read()
    if not isinstance(content, BYTES):
        raise DataError(f"{name}: gives no bytes but {type(content).__name__}; open an image with mode 'rb'")
    return read_image(str(name), content=bytes(content))


def _from_array(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3):
        raise DataError(
            f"an array must be [H, W, 3] or [H, W] of numbers, or [B, H, W, 3] for a batch, not "
            f"{list(array.shape)} of {array.dtype}; several images are a list: list(array)"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # a copy, in this machine's byte order: torch takes no other, and warns of arrays that are read-only
    tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))
    return _from_tensor(tensor[:, :, None] if tensor.ndim == 2 else tensor, channels_first=False)


def _from_tensor(image: Tensor, channels_first: bool) -> Tensor:
    """[C, H, W] or [H, W, C] -> [3, H, W]. Where either end may be the channels, `channels_first` decides if
    the other end is a side of one pixel; else it is for the caller to say."""
    image, shape = image.detach(), list(image.shape)
    possible = image.ndim == 2 or (image.ndim == 3 and (shape[0] in CHANNELS or shape[2] in CHANNELS))
    if not possible or 0 in shape:
        raise DataError(f"an image must be [3, H, W], [H, W, 3] or [H, W] (or with alpha, 4), not {shape}")
    if image.ndim == 2:
        image, channels_first = image[None], True
    elif shape[0] in CHANNELS and shape[2] in CHANNELS:
        if (shape[2] if channels_first else shape[0]) != 1:
            raise DataError(
                f"{shape} may be [3, H, W] or [H, W, 3]; say which with a Pillow image: "
                f"Image.fromarray(image) takes [H, W, 3]; transpose [3, H, W] first: image.transpose(1, 2, 0)"
            )
    else:
        channels_first = shape[0] in CHANNELS
    image = image if channels_first else image.permute(2, 0, 1)
    pixels: Tensor = _as_bytes(image[:3]).expand(3, -1, -1).cpu()
    return pixels


def _as_bytes(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.uint16:  # as in a 16-bit file
        return ((image.to(torch.int32) * 255 + 32767) // 65535).to(torch.uint8)
    if image.is_floating_point():
        low, high = image.min().item(), image.max().item()
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"a float image must lie in 0..1, not {low:.3g}..{high:.3g}; give uint8 for 0..255, and "
                f"an image that was normalised as it was before"
            )
        return (image.float() * 255).round().to(torch.uint8)
    if image.dtype == torch.bool:
        raise DataError("an image of True and False is a mask; give mask.astype('uint8') * 255 to see it so")
    raise DataError(
        f"an image must be uint8, uint16, or float in 0..1, not {image.dtype}; for values in 0..255 give "
        f"image.astype('uint8'), of a tensor image.to(torch.uint8)"
    )
