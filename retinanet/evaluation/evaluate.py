"""How good a detector is on a data set: one pass for answers, losses and COCO AP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..data.dataset import Dataset
from ..data.images import MAX_PIXELS
from ..data.loader import evaluation_batches
from ..data.sampler import evaluation_entries
from ..distributed import all_gather, broadcast_from_main, rank, world
from ..errors import DataError
from ..files import write_atomically
from ..inference.detector import Detector
from ..model.criterion import Criterion
from ..structures import Detections
from .coco import Metrics, coco_metrics
from .results import Results, collect, merge, write_results

if TYPE_CHECKING:
    from ..inference.tiles import Tiled


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
    if detector.tiled or len(detector.scales) > 1:
        assert criterion is None, "the losses are those of whole pictures at one scale"
        for index, answer in predict_multi_view(detector, data, batch, workers, max_pixels):
            answers[index] = answer
            if progress is not None:
                progress(len(answers) * world())
        return scored(data, answers, totals, ())
    detector = cast(Detector, detector)
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


def predict_multi_view(
    detector: Detector | Tiled, data: Dataset, batch: int, workers: int, max_pixels: int
) -> Iterator[tuple[int, Detections]]:
    """(index, answer) of this process's pictures, in batches that do not depend on the number of
    processes.
    """
    if detector.tiled:  # the tiles of `batch` images are gathered, then it begins anew
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
    parts = all_gather((mine, totals))
    results = merge([part for part, _ in parts])
    sums = {name: sum(some.get(name, 0.0) for _, some in parts) for name in parts[0][1]}
    positives = max(1.0, sums.pop("positives"))
    losses = {name: value / (positives if name in shared else 1) for name, value in sums.items()}
    return Evaluation(broadcast_from_main(lambda: coco_metrics(data, results)), results, losses)


def write_evaluation(out: Path, data: Dataset, evaluation: Evaluation, about: dict[str, Any]) -> None:
    """metrics.json, predictions.json and the plots of an evaluation."""
    from ..view import plots  # matplotlib, only when results are written

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
    write_atomically(out / "metrics.json", json.dumps({**metrics.to_json(), **about}, indent=1).encode())
