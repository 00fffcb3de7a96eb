"""An exported file beside its source: the same pictures, the detections of both compared, their AP, their
time.
"""

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

TIE = 1e-3
"""How near to the NMS threshold an overlap may go either way."""

SAME, AGAIN = 0.75, 0.9
"""Where AP is not known, bf16 must find this share of the sure answers again, at this IoU."""

FEW = 0.02
"""The most ties that are believed, in parts of the answers."""

DROP = {"fp32": 0.003, "bf16": 0.003, "int8": 0.010}
"""AP that may be lost."""

PICTURES = 12

ROUNDS = 5


@dataclass
class Case:
    """Pictures that were answered by both.

    pixels, score  the largest difference of two answers that belong together
    ties           answers of one side only, of which rounding decides: at the limit of the scores, or of an
                   overlap
    alone          all other answers of one side only
    sure, again    answers of either side above the source's display threshold, and how many of them the other
                   has too, at about its place
    """

    name: str
    batch: int
    pictures: int = 0
    answers: int = 0
    pixels: float = 0.0
    score: float = 0.0
    ties: int = 0
    alone: int = 0
    sure: int = 0
    again: int = 0


@dataclass
class Proof:
    """What was found, and why it does not pass, if so."""

    cases: list[Case]
    seconds: dict[str, dict[str, float]]
    """A batch's name -> source and exported, seconds a picture."""
    ap: dict[str, float] | None = None
    reasons: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {"passed": not self.reasons, **asdict(self)}


def prove(
    source: Detector,
    exported: Detector,
    precision: str,
    data: Dataset | None = None,
    max_drop: float | None = None,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    unfitted: Detector | None = None,
) -> Proof:
    """Run both. `data` has the pictures to compare on and the truth to measure AP with; None: generated
    scenes, and no AP.

    Where pictures are fitted into one size, `unfitted` is the source without: its AP shows what the size
    costs, and decides nothing.
    """
    pictures = generated() if data is None else some_of(data, max_pixels)
    cases = [
        compared(name, batch, source, exported, shown)
        for name, batch, shown in [("pictures", 1, pictures), *odd_ones(pictures[0])]
    ]
    proof = Proof(
        cases, {f"batch of {batch}": timed(source, exported, pictures[0], batch) for batch in (1, 4)}
    )
    if data is not None:
        sides = {
            "source": source,
            "exported": exported,
            **({"source at its own size": unfitted} if unfitted else {}),
        }
        proof.ap = {
            name: evaluate(one, data, workers=workers, max_pixels=max_pixels).metrics["AP"] or 0.0
            for name, one in sides.items()
        }
    proof.reasons += judged(proof, precision, DROP[precision] if max_drop is None else max_drop)
    return proof


def generated() -> list[Tensor]:
    """Scenes [3, H, W]."""
    return [torch.from_numpy(scene((7, number)).image).permute(2, 0, 1) for number in range(PICTURES)]


