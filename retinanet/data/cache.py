"""Remembers what was read from annotation files and image headers, outside the data folder."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .._version import __version__
from ..errors import Problem
from ..files import write_atomically
from .dataset import Dataset


def cache_path(kind: str, about: Path, suffix: str) -> Path:
    """The file for one `kind` of knowledge about a file or folder; $RETINANET_CACHE moves it."""
    home = os.environ.get("RETINANET_CACHE")
    folder = (
        Path(home)
        if home
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "retinanet"
    )
    digest = hashlib.sha256(os.fsencode(os.path.abspath(about))).hexdigest()[:16]
    return folder / f"{kind}-{digest}{suffix}"


def write_cache(file: Path, content: bytes) -> None:
    """A disk that cannot be written to costs only time."""
    with suppress(OSError):
        write_atomically(file, content)


LARGE = 8 << 20
"""Bytes from which on an annotation file is worth it: to read so many takes half a second."""

FORMAT = 1
"""To be raised whenever the same file would be read into other columns."""

COLUMNS = {
    "image_ids": "int64",
    "sizes": "int64",
    "first": "int64",
    "boxes": "float64",
    "labels": "int64",
    "areas": "float64",
    "annotation_ids": "int64",
    "files": "U",
    "crowd": "bool",
}
"""In the order of the cache: eight bytes, four, one, so that each lies on a multiple of its own size."""

DIGEST = hashlib.sha256().digest_size


def cached(file: Path, read: Callable[[Path], Dataset]) -> Dataset:
    """What `read` makes of an annotation file: from the cache where that has it as it is now (path, size,
    time), else read, and kept.

    The cache only saves time: one that is absent, damaged, foreign or of another version is passed over and
    written anew.
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
    with suppress(OSError, ValueError):  # whoever reads the file says what is wrong with it
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
        "problems": [[problem.kind, problem.file, problem.detail] for problem in dataset.problems],
    }
    stream = io.BytesIO()
    text = json.dumps(about).encode()
    text = text.ljust(-(-len(text) // 64) * 64)  # as NumPy fills up its headers
    for block in (np.frombuffer(text, dtype=np.uint8), *(getattr(dataset, name) for name in COLUMNS)):
        npy.write_array(stream, np.ascontiguousarray(block), version=(1, 0), allow_pickle=False)
    return stream.getvalue() + hashlib.sha256(stream.getbuffer()).digest()


def _load(cache: Path, key: list[Any]) -> Dataset | None:
    """The columns as the file's own memory; who writes to them gets a copy. None where anything is not as it
    was left.
    """
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
            **columns,
        )
    except Exception:  # whatever a file that is not ours makes of it
        return None


def _blocks(stream: BinaryIO, body: NDArray[np.uint8]) -> Iterator[NDArray[Any]]:
    """The arrays of a file, in the memory it is mapped to. An array of Python objects, which would be a
    pickle, is refused.
    """
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
