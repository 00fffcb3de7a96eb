"""An exported file beside its source: the detections of both on the same images, their AP, their time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..data.dataset import Dataset
from ..data.images import MAX_PIXELS, read_image
from ..data.scenes import scene
from ..evaluation.evaluate import evaluate
from ..inference.detector import Detector
from ..ops.boxes import iou
from ..structures import Detections

PIXELS, SCORE = 0.1, 1e-3
"""How far a box's side and a score may be from the source's in fp32."""

SAME, AGAIN = 0.75, 0.9
"""Without data, bf16 must find this share of the sure detections again, at this IoU."""

FEW = 0.05
"""Share of the detections that may be on one side only: rounding decides at a threshold."""

DROP = {"fp32": 0.003, "bf16": 0.003, "int8": 0.010}
"""AP that may be lost."""

IMAGES = 12

ROUNDS = 5


@dataclass
class Case:
    """Images that both have run on."""

    name: str
    batch: int
    images: int = 0
    detections: int = 0
    """Of the source."""
    pixels: float = 0.0
    """The largest difference of the boxes of a matched pair."""
    score: float = 0.0
    """The largest difference of the scores of a matched pair."""
    alone: int = 0
    """Detections of one side that match none of the other's, without unsure ones at the end of the list."""
    sure_alone: int = 0
    """Those of them above the source's display threshold."""
    sure: int = 0
    """Detections of either side above the source's display threshold."""
    again: int = 0
    """Those of them that the other side has too, at an IoU above SAME."""


@dataclass
class Proof:
    """The comparison, and why the file does not pass, if so."""

    cases: list[Case]
    seconds: dict[str, dict[str, float]]
    """A batch's name -> source and exported, seconds per image."""
    ap: dict[str, float] | None = None
    reasons: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {"passed": not self.reasons, **asdict(self)}


