"""The verb `predict`: answers for files, as COCO results and as pictures with boxes."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import PredictConfig
from ..data.dataset import Columns, Dataset
from ..data.images import read_image
from ..errors import DataError
from ..structures import Detections
from ..view.draw import draw, save
from ..weights.checkpoint import write_whole
from .detector import Detector, load
from .evaluate import in_model_classes, open_split
from .metrics import collect, write_results
from .sources import find_pictures

log = logging.getLogger("retinanet")


def run(model: str, sources: Sequence[str], config: PredictConfig) -> bool:
    """Predict for files, folders, globs, lists, or a split of a data set; true when every picture could be read.

    --out gets predictions.json (COCO results: everything above the model's own score threshold), images.json (which id is which
    picture) and pictures with the boxes above --threshold. Without --out the answers are printed.
    """
    detector = load(model, config.device, config.precision, config.scale)
    if config.split is not None:
        if len(sources) != 1:
            raise DataError("--split goes with one data set, not with several paths")
        data = open_split(sources[0], config.split, config.layout, config.images, config.invalid, config.max_pixels)
        data = in_model_classes(data, detector.names)
    else:
        data = as_dataset(find_pictures(sources), detector)
    threshold = detector.threshold if config.threshold is None else config.threshold
    names = picture_names(data)
    answers: list[Detections | None] = [None] * len(data)
    failed = 0
    paths = [data.path(index) for index in range(len(data))]
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
    for index, answer in detector.stream(paths, config.batch, config.workers, config.max_pixels):
        if isinstance(answer, DataError):
            failed += 1
            log.error("%s", answer)
            continue
        answers[index] = answer
        shown = answer.above(threshold)
        if config.out is None:
            log.info("%s", "\n".join([f"{paths[index]}: {len(shown)} objects", *map(line, shown)]))
        elif config.pictures:
            save(config.out / names[index], draw(read_image(paths[index], config.max_pixels), shown))
    if config.out is not None:
        done = np.array([index for index, answer in enumerate(answers) if answer is not None], dtype=np.int64)
        kept = data.subset(done)
        results = collect(kept, [answer for answer in answers if answer is not None])
        write_results(config.out / "predictions.json", kept, results)
        listed = [
            {"id": int(data.image_ids[i]), "file_name": str(data.files[i]), "picture": names[i] if config.pictures else None} for i in done
        ]
        write_whole(config.out / "images.json", json.dumps(listed, indent=1).encode())
        log.info("%d of %d pictures done, %d answers: %s", len(done), len(data), len(results), config.out / "predictions.json")
    if failed:
        log.error("%d of %d pictures could not be read", failed, len(data))
    return failed == 0


def as_dataset(paths: Sequence[Path], detector: Detector) -> Dataset:
    """Loose pictures as a data set without boxes, with ids 1..N."""
    columns = Columns()
    for number, path in enumerate(paths, 1):
        columns.image(path.as_posix(), number, 0, 0)
    return columns.build(Path(), Path(), "pictures", detector.names, detector.category_ids)


def picture_names(data: Dataset) -> list[str]:
    """A file name for each drawn picture: its own, with a number when two folders hold the same."""
    taken: dict[str, int] = {}
    names = []
    for file in data.files:
        stem = Path(str(file)).stem
        taken[stem] = taken.get(stem, 0) + 1
        names.append(f"{stem}.jpg" if taken[stem] == 1 else f"{stem}-{taken[stem]}.jpg")
    return names


def line(found: tuple[str, float, list[float]]) -> str:
    """One detection in words."""
    name, score, box = found
    return f"  {name} {score:.2f} at {', '.join(f'{side:.0f}' for side in box)}"
