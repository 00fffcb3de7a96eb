"""The verb `predict`: answers for files, as COCO results and as pictures with boxes."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config import PredictConfig
from ..data.dataset import Columns, Dataset
from ..data.images import read_image
from ..errors import ConfigError, DataError
from ..structures import Detections
from ..view.draw import draw, save
from ..weights.checkpoint import write_whole
from .detector import Detector, load
from .evaluate import in_model_classes, open_split
from .metrics import collect, write_results
from .record import progress_bar, refuse_run
from .sources import find_pictures

log = logging.getLogger("retinanet")


def run(model: str, sources: Sequence[str], config: PredictConfig) -> bool:
    """Predict for files, folders, globs, lists, or a split of a data set; true when every picture could be read.

    --out gets predictions.json (COCO results: everything above the model's own score threshold), images.json (which id is which
    picture) and pictures/ with the boxes above --threshold. Without --out the answers are printed.
    """
    if not sources:
        raise ConfigError("nothing to predict on: give files, folders, globs or .txt lists, or a data set and --split")
    refuse_run(config.out)
    detector = load(model, config.device, config.precision, config.scale)
    if config.split is not None:
        if len(sources) != 1:
            raise DataError("--split goes with one data set, not with several paths")
        data = open_split(sources[0], config.split, config.layout, config.images, config.invalid, config.max_pixels, need_boxes=False)
        data = in_model_classes(data, detector.names)
    else:
        data = as_dataset(find_pictures(sources), detector)
    threshold = detector.threshold if config.threshold is None else config.threshold
    names = picture_names(data)
    answers: list[Detections | None] = [None] * len(data)
    failed = 0
    paths = [data.path(index) for index in range(len(data))]
    if config.out is not None:
        (config.out / "pictures").mkdir(parents=True, exist_ok=True)
    with progress_bar(len(paths) if config.out else 0, "predicting") as progress:
        for number, (index, answer) in enumerate(detector.stream(paths, config.batch, config.workers, config.max_pixels), 1):
            progress(number)
            if isinstance(answer, DataError):
                failed += 1
                log.error("%s", answer)
                continue
            answers[index] = answer
            shown = answer.above(threshold)
            if config.out is None:
                log.info("%s", "\n".join([f"{paths[index]}: {len(shown)} objects", *map(line, shown)]))
            elif config.pictures:
                save(config.out / "pictures" / names[index], draw(read_image(paths[index], config.max_pixels), shown))
    if config.out is not None:
        done = np.array([index for index, answer in enumerate(answers) if answer is not None], dtype=np.int64)
        kept = data.subset(done)
        results = collect(kept, [answer for answer in answers if answer is not None])
        write_results(config.out / "predictions.json", kept, results)
        listed = [
            {"id": int(data.image_ids[i]), "file_name": str(data.files[i]), "picture": f"pictures/{names[i]}" if config.pictures else None}
            for i in done
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
    """A file name for each drawn picture: its own, with a number when another has it already."""
    names: dict[str, None] = {}
    for file in data.files:
        stem = Path(str(file)).stem
        free = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        names[next(f"{name}.jpg" for name in free if f"{name}.jpg" not in names)] = None
    return list(names)


def line(found: tuple[str, float, list[float]]) -> str:
    """One detection in words."""
    name, score, box = found
    return f"  {name} {score:.2f} at {', '.join(f'{side:.0f}' for side in box)}"
