"""A training step of RetinaNet-R50 at 800 x 800: torchvision's, ours, and the bare network that no loss can
be faster than.

    python benchmarks/training_step.py

Two pictures with eight boxes each, 80 classes; forward, loss, backward and SGD, the stem, the first stage and
all batch norms frozen on every side, P6 from P5 as torchvision has it. `bare` is our network with constant
gradients put in at its outputs, and the same SGD. All in fp32 and under bf16 autocast, in one process, taking
turns, and a matrix product too: how much of its speed the bare network reaches tells how much is left to win.
Then each side alone in a process of its own: the peak of its memory above what the imports left.

Targets: within 1.15x of the bare network; fp32 at least 1.6x as fast as torchvision's, bf16 3.2x as fast as
its fp32 and 1.4x as fast as its bf16; memory at most 0.85x like for like, and 0.6x with bf16 against fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measure import arithmetic, product, ratio, record, take_turns, wait
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.config.io import override
from retinanet.config.presets import preset
from retinanet.data.dataset import Columns
from retinanet.data.loader import Batch
from retinanet.device import autocast
from retinanet.structures import Targets
from retinanet.training.loop import train_step
from retinanet.training.setup import TrainState, build_state

SIDES = [f"{side} {precision}" for precision in ("fp32", "bf16") for side in ("torchvision", "ours", "bare")]
RATE = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, default=800, help="pixels of the pictures")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--backbone", default="resnet50", help="a ResNet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--product", type=int, default=4096, help="side of the matrices that are multiplied")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out the processes that measure memory"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--only", choices=SIDES, help="two steps of one side; prints the peak of its memory in bytes"
    )
    options = parser.parse_args()
    if options.only:
        print(peak(options.only, options))
        return
    products = {
        precision: product(precision, options.device, options.product) for precision in ("fp32", "bf16")
    }
    sides = {name: step(name, options) for name in SIDES}
    turns = sides | {f"product {precision}": call for precision, (call, _) in products.items()}
    seconds = take_turns(turns, options.repeats, options.device)
    work = {precision: arithmetic(sides[f"bare {precision}"]) for precision in products}
    memory = {} if options.no_memory else {name: alone(name) for name in SIDES}
    ratios = {
        f"{side} over {other}": ratio(seconds[side], seconds[other])
        for side, other in (
            ("torchvision fp32", "ours fp32"),
            ("torchvision fp32", "ours bf16"),
            ("torchvision bf16", "ours bf16"),
            ("ours fp32", "bare fp32"),
            ("ours bf16", "bare bf16"),
        )
    }
    for precision, (_, count) in products.items():
        share = ratio(seconds[f"product {precision}"], seconds[f"bare {precision}"]) * work[precision] / count
        ratios[f"arithmetic a second: bare {precision} over a matrix product"] = share
    pairs = (
        ("ours fp32", "torchvision fp32"),
        ("ours bf16", "torchvision bf16"),
        ("ours bf16", "torchvision fp32"),
    )
    ratios |= {
        f"memory: {side} over {other}": memory[side] / memory[other] for side, other in pairs if memory
    }
    for name in SIDES:
        print(
            f"{name:18s}{median(seconds[name]):8.2f} s a step"
            + (f"{memory[name] / 2**30:8.2f} GiB" if memory else "")
        )
    for name, value in ratios.items():
        print(f"{name:58s}{value:8.2f}")
    sizes = {name: getattr(options, name) for name in ("side", "batch", "backbone", "repeats")}
    figures = {**sizes, "seconds": seconds, "arithmetic": work, "memory_bytes": memory, "ratios": ratios}
    record(__file__, figures, options.device, options.out)


def step(name: str, options: argparse.Namespace) -> Callable[[], object]:
    """One training step of a side."""
    side, precision = name.split()
    boxes = corners(options)
    torch.manual_seed(0)
    if side == "torchvision":
        return theirs(precision, boxes, options)
    state = ours(precision, options.side, options.batch, options.backbone, options.device)
    batch = pictures_with(boxes, torch.arange(8) * 9, options.side, options.batch)
    return (lambda: train_step(state, batch, RATE)) if side == "ours" else bare(state, batch)


def corners(options: argparse.Namespace) -> Tensor:
    """Eight boxes [8, 4] of many sizes."""
    sides = torch.logspace(1.3, 2.7, 8) * options.side / 800
    left = torch.linspace(0, 1, 8) * (options.side - sides)
    return torch.stack([left, left.flip(0) * 0.5, left + sides, left.flip(0) * 0.5 + sides], dim=1).clamp(
        max=options.side
    )


def pictures_with(boxes: Tensor, labels: Tensor, side: int, batch: int) -> Batch:
    """So many pictures of noise with the same boxes [G, 4] and labels [G]."""
    pictures = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    targets = Targets(
        boxes.expand(batch, -1, -1).clone(),
        labels.expand(batch, -1).clone(),
        torch.full((batch, 2), float(side)),
    )
    return Batch(pictures, targets, torch.arange(batch))


def ours(
    precision: str,
    side: int,
    batch: int,
    backbone: str,
    device: str,
    classes: int = 80,
    compile: bool = False,
) -> TrainState:
    """A training as the verb builds it, without a data set and without ImageNet's weights."""
    columns = Columns()
    for number in range(batch):
        columns.image(f"{number}.jpg", number, side, side)
    data = columns.build(
        Path(), Path(), "train", [f"class {number}" for number in range(classes)], range(classes)
    )
    config = preset("r50-800")
    model = override(config.model, {"backbone": backbone, "scale": side, "p6": "p5"}, foreign=True)
    settings: dict[str, Any] = {
        "precision": precision,
        "batch": batch,
        "workers": 0,
        "train_scale": None,
        "max_grad_norm": None,
        "compile": compile,
    }
    state = build_state(
        replace(config, model=model, **settings), data, data, torch.device(device), load_weights=False
    )
    calm(state.model)
    return state


