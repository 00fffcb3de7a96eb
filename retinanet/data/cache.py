"""Where what was learned about a data set is remembered: outside its folder, and only to save time."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path


def place(kind: str, about: Path, suffix: str) -> Path:
    """The file for one `kind` of knowledge about a file or folder; $RETINANET_CACHE moves it."""
    home = os.environ.get("RETINANET_CACHE")
    folder = (
        Path(home)
        if home
        else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "retinanet"
    )
    digest = hashlib.sha256(os.fsencode(os.path.abspath(about))).hexdigest()[:16]
    return folder / f"{kind}-{digest}{suffix}"


def keep(file: Path, content: bytes) -> None:
    """Aside, then renamed: nobody ever meets half a file; a disk that cannot be written to costs only
    time.
    """
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=file.name, dir=file.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
