"""The command `predict`: detections for files, as COCO results and as images with boxes."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from .._version import __version__
from ..config.commands import PredictConfig
from ..config.io import check, reading
from ..data.dataset import Columns, Dataset
from ..data.images import missing_reader, read_image
from ..data.splits import in_model_classes, open_split
from ..device import explain_lost_loaders
from ..distributed import is_main_process, rank, world
from ..errors import ConfigError, DataError
from ..evaluation.results import categories, collect, result_rows
from ..files import sha256
from ..inference.detector import Detector
from ..inference.load import load, resolve_weights
from ..inference.shards import DRAWN, OutputFolder, block_size, blocks_of
from ..inference.sources import find_files, readers_that_are_missing
from ..inference.stream import stream_with_images
from ..inference.tiles import check_tiles, in_tiles
from ..structures import Detections
from ..text import progress_bar
from ..view.draw import draw, save

log = logging.getLogger("retinanet")

DRAWERS = 2
"""Threads that draw and encode: Pillow computes without Python's lock, and the network needs the rest."""


@explain_lost_loaders()
def run(model: str, sources: Sequence[str], config: PredictConfig) -> bool:
    """Predict for files, folders, globs, lists, or a split; true when every image could be read.

    --out gets predictions.json (COCO results: everything above the model's own score threshold), images.json
    (which id is which image), failed.json (which could not be read, if any) and drawn/ with the boxes
    above --threshold. Without --out the detections are printed. Several processes (torchrun) share the
    images, and a run that was stopped continues: see `shards`. Videos come first, each with files of its own:
    see `video`.
    """
    from ..inference.video import check_videos, keep_videos, not_ours, show_videos

    check(config)
    if not sources:
        raise ConfigError(
            "nothing to predict on: give files, folders, globs or .txt lists, or a data set and --split"
        )
    folder = None if config.out is None else OutputFolder(config.out)
    check_tiles(config.tiles, config.overlap, len(config.scales or ()))
    images, videos = find_files(sources) if config.split is None else ([], [])
    videos = not_ours(videos, config.out)
    check_videos(sources, images, videos, config)
    detector = load(model, config.device, config.precision, config.scale, config.scales)
    detector = in_tiles(detector, config.tiles, config.overlap)
    if config.split is None:
        data = as_dataset(images if folder is None else folder.without_drawn(images), detector)
    else:
        data = open_images(sources, config, detector)
    threshold = detector.threshold if config.threshold is None else config.threshold
    if folder is None:
        good = show_videos(detector, videos, threshold, config)
        return show(detector, data, threshold, config) and good
    settings = {
        "retinanet": __version__,
        "model": sha256(resolve_weights(model)),
        "precision": detector.precision,
        "scale": config.scale if config.scales is None else sorted(set(config.scales)),
        "tiles": None if config.tiles is None else [config.tiles, config.overlap],
        "max_pixels": config.max_pixels,
        "threshold": threshold if config.save_images else None,  # which touches drawn images only
    }
    only_videos = bool(videos) and not len(data)
    if not only_videos:
        count = len(data)
        shares = {"images": digest(data), "count": count, "block": block_size(count)}
        named = {"categories": categories(data.names, data.category_ids)}
        folder.claim({**settings, **shares, **named}, count)
    names = [Path(name).stem for name in image_names(map(str, videos))]
    good = keep_videos(
        detector, dict(zip(names, videos, strict=True)), threshold, config, folder.path, settings
    )
    return (only_videos or store(detector, data, threshold, config, folder)) and good


def show(detector: Detector, data: Dataset, threshold: float, config: PredictConfig) -> bool:
    """Print the detections for this process's blocks; true when every image of these could be read."""
    blocks = blocks_of(len(data))[rank() :: world()]
    failed = []
    for block in blocks:
        for index, found, _ in found_in(detector, data, block, config):
            if isinstance(found, DataError):
                failed.append(told(found))
                continue
            shown = found.above(threshold)
            # printed at once, so that no other process prints between the lines
            lines = [f"{data.path(index)}: {len(shown)} objects", *map(line, shown)]
            print("\n".join(lines) + "\n", end="", flush=True)
    if failed:
        why = readers_that_are_missing(failed)
        log.error("%d of %d images could not be read%s", len(failed), sum(map(len, blocks)), why)
    return not failed


def told(error: DataError) -> str:
    """The reason, which is told now; that a reader is missing is told once, at the end."""
    if not missing_reader(str(error)):
        log.error("%s", error)
    return str(error)