def bare(state: TrainState, batch: Batch) -> Callable[[], object]:
    """The same network and optimiser, with constant gradients in place of losses."""

    def call() -> None:
        images = state.preprocess.normalize(
            batch.images.to(state.device), batch.targets.sizes.to(state.device)
        )
        with autocast(state.config.precision, state.device):
            logits, offsets = state.network(images)
        outputs = logits + offsets
        state.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outputs, [torch.full_like(level, 1e-6) for level in outputs])
        state.optimizer.step()

    return call


def theirs(precision: str, boxes: Tensor, options: argparse.Namespace) -> Callable[[], object]:
    """torchvision's model, as its reference training uses it: lists of float pictures in, a dict of losses
    out."""
    model: nn.Module = torchvision_model(options.side, options.backbone).to(options.device).train()
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, momentum=0.9, weight_decay=1e-4
    )
    device = torch.device(options.device)
    pictures = [torch.rand(3, options.side, options.side, device=device) for _ in range(options.batch)]
    targets = [
        {"boxes": boxes.to(device), "labels": torch.arange(8, device=device) * 9}
        for _ in range(options.batch)
    ]

    def call() -> None:
        with autocast(precision, device):
            losses: dict[str, Tensor] = model(pictures, targets)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call, unused-ignore]
        optimizer.step()

    return call


def torchvision_model(side: int, name: str) -> Any:
    """torchvision's RetinaNet as it trains from ImageNet's weights: stem, first stage and batch norms
    frozen."""
    backbone = resnet_fpn_backbone(
        backbone_name=name,
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = RetinaNet(backbone, 80, min_size=side, max_size=side)  # type: ignore[no-untyped-call, unused-ignore]
    calm(model)
    return model


@torch.no_grad()
def calm(model: nn.Module) -> None:
    """Random weights under frozen statistics double the activations with each block; the last norm of a block
    holds them down."""
    for name, value in [*model.named_buffers(), *model.named_parameters()]:
        if name.endswith(("bn3.weight", "bn2.weight")):
            value.fill_(0.2 if name.endswith("bn3.weight") else 0.5)


def peak(name: str, options: argparse.Namespace) -> int:
    """Bytes of memory that a side needs for two steps: on a GPU all, on a CPU (Linux) what comes on top of
    the imports."""
    imports = resident("VmRSS")
    call = step(name, options)
    for _ in range(2):
        call()
        wait(options.device)
    return (
        int(torch.cuda.max_memory_allocated())
        if torch.device(options.device).type == "cuda"
        else resident("VmHWM") - imports
    )


def resident(kind: str) -> int:
    """Bytes of this process that are in memory (VmRSS), or the most that ever were (VmHWM), which a parent's
    do not count for."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(kind))


def alone(name: str) -> int:
    """`peak` in a process of its own, with the same options."""
    done = subprocess.run(
        [sys.executable, *sys.argv, "--only", name], check=True, capture_output=True, text=True
    )
    return int(json.loads(done.stdout.strip().splitlines()[-1]))


if __name__ == "__main__":
    main()
