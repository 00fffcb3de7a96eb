"""How long from logits to answers, against torchvision's `postprocess_detections`, and as a share of the
network's time?

    python benchmarks/postprocessing.py

Both sides get the same float32 logits, offsets and anchors and the same settings: scores above 0.05, at most
1000 pairs of a level, NMS at 0.5, at most 100 answers a picture, anchors in the padding kept. Logits lie
around a low mean, those of one anchor together.

many    the same spread on every level, for the subnets share their weights: even the smallest has more than
        its 1000 pairs
even    every level has 2000 pairs of its own, so that P3 has few for its size
one     a single picture of "many"
normal  a picture with about `--pairs` pairs above the threshold over all levels, in the number format of the
        network's own logits; it takes
        turns with the network's forward pass over `--network-batch` pictures
Targets: at least 6x on a batch of 8 with many candidates, at most 4 % of the network's time in normal use.

`floor` is the two steps that every answer waits for: the best class of each anchor, one pass over the logits,
and the best 1000 of a level. Answers are compared as sets: one has its partner when label, score (1e-6) and
box (0.01 px) agree. The two decode boxes in another order of operations, so an overlap within float32's
rounding of the NMS threshold may fall to either side. With more than 1000 candidates torchvision runs one NMS
for each class, and its boxes are not shifted. `answers_without_partner` counts what differs.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import ratio, record, take_turns
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet as Torchvision

from retinanet import RetinaNet
from retinanet.inference.detector import Detector
from retinanet.model.postprocess import Postprocess, best_class, rows
from retinanet.model.preprocess import Preprocess
from retinanet.ops.anchors import STRIDES, grid_anchors
from retinanet.ops.boxes import iou

THRESHOLD, PER_LEVEL, OVERLAP, MOST = 0.05, 1000, 0.5, 100
LOGIT = math.log(THRESHOLD / (1 - THRESHOLD))
ANCHOR_STD, PAIR_STD = 1.2, 0.9
"""Deviation of a logit that the pairs of an anchor share, and of each pair's own."""
Answers = list[tuple[Tensor, Tensor, Tensor]]


def spread(shape: tuple[int, int, int], above: float, generator: torch.Generator) -> Tensor:
    """Logits [B, HWA, K], of which the fraction `above` lies above the threshold."""
    share = torch.tensor(1 - above, dtype=torch.float64)
    mean = LOGIT - math.hypot(ANCHOR_STD, PAIR_STD) * torch.special.ndtri(share).item()
    logits = torch.empty(shape).normal_(mean, PAIR_STD, generator=generator)
    return logits.add_(torch.randn(*shape[:2], 1, generator=generator), alpha=ANCHOR_STD)


