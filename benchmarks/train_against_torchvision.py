"""Which detector do so many minutes of training buy? torchvision's RetinaNet and ours, from scratch, one
after the other.

    python benchmarks/train_against_torchvision.py DATA --budget 7min --out results.json

`--recipe same` holds everything equal that both have: ResNet-18, subnets of four convolutions of 256
channels, pictures of `--scale`, batches of `--batch`, horizontal flips and nothing else. What is left is how
fast a step is and how well it is used. `--recipe own` compares what `retinanet train` chooses by itself, a
smaller head and larger pictures.

Both start from random weights, learn from the split `train` for the same seconds of the same machine and are
measured by the same evaluator on the same split. The clock covers building the model, loading and learning;
imports, reading the annotations and the final evaluation are outside it. (Ours also counts its own
validations and the probe of its speed in; `wall_s` tells the whole.)

torchvision's side is the recipe that suits it: ResNet-18 with live batch norm on every layer (frozen
statistics do not learn from scratch), fp32 as it ships, AdamW (weight decay 0.05) with 50 steps of linear
warm-up and a cosine over the budget, gradients clipped at norm 1, horizontal flips, batches of 4. `--lr` and
`--scale` are there to look for a better one. Its default short side is 240 (320 x 240 for a 4:3 picture): on
two cores 320 x 427 takes 1.7 times as long a step, so it sees 1.7 times fewer pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torch.utils.data import Dataset as TorchDataset
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.config.io import parse_budget
from retinanet.data.dataset import Dataset
from retinanet.data.formats.detect import open_dataset
from retinanet.data.images import read_image
from retinanet.data.validate import validate
from retinanet.device import describe, versions
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.results import Results

WARM_UP = 50  # steps
Sample = tuple[Tensor, dict[str, Tensor]]


class Pictures(TorchDataset[Sample]):
    """A split as torchvision wants it: the picture [3, H, W] in 0..1, and its boxes and labels 0..K-1."""

    def __init__(self, data: Dataset, flip: bool) -> None:
        self.data, self.flip = data, flip

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        picture = read_image(self.data.path(index)) / 255
        rows = self.data.rows(index)
        kept = ~self.data.crowd[rows]
        boxes = torch.from_numpy(self.data.boxes[rows][kept]).float()
        if self.flip and torch.rand(()) < 0.5:
            picture = picture.flip(-1)
            boxes = torch.stack(
                [picture.shape[-1] - boxes[:, 2], boxes[:, 1], picture.shape[-1] - boxes[:, 0], boxes[:, 3]],
                dim=1,
            )
        return picture, {"boxes": boxes, "labels": torch.from_numpy(self.data.labels[rows][kept])}


def loader(data: Dataset, options: argparse.Namespace, forever: bool) -> DataLoader[Sample]:
    """Batches as lists, since torchvision's model resizes and pads; `forever` shuffles and never ends."""
    pictures = Pictures(data, flip=forever)
    sampler = RandomSampler(pictures, num_samples=1_000_000_000) if forever else None
    return DataLoader(pictures, options.batch, sampler=sampler, num_workers=options.workers, collate_fn=list)


def build(classes: int, scale: int) -> RetinaNet:
    """torchvision's RetinaNet on a ResNet-18. Its head is all sigmoids, so that the labels 0..K-1 need no
    background class."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    largest = round(scale * 4 / 3)
    return RetinaNet(backbone, classes, min_size=scale, max_size=largest)  # type: ignore[no-untyped-call, unused-ignore]


def train(
    model: RetinaNet, batches: DataLoader[Sample], seconds: float, start: float, options: argparse.Namespace
) -> tuple[int, float]:
    """-> the number of steps that fit between `start` and `start + seconds`, and the seconds that they
    took."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05)
    model.train()
    step, first = 0, time.perf_counter()
    for batch in batches:
        progress = (time.perf_counter() - start) / seconds
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = (
                options.lr * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))
            )
        pictures = [picture.to(options.device) for picture, _ in batch]
        targets = [{name: value.to(options.device) for name, value in target.items()} for _, target in batch]
        losses: dict[str, Tensor] = model(pictures, targets)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            print(
                f"torchvision: step {step}, {progress:.0%} of the budget, loss {loss.item():.3f}", flush=True
            )
    return step, time.perf_counter() - first


@torch.inference_mode()
def predict(model: RetinaNet, data: Dataset, options: argparse.Namespace) -> Results:
    """Everything that torchvision answers by default (score above 0.05, NMS at 0.5, at most 300 a picture),
    as columns."""
    model.eval()
    answers: list[dict[str, Tensor]] = []
    for batch in loader(data, options, forever=False):
        answers += model([picture.to(options.device) for picture, _ in batch])
    boxes, scores, labels = (
        torch.cat([answer[name].cpu() for answer in answers]).numpy()
        for name in ("boxes", "scores", "labels")
    )
    images = np.repeat(np.arange(len(answers)), [len(answer["scores"]) for answer in answers])
    return Results(images, boxes.astype(np.float64), scores.astype(np.float64), labels)