def store(
    detector: Detector, data: Dataset, threshold: float, config: PredictConfig, folder: OutputFolder
) -> bool:
    """Predict for this process's blocks that are not done yet, and merge them all when none is missing."""
    names = image_names(data.files.tolist()) if config.save_images else None
    todo = folder.todo()
    count = itertools.count(1)
    total = sum(map(len, todo.values())) if is_main_process() else 0
    with progress_bar(total, "predicting") as progress, Drawing(config.max_pixels) as drawing:
        for number, block in todo.items():
            found: dict[int, Detections] = {}
            failed: dict[int, str] = {}
            for index, one, image in found_in(detector, data, block, config, config.save_images):
                if isinstance(one, DataError):
                    failed[index] = told(one)
                else:
                    found[index] = one
                    if names is not None:
                        file = folder.path / DRAWN / names[index]
                        drawing.draw(file, data.path(index), image, one.above(threshold))
                progress(next(count))
            drawing.wait()
            drawn = {index: name for index, name in enumerate(names or ()) if name not in drawing.failed}
            folder.write(number, *block_rows(data, found, failed, drawn))
    for name, reason in itertools.islice(drawing.failed.items(), 1):
        also = f" and {len(drawing.failed) - 1} more" if len(drawing.failed) > 1 else ""
        log.warning("%s%s could not be drawn (%s); the detections are kept", name, also, reason)
    return folder.finish()


def block_rows(
    data: Dataset, found: dict[int, Detections], failed: dict[int, str], drawn: dict[int, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Iterable[str]]:
    """The images, failures and detections of a block for `OutputFolder.write`, in the order of the list."""
    good = sorted(found)
    results = collect(data, [found[index] for index in good], good)

    def image(index: int) -> dict[str, Any]:
        return {"id": int(data.image_ids[index]), "file_name": str(data.files[index])}

    images = [
        {**image(index), "drawn": f"{DRAWN}/{drawn[index]}" if index in drawn else None} for index in good
    ]
    reasons = [{**image(index), "reason": failed[index]} for index in sorted(failed)]
    return images, reasons, result_rows(data, results)


class Drawing:
    """Draws and encodes images in a few threads, while the network has the next ones.

    An image that cannot be drawn ends nothing: `failed` has the reason by the name of its file.
    """

    def __init__(self, max_pixels: int) -> None:
        self.max_pixels, self._pool = max_pixels, ThreadPoolExecutor(DRAWERS)
        self._waiting: deque[Future[None]] = deque()
        self.failed: dict[str, str] = {}

    def draw(self, file: Path, source: Path, image: Tensor | None, found: Detections) -> None:
        """Save the image with its boxes, soon; without an image it is decoded again and saved at once."""
        if image is None:
            self._save(file, source, image, found)
            return
        self._waiting.append(self._pool.submit(self._save, file, source, image, found))
        if len(self._waiting) > 4 * DRAWERS:
            self._waiting.popleft().result()

    def _save(self, file: Path, source: Path, image: Tensor | None, found: Detections) -> None:
        try:
            save(file, draw(read_image(source, self.max_pixels) if image is None else image, found))
        except Exception as error:  # Pillow has many, and a disk may be full
            self.failed[file.name] = str(error) or type(error).__name__

    def wait(self) -> None:
        """Until all are saved."""
        while self._waiting:
            self._waiting.popleft().result()

    def __enter__(self) -> Drawing:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)


def found_in(
    detector: Detector, data: Dataset, block: range, config: PredictConfig, with_images: bool = False
) -> Iterator[tuple[int, Detections | DataError, Tensor | None]]:
    """(index, detections, decoded image if wanted and kept) of the images of a block, as they come."""
    paths, how = [data.path(index) for index in block], (config.batch, config.workers, config.max_pixels)
    for position, found, image in stream_with_images(detector, paths, *how, with_images):
        yield block[position], found, image


def open_images(sources: Sequence[str], config: PredictConfig, detector: Detector) -> Dataset:
    """The images of a data set's split."""
    if len(sources) != 1:
        raise DataError("--split goes with one data set, not with several paths")
    data = open_split(sources[0], config.split, need_boxes=False, **reading(config))
    return in_model_classes(data, detector.names)


def as_dataset(paths: Sequence[Path], detector: Detector) -> Dataset:
    """Loose images as a data set without boxes, with ids 1..N."""
    columns = Columns()
    for number, path in enumerate(paths, 1):
        columns.image(path.as_posix(), number, 0, 0)
    return columns.build(Path(), Path(), "images", detector.names, detector.category_ids)


def image_names(files: Iterable[str]) -> list[str]:
    """A file name for each drawn image: its own, with a number when another has it already."""
    names: dict[str, None] = {}
    last: Counter[str] = Counter()  # where the search ended: a million equal names are searched once
    for file in files:
        stem = Path(file).stem
        name = f"{stem}.jpg"
        while name in names:
            last[stem] += 1
            name = f"{stem}-{last[stem] + 1}.jpg"
        names[name] = None
    return list(names)


def digest(data: Dataset) -> str:
    """16 hex digits of the list: its files, their folder, and the ids."""
    found = hashlib.sha256(repr(data.category_ids).encode())
    root = os.path.abspath(data.root)
    for image, file in zip(data.image_ids.tolist(), data.files.tolist(), strict=True):
        found.update(os.fsencode(f"{image} {os.path.join(root, file)}\n"))
    return found.hexdigest()[:16]


def line(found: tuple[str, float, list[float]]) -> str:
    """One detection in words."""
    name, score, box = found
    return f"  {name} {score:.2f} at {', '.join(f'{side:.0f}' for side in box)}"
