"""A long prediction on its way: a part for each finished block of pictures, one file of them all in the end.

The processes that share a list of pictures never talk to each other. Each takes every W-th block and leaves a
part when one is done; who then finds that none is missing merges them. So a run may be stopped anywhere and
continued by any number of processes.

    OUT/about.json        what the answers belong to; written first, never removed
    OUT/parts/N.jsonl     block N is done: its images in one line of JSON, then its answers, one a line
    OUT/images.json, OUT/failed.json, and last OUT/predictions.json, after which the parts go
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..distributed import world
from ..errors import ConfigError
from ..files import write_text_atomically

log = logging.getLogger("retinanet")

LARGEST = 1000
"""Pictures of a block: what a stop may cost (seconds on a GPU, a quarter of an hour on a CPU), while a
million make a thousand files.
"""

SMALLEST = 200
"""The loader starts again for each block: 0.1 s with one process, 0.4 s with four (measured), little beside
the time of 200 pictures.
"""

SHARES = 16
"""Blocks of a list in between: enough for eight processes to have equal shares."""

ABOUT, PREDICTIONS, IMAGES, FAILED, PARTS, PICTURES = (
    "about.json",
    "predictions.json",
    "images.json",
    "failed.json",
    "parts",
    "pictures",
)


def block_size(count: int) -> int:
    """Pictures of a block in a list of `count`: the same for any number of processes, since another number
    may continue.
    """
    return min(LARGEST, max(SMALLEST, count // SHARES))


def blocks_of(count: int) -> list[range]:
    """The positions 0..count-1 in blocks."""
    size = block_size(count)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def refuse_finished(out: Path) -> None:
    """ConfigError when `out` holds a finished prediction. One of several processes may only be late: `begin`
    looks closer there.
    """
    if world() == 1 and (out / PREDICTIONS).exists() and not (out / PARTS).exists():
        raise ConfigError(
            f"{out} holds predictions already, and they are never overwritten; choose another --out"
        )


def claim(out: Path, about: Mapping[str, Any]) -> None:
    """Claim `out` for the prediction that `about` describes, or find that it is so already; ConfigError when
    it holds anything else.

    Several processes may begin at once: they write the same, and each file appears whole.
    """
    # looked for before about.json is: if a fellow process made these, it has written that first
    held = [name for name in (PREDICTIONS, IMAGES, FAILED, PARTS, PICTURES) if (out / name).exists()]
    if not (out / ABOUT).exists():
        if held:
            raise ConfigError(
                f"{out} holds {', '.join(held)} already, and nothing is overwritten; choose another --out"
            )
        with write_text_atomically(out / ABOUT, out) as file:
            json.dump(about, file, indent=1)
    try:
        found = json.loads((out / ABOUT).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != about:
        other = [name for name in about if not isinstance(found, dict) or found.get(name) != about[name]]
        raise ConfigError(
            f"{out} holds the parts of another prediction, with other {', '.join(other)}; choose another "
            f"--out, or delete it"
        )


def done_blocks(out: Path, count: int) -> set[int]:
    """The numbers of the finished ones of `count` blocks."""
    found = {int(file.stem) for file in (out / PARTS).glob("*.jsonl")}
    # looked for after the parts: where it is, they may be on their way out
    return set(range(count)) if (out / PREDICTIONS).exists() else found


def write_shard(
    out: Path, number: int, images: list[dict[str, Any]], failed: list[dict[str, Any]], rows: Iterable[str]
) -> None:
    """Mark block `number` as done: its images, those that could not be read, and the answers as rows of
    JSON.
    """
    rows = list(rows)
    with write_text_atomically(shard_path(out, number), out / PARTS) as file:
        file.write(json.dumps({"answers": len(rows), "images": images, "failed": failed}))
        file.writelines("\n" + row for row in rows)


def shard_path(out: Path, number: int) -> Path:
    """The file of a block."""
    return out / PARTS / f"{number:06d}.jsonl"


def merge_shards(out: Path, count: int) -> bool:
    """Make predictions.json, images.json and failed.json of `count` parts, and remove these; false where
    another process is at it.
    """
    with only_one(out / ABOUT) as mine:
        if mine:
            try:
                if not (out / PREDICTIONS).exists():
                    _merge_shards(out, [shard_path(out, number) for number in range(count)])
            except FileNotFoundError:
                if not (out / PREDICTIONS).exists():
                    raise
                # on a disk without locks another process was at it too, and sooner
            shutil.rmtree(out / PARTS, ignore_errors=True)
        return mine


def _merge_shards(out: Path, files: list[Path]) -> None:
    done, answers, failed = 0, 0, []
    for head in _heads(files):
        done += len(head["images"])
        answers += head["answers"]
        failed += head["failed"]
    if failed:
        write_list(out / FAILED, out / PARTS, map(json.dumps, failed))
    write_list(
        out / IMAGES, out / PARTS, (json.dumps(entry) for head in _heads(files) for entry in head["images"])
    )
    write_list(
        out / PREDICTIONS, out / PARTS, _rows(files)
    )  # last: where it is, nothing else is needed any more
    log.info("%d of %d pictures done, %d answers: %s", done, done + len(failed), answers, out / PREDICTIONS)
    if failed:
        log.error("%d of %d pictures could not be read: %s", len(failed), done + len(failed), out / FAILED)


def _heads(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with file.open(encoding="utf-8") as stream:
            yield json.loads(stream.readline())


def _rows(files: Iterable[Path]) -> Iterator[str]:
    """The answers as they stand in the parts, all those of a part at once."""
    for file in files:
        _, _, rows = file.read_text(encoding="utf-8").partition("\n")
        if rows:
            yield rows.replace("\n", ",\n")


def write_list(file: Path, folder: Path, rows: Iterable[str]) -> None:
    """A JSON list, one row a line, without ever holding all of it."""
    with write_text_atomically(file, folder) as stream:
        stream.write("[")
        stream.writelines(f",\n{row}" if number else row for number, row in enumerate(rows))
        stream.write("]\n")


@contextmanager
def only_one(file: Path) -> Iterator[bool]:
    """Whether this process has `file` for itself; the system takes it back from a process that dies, so
    nothing is left to clear away.

    It spares work and no more: on a disk without locks several processes may merge, and each renames a whole
    file of the same bytes.
    """
    if sys.platform == "win32":
        yield True
        return
    import fcntl

    with file.open("r+b") as stream:
        mine = True
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mine = False
        except OSError:  # no locks here
            pass
        yield mine
