"""How good a detector is on a data set: one pass for detections, losses and COCO AP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.dataset import Dataset
from ..data.images import MAX_PIXELS
from ..data.loader import evaluation_batches
from ..data.sampler import evaluation_entries
from ..distributed import all_gather, broadcast_from_main, rank, world
from ..errors import DataError
from ..files import may_fail, write_atomically
from ..inference.detector import Detector
from ..model.criterion import Criterion, forward_losses, sum_levels
from ..structures import Detections
from .coco import Metrics, coco_metrics
from .results import Results, categories, collect, merge, write_results


@dataclass(frozen=True)
class Evaluation:
    """How good a detector is on a data set.

    Attributes:
        metrics: The COCO numbers, per class too, and curves.
        results: The detections behind them.
        losses: The losses of the whole data set; empty without a criterion.

    Example:
        >>> evaluation = retinanet.evaluate("runs/cells", "data/cells")
        >>> evaluation.metrics["AP"], evaluation.metrics.per_class[0].AP50
    """

    metrics: Metrics
    results: Results
    losses: dict[str, float]


def evaluate(
    model: Detector | str | Path,
    data: Dataset | str | Path,
    batch: int = 8,
    workers: int = 0,
    *,
    split: str | None = None,
    criterion: Criterion | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Run a detector over a data set and measure COCO AP.

    All detections are used; no display threshold plays a part. Several processes share the batches; the first
    computes the metrics, and all get the same Evaluation.

    Args:
        model: A detector, or anything that `retinanet.load` opens.
        data: A data set, or the path of one. Its classes are matched with the model's by name.
        batch: Images per batch.
        workers: Loader processes.
        split: Which split of a path; None: val, or a data set that is not split.
        criterion: Gives the losses too, divided by the positives of the whole data set; not for a detector of
            several scales or in tiles.
        max_pixels: Larger images are refused.
        progress: Called with the number of images that are done.

    Raises:
        DataError: The data set has a fault, or classes that the model does not know.

    Example:
        >>> retinanet.evaluate("runs/cells", "data/cells", split="test").metrics["AP"]
    """
    if isinstance(model, (str, Path)):
        from ..inference.load import load

        model = load(model)
    detector, data = model, _opened(data, split, model.names, max_pixels)
    found_by_index: dict[int, Detections] = {}
    totals: dict[str, float] = {"positives": 0.0}
    if detector.tiling is not None or len(detector.scales) > 1:
        assert criterion is None, "the losses are those of whole images at one scale"
        for index, detections in predict_multi_view(detector, data, batch, workers, max_pixels):
            found_by_index[index] = detections
            progress(len(found_by_index) * world())
        return score_all(data, found_by_index, totals, ())
    pin = detector.device.type == "cuda"
    batches = evaluation_batches(data, detector.preprocess, batch, workers, pin, max_pixels, rank(), world())
    with torch.inference_mode():
        for loaded in batches:
            indices, sizes = loaded.indices.tolist(), loaded.targets.sizes
            originals = [(int(height), int(width)) for height, width in data.sizes[indices]]
            if criterion is None:
                found = detector.predict_batch(loaded.images, sizes, originals)
            else:
                images = loaded.images.to(detector.device)
                scored = forward_losses(
                    detector.network,
                    criterion,
                    images,
                    loaded.targets.to(detector.device),
                    anchors=detector.model.anchors(images),
                    preprocess=detector.preprocess,
                    precision=detector.precision,
                    normalizer=torch.ones((), device=detector.device),  # sums, divided in the end
                    count=len(data),
                )
                found = detector.select((scored.logits, scored.offsets, scored.images), sizes, originals)
                for name, value in sum_levels(scored.levels).items():
                    totals[name] = totals.get(name, 0.0) + float(value)
                totals["positives"] += float(scored.matched.positives.sum())
            found_by_index |= zip(indices, found, strict=True)
            progress(len(found_by_index) * world())
    return score_all(data, found_by_index, totals, criterion.shared if criterion is not None else ())


def _opened(data: Dataset | str | Path, split: str | None, names: list[str], max_pixels: int) -> Dataset:
    """The data set, validated, with the labels of a model that has these classes."""
    from ..data.splits import in_model_classes, open_split
    from ..data.validate import validate

    if not isinstance(data, Dataset):
        data = open_split(data, split, max_pixels=max_pixels)
    elif not data.sizes.all():  # not validated yet: the annotations do not give the sizes of the images
        data, _ = validate(data, max_pixels=max_pixels)
    return in_model_classes(data, names)


def predict_multi_view(
    detector: Detector, data: Dataset, batch: int, workers: int, max_pixels: int
) -> Iterator[tuple[int, Detections]]:
    """(index, detections) of this process's images; batches do not depend on the number of processes."""
    if detector.tiling is not None:  # the tiles of `batch` images are gathered, then it begins anew
        indices = [index for index in range(len(data)) if index // batch % world() == rank()]
    else:
        others = detector.scales[1:]
        entries = evaluation_entries(data.sizes, batch, detector.preprocess, rank(), world(), others)
        indices = [index for entry in entries for index in entry.indices]
    paths = [data.path(index) for index in indices]
    for position, found in detector.stream(paths, batch, workers, max_pixels):
        if isinstance(found, DataError):
            raise found
        yield indices[position], found


def score_all(
    data: Dataset, found_by_index: dict[int, Detections], totals: dict[str, float], shared: tuple[str, ...]
) -> Evaluation:
    """What all processes found together: detections by index, sums of losses and positives; the `shared`
    losses are divided by the positives."""
    mine = collect(data, [found_by_index[index] for index in sorted(found_by_index)], sorted(found_by_index))
    parts = all_gather((mine, totals))
    results = merge([part for part, _ in parts])
    sums = {name: sum(some.get(name, 0.0) for _, some in parts) for name in parts[0][1]}
    positives = max(1.0, sums.pop("positives"))
    losses = {name: value / (positives if name in shared else 1) for name, value in sums.items()}
    return Evaluation(broadcast_from_main(lambda: coco_metrics(data, results)), results, losses)


def write_evaluation(out: Path, data: Dataset, evaluation: Evaluation, about: dict[str, Any]) -> None:
    """metrics.json, predictions.json and the plots of an evaluation."""
    out.mkdir(parents=True, exist_ok=True)
    metrics = evaluation.metrics
    write_results(out / "predictions.json", data, evaluation.results)
    curves = metrics.curves
    lines = zip(data.names, curves.precision, strict=True)
    named = {name: (curves.recall, line) for name, line in lines if line is not None}
    with may_fail(folder := out / "plots"):
        from ..view import plots  # matplotlib, only when results are written

        plots.plot_precision_recall(named, folder / "precision_recall.png")
        plots.plot_confusion(metrics.confusion, data.names, folder / "confusion.png")
        plots.plot_f1(curves.thresholds, curves.f1, metrics.threshold, folder / "f1.png")
    # last: a training run is finished when this is there
    content = {**metrics.to_json(), "categories": categories(data.names, data.category_ids), **about}
    write_atomically(out / "metrics.json", json.dumps(content, indent=1).encode())
