"""Everything that is claimed about a GPU, in one go and under ten minutes: the class loss, training and
answering R50 at 800 px.

    python benchmarks/gpu.py

Where no GPU is at hand it says so and ends well. All sides take turns on the same card in the same process;
torchvision runs under the same bf16 autocast. `--device cpu --side 64 --backbone resnet18 --batch 2 --batches
1 2 --repeats 2` tries the script itself.

Goals: the class loss at 60 % of the bandwidth of a copy; training and answering 2.5 times as fast as
torchvision.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import ratio, record, take_turns, wait
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from training_step import RATE, calm, corners, ours, pictures_with, theirs, torchvision_model

from retinanet.device import autocast
from retinanet.inference.detector import Detector
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess
from retinanet.model.retinanet import RetinaNet
from retinanet.ops.fused import class_loss
from retinanet.training.loop import train_step

COCO_TRAIN = 117_266
"""Pictures of train2017 that have boxes: an epoch, for what is extrapolated."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backbone", default="resnet50", help="a ResNet")
    parser.add_argument("--side", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16, help="of a training step")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="of an answer")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=540, help="what has not begun by then is left out")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print("no GPU at hand: nothing was measured (--device cpu tries the script itself)")
        return
    parts: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "matmul": matmul,
        "class_loss": loss,
        "training": training,
    }
    parts |= {f"answering_{batch}": partial(answering, batch=batch) for batch in options.batches}
    start = time.perf_counter()
    found: dict[str, dict[str, Any]] = {}
    for name, part in parts.items():
        if time.perf_counter() - start > options.seconds:
            found[name] = {"left out": "no time"}
            continue
        found[name] = part(options)
        print(
            f"{name}: "
            + ", ".join(
                f"{key} {value:.3g}" for key, value in found[name].items() if isinstance(value, float)
            ),
            flush=True,
        )
    if "flop_per_second" in found["training"]:
        share = found["training"]["flop_per_second"] / found["matmul"]["flop_per_second"]
        found["training"]["share of matmul"] = share
        print(f"training: {share:.0%} of the arithmetic of a bf16 matrix product on this machine")
    sizes = {name: getattr(options, name) for name in ("backbone", "side", "batch", "repeats")}
    record(__file__, {**sizes, "seconds": time.perf_counter() - start, **found}, options.device, options.out)


def matmul(options: argparse.Namespace) -> dict[str, Any]:
    """The arithmetic that the card has to give, by a large bf16 matrix product."""
    size = 8192 if options.device.startswith("cuda") else 512
    one = torch.randn(size, size, device=options.device, dtype=torch.bfloat16)
    seconds = take_turns({"matmul": lambda: one @ one}, options.repeats, options.device)["matmul"]
    return {"flop_per_second": 2 * size**3 / median(seconds)}


def loss(options: argparse.Namespace) -> dict[str, Any]:
    """Value and gradient of the focal loss against a copy of the logits, as shares of the same bandwidth."""
    anchors = 9 * sum((-(-options.side // stride)) ** 2 for stride in (8, 16, 32, 64, 128))
    logits = torch.randn(2 * anchors, 80, device=options.device).sub_(4).requires_grad_()
    labels = torch.full((2 * anchors,), -1, device=options.device)
    labels[::500] = 3
    other = torch.empty_like(logits, requires_grad=False)

    def both() -> None:
        logits.grad = None
        class_loss(logits, labels).backward()

    seconds = take_turns(
        {"copy": lambda: other.copy_(logits.detach()), "loss": both}, options.repeats, options.device
    )
    return {"share of copy bandwidth": 1 / ratio(seconds["loss"], seconds["copy"]), "seconds": seconds}


def training(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of torchvision's model, of ours, and of ours compiled; and how many operations one of ours
    has."""
    boxes = corners(options)
    batch = pictures_with(boxes, torch.arange(8) * 9, options.side, options.batch)
    states = {
        name: ours(
            "bf16",
            options.side,
            options.batch,
            options.backbone,
            options.device,
            compile=name == "ours compiled",
        )
        for name in ("ours", "ours compiled")
    }
    sides: dict[str, Callable[[], object]] = {"torchvision": theirs("bf16", boxes, options)}
    sides |= {name: partial(train_step, state, batch, RATE) for name, state in states.items()}
    with FlopCounterMode(display=False) as counter:
        sides["ours"]()
    seconds = take_turns(sides, options.repeats, options.device)
    best = min(("ours", "ours compiled"), key=lambda name: median(seconds[name]))
    speed = options.batch / median(seconds[best])
    return {
        "torchvision over ours": ratio(seconds["torchvision"], seconds["ours"]),
        "torchvision over ours compiled": ratio(seconds["torchvision"], seconds["ours compiled"]),
        "images_per_second": speed,
        "extrapolated: epochs of COCO in an hour, if the loader keeps up": 3600 * speed / COCO_TRAIN,
        "flop_per_second": counter.get_total_flops() / median(seconds[best]),
        "seconds": seconds,
    }


def answering(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Padded pictures on the device to boxes, NMS included: images a second."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    model = RetinaNet(80, options.backbone, p6="p5")
    calm(model)
    detectors = {
        name: Detector(
            model,
            Preprocess(options.side),
            Postprocess(),
            [str(k) for k in range(80)],
            range(80),
            0.5,
            device,
            "bf16",
        )
        for name in ("ours", "ours compiled")
    }
    detectors["ours compiled"].network = torch.compile(detectors["ours compiled"].network)
    other = torchvision_model(options.side, options.backbone).to(device).eval()
    pictures = torch.randint(0, 256, (batch, 3, options.side, options.side), dtype=torch.uint8, device=device)
    sizes, originals = torch.full((batch, 2), float(options.side)), [(options.side, options.side)] * batch

    def torchvision() -> list[dict[str, Tensor]]:
        with torch.inference_mode(), autocast("bf16", device):
            found: list[dict[str, Tensor]] = other(list(pictures / 255))
            return found

    sides: dict[str, Callable[[], object]] = {"torchvision": torchvision}
    for name, detector in detectors.items():
        sides[name] = partial(detector.predict_batch, pictures, sizes, originals)
    seconds = take_turns(sides, options.repeats, device)
    wait(device)
    speeds = {f"{name}, images a second": batch / median(times) for name, times in seconds.items()}
    ratios = {f"torchvision over {name}": ratio(seconds["torchvision"], seconds[name]) for name in detectors}
    return {**speeds, **ratios, "seconds": seconds}


if __name__ == "__main__":
    main()
