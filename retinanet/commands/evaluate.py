"""The command `eval`: the 12 COCO numbers of a model on a data set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..config.commands import EvalConfig
from ..config.io import check, reading, to_json
from ..data.splits import in_model_classes, open_split
from ..device import describe, explain_lost_loaders, pick_workers, versions
from ..distributed import is_main_process, process_group
from ..evaluation.coco import Metrics, coco_metrics, format_table
from ..evaluation.doubts import misread, more_objects, trained_on
from ..evaluation.evaluate import Evaluation, evaluate, write_evaluation
from ..evaluation.read import categories_beside, read_results
from ..files import refuse_run
from ..inference.load import load
from ..inference.tiles import check_tiles, in_tiles
from ..text import progress_bar

log = logging.getLogger("retinanet")


@explain_lost_loaders()
def run(model: str, data: str, config: EvalConfig) -> Metrics:
    """Print the 12 COCO numbers and those of each class, and write everything into --out.

    `model` may also be a COCO results file (.json) of any detector; then no image is needed.
    """
    check(config)
    refuse_run(config.out)
    with process_group():
        return _run(model, data, config)


def _run(model: str, data: str, config: EvalConfig) -> Metrics:
    scoring = model.endswith(".json")
    dataset = open_split(data, config.split, headers=not scoring, **reading(config))
    about: dict[str, Any] = {
        "model": model,
        "data": str(data),
        "split": dataset.split,
        "data_hash": dataset.fingerprint(),
    }
    if scoring:
        results = read_results(Path(model), dataset)
        evaluation = Evaluation(coco_metrics(dataset, results), results, {})
        doubts = [] if categories_beside(Path(model)) else misread(dataset, results, evaluation.metrics)
    else:
        check_tiles(config.tiles, config.overlap, len(config.scales or ()))
        detector = load(model, config.device, config.precision, config.scale, config.scales)
        detector = in_tiles(detector, config.tiles, config.overlap)
        doubts = trained_on(dataset, data, {} if detector.info is None else detector.info.about)
        if detector.tiling is None:
            doubts += more_objects(dataset, limit=detector.postprocess.max_detections)
        dataset = in_model_classes(dataset, detector.names)
        workers = pick_workers(config.workers, detector.device)
        machine = describe(detector.device)
        log.info("evaluating %s on %s: %d images on %s", model, dataset.split, len(dataset), machine)
        with progress_bar(len(dataset) if is_main_process() else 0, "evaluating") as progress:
            evaluation = evaluate(
                detector, dataset, config.batch, workers, max_pixels=config.max_pixels, progress=progress
            )
        about |= {"config": to_json(config), "versions": versions(), "machine": machine}
    log.info("%s", format_table(evaluation.metrics))
    for text in doubts:
        log.warning("%s", text)
    about["doubts"] = doubts
    if config.out is not None and is_main_process():
        write_evaluation(config.out, dataset, evaluation, about)
        log.info("wrote %s", config.out / "metrics.json")
    return evaluation.metrics
