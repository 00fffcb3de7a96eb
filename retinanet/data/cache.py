"""Remembers what was read from annotation files and image headers, outside the data folder."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .._version import __version__
from ..errors import DataError, Problem
from ..files import write_atomically
from .dataset import Dataset, Integers
from .images import has_end, image_size, read_pixels

LARGE = 8 << 20
"""Bytes from which on an annotation file is kept: to read so many takes half a second."""

FORMAT = 2
"""To be raised whenever the same file would be read into other columns."""

COLUMNS = ("image_ids", "sizes", "first", "boxes", "labels", "areas", "annotation_ids", "files", "crowd")
"""In the order of the cache: eight bytes, four, one, so that each lies on a multiple of its own size."""

DIGEST = hashlib.sha256().digest_size

MISSING, UNREADABLE = "images that are missing", "images that cannot be read"

THREADS = 8
"""The interpreter reads headers one at a time, but waits for a network disk many at a time."""


def cache_path(kind: str, about: Path, suffix: str) -> Path:
    """The file for one `kind` of knowledge about a file or folder; $RETINANET_CACHE moves it."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "retinanet"
    digest = hashlib.sha256(os.fsencode(os.path.abspath(about))).hexdigest()[:16]
    return Path(os.environ.get("RETINANET_CACHE") or usual) / f"{kind}-{digest}{suffix}"


def write_cache(file: Path, content: bytes) -> None:
    """A disk that cannot be written to costs only time."""
    with suppress(OSError):
        write_atomically(file, content)


def cached(file: Path, read: Callable[[Path], Dataset]) -> Dataset:
    """What `read` makes of an annotation file: from the cache where that has the file as it is now (path,
    size, time), else read, and kept.

    The cache only saves time: one that is absent, damaged, foreign or of another version is written anew.
    """
    key = _key(file)
    if key is None or key[-2] < LARGE:
        return read(file)
    cache = cache_path("index", file, ".npy")
    known = _load(cache, key)
    if known is not None:
        return replace(known, source=file, root=file.parent, split=file.stem)
    dataset = read(file)
    if _key(file) == key:  # else it was written while it was read
        write_cache(cache, _packed(dataset, key))
    return dataset


def _key(file: Path) -> list[Any] | None:
    with suppress(OSError, ValueError):  # the reader says what is wrong with the file
        status = os.stat(file)
        return [FORMAT, __version__, os.path.abspath(file), status.st_size, status.st_mtime_ns]
    return None