def predictions(
    shapes: list[tuple[int, int, int]], fractions: list[float], seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Logits and offsets of each level, and of each level the fraction of its pairs that lies above the
    threshold."""
    generator = torch.Generator().manual_seed(seed)
    logits = [
        spread(shape, min(fraction, 0.5), generator)
        for shape, fraction in zip(shapes, fractions, strict=True)
    ]
    return logits, [torch.randn(*shape[:2], 4, generator=generator) * 0.3 for shape in shapes]


def theirs() -> Torchvision:
    """torchvision's detector, of which only the post-processing is used."""
    backbone = nn.Identity()
    backbone.out_channels = 8  # type: ignore[assignment]
    settings = {
        "score_thresh": THRESHOLD,
        "topk_candidates": PER_LEVEL,
        "nms_thresh": OVERLAP,
        "detections_per_img": MOST,
    }
    return Torchvision(backbone, 80, **settings)


def without_partner(ours: Answers, others: list[dict[str, Tensor]]) -> int:
    """How many answers of either side the other side does not have."""
    alone = 0
    for (boxes, scores, labels), other in zip(ours, others, strict=True):
        same = (labels[:, None] == other["labels"]) & ((scores[:, None] - other["scores"]).abs() < 1e-6)
        same &= ((boxes[:, None] - other["boxes"]).abs() < 0.01).all(dim=2)
        alone += int((~same.any(dim=1)).sum() + (~same.any(dim=0)).sum())
    return alone


def against_torchvision(options: argparse.Namespace, batch: int, even: bool) -> dict[str, Any]:
    """A batch with many candidates on every level."""
    grids = [(-(-options.side // stride),) * 2 for stride in STRIDES]
    anchors = [level.to(options.device) for level in grid_anchors(grids)]
    shapes = [(batch, len(level), options.classes) for level in anchors]
    pairs = [len(level) * options.classes for level in anchors]
    fractions = (
        [2 * PER_LEVEL / count for count in pairs] if even else [1.5 * PER_LEVEL / min(pairs)] * len(pairs)
    )
    logits, offsets = (
        [x.to(options.device) for x in kind] for kind in predictions(shapes, fractions, seed=0)
    )
    sizes = torch.full((batch, 2), float(options.side), device=options.device)
    # torchvision has no rule for anchors in the padding, and the last cells of P6 and P7 lie outside of a
    # picture of 800 pixels
    post, peer = Postprocess(THRESHOLD, PER_LEVEL, OVERLAP, MOST, filter_padding=False), theirs()

    def ours() -> Answers:
        return post(logits, offsets, anchors, sizes)

    def torchvision() -> list[dict[str, Tensor]]:
        head = {"cls_logits": logits, "bbox_regression": offsets}
        found: list[dict[str, Tensor]] = peer.postprocess_detections(
            head, [anchors] * batch, [(options.side, options.side)] * batch
        )
        return found

    def floor() -> list[Tensor]:
        best = [best_class(level) for level in logits]
        chosen = [level.topk(min(PER_LEVEL, level.shape[1]), dim=1).indices for level in best]
        kept = [rows(level, index).flatten(1) for level, index in zip(logits, chosen, strict=True)]
        return [level.topk(min(PER_LEVEL, level.shape[1]), dim=1).values for level in kept]

    with torch.inference_mode():
        answers = ours()
        alone = without_partner(answers, torchvision())
        boxes, x, labels = post.candidates(logits, offsets, anchors, sizes)
        seconds = take_turns(
            {"torchvision": torchvision, "ours": ours, "floor": floor}, options.repeats, options.device
        )
    return {
        "batch": batch,
        "fewest_pairs_of_a_level": min(int((level > LOGIT).sum(dim=(1, 2)).min()) for level in logits),
        "candidates": int((x > LOGIT).sum()) // batch,
        "answers": sum(len(labels) for _, _, labels in answers),
        "answers_without_partner": alone,
        "overlaps_within_1e-6_of_the_threshold": sum(
            near_ties(*picture) for picture in zip(boxes, labels, strict=True)
        ),
        "seconds": {name: median(times) for name, times in seconds.items()},
        "ratio": ratio(seconds["torchvision"], seconds["ours"]),
    }


def near_ties(boxes: Tensor, labels: Tensor) -> int:
    """Pairs of candidates of a class about which NMS may decide either way."""
    parts = zip(boxes.split(500), labels.split(500), strict=True)
    close = (
        ((iou(some[:, None], boxes) - OVERLAP).abs() < 1e-6) & (own[:, None] == labels) for some, own in parts
    )
    return sum(int(part.sum()) for part in close) // 2


def of_the_network(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """The share of the network's time, in normal use."""
    names = [str(label) for label in range(options.classes)]
    model = RetinaNet(options.classes, options.backbone)
    post = Postprocess(THRESHOLD, PER_LEVEL, OVERLAP, MOST)
    detector = Detector(
        model,
        Preprocess(options.side),
        post,
        names,
        list(range(options.classes)),
        0.5,
        options.device,
        precision,
    )
    batch = options.network_batch
    images = torch.randint(
        0, 256, (batch, 3, options.side, options.side), dtype=torch.uint8, device=options.device
    )
    sizes = torch.full((batch, 2), float(options.side), device=options.device)
    with torch.inference_mode():
        logits, offsets, normalized = detector.forward(images, sizes)
        anchors = detector.model.anchors(normalized)
        shapes = [(batch, level.shape[1], options.classes) for level in logits]
        fraction = options.pairs / sum(count * classes for _, count, classes in shapes)
        made = zip(predictions(shapes, [fraction] * len(shapes), seed=1), (logits, offsets), strict=True)
        # untrained, the network says the same everywhere: its numbers are replaced, their format and their
        # place in memory are kept
        for replacements, kind in made:
            for new, old in zip(replacements, kind, strict=True):
                old.copy_(new)
        above = sum(int((level > LOGIT).sum()) for level in logits) // batch
        sides = {
            "network": lambda: detector.forward(images, sizes),
            "ours": lambda: post(logits, offsets, anchors, sizes),
        }
        seconds = take_turns(sides, options.network_repeats, options.device)
    return {
        "batch": batch,
        "logits": str(logits[0].dtype).removeprefix("torch."),
        "pairs_above": above,
        "seconds": {name: median(times) for name, times in seconds.items()},
        "share": 1 / ratio(seconds["network"], seconds["ours"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=800, help="pixels of a picture's side")
    parser.add_argument("--batch", type=int, default=8, help="pictures with many candidates")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backbone", default="resnet50", help="of the network whose time is compared with")
    parser.add_argument(
        "--pairs", type=int, default=1000, help="of a picture in normal use, above the threshold"
    )
    parser.add_argument("--network-batch", type=int, default=1)
    parser.add_argument("--network-repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--out", type=Path, help="where the figures go, as JSON; by default beside this script, in results/"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    figures: dict[str, Any] = {
        "side": options.side,
        "classes": options.classes,
        "threads": torch.get_num_threads(),
    }
    for name, batch in {"many": options.batch, "even": options.batch, "one": 1}.items():
        row = figures[name] = against_torchvision(options, batch, even=name == "even")
        spent = "  ".join(f"{side} {1000 * time:8.1f} ms" for side, time in row["seconds"].items())
        alone = f"{row['answers_without_partner']} of {row['answers']} answers differ"
        print(f"{name:<12} batch {batch:<3} {spent}  x {row['ratio']:.1f}  {alone}", flush=True)
    for precision in ("fp32", "bf16"):
        row = figures[f"normal_{precision}"] = of_the_network(options, precision)
        spent = "  ".join(f"{side} {1000 * time:8.1f} ms" for side, time in row["seconds"].items())
        print(
            f"normal {precision:<5} batch {row['batch']:<3} {spent}  {row['share']:.2%} of the network's "
            f"time",
            flush=True,
        )
    record(__file__, figures, options.device, options.out)


if __name__ == "__main__":
    main()