def some_of(data: Dataset, max_pixels: int) -> list[Tensor]:
    """Pictures from all over a data set."""
    step = max(1, len(data) // PICTURES)
    return [read_image(data.path(index), max_pixels) for index in range(0, len(data), step)][:PICTURES]


def odd_ones(picture: Tensor) -> list[tuple[str, int, list[Tensor]]]:
    """What exports break on: a batch of pictures of several sizes, of which one has nothing to find; a tall,
    a wide and a tiny picture
    [3, H, W], and a strip so low that the coarsest map has one row of cells.
    """
    empty = torch.full_like(picture, 127)
    _, height, width = picture.shape
    side = min(height, width)
    return [
        (
            "batch",
            4,
            [
                picture,
                empty[:, : height // 2],
                picture.flip(2)[:, :, : width * 2 // 3],
                picture.flip(1)[:, : height * 4 // 5],
            ],
        ),
        ("nothing", 1, [empty]),
        ("tall", 1, [picture[:, :, : max(8, side // 3)]]),
        ("wide", 1, [picture[:, : max(8, side // 3)]]),
        ("tiny", 1, [picture[:, :12, :16]]),
        ("strip", 1, [picture[:, : max(2, side // 8)]]),
    ]


def compared(name: str, batch: int, source: Detector, exported: Detector, pictures: Sequence[Tensor]) -> Case:
    """The answers of both for the same pictures. They share a batch whatever their sizes, the smaller ones
    padded.
    """
    case = Case(name, batch, len(pictures))
    for start in range(0, len(pictures), batch):
        shown = pictures[start : start + batch]
        images, sizes = source.preprocess.stack([source.preprocess.resized(picture) for picture in shown])
        originals = [(picture.shape[1], picture.shape[2]) for picture in shown]
        for one, other in zip(
            source.predict_batch(images, sizes, originals),
            exported.predict_batch(images, sizes, originals),
            strict=True,
        ):
            add(case, one, other, source)
    return case


def add(case: Case, one: Detections, other: Detections, source: Detector) -> None:
    """The differences of two answers to a picture."""
    case.answers += len(one)
    gap = torch.where(
        (one.labels[:, None] == other.labels) & ((one.scores[:, None] - other.scores).abs() <= 10 * SCORE),
        (one.boxes[:, None] - other.boxes).abs().amax(dim=2),
        torch.inf,
    )
    mine, theirs = pairs(gap)
    if len(mine):
        case.pixels = max(case.pixels, float(gap[mine, theirs].max()))
        case.score = max(case.score, float((one.scores[mine] - other.scores[theirs]).abs().max()))
    same = (one.labels[:, None] == other.labels) & (iou(one.boxes[:, None], other.boxes) > SAME)
    for answer, found in ((one, same.any(dim=1)), (other, same.any(dim=0))):
        sure = answer.scores >= source.threshold
        case.sure, case.again = case.sure + int(sure.sum()), case.again + int(found[sure].sum())
    alone = [others(one, mine), others(other, theirs)]
    ties = decided_by_rounding(alone, (one, other), source)
    case.ties += ties
    case.alone += sum(map(len, alone)) - ties


def pairs(gap: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of [N, M] that are each other's nearest, and near at all (10 times what passes)."""
    if not gap.numel():
        nothing = torch.zeros(0, dtype=torch.long)
        return nothing, nothing
    row, column = gap.argmin(dim=1), gap.argmin(dim=0)
    here = torch.arange(len(gap))
    mutual = (column[row] == here) & (gap[here, row] <= 10 * PIXELS)
    return here[mutual], row[mutual]


def others(answer: Detections, taken: Tensor) -> list[int]:
    """The positions that are not taken."""
    return sorted(set(range(len(answer))) - set(taken.tolist()))


def decided_by_rounding(
    alone: list[list[int]], answers: tuple[Detections, Detections], source: Detector
) -> int:
    """How many of the answers of one side only are there or not because of the last digit of something.

    Their score is that of the threshold, or no better than the last of the other side's, which has as many as
    a picture may have; or their
    overlap with another of their class is that of the NMS threshold; or that other one is on one side only
    for such a reason itself.
    """
    limit, most = source.postprocess.score_threshold, source.postprocess.max_detections
    excused: list[set[int]] = [set(), set()]
    for side, answer in enumerate(answers):
        there = answers[1 - side]
        highest = max([limit, *([float(there.scores[-1])] if len(there) == most else [])]) + SCORE
        excused[side] = {at for at in alone[side] if float(answer.scores[at]) <= highest}
    changed = True
    while changed:
        changed = False
        for side in (0, 1):
            here, there = answers[side], answers[1 - side]
            for at in alone[side]:
                if at in excused[side]:
                    continue
                overlap = iou(here.boxes[at], there.boxes) * (there.labels == here.labels[at])
                at_threshold = ((overlap - source.postprocess.nms_threshold).abs() <= TIE).any()
                if at_threshold or any(
                    overlap[position] > source.postprocess.nms_threshold for position in excused[1 - side]
                ):
                    excused[side].add(at)
                    changed = True
    return len(excused[0]) + len(excused[1])


@torch.inference_mode()
def timed(source: Detector, exported: Detector, picture: Tensor, batch: int) -> dict[str, float]:
    """Seconds a picture of both, from the resized picture to boxes, taking turns."""
    images, sizes = source.preprocess.stack([source.preprocess.resized(picture)] * batch)
    originals = [(picture.shape[1], picture.shape[2])] * batch
    spent: dict[str, list[float]] = {"source": [], "exported": []}
    for round_ in range(ROUNDS + 1):
        for name, detector in (("source", source), ("exported", exported)):
            start = time.perf_counter()
            detector.predict_batch(images, sizes, originals)
            if round_:
                spent[name].append((time.perf_counter() - start) / batch)
    return {name: median(seconds) for name, seconds in spent.items()}


def judged(proof: Proof, precision: str, drop: float) -> list[str]:
    """What does not pass."""
    reasons = []
    sure, again = (sum(getattr(case, name) for case in proof.cases) for name in ("sure", "again"))
    if not any(case.answers or case.alone for case in proof.cases):
        reasons.append(
            "the source finds nothing in these pictures, so nothing was compared: give --data with what it "
            "knows"
        )
    if precision == "fp32":
        for case in proof.cases:
            told = f"{case.name}, batch of {case.batch}"
            if case.pixels > PIXELS:
                reasons.append(f"{told}: boxes differ by {case.pixels:.3g} px, more than {PIXELS:g}")
            if case.score > SCORE:
                reasons.append(f"{told}: scores differ by {case.score:.2g}, more than {SCORE:g}")
            if case.alone:
                reasons.append(f"{told}: {case.alone} of {case.answers} answers are on one side only")
            if case.ties > FEW * case.answers + 2:
                reasons.append(f"{told}: {case.ties} ties, too many for {case.answers} answers")
    elif proof.ap is None:
        if not sure:
            reasons.append(
                "no answer is above the display threshold, so nothing was compared: give --data with what "
                "the model knows"
            )
        if again < AGAIN * sure:
            reasons.append(f"of {sure} sure answers only {again} are found again")
    elif proof.ap["source"] <= 0:
        reasons.append("the source's own AP on --data is 0, so no fall could show")
    if proof.ap is not None and proof.ap["source"] - proof.ap["exported"] > drop:
        reasons.append(
            f"AP falls from {proof.ap['source']:.4f} to {proof.ap['exported']:.4f}, by more than {drop:g}"
        )
    return reasons


def show(proof: Proof) -> None:
    """The tables."""
    console = Console(highlight=False)
    table = Table(
        "case",
        "batch",
        "pictures",
        "answers",
        "box, px",
        "score",
        "one side only",
        "of these ties",
        box=None,
        pad_edge=False,
    )
    for case in proof.cases:
        numbers = (
            case.batch,
            case.pictures,
            case.answers,
            f"{case.pixels:.2g}",
            f"{case.score:.1g}",
            case.alone + case.ties,
            case.ties,
        )
        table.add_row(case.name, *map(str, numbers))
    console.print(table)
    for name, seconds in proof.seconds.items():
        source, exported = (1000 * seconds[side] for side in ("source", "exported"))
        console.print(
            f"{name}: source {source:.1f} ms a picture, exported {exported:.1f} ms, {source / exported:.2f} "
            f"times as fast"
        )
    if proof.ap is not None:
        console.print("AP: " + ", ".join(f"{name} {ap:.4f}" for name, ap in proof.ap.items()))