def _packed(dataset: Dataset, key: list[Any]) -> bytes:
    """NumPy's .npy files one after the other (a text in JSON, then the columns), and a digest of it all."""
    about = {
        "about": "a data set's index, kept by retinanet; may be deleted",
        "key": key,
        "names": dataset.names,
        "category_ids": dataset.category_ids,
        "problems": [astuple(problem) for problem in dataset.problems],
        "repairs": [astuple(repair) for repair in dataset.repairs],
    }
    stream = io.BytesIO()
    text = json.dumps(about).encode()
    text = text.ljust(-(-len(text) // 64) * 64)  # as NumPy fills up its headers
    for block in (np.frombuffer(text, dtype=np.uint8), *(getattr(dataset, name) for name in COLUMNS)):
        npy.write_array(stream, np.ascontiguousarray(block), version=(1, 0), allow_pickle=False)
    return stream.getvalue() + hashlib.sha256(stream.getbuffer()).digest()


def _load(cache: Path, key: list[Any]) -> Dataset | None:
    """The columns in the file's own memory, copied when written to; None where it is not as we left it."""
    try:
        with open(cache, "rb") as stream:
            content = np.asarray(np.memmap(stream, dtype=np.uint8, mode="c"))
            body, digest = content[:-DIGEST], content[-DIGEST:]
            if hashlib.sha256(body.data).digest() != digest.tobytes():
                return None
            text, *blocks = _blocks(stream, body)
        about = json.loads(text.tobytes())
        if about["key"] != key:
            return None
        columns: dict[str, Any] = dict(zip(COLUMNS, blocks, strict=True))
        return Dataset(
            source=Path(),
            root=Path(),
            split="",
            names=tuple(about["names"]),
            category_ids=tuple(about["category_ids"]),
            problems=tuple(Problem(*map(str, problem)) for problem in about["problems"]),
            repairs=tuple(Problem(*map(str, repair)) for repair in about["repairs"]),
            **columns,
        )
    except Exception:  # a file that is not ours can raise anything
        return None


def _blocks(stream: BinaryIO, body: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
    """The arrays of a file, in its mapped memory. An array of Python objects would be a pickle: refused."""
    stream.seek(0)
    for _ in range(1 + len(COLUMNS)):
        if npy.read_magic(stream) != (1, 0):
            raise ValueError("another version of NumPy's format")
        shape, by_columns, dtype = npy.read_array_header_1_0(stream)
        if dtype.hasobject or by_columns:
            raise ValueError("not what NumPy makes of our columns")
        start, size = stream.tell(), math.prod(shape) * dtype.itemsize
        yield body[start : start + size].view(dtype).reshape(shape)
        stream.seek(start + size)


def read_sizes(root: Path, files: Sequence[str]) -> tuple[Integers, dict[int, tuple[str, str]]]:
    """Images relative to `root` -> [N, 2] height and width as shown, 0 where unknown, and
    index -> (MISSING or UNREADABLE, reason).

    The sizes are remembered by file name, time and length: 118,000 images take about 5 s on a local disk, and
    0.6 s the next time.
    """
    cache = sizes_file(root)
    known = _known_sizes(cache)
    sizes = np.zeros((len(files), 2), dtype=np.int64)
    failures: dict[int, tuple[str, str]] = {}
    learned: dict[str, list[int]] = {}
    unseen: list[tuple[int, int, int]] = []
    for index, file in enumerate(files):
        try:
            status = os.stat(f"{root}/{file}")
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            missing = isinstance(error, (FileNotFoundError, NotADirectoryError))
            failures[index] = (MISSING, "") if missing else (UNREADABLE, str(error))
            continue
        time, length = status.st_mtime_ns, status.st_size
        if file in known and known[file][:2] == [time, length]:
            sizes[index] = known[file][2:]
        else:
            unseen.append((index, time, length))

    blocks = [unseen[start : start + 64] for start in range(0, len(unseen), 64)]
    with ThreadPoolExecutor(THREADS) as pool:
        read = pool.map(lambda block: [_size_or_reason(root / files[index]) for index, *_ in block], blocks)
        for (index, *stamp), size in zip(unseen, chain.from_iterable(read), strict=True):
            if isinstance(size, str):
                failures[index] = (UNREADABLE, size)
            else:
                sizes[index] = size
                learned[files[index]] = [*stamp, *size]
    if learned:
        about = "height and width of images, kept by retinanet; may be deleted"
        write_cache(cache, json.dumps({"about": about, "sizes": known | learned}).encode())
    return sizes, failures


def sizes_file(root: Path) -> Path:
    """Where the sizes of the images below `root` are remembered."""
    return cache_path("sizes", root, ".json")


def _size_or_reason(path: Path) -> tuple[int, int] | str:
    try:
        size = image_size(path)
        if not has_end(path):
            read_pixels(path)  # it tells whether the image breaks off
        return size
    except (DataError, OSError) as error:
        return str(error).removeprefix(f"{path}: ")


def _known_sizes(cache: Path) -> dict[str, list[int]]:
    """File -> [mtime in ns, bytes, height, width]; nothing where the cache is absent, broken or not ours."""
    try:
        known = json.loads(cache.read_bytes())["sizes"]
        table = np.array(list(known.values()), dtype=np.int64)
        return known if table.shape == (len(known), 4) and (table[:, 2:] > 0).all() else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}
