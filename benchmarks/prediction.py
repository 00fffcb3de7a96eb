"""From a file on disk to boxes, RetinaNet-R50 at 800 px: torchvision's model and ours with the same weights,
in fp32 and bf16.

    python benchmarks/prediction.py

torchvision's untrained weights are shaped so that it finds some dozens of boxes, saved, and loaded by ours,
whose boxes in fp32 must be the same. One JPEG is answered by each side in turn: read, decode, resize,
network, NMS; and a matrix product has its turn, since how near ours comes to its speed tells how much is left
to win. Then `retinanet predict` in fresh processes: the seconds until the first box, and what they are spent
on.

Targets: at least 1.3x as fast as torchvision in fp32, 2.6x in bf16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import arithmetic, product, ratio, record, take_turns
from PIL import Image
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.ops import box_iou
from torchvision.transforms.functional import pil_to_tensor

import retinanet
from retinanet.data.scenes import scene
from retinanet.weights.foreign.projects import COCO

COLD = """
import sys, time
marks = [("start", time.perf_counter())]
def mark(name): marks.append((name, time.perf_counter()))
import torch; mark("import torch")
import torchvision, timm; mark("import torchvision and timm")
import retinanet
from retinanet.inference.load import load
mark("import retinanet")
detector = load(sys.argv[1], sys.argv[3], sys.argv[4], int(sys.argv[5]))
mark("build the network, read and fold the weights")
detector.predict(sys.argv[2]); mark("the first picture")
detector.predict(sys.argv[2]); mark("(the second)")
import json
print(json.dumps({name: now - before for (_, before), (name, now) in zip(marks, marks[1:])}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--side", type=int, default=800, help="short side of the picture and of what the network sees"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--product", type=int, default=4096, help="side of the matrices that are multiplied")
    parser.add_argument("--no-cold", action="store_true", help="leave out the fresh processes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights, ours, picture = (
            Path(folder) / "theirs.pth",
            Path(folder) / "ours.safetensors",
            Path(folder) / "picture.jpg",
        )
        Image.fromarray(scene(0, (options.side, options.side)).image).save(picture, quality=90)
        theirs = untrained(options.side, picture)
        torch.save(theirs.state_dict(), weights)
        run("import", str(weights), "--out", str(ours))
        settings = {"device": options.device, "scale": options.side}
        detectors = {name: retinanet.load(ours, precision=name, **settings) for name in ("fp32", "bf16")}
        theirs.to(options.device)

        def torchvision() -> dict[str, torch.Tensor]:
            with torch.inference_mode():
                answers: list[dict[str, torch.Tensor]] = theirs([read(picture).to(options.device)])
            return answers[0]

        same = agreement(
            torchvision(), detectors["fp32"].predict(picture), torch.tensor(detectors["fp32"].category_ids)
        )
        sides: dict[str, Callable[[], object]] = {"torchvision fp32": torchvision}
        sides |= {f"ours {name}": partial(detector.predict, picture) for name, detector in detectors.items()}
        products = {name: product(name, options.device, options.product) for name in detectors}
        turns = sides | {f"product {name}": call for name, (call, _) in products.items()}
        seconds = take_turns(turns, options.repeats, options.device)
        work = {name: arithmetic(sides[f"ours {name}"]) for name in detectors}
        cold = {
            name: first_box(ours, picture, options.device, name, options.side)
            for name in detectors
            if not options.no_cold
        }
    ratios = {
        f"torchvision fp32 over {name}": ratio(seconds["torchvision fp32"], seconds[name])
        for name in list(sides)[1:]
    }
    for name, (_, count) in products.items():
        share = ratio(seconds[f"product {name}"], seconds[f"ours {name}"]) * work[name] / count
        ratios[f"arithmetic a second: ours {name} over a matrix product"] = share
    for name in turns:
        print(f"{name:20s}{1000 * median(seconds[name]):8.0f} ms")
    for name, value in ratios.items():
        print(f"{name:58s}{value:8.2f}")
    print(f"boxes: {same}")
    for precision, parts in cold.items():
        print(
            f"cold start, {precision}: " + ", ".join(f"{name} {spent:.1f} s" for name, spent in parts.items())
        )
    figures = {
        "side": options.side,
        "seconds": seconds,
        "arithmetic": work,
        "ratios": ratios,
        "boxes": same,
        "cold": cold,
    }
    record(__file__, figures, options.device, options.out)


@torch.no_grad()
def untrained(side: int, picture: Path) -> Any:
    """torchvision's RetinaNet with random weights, the last ones scaled so that on the picture 1 pair in
    10,000 scores above 0.05."""
    torch.manual_seed(0)
    model: Any = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=side, max_size=side * 5 // 3
    ).eval()
    images, _ = model.transform([read(picture)])
    heads = model.head.classification_head.cls_logits, model.head.regression_head.bbox_reg
    outputs = model.head(list(model.backbone(images.tensors).values()))
    for layer, values, spread in zip(
        heads, (outputs["cls_logits"], outputs["bbox_regression"]), (0.45, 0.2), strict=True
    ):
        bias = layer.bias[: values.shape[-1]] if values.shape[-1] == 4 else layer.bias[0]
        layer.weight.mul_(spread / (values - bias).std())
    unnamed = sorted(set(range(91)) - set(COCO))
    heads[0].bias.reshape(-1, 91)[
        :, unnamed
    ] = -100.0  # COCO has 80 classes and 91 ids, and an imported model only the classes
    return model


def read(picture: Path) -> torch.Tensor:
    """What torchvision's model wants: [3, H, W] in 0..1. (Its own decoders are deprecated.)"""
    with Image.open(picture) as image:
        pixels: torch.Tensor = pil_to_tensor(image.convert("RGB"))
    return pixels / 255


def agreement(
    theirs: dict[str, torch.Tensor], ours: retinanet.Detections, ids: torch.Tensor
) -> dict[str, float]:
    """How many boxes each side has, and the share of theirs that ours has too: same class, IoU above 0.99,
    score within 1e-3."""
    same = (theirs["labels"][:, None].cpu() == ids[ours.labels]) & (
        (theirs["scores"][:, None].cpu() - ours.scores).abs() < 1e-3
    )
    same &= box_iou(theirs["boxes"].cpu(), ours.boxes) > 0.99
    return {
        "torchvision": len(theirs["scores"]),
        "ours": len(ours),
        "shared": float(same.any(dim=1).float().mean()),
    }


def run(*words: str) -> None:
    """A verb, in a process of its own."""
    subprocess.run([sys.executable, "-m", "retinanet", *words], check=True, stdout=subprocess.DEVNULL)


def first_box(model: Path, picture: Path, device: str, precision: str, scale: int) -> dict[str, float]:
    """Seconds of `retinanet predict` as a user sees them, and of the same steps one by one in another fresh
    process."""
    start = time.perf_counter()
    run(
        "predict",
        str(model),
        str(picture),
        "--device",
        device,
        "--precision",
        precision,
        "--scale",
        str(scale),
    )
    whole = time.perf_counter() - start
    words = [sys.executable, "-c", COLD, str(model), str(picture), device, precision, str(scale)]
    parts: dict[str, float] = json.loads(
        subprocess.run(words, check=True, capture_output=True, text=True).stdout
    )
    return {"retinanet predict": whole, **parts}


if __name__ == "__main__":
    main()