def compare(
    source: Detector,
    exported: Detector,
    precision: str,
    data: Dataset | None = None,
    max_drop: float | None = None,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    unfitted: Detector | None = None,
) -> Proof:
    """Run both on images of `data` and measure their AP on it; None: on generated images, without AP.

    Where images are fitted into one size, `unfitted` is the source without: its AP shows the cost of the size
    and decides nothing.
    """
    if data is None:
        images = [torch.from_numpy(scene((7, number)).image).permute(2, 0, 1) for number in range(IMAGES)]
    else:
        chosen = range(0, len(data), max(1, len(data) // IMAGES))
        images = [read_image(data.path(index), max_pixels) for index in chosen][:IMAGES]
    cases = [
        compare_case(name, batch, source, exported, some)
        for name, batch, some in [("images", 1, images), *odd_images(images[0])]
    ]
    proof = Proof(cases, {f"batch of {batch}": timed(source, exported, images[0], batch) for batch in (1, 4)})
    if data is not None:
        sides = {"source": source, "exported": exported}
        if unfitted is not None:
            sides["source at its own size"] = unfitted
        proof.ap = {
            name: evaluate(one, data, workers=workers, max_pixels=max_pixels).metrics["AP"] or 0.0
            for name, one in sides.items()
        }
    proof.reasons += failures(proof, precision, DROP[precision] if max_drop is None else max_drop)
    return proof


def odd_images(image: Tensor) -> list[tuple[str, int, list[Tensor]]]:
    """The cases on which exports break, made of an image [3, H, W].

    A batch of several sizes of which one has nothing to find; a tall, a wide and a tiny image; a strip so low
    that the coarsest map has one row of cells.
    """
    empty = torch.full_like(image, 127)
    _, height, width = image.shape
    side = min(height, width)
    several = [
        image,
        empty[:, : height // 2],
        image.flip(2)[:, :, : width * 2 // 3],
        image.flip(1)[:, : height * 4 // 5],
    ]
    return [
        ("batch", 4, several),
        ("nothing", 1, [empty]),
        ("tall", 1, [image[:, :, : max(8, side // 3)]]),
        ("wide", 1, [image[:, : max(8, side // 3)]]),
        ("tiny", 1, [image[:, :12, :16]]),
        ("strip", 1, [image[:, : max(2, side // 8)]]),
    ]


def compare_case(
    name: str, batch: int, source: Detector, exported: Detector, images: Sequence[Tensor]
) -> Case:
    """Both on the same images. These share a batch whatever their sizes, the smaller ones padded."""
    case = Case(name, batch, len(images))
    for start in range(0, len(images), batch):
        some = images[start : start + batch]
        inputs = source.preprocess.stack([source.preprocess.resized(image) for image in some])
        originals = [(image.shape[1], image.shape[2]) for image in some]
        sides = (one.predict_batch(*inputs, originals) for one in (source, exported))
        for one, other in zip(*sides, strict=True):
            add(case, one, other, source.threshold)
    return case


def add(case: Case, one: Detections, other: Detections, threshold: float) -> None:
    """Count the differences of the detections of an image.

    Two detections match when class, box and score agree to ten times what passes; so a small error shows as
    pixels or score, and a large one as detections that are alone.
    """
    case.detections += len(one)
    labels = one.labels[:, None] == other.labels
    gap = (one.boxes[:, None] - other.boxes).abs().amax(dim=2)  # [N, M]
    scores = (one.scores[:, None] - other.scores).abs()
    near = labels & (gap <= 10 * PIXELS) & (scores <= 10 * SCORE)
    # rounding decides between equal scores at the end of a full list, as those of an empty image are
    end = min(float(side.scores[-1]) if len(side) else 0.0 for side in (one, other)) + SCORE
    for dim, side in ((1, one), (0, other)):
        matched = near.any(dim=dim)
        if matched.any():
            best = gap.masked_fill(~near, torch.inf).min(dim=dim)
            case.pixels = max(case.pixels, float(best.values[matched].max()))
            apart = scores.gather(dim, best.indices.unsqueeze(dim)).squeeze(dim)
            case.score = max(case.score, float(apart[matched].max()))
        again = (labels & (iou(one.boxes[:, None], other.boxes) > SAME)).any(dim=dim)
        sure = side.scores >= threshold
        case.alone += int((~matched & (sure | (side.scores > end))).sum())
        case.sure_alone += int((~matched & sure).sum())
        case.sure += int(sure.sum())
        case.again += int((again & sure).sum())


@torch.inference_mode()
def timed(source: Detector, exported: Detector, image: Tensor, batch: int) -> dict[str, float]:
    """Seconds per image of both, from the resized image to boxes, taking turns."""
    images, sizes = source.preprocess.stack([source.preprocess.resized(image)] * batch)
    originals = [(image.shape[1], image.shape[2])] * batch
    spent: dict[str, list[float]] = {"source": [], "exported": []}
    for round_ in range(ROUNDS + 1):  # the first is not counted
        for name, detector in (("source", source), ("exported", exported)):
            start = time.perf_counter()
            detector.predict_batch(images, sizes, originals)
            if round_:
                spent[name].append((time.perf_counter() - start) / batch)
    return {name: median(seconds) for name, seconds in spent.items()}


def failures(proof: Proof, precision: str, drop: float) -> list[str]:
    """Why a file does not pass."""
    reasons = []
    sure, again = (sum(getattr(case, name) for case in proof.cases) for name in ("sure", "again"))
    if not any(case.detections or case.alone for case in proof.cases):
        reasons.append("the source finds nothing in these images: give --data with objects that it knows")
    if precision == "fp32":
        for case in proof.cases:
            where = f"{case.name}, batch of {case.batch}"
            if case.pixels > PIXELS:
                reasons.append(f"{where}: boxes differ by {case.pixels:.3g} px, more than {PIXELS:g}")
            if case.score > SCORE:
                reasons.append(f"{where}: scores differ by {case.score:.2g}, more than {SCORE:g}")
            if case.sure_alone > FEW * case.sure or case.alone > FEW * case.detections + 2:
                reasons.append(f"{where}: {case.alone} detections are on one side only, of {case.detections}")
    elif proof.ap is None:
        if not sure:
            reasons.append("no detection is above the display threshold: give --data with known objects")
        if again < AGAIN * sure:
            reasons.append(f"of {sure} sure detections only {again} are found again")
    elif proof.ap["source"] <= 0:
        reasons.append("the source's own AP on --data is 0, so no fall could show")
    if proof.ap is not None and proof.ap["source"] - proof.ap["exported"] > drop:
        before, after = proof.ap["source"], proof.ap["exported"]
        reasons.append(f"AP falls from {before:.4f} to {after:.4f}, by more than {drop:g}")
    return reasons


def show(proof: Proof) -> None:
    """Print the comparison."""
    console = Console(highlight=False)
    columns = ("case", "batch", "images", "detections", "box, px", "score", "one side only")
    table = Table(*columns, box=None, pad_edge=False)
    for case in proof.cases:
        counts = (str(case.batch), str(case.images), str(case.detections))
        table.add_row(case.name, *counts, f"{case.pixels:.2g}", f"{case.score:.1g}", str(case.alone))
    console.print(table)
    for name, seconds in proof.seconds.items():
        source, exported = (1000 * seconds[side] for side in ("source", "exported"))
        console.print(
            f"{name}: source {source:.1f} ms an image, exported {exported:.1f} ms, {source / exported:.2f} "
            f"times as fast"
        )
    if proof.ap is not None:
        console.print("AP: " + ", ".join(f"{name} {ap:.4f}" for name, ap in proof.ap.items()))
