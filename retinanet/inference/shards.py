"""A long prediction on its way: a part for each finished block of images, one file of them all in the end.

The processes that share a list of images never communicate. Each takes every W-th block and leaves a part for
it; the process that finds none missing merges them. So a run may be stopped anywhere, and any number of
processes may continue it.

    OUT/about.json        what the detections belong to; written first, never removed
    OUT/parts/N.jsonl     block N is done: its images in one line of JSON, then its detections, one a line
    OUT/images.json, OUT/failed.json, and last OUT/predictions.json, after which the parts go
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..distributed import rank, world
from ..errors import ConfigError
from ..files import refuse_run, write_text_atomically
from .sources import readers_that_are_missing

log = logging.getLogger("retinanet")

LARGEST = 1000
"""Images of a block: what a stop may cost (seconds on a GPU, a quarter of an hour on a CPU), while a
million make a thousand files."""

SMALLEST = 200
"""The loader starts again for each block: 0.1 s with one process, 0.4 s with four (measured)."""

SHARES = 16
"""Blocks of a list in between: enough for eight processes to have equal shares."""

ABOUT, PREDICTIONS, IMAGES, FAILED = "about.json", "predictions.json", "images.json", "failed.json"
PARTS, DRAWN = "parts", "drawn"


def block_size(count: int) -> int:
    """Images of a block in a list of `count`, whatever the number of processes."""
    return min(LARGEST, max(SMALLEST, count // SHARES))


def blocks_of(count: int) -> list[range]:
    """The positions 0..count-1 in blocks."""
    size = block_size(count)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


class OutputFolder:
    """The folder of a prediction: claimed once, filled block by block, merged when no block is missing.

        folder = OutputFolder(out)
        folder.claim(settings, count)
        for number, block in folder.todo().items():
            folder.write(number, images, failed, rows)
        all_read = folder.finish()

    ConfigError when `path` holds a training run or a finished prediction, before a model is loaded. With
    several processes a finished prediction may mean that this one started late: `claim` decides there.
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
        """The images without those drawn here, which a continued run finds if the folder is in a source."""
        if not (self.path / DRAWN).exists():
            return paths
        drawn = os.path.abspath(self.path / DRAWN) + os.sep
        return [path for path in paths if not os.path.abspath(path).startswith(drawn)]

    def claim(self, settings: Mapping[str, Any], count: int) -> None:
        """Claim the folder for the prediction of `count` images that the settings describe, or continue it.

        ConfigError when the folder holds anything else. Several processes may begin at once: they write the
        same, and each file appears whole.
        """
        out = self.path
        # checked before about.json is: another process that made these has written that first
        held = [name for name in (PREDICTIONS, IMAGES, FAILED, PARTS, DRAWN) if (out / name).exists()]
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
            found = []
        if found != settings:
            known = found if isinstance(found, dict) else {}
            other = [name for name in settings if known.get(name, found) != settings[name]]
            raise ConfigError(
                f"{out} holds the parts of another prediction, with other {', '.join(other)}; choose another "
                f"--out, or delete it"
            )
        self.blocks = blocks_of(count)

    def done(self) -> set[int]:
        """The numbers of the finished blocks."""
        found = {int(file.stem) for file in (self.path / PARTS).glob("*.jsonl")}
        # checked after the parts: another process may be removing these
        return set(range(len(self.blocks))) if (self.path / PREDICTIONS).exists() else found

    def todo(self) -> dict[int, range]:
        """This process's share of the blocks, without those that are done: number -> positions."""
        done = self.done()
        if done:
            finished = sum(len(self.blocks[number]) for number in done)
            log.info("%d of %d images are done already", finished, sum(map(len, self.blocks)))
        mine = range(rank(), len(self.blocks), world())
        return {number: self.blocks[number] for number in mine if number not in done}

    def write(
        self, number: int, images: list[dict[str, Any]], failed: list[dict[str, Any]], rows: Iterable[str]
    ) -> None:
        """Mark a block as done: its images, those that could not be read, and the detections as JSON."""
        rows = list(rows)
        with write_text_atomically(shard_path(self.path, number), self.path / PARTS) as file:
            file.write(json.dumps({"detections": len(rows), "images": images, "failed": failed}))
            file.writelines("\n" + row for row in rows)

    def finish(self) -> bool:
        """Merge the blocks if none is missing; false if this process merged them and some image failed.

        Only a process that merges reports the images that could not be read, for all of them: torchrun ends
        the others as soon as one ends with a status other than 0, and they may still be at work.
        """
        if len(self.done()) < len(self.blocks):
            log.info("this process has done its share; the last one merges the parts in %s", self.path)
            return True
        merge_shards(self.path, len(self.blocks))
        return not (self.path / FAILED).exists()


def shard_path(out: Path, number: int) -> Path:
    """The file of a block."""
    return out / PARTS / f"{number:06d}.jsonl"


def merge_shards(out: Path, count: int) -> None:
    """Make predictions.json, images.json and failed.json of `count` parts, and remove these.

    Several processes may merge at once: each file appears whole, with the same bytes.
    """
    files = [shard_path(out, number) for number in range(count)]
    try:
        if not (out / PREDICTIONS).exists():
            _write_lists(out, files)
    except FileNotFoundError:  # another process has removed the parts
        if not (out / PREDICTIONS).exists():
            raise
    shutil.rmtree(out / PARTS, ignore_errors=True)


def _write_lists(out: Path, files: list[Path]) -> None:
    done, detections, failed = 0, 0, []
    for head in _heads(files):
        done += len(head["images"])
        detections += head["detections"]
        failed += head["failed"]
    if failed:
        write_list(out / FAILED, out / PARTS, map(json.dumps, failed))
    images = (json.dumps(entry) for head in _heads(files) for entry in head["images"])
    write_list(out / IMAGES, out / PARTS, images)
    write_list(out / PREDICTIONS, out / PARTS, _rows(files))  # last: where it is, all is done
    total = done + len(failed)
    log.info("%d of %d images done, %d detections: %s", done, total, detections, out / PREDICTIONS)
    if failed:
        why = readers_that_are_missing(one["reason"] for one in failed)
        log.error("%d of %d images could not be read: %s%s", len(failed), total, out / FAILED, why)


def _heads(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with file.open(encoding="utf-8") as stream:
            yield json.loads(stream.readline())


def _rows(files: Iterable[Path]) -> Iterator[str]:
    """The detections as they stand in the parts, all those of a part at once."""
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