def run_torchvision(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Train, then measure."""
    splits = {name: validate(data, invalid="drop")[0] for name, data in open_dataset(options.data).items()}
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    model = build(len(splits["train"].names), options.scale).to(options.device)
    steps, spent = train(model, loader(splits["train"], options, forever=True), seconds, start, options)
    wall, evaluating = time.perf_counter() - start, time.perf_counter()
    metrics = coco_metrics(splits[options.split], predict(model, splits[options.split], options))
    recipe = {name: getattr(options, name) for name in ("scale", "batch", "lr", "workers", "seed", "device")}
    return {
        **{name: metrics[name] for name in ("AP", "AP50", "AP75")},
        "steps": steps,
        "seconds_per_step": spent / max(steps, 1),
        "images_per_second": steps * options.batch / spent,
        "wall_s": wall,
        "evaluation_s": time.perf_counter() - evaluating,
        "recipe": recipe,
    }


def run_ours(options: argparse.Namespace) -> dict[str, Any]:
    """The two commands that a user would type, and what they leave behind."""
    with tempfile.TemporaryDirectory() as folder:
        run, answer = Path(folder) / "run", Path(folder) / "eval"
        retinanet = [sys.executable, "-m", "retinanet"]
        same = ["--device", options.device]
        command = [
            *retinanet,
            "train",
            str(options.data),
            "--budget",
            options.budget,
            "--out",
            str(run),
            "--seed",
            str(options.seed),
            *same,
        ]
        start = time.perf_counter()
        subprocess.run(
            [*command, *(alike(options) if options.recipe == "same" else []), *shlex.split(options.ours)],
            check=True,
        )
        wall, evaluating = time.perf_counter() - start, time.perf_counter()
        subprocess.run(
            [
                *retinanet,
                "eval",
                str(run),
                str(options.data),
                "--split",
                options.split,
                "--out",
                str(answer),
                *same,
            ],
            check=True,
        )
        metrics = json.loads((answer / "metrics.json").read_text(encoding="utf-8"))
        result = {name: metrics[name] for name in ("AP", "AP50", "AP75")}
        result |= {
            "wall_s": wall,
            "evaluation_s": time.perf_counter() - evaluating,
            "arguments": options.ours,
        }
        return result | learned(run)


def alike(options: argparse.Namespace) -> list[str]:
    """Arguments that make our network, its pictures and their augmentation those of torchvision's side."""
    network = ["--set", "channels=256", "--set", "num_convs=4"]
    pictures = [
        "--scale",
        str(options.scale),
        "--set",
        f"max_side={round(options.scale * 4 / 3)}",
        "--train-scale",
        "None",
    ]
    return [
        *network,
        *pictures,
        "--jitter",
        "1",
        "1",
        "--photometric",
        "0",
        "--flip",
        "0.5",
        "--batch",
        str(options.batch),
    ]


def learned(run: Path) -> dict[str, Any]:
    """Steps, their speed and the recipe, from the run's own record."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speed = float(np.median([row["images_per_second"] for row in rows if row["kind"] == "train"]))
    recipe = {
        name: value for name, value in config["config"].items() if name != "out"
    }  # which is gone by now
    return {"steps": config["iterations"], "images_per_second": speed, "recipe": recipe, "rows": rows}


def seconds_of(budget: str) -> float:
    """'7min', '20s' or '1h' -> seconds."""
    amount, unit = parse_budget(budget)
    if unit != "s":
        raise SystemExit(f"--budget {budget!r} is no time; write 20s, 7min or 1h")
    return amount


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="a data set with the split train and the one to measure on")
    parser.add_argument("--budget", default="7min", help="20s, 7min or 1h of training for each side")
    parser.add_argument("--split", default="test", help="what to measure on")
    parser.add_argument(
        "--recipe", choices=["same", "own"], default="own", help="ours: as torchvision's side, or as it comes"
    )
    parser.add_argument("--only", choices=["torchvision", "ours"], help="run one side")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=int, default=240, help="torchvision: short side; the long one is at most 4/3 of it"
    )
    parser.add_argument("--lr", type=float, default=5e-4, help="torchvision: the highest learning rate")
    parser.add_argument("--batch", type=int, default=4, help="torchvision: images per step")
    parser.add_argument(
        "--workers", type=int, default=2, help="torchvision: loader processes; 0 loads in this one"
    )
    parser.add_argument(
        "--ours", default="", help='more arguments for retinanet train, as one string: --ours="--preset tiny"'
    )
    options = parser.parse_args()
    seconds = seconds_of(options.budget)
    figures: dict[str, Any] = {
        "data": options.data.name,
        "split": options.split,
        "budget_s": seconds,
        "recipe": options.recipe,
        "script": f"benchmarks/{Path(__file__).name} {options.data.name} --recipe {options.recipe} --budget "
        f"{options.budget}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(torch.device(options.device)),
        "versions": versions(),
    }
    if options.only != "ours":
        figures["torchvision"] = run_torchvision(options, seconds)
    if options.only != "torchvision":
        figures["ours"] = run_ours(options)
    for side in ("torchvision", "ours"):
        if side in figures:
            numbers = {name: value for name, value in figures[side].items() if isinstance(value, float | int)}
            print(f"{side:<12}" + "  ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
    if "torchvision" in figures and "ours" in figures and figures["torchvision"]["AP"]:
        figures["AP_ratio"] = (figures["ours"]["AP"] or 0.0) / figures["torchvision"]["AP"]
        print(f"ours / torchvision: AP x {figures['AP_ratio']:.2f}")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
