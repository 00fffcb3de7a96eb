"""Trains the baselines of Table 2, evaluates them, and times detectors against each other."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config.io import from_json
from ..config.schema import ModelConfig, TrainConfig
from ..data.dataset import Dataset
from ..data.images import read_image
from ..data.loader import Batch
from ..data.sampler import random_seed
from ..device import autocast, describe, explain_errors, pick_device
from ..errors import ConfigError, DivergenceError
from ..evaluation.evaluate import evaluate
from ..inference.detector import Detector
from ..model.preprocess import Preprocess
from ..structures import Targets
from ..training.diagnose import WATCHED, NonFiniteWatch
from ..training.log import TrainLog, log_file
from ..training.loop import update
from ..training.optim import lr_factor
from ..training.setup import TrainState, resolve_config, state_of
from ..weights.checkpoint import load_plain, postprocess_of, preprocess_of, save_plain
from .baseline_models import Padded, build_baseline

log = logging.getLogger("retinanet")

FILE = "baseline.pt"
"""The weights of a baseline, in the folder of its row."""

FORMAT = 1


@dataclass
class Runtime:
    """A baseline that takes the place of network and post-processing in a `Detector`."""

    model: nn.Module
    preprocess: Preprocess
    device: torch.device
    precision: str

    def run(self, images: Tensor, sizes: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Padded uint8 images [B, 3, H, W], sizes [B, 2] -> boxes, scores and labels of each."""
        normalized = self.preprocess.normalize(images.to(self.device), sizes.to(self.device))
        with autocast(self.precision, self.device):
            found = self.model(Padded(normalized, sizes))
        return [(one["boxes"].float(), one["scores"].float(), one["labels"] - 1) for one in found]


def detector_of(
    model: nn.Module, config: ModelConfig, names: Sequence[str], device: torch.device, precision: str = "fp32"
) -> Detector:
    """The detector with a baseline as its network; its category ids are 1 to K, since no study uses them."""
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    preprocess, ids = preprocess_of(config), range(1, len(names) + 1)
    runtime = Runtime(model, preprocess, device, precision)
    return Detector(
        runtime, preprocess, postprocess_of(config), names, ids, device=device, precision=precision
    )


def load_baseline(path: Path, device: str = "auto", precision: str = "fp32") -> Detector:
    """A baseline from the file that `train_baseline` left; CheckpointError when there is none."""
    content = load_plain(path, FORMAT)
    config = from_json(ModelConfig, content["model"])
    model = build_baseline(content["name"], config, len(content["names"]))
    model.load_state_dict(content["weights"])
    return detector_of(model, config, content["names"], pick_device(device), precision)


def train_baseline(
    name: str, data: tuple[Dataset, Dataset], config: TrainConfig, iterations: int, folder: Path
) -> dict[str, Any]:
    """Train a baseline as `train` trains RetinaNet, for so many iterations, and evaluate it.

    data     training and validation split
    folder   gets metrics.jsonl, plots, log.txt and the weights; files of an earlier try are overwritten
    returns  metrics (COCO's twelve), milliseconds per image (fp32), parameters in millions, iterations, and
             images_per_second in training, the median of the lines of metrics.jsonl

    The same seed gives the same losses on a CPU. DivergenceError when a loss is not finite.
    """
    validation = data[1]
    device = pick_device(config.device)
    config = resolve_config(config, device)
    folder.mkdir(parents=True, exist_ok=True)
    with explain_errors(), log_file(folder):
        state = setup(name, data, config, device)
        record = TrainLog(folder)
        log.info("%s: %d iterations on %s", name, iterations, describe(device))
        try:
            train(name, state, iterations, record)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a step of {name} does not fit in the GPU's memory; lower --batch or --scale, for all rows"
            ) from error
        model: nn.Module = state.shipped
        weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        about = {"name": name, "model": asdict(config.model), "names": list(validation.names)}
        save_plain(folder / FILE, {"format": FORMAT, **about, "weights": weights})
        detector = detector_of(model, config.model, validation.names, device, config.precision)
        found = evaluate(detector, validation, workers=config.workers or 0, max_pixels=config.max_pixels)
        metrics = found.metrics.numbers
        record.row("val", iterations, **metrics)
        record.plot()
        log.info("%s: AP %.3f in validation", name, metrics["AP"] or 0.0)
        detector = detector_of(model, config.model, validation.names, device)
        speeds = [row["images_per_second"] for row in record.rows if row["kind"] == "train"]
        return {
            "metrics": metrics,
            "milliseconds": timings([detector], validation)[0],
            "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
            "iterations": iterations,
            "images_per_second": statistics.median(speeds),
        }


