"""How good a detector is on a data set: one pass for answers, losses and COCO AP."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.dataset import Dataset
from ..data.images import MAX_PIXELS
from ..data.layout import open_dataset
from ..data.loader import evaluation_batches
from ..data.sampler import evaluation_entries
from ..data.validate import validate
from ..distributed import first, from_first, gather, rank, together, world
from ..errors import ConfigError, DataError, unknown
from ..model.criterion import Criterion
from ..settings import to_json
from ..structures import Detections
from ..verbs import EvalConfig
from ..view import plots
from ..weights.checkpoint import versions, write_whole
from .detector import Detector, load
from .machine import describe, pick_workers
from .metrics import Metrics, Results, coco_metrics, collect, format_table, read_results, write_results
from .record import progress_bar, refuse_run
from .results import merge
from .tiles import Tiled, check_tiles, in_tiles

log = logging.getLogger("retinanet")


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split, the answers behind them, and the losses of the split (empty without a
    criterion).
    """

    metrics: Metrics
    results: Results
    losses: dict[str, float]


def evaluate(
    detector: Detector | Tiled,
    data: Dataset,
    batch: int = 8,
    workers: int = 0,
    criterion: Criterion | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Run the detector over every picture of `data` (whose sizes are known, see `validate`) and score its
    answers.

    All answers are used; no display threshold has any part in it. The losses are those of the whole split,
    divided by all its positives.
    Several processes share the batches; the first computes the metrics, and all get the same Evaluation. A
    detector of several scales,
    or in tiles, has no losses.
    """
    answers: dict[int, Detections] = {}
    totals: dict[str, float] = {"positives": 0.0}
    pin = detector.device.type == "cuda"
    if isinstance(detector, Tiled) or len(detector.scales) > 1:
        assert criterion is None, "the losses are those of whole pictures at one scale"
        for index, answer in in_several_looks(detector, data, batch, workers, max_pixels):
            answers[index] = answer
            if progress is not None:
                progress(len(answers) * world())
        return scored(data, answers, totals, ())
    with torch.inference_mode():
        for loaded in evaluation_batches(
            data, detector.preprocess, batch, workers, pin, max_pixels, rank(), world()
        ):
            indices, sizes = loaded.indices.tolist(), loaded.targets.sizes
            originals = [(int(height), int(width)) for height, width in data.sizes[indices]]
            if criterion is None:
                answers |= zip(indices, detector.answer(loaded.images, sizes, originals), strict=True)
            else:
                logits, offsets, normalized = detector.forward(loaded.images, sizes)
                answers |= zip(
                    indices, detector.select(logits, offsets, normalized, sizes, originals), strict=True
                )
                anchors = detector.model.anchors(normalized)
                matched = criterion.match(anchors, loaded.targets.to(detector.device))
                one = torch.ones((), device=detector.device)  # sums, divided in the end
                for name, value in criterion(logits, offsets, anchors, matched, one, len(data)).items():
                    totals[name] = totals.get(name, 0.0) + float(value)
                totals["positives"] += float(matched.positives.sum())
            if progress is not None:
                progress(len(answers) * world())
    return scored(data, answers, totals, criterion.shared if criterion is not None else ())


def in_several_looks(
    detector: Detector | Tiled, data: Dataset, batch: int, workers: int, max_pixels: int
) -> Iterator[tuple[int, Detections]]:
    """(index, answer) of this process's pictures, in batches that do not depend on the number of
    processes.
    """
    if isinstance(detector, Tiled):  # it gathers the tiles of `batch` pictures, and begins anew
        indices = [index for index in range(len(data)) if index // batch % world() == rank()]
    else:
        entries = evaluation_entries(
            data.sizes, batch, detector.preprocess, rank(), world(), detector.scales[1:]
        )
        indices = [index for entry in entries for index in entry.indices]
    for position, answer in detector.stream(
        [data.path(index) for index in indices], batch, workers, max_pixels
    ):
        if isinstance(answer, DataError):
            raise answer
        yield indices[position], answer


def scored(
    data: Dataset, answers: dict[int, Detections], totals: dict[str, float], shared: tuple[str, ...]
) -> Evaluation:
    """What all processes found together: answers by index, sums of losses and positives; the `shared` losses
    are divided by the latter.
    """
    mine = collect(data, [answers[index] for index in sorted(answers)], sorted(answers))
    parts = gather((mine, totals))
    results = merge([part for part, _ in parts])
    sums = {name: sum(some.get(name, 0.0) for _, some in parts) for name in parts[0][1]}
    positives = max(1.0, sums.pop("positives"))
    losses = {name: value / (positives if name in shared else 1) for name, value in sums.items()}
    return Evaluation(from_first(lambda: coco_metrics(data, results)), results, losses)


def open_split(
    path: str | Path,
    split: str | None,
    layout: str | None,
    images: Path | None,
    invalid: str,
    max_pixels: int,
    headers: bool = True,
    need_boxes: bool = True,
) -> Dataset:
    """One validated split of a data set: `split`, else val, else a data set that is not split at all.

    ConfigError when that leaves only train: its AP would be taken for what it is not, so it has to be asked
    for.
    """
    splits = open_dataset(path, layout, images)
    if split is None:
        split = next((name for name in ("val", "all") if name in splits), None)
        if split is None:
            raise ConfigError(
                f"{path} has no validation split; choose one of its splits with --split: {', '.join(splits)}"
            )
        if split == "all":
            log.info(
                "%s is not split: all its images are scored, also those that the model may have been "
                "trained on",
                path,
            )
    if split not in splits:
        raise unknown("split", split, splits)
    data, problems = validate(splits[split], invalid, headers, max_pixels=max_pixels, need_boxes=need_boxes)  # type: ignore[arg-type]
    if problems:
        log.info("%s: %d problems met with --invalid %s", split, len(problems), invalid)
    return data


def in_model_classes(data: Dataset, names: list[str]) -> Dataset:
    """The same data set with the labels of a model that has these classes: classes are matched by name, never
    by number.
    """
    if list(data.names) == names:
        return data
    missing = [name for name in data.names if name not in names]
    if missing:
        raise DataError(
            f"{data.source} has classes that the model does not know: {', '.join(missing)}; the model "
            f"knows: {', '.join(names)}"
        )
    position = np.array([names.index(name) for name in data.names], dtype=np.int64)
    ids = dict(zip(data.names, data.category_ids, strict=True))
    free = max(data.category_ids, default=0)
    new_ids = []
    for name in names:  # classes that the data does not have need ids too, that collide with none
        free += name not in ids
        new_ids.append(ids.get(name, free))
    return replace(data, names=tuple(names), category_ids=tuple(new_ids), labels=position[data.labels])


def run(model: str, data: str, config: EvalConfig) -> Metrics:
    """The verb `eval`: print the 12 COCO numbers and those of each class, and write everything into --out.

    `model` may also be a COCO results file (.json), from this or any other detector; then no picture is
    needed.
    """
    refuse_run(config.out)
    with together():
        return _run(model, data, config)


def _run(model: str, data: str, config: EvalConfig) -> Metrics:
    scoring = model.endswith(".json")
    dataset = open_split(
        data,
        config.split,
        config.layout,
        config.images,
        config.invalid,
        config.max_pixels,
        headers=not scoring,
    )
    about: dict[str, Any] = {
        "model": model,
        "data": str(data),
        "split": dataset.split,
        "data_hash": dataset.fingerprint(),
    }
    if scoring:
        results = read_results(Path(model), dataset)
        evaluation = Evaluation(coco_metrics(dataset, results), results, {})
    else:
        check_tiles(config.tiles, config.overlap, len(config.scales or ()))
        detector = in_tiles(
            load(model, config.device, config.precision, config.scale, config.scales),
            config.tiles,
            config.overlap,
        )
        dataset = in_model_classes(dataset, detector.names)
        workers = pick_workers(config.workers, detector.device)
        log.info(
            "evaluating %s on %s: %d images on %s",
            model,
            dataset.split,
            len(dataset),
            describe(detector.device),
        )
        with progress_bar(len(dataset) if first() else 0, "evaluating") as progress:
            evaluation = evaluate(
                detector, dataset, config.batch, workers, max_pixels=config.max_pixels, progress=progress
            )
        about |= {"config": to_json(config), "versions": versions(), "machine": describe(detector.device)}
    log.info("%s", format_table(evaluation.metrics))
    if config.out is not None and first():
        write_evaluation(config.out, dataset, evaluation, about)
        log.info("wrote %s", config.out / "metrics.json")
    return evaluation.metrics


def write_evaluation(out: Path, data: Dataset, evaluation: Evaluation, about: dict[str, Any]) -> None:
    """metrics.json, predictions.json and the plots of an evaluation."""
    out.mkdir(parents=True, exist_ok=True)
    metrics = evaluation.metrics
    write_results(out / "predictions.json", data, evaluation.results)
    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    curves = metrics.curves
    named = {
        name: (curves.recall, line)
        for name, line in zip(data.names, curves.precision, strict=True)
        if line is not None
    }
    plots.plot_precision_recall(named, folder / "precision_recall.png")
    plots.plot_confusion(metrics.confusion, data.names, folder / "confusion.png")
    plots.plot_f1(curves.thresholds, curves.f1, metrics.threshold, folder / "f1.png")
    # last: a training run is finished when this is there
    write_whole(out / "metrics.json", json.dumps({**metrics.to_json(), **about}, indent=1).encode())
