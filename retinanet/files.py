"""Files that appear whole or not at all, folders that are free, digests."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, TextIO

from .errors import ConfigError

WHAT_TO_DO = {
    errno.ENOSPC: "free some space, or choose a folder on another disk; a training goes on with --resume",
    errno.EDQUOT: "delete some of your files, or choose another disk; a training goes on with --resume",
    errno.EEXIST: "a folder is needed here; choose another --out, or move the file away",
    errno.ENOTDIR: "it is a file, and a folder is needed here; choose another --out, or move the file away",
    errno.EISDIR: "it is a folder, and a file is needed here; give another name",
    errno.EACCES: "choose another folder, or ask its owner for the permission",
    errno.EPERM: "choose another folder, or ask its owner for the permission",
    errno.EROFS: "nothing can be written there; choose another --out",
    errno.ENOENT: "check the path: it, or a folder of it, is not there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "lower --workers, or raise the limit with ulimit -n",
    errno.EADDRINUSE: "another program listens there; choose another --port",
}
"""What helps against an error of the system, by its number."""


def explain_os_error(error: OSError) -> str:
    """Where, what and what to do: 'runs/x: File exists: a folder is needed here; choose another --out'."""
    if error.errno not in WHAT_TO_DO:
        return str(error)
    place = str(error.filename) if error.filename is not None else ""
    if error.errno == errno.ENOTDIR and place:  # the system names what it looked for, not the file in its way
        place = str(next((path for path in Path(place).parents if path.is_file()), place))
    return ": ".join(filter(None, [place, error.strerror, WHAT_TO_DO[error.errno]]))


log = logging.getLogger("retinanet")


@contextmanager
def write_aside(file: Path, folder: Path | None = None) -> Iterator[Path]:
    """A path to write to, which becomes `file` when all went well: a reader sees the old file or the new one.

    It lies in `folder` (None: beside `file`) under a unique name: two machines may share the folder.
    """
    folder = folder or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    growing = folder / f".{file.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield growing
        with growing.open("rb+") as stream:
            os.fsync(stream.fileno())
        growing.replace(file)
    except OSError as error:
        if error.filename is None and error.errno in WHAT_TO_DO:  # a write names no file
            raise OSError(error.errno, error.strerror, str(file)) from error
        raise
    finally:
        growing.unlink(missing_ok=True)


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """The content as a file that appears complete or not at all; see `write_aside`."""
    with write_aside(file) as growing:
        growing.write_bytes(content)


@contextmanager
def write_text_atomically(file: Path, folder: Path | None = None) -> Iterator[TextIO]:
    """A text to write, line by line; see `write_aside`."""
    with write_aside(file, folder) as growing, growing.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream


def as_path(value: Any, name: str) -> Path:
    """A path in whatever form; ConfigError for what is none, such as None."""
    try:
        return Path(value)
    except TypeError:
        raise ConfigError(f"{name} must be a path, not {value!r:.100}") from None


def sha256(file: Path) -> str:
    """The digest of a file's bytes, and of the weights beside an OpenVINO model."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256")
    if file.suffix == ".xml" and (weights := file.with_suffix(".bin")).exists():
        found.update(weights.read_bytes())
    return found.hexdigest()


def next_free(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... that does not exist."""
    later = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(free for free in chain([path], later) if not free.exists())


@contextmanager
def may_fail(drawing: Path) -> Iterator[None]:
    """A drawing must not end a run: whatever goes wrong with it is told in one line, and the run goes on."""
    try:
        yield
    except Exception as error:
        log.warning("%s could not be drawn: %s", drawing, str(error) or type(error).__name__)


def new_folder(out: Path | None, fallback: str) -> Path:
    """The folder of a run: `out`, which must hold no run, or the first free runs/<fallback>[-2, -3 ...]."""
    refuse_run(out)
    folder = out or next_free(Path("runs") / fallback)
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    return folder


def refuse_run(out: Path | None) -> None:
    """ConfigError when `out` holds a training run: neither another run nor an evaluation overwrites it."""
    if out is not None and any((out / name).exists() for name in ("config.json", "model.safetensors")):
        stopped = (out / "state.pt").exists() and not (out / "metrics.json").exists()
        hint = f", or go on with it: retinanet train --resume {out}" if stopped else ""
        raise ConfigError(
            f"{out} holds a run already, and runs are never overwritten; choose another --out{hint}"
        )