def setup(name: str, data: tuple[Dataset, Dataset], config: TrainConfig, device: torch.device) -> TrainState:
    """Weights, optimiser and average from the seed, as `build_state` has them."""
    if config.init_model is not None or not isinstance(config.batch, int):
        raise ConfigError(
            "baselines start from ImageNet weights or from scratch, with a batch that is a number: no --init "
            "MODEL, no --batch auto"
        )
    torch.manual_seed(config.seed)
    model: Any = build_baseline(name, config.model, len(data[0].names))
    if config.init == "imagenet":
        model.backbone.body.load_imagenet()
        model.backbone.body.freeze()
    return state_of(model, replace(config, compile=False), *data, device)


def train(name: str, state: TrainState, iterations: int, record: TrainLog) -> None:
    """All steps, with a line of metrics.jsonl now and then; DivergenceError comes with such a line."""
    config, watch = state.config, NonFiniteWatch(state.device)
    seen, clock = 0, time.perf_counter()
    for iteration, batch in enumerate(state.batches(0, iterations)):
        rate = state.rate * lr_factor(iteration, iterations, config.warmup, config.schedule)
        numbers = step(state, batch, iteration, rate)
        watch.note(iteration, numbers)
        seen, done = seen + len(batch), iteration + 1
        if done % config.log_every and done < iterations:
            continue
        values = {name: float(value) for name, value in numbers.items()}  # waits for the device
        speed = seen / (time.perf_counter() - clock)
        record.row("train", done, **values, lr=rate, images_per_second=speed)
        log.info("%d/%d  loss %.3f  lr %.2g  %.1f images/s", done, iterations, values["loss"], rate, speed)
        if watch.seen():
            found = zip(WATCHED, watch.values.tolist(), strict=True)
            wrong = " and ".join(part for part, value in found if not math.isfinite(value))
            raise DivergenceError(f"{name}, iteration {int(watch.first) + 1}: {wrong} not finite")
        seen, clock = 0, time.perf_counter()


def step(state: TrainState, batch: Batch, iteration: int, rate: float) -> dict[str, Tensor]:
    """One optimiser step on the sum of the losses; its random samples follow from seed and iteration."""
    model: Any = state.model
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    sizes, batch = batch.targets.sizes, batch.to(state.device)
    images = state.preprocess.normalize(batch.images, batch.targets.sizes)
    torch.manual_seed(random_seed(state.config.seed, iteration, 2))  # Faster R-CNN draws from it
    with autocast(state.config.precision, state.device):
        losses = model(Padded(images, sizes), as_torchvision(batch.targets))
    boxes = torch.stack([loss for name, loss in losses.items() if "box" in name]).sum()
    classes = torch.stack([loss for name, loss in losses.items() if "box" not in name]).sum()
    state.optimizer.zero_grad(set_to_none=True)
    (classes + boxes).backward()
    norm = update(state, (classes + boxes).detach())
    parts = {"loss": classes + boxes, "class_loss": classes, "box_loss": boxes, "gradient_norm": norm}
    return {name: value.detach() for name, value in parts.items()}


def as_torchvision(targets: Targets) -> list[dict[str, Tensor]]:
    """Per image boxes [G, 4] and labels [G] as torchvision wants them: 0 is the background, no padding."""
    real = targets.labels >= 0
    rows = zip(targets.boxes, targets.labels, real, strict=True)
    return [{"boxes": boxes[mask], "labels": labels[mask] + 1} for boxes, labels, mask in rows]


def timings(detectors: Sequence[Detector], data: Dataset, images: int = 10) -> list[float]:
    """Median milliseconds per image of each detector, batch 1, taking turns so that a busy machine slows all
    of them alike.

    The time is that from the resized image in memory to boxes in its own pixels: normalising, the network,
    post-processing. Each image runs once before it is timed. A data set of fewer than `images` images is gone
    through several times.
    """
    chosen = range(min(images, len(data)))
    decoded = [read_image(data.path(index)) for index in chosen]
    times: list[list[float]] = [[] for _ in detectors]
    for lap in range(1 + -(-images // len(chosen))):
        for image in decoded:
            original = [(image.shape[1], image.shape[2])]
            for detector, kept in zip(detectors, times, strict=True):
                prepared, sizes = detector.preprocess.stack([detector.preprocess.resized(image)])
                clock = time.perf_counter()
                detector.predict_batch(
                    prepared, sizes, original
                )  # on the CPU in the end: waits for the device
                if lap:
                    kept.append(1000 * (time.perf_counter() - clock))
    return [statistics.median(kept) for kept in times]
