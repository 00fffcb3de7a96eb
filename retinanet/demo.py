"""The offline first run: generated scenes, minutes of training, AP on unseen scenes, and a page of it all."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import torch

from .commands import evaluate as evaluate_command
from .config.commands import DemoConfig, EvalConfig
from .config.io import override
from .config.presets import preset
from .data.formats.detect import open_dataset
from .data.images import read_image
from .data.scenes import write_scenes
from .evaluation.coco import Metrics
from .files import may_fail, next_free
from .inference.detector import Detector
from .inference.load import load
from .text import duration, shown
from .training.run import run as train
from .view.draw import draw, save, sheet
from .view.html import write_page

log = logging.getLogger("retinanet")

SCENES = {"train": 800, "val": 40, "test": 100}

SIZE = (320, 320)

NETWORK = {"scale": 192, "train_scale": 192, "anchor_size": 2.0}
"""Small images and small anchors: in four minutes on two cores the number of steps decides."""

SHOWN = 12


def run(config: DemoConfig) -> Path:
    """Scenes, training, evaluation and page.html in a new folder; returns the folder."""
    started = time.perf_counter()
    folder = next_free(config.out)  # a second demo never overwrites the first
    log.info("generating %d scenes in %s", sum(SCENES.values()), folder / "scenes")
    scenes = write_scenes(folder / "scenes", SCENES, SIZE, config.seed)
    log.info("training for %s", config.budget)
    settings = {
        "budget": config.budget,
        "device": config.device,
        "seed": config.seed,
        "validations": 3,
        "out": folder / "run",
    }
    train(scenes, override(preset("tiny"), {**NETWORK, **settings}), "tiny")
    log.info("evaluating on %d scenes that were not trained on", SCENES["test"])
    metrics = evaluate_command.run(
        str(folder / "run"), str(scenes), EvalConfig(split="test", device=config.device, out=folder)
    )
    detector = load(folder / "run", config.device)
    with may_fail(folder / "detections.jpg"):
        save(folder / "detections.jpg", detections(detector, scenes))
    took = duration(time.perf_counter() - started)
    page(folder, metrics, took)
    log.info("AP %.3f on unseen scenes, after %s in all", metrics["AP"] or 0.0, took)
    hint = "look at %s\nthen train on your own images:  retinanet train YOUR_FOLDER --out runs/mine"
    log.info(hint, folder / "page.html")
    return folder


def detections(detector: Detector, scenes: Path) -> torch.Tensor:
    """A sheet of unseen scenes with what was found in them, above the threshold that validation chose."""
    test = open_dataset(scenes)["test"]
    images = [read_image(test.path(index)) for index in range(SHOWN)]
    found = detector.predict(images)
    pairs = zip(images, found, strict=True)
    return sheet([draw(image, one.above(detector.threshold)) for image, one in pairs], columns=4)


def page(folder: Path, metrics: Metrics, took: str) -> None:
    """page.html: the numbers, the images, and what to do next."""
    about = json.loads((folder / "run" / "config.json").read_text())
    numbers = [
        (f"COCO {name}" if name == "AP" else name, shown(metrics[name]))
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    ]
    backbone, plots = about["config"]["model"]["network"]["backbone"], folder / "run" / "plots"
    write_page(
        folder / "page.html",
        "A detector, trained here",
        f"In {took} this machine ({about['machine']}) drew {sum(SCENES.values())} scenes, trained a "
        f"RetinaNet with {backbone} from scratch for {about['iterations']} steps, and measured it on "
        f"{metrics.images} scenes that it never saw, with {metrics.boxes} objects in them.\n\nAP is COCO's: "
        f"the mean over IoU thresholds from 0.50 to 0.95 and over {len(metrics.per_class)} classes; s, m and "
        f"l are objects below 32 px, up to 96 px and above.",
        numbers,
        [
            (
                "Detections on unseen scenes, above the score of best F1 in validation",
                folder / "detections.jpg",
            ),
            ("Training: losses", plots / "losses.png"),
            ("Validation: AP", plots / "ap.png"),
            ("Precision and recall on unseen scenes at IoU 0.5", folder / "plots" / "precision_recall.png"),
            ("Which class is taken for which", folder / "plots" / "confusion.png"),
            ("What the network sees: a first batch, its boxes and their anchors", plots / "first_batch.jpg"),
        ],
        [
            ("Check your own data set: COCO, VOC or YOLO annotations.", "retinanet check YOUR_FOLDER"),
            (
                "Train on it for as long as you like.",
                "retinanet train YOUR_FOLDER --budget 30min --out runs/mine",
            ),
            ("Measure it.", "retinanet eval runs/mine YOUR_FOLDER --split test --out runs/mine-test"),
            ("Use it.", "retinanet predict runs/mine YOUR_IMAGES --out found"),
        ],
    )
