"""A long prediction on its way: a part for each finished block of images, one file of them all in the end.

The processes that share a list of images never talk to each other. Each takes every W-th block and leaves a
part when one is done; who then finds that none is missing merges them. So a run may be stopped anywhere and
continued by any number of processes.

    OUT/about.json        what the answers belong to; written first, never removed
    OUT/parts/N.jsonl     block N is done: its images in one line of JSON, then its answers, one a line
    OUT/images.json, OUT/failed.json, and last OUT/predictions.json, after which the parts go
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..distributed import rank, world
from ..errors import ConfigError
from ..files import refuse_run, write_text_atomically

log = logging.getLogger("retinanet")

LARGEST = 1000
"""Images of a block: what a stop may cost (seconds on a GPU, a quarter of an hour on a CPU), while a
million make a thousand files.
"""

SMALLEST = 200
"""The loader starts again for each block: 0.1 s with one process, 0.4 s with four (measured), little beside
the time of 200 images.
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
    """Images of a block in a list of `count`: the same for any number of processes, since another number
    may continue.
    """
    return min(LARGEST, max(SMALLEST, count // SHARES))


def blocks_of(count: int) -> list[range]:
    """The positions 0..count-1 in blocks."""
    size = block_size(count)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


class OutputFolder:
    """The folder of a prediction: claimed once, filled block by block by any number of processes, merged when
    no block is missing.

        folder = OutputFolder(out)
        folder.claim(settings, count)
        for number, block in folder.todo().items():
            folder.write(number, images, failed, rows)
        all_read = folder.finish()

    ConfigError when `path` holds a training run or a finished prediction, before a model is loaded. One of
    several processes may only be late: `claim` looks closer there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocks: list[range] = []
        refuse_run(path)
        if world() == 1 and (path / PREDICTIONS).exists() and not (path / PARTS).exists():
            raise ConfigError(
                f"{path} holds predictions already, and they are never overwritten; choose another --out"
            )

    def without_drawn(self, paths: list[Path]) -> list[Path]:
        """The images without our own: where the folder lies inside a source, they are not there when a run
        begins but when it continues.
        """
        if not (self.path / PICTURES).exists():
            return paths
        drawn = os.path.abspath(self.path / PICTURES) + os.sep
        return [path for path in paths if not os.path.abspath(path).startswith(drawn)]

    def claim(self, settings: Mapping[str, Any], count: int) -> None:
        """Claim the folder for the prediction of `count` images that the settings describe, or find that it
        is so already; ConfigError when it holds anything else.

        Several processes may begin at once: they write the same, and each file appears whole.
        """
        out = self.path
        # looked for before about.json is: if a fellow process made these, it has written that first
        held = [name for name in (PREDICTIONS, IMAGES, FAILED, PARTS, PICTURES) if (out / name).exists()]
        if not (out / ABOUT).exists():
            if held:
                raise ConfigError(
                    f"{out} holds {', '.join(held)} already, and nothing is overwritten; choose another --out"
                )
            with write_text_atomically(out / ABOUT, out) as file:
                json.dump(settings, file, indent=1)
        try:
            found = json.loads((out / ABOUT).read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != settings:
            other = [
                name for name in settings if not isinstance(found, dict) or found.get(name) != settings[name]
            ]
            raise ConfigError(
                f"{out} holds the parts of another prediction, with other {', '.join(other)}; choose another "
                f"--out, or delete it"
            )
        self.blocks = blocks_of(count)

    def done(self) -> set[int]:
        """The numbers of the finished blocks."""
        found = {int(file.stem) for file in (self.path / PARTS).glob("*.jsonl")}
        # looked for after the parts: where it is, they may be on their way out
        return set(range(len(self.blocks))) if (self.path / PREDICTIONS).exists() else found

    def todo(self) -> dict[int, range]:
        """This process's share of the blocks, without those that are done: number -> positions."""
        done = self.done()
        if done:
            finished, total = (
                sum(map(len, blocks)) for blocks in ([self.blocks[number] for number in done], self.blocks)
            )
            log.info("%d of %d images are done already", finished, total)
        mine = range(rank(), len(self.blocks), world())
        return {number: self.blocks[number] for number in mine if number not in done}

    def write(
        self, number: int, images: list[dict[str, Any]], failed: list[dict[str, Any]], rows: Iterable[str]
    ) -> None:
        """Mark a block as done: its images, those that could not be read, and the detections as rows of
        JSON.
        """
        rows = list(rows)
        with write_text_atomically(shard_path(self.path, number), self.path / PARTS) as file:
            file.write(json.dumps({"answers": len(rows), "images": images, "failed": failed}))
            file.writelines("\n" + row for row in rows)

    def finish(self) -> bool:
        """Merge the blocks if none is missing; false if this process merged them and some image failed.

        Only the process that merges reports the images that could not be read, for all of them: torchrun ends
        the others as soon as one ends with a status other than 0, and they may still be at work.
        """
        if len(self.done()) < len(self.blocks):
            log.info(
                "this process has done its share; the one that is ready last merges the parts in %s",
                self.path,
            )
            return True
        return not (merge_shards(self.path, len(self.blocks)) and (self.path / FAILED).exists())


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
    log.info("%d of %d images done, %d answers: %s", done, done + len(failed), answers, out / PREDICTIONS)
    if failed:
        log.error("%d of %d images could not be read: %s", len(failed), done + len(failed), out / FAILED)


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
