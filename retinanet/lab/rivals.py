"""Table 2 on the user's own data: the detectors beside RetinaNet are trained, measured and timed as ours is.

Only the detector differs (`lab.peers` builds it). The backbone is ours with the same first weights,
normalisation and frozen layers; so are the pictures, their order and augmentation, the optimiser with its
rate, schedule, weight decay, clipping and average, the number format (losses in fp32) and the metric. No
rival is tuned: its own best learning rate may be another. All answer what scores above the config's threshold
(0.05), 100 boxes a picture at most, each with the NMS of its own (IoU 0.5; SSD 0.45). A step's pictures are
always worked on together: `micro_batch` is not heeded, and there is one process.
"""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..config import ModelConfig, TrainConfig
from ..data.augment import Augment
from ..data.balance import repeat_factors
from ..data.dataset import Dataset
from ..data.images import MAX_PIXELS, read_image
from ..data.loader import Batch, evaluation_batches, training_batches
from ..data.sampler import Sampler, random_seed
from ..engine.machine import autocast, describe, pick_device, told
from ..engine.metrics import coco_metrics, collect
from ..engine.optim import Average, build_optimizer, lr_factor, scaled_rate
from ..engine.record import Record, log_file
from ..engine.session import settled
from ..engine.watch import WATCHED, Watch
from ..errors import ConfigError, DivergenceError
from ..model.backbone import Backbone
from ..model.preprocess import Preprocess
from ..settings import from_json
from ..structures import Detections, Targets
from ..weights.checkpoint import load_plain, preprocess_of, save_plain
from .peers import BACKGROUND, RIVALS, Pictures, build_rival

__all__ = [
    "RIVALS",
    "Answering",
    "Rival",
    "build_rival",
    "load_rival",
    "measure",
    "milliseconds",
    "timings",
    "train_rival",
]

log = logging.getLogger("retinanet")

FORMAT = 1


class Rival:
    """A rival with what it needs to answer, as `Detector` is for ours.

    name        of RIVALS
    config      backbone, pictures, thresholds
    names       the K class names
    """

    def __init__(
        self,
        name: str,
        config: ModelConfig,
        names: Sequence[str],
        model: nn.Module,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        self.name, self.config, self.names, self.device, self.precision = (
            name,
            config,
            tuple(names),
            device,
            precision,
        )
        self.model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self.preprocess: Preprocess = preprocess_of(config)

    def answer(self, images: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]]) -> list[Detections]:
        """Padded uint8 images [B, 3, H, W], sizes [B, 2] -> detections in pixels of the originals (height,
        width).
        """
        with torch.inference_mode():
            normalized = self.preprocess.normalize(images.to(self.device), sizes.to(self.device))
            with autocast(self.precision, self.device):
                found = self.model(Pictures(normalized, sizes))
        answers = []
        for one, size, (height, width) in zip(found, sizes.tolist(), originals, strict=True):
            limit = torch.tensor([width, height] * 2, dtype=torch.float32)
            scaled = one["boxes"].float().cpu() * (limit / torch.tensor([size[1], size[0]] * 2))
            labels = one["labels"].cpu() - BACKGROUND[self.name]
            answers.append(
                Detections(torch.minimum(scaled, limit), one["scores"].float().cpu(), labels, self.names)
            )
        return answers

    def save(self, path: Path) -> None:
        """Weights and settings, for `load_rival`."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}
        settings = {"name": self.name, "model": asdict(self.config), "names": list(self.names)}
        save_plain(path, {"format": FORMAT, **settings, "weights": weights})


def load_rival(path: Path, device: str = "auto", precision: str = "fp32") -> Rival:
    """A rival from the file that `train_rival` left; CheckpointError when there is none."""
    content = load_plain(path, FORMAT)
    config = from_json(ModelConfig, content["model"])
    model = build_rival(content["name"], config, len(content["names"]))
    model.load_state_dict(content["weights"])
    return Rival(content["name"], config, content["names"], model, pick_device(device), precision)


@dataclass
class Lesson:
    """What the steps of a rival's training share."""

    name: str
    config: TrainConfig
    model: nn.Module
    average: Average | None
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    preprocess: Preprocess
    """How training wants its pictures."""
    device: torch.device
    broken: Tensor
    """1 from the first step on whose loss or gradient is not finite, else 0; on the device, where it stops
    all updates.
    """

    @property
    def shipped(self) -> nn.Module:
        """The model that is measured: the running average, or the model itself."""
        return self.average.model if self.average else self.model


def train_rival(
    name: str, data: tuple[Dataset, Dataset], config: TrainConfig, iterations: int, folder: Path
) -> dict[str, Any]:
    """Train a rival as `train` trains ours, for so many iterations, and measure it on the validation split.

    data     training and validation split
    folder   gets metrics.jsonl, plots, log.txt and rival.pt, the weights; what an earlier try left there is
             overwritten
    returns  metrics (COCO's twelve), milliseconds a picture (fp32, see `milliseconds`), parameters in
             millions, iterations, and
             images_per_second in training, which is the median of the lines of metrics.jsonl

    The same seed gives the same losses on a CPU. DivergenceError when a loss is not finite, as with ours.
    """
    training, validation = data
    device = pick_device(config.device)
    config = settled(config, device)
    folder.mkdir(parents=True, exist_ok=True)
    with told(), log_file(folder):
        lesson = begin(name, training, config, device)
        record = Record(folder)
        log.info("%s: %d iterations on %s", name, iterations, describe(device))
        try:
            learn(lesson, training, iterations, record)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"a step of {name} does not fit in the GPU's memory; lower --batch or --scale, for all rows"
            ) from error
        rival = Rival(name, config.model, validation.names, lesson.shipped, device, config.precision)
        rival.save(folder / "rival.pt")
        metrics = measure(rival, validation, config.workers or 0, config.max_pixels)
        record.row("val", iterations, **metrics)
        record.plot()
        log.info("%s: AP %.3f in validation", name, metrics["AP"] or 0.0)
        rival.precision = "fp32"
        return {
            "metrics": metrics,
            "milliseconds": milliseconds(rival, validation),
            "parameters": sum(parameter.numel() for parameter in rival.model.parameters()) / 1e6,
            "iterations": iterations,
            "images_per_second": statistics.median(
                row["images_per_second"] for row in record.rows if row["kind"] == "train"
            ),
        }


def begin(name: str, training: Dataset, config: TrainConfig, device: torch.device) -> Lesson:
    """Weights, optimiser and average from the seed, as `new_session` has them."""
    if config.init is not None or not isinstance(config.batch, int):
        raise ConfigError(
            "rivals start from ImageNet weights or from scratch, with a batch that is a number: no --init, "
            "no --batch auto"
        )
    torch.manual_seed(config.seed)
    model = build_rival(name, config.model, len(training.names))
    if config.weights == "imagenet":
        backbone = model.get_submodule("backbone.body")
        assert isinstance(backbone, Backbone)
        backbone.load_imagenet()
        backbone.freeze()
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = Average(model, copy.deepcopy(model), config.ema) if config.ema else None
    optimizer = build_optimizer(model, config.optimizer, config.lr, config.momentum, config.weight_decay)
    preprocess = preprocess_of(config.model, config.train_scale)
    repeats = repeat_factors(training, config.repeat_threshold) if config.repeat_threshold else None
    sampler = Sampler(training.sizes, config.batch, config.seed, preprocess, repeats)
    return Lesson(
        name, config, model, average, optimizer, sampler, preprocess, device, torch.zeros((), device=device)
    )


def learn(lesson: Lesson, training: Dataset, iterations: int, record: Record) -> None:
    """All steps, and a line of metrics.jsonl now and then, where DivergenceError comes up too."""
    config, watch = lesson.config, Watch(lesson.device)
    base = scaled_rate(config.lr, lesson.sampler.batch, config.lr_batch, config.optimizer)
    augment, pin = Augment(config.flip, config.jitter, config.photometric), lesson.device.type == "cuda"
    pictures = (
        training,
        lesson.preprocess,
        augment,
        lesson.sampler,
        0,
        iterations,
        config.workers or 0,
        pin,
        config.max_pixels,
    )
    seen, clock = 0, time.perf_counter()
    for iteration, batch in enumerate(training_batches(*pictures)):
        rate = base * lr_factor(iteration, iterations, config.warmup, config.schedule)
        numbers = step(lesson, batch, iteration, rate)
        watch.note(iteration, numbers)
        seen, done = seen + len(batch), iteration + 1
        if done % config.log_every and done < iterations:
            continue
        values = {name: float(value) for name, value in numbers.items()}  # waits for the device
        speed = seen / (time.perf_counter() - clock)
        record.row("train", done, **values, lr=rate, images_per_second=speed)
        log.info("%d/%d  loss %.3f  lr %.2g  %.1f images/s", done, iterations, values["loss"], rate, speed)
        if watch.seen():
            wrong = [
                name
                for name, value in zip(WATCHED, watch.values.tolist(), strict=True)
                if not math.isfinite(value)
            ]
            raise DivergenceError(
                f"{lesson.name}, iteration {int(watch.first) + 1}: {' and '.join(wrong)} not finite"
            )
        seen, clock = 0, time.perf_counter()


def step(lesson: Lesson, batch: Batch, iteration: int, rate: float) -> dict[str, Tensor]:
    """One optimiser step on the sum of the rival's losses; what it draws follows from the seed and the
    iteration.
    """
    config, model = lesson.config, lesson.model
    for group in lesson.optimizer.param_groups:
        group["lr"] = rate
    sizes = batch.targets.sizes
    batch = batch.to(lesson.device)
    images = lesson.preprocess.normalize(batch.images, batch.targets.sizes)
    torch.manual_seed(
        random_seed(config.seed, iteration, 2)
    )  # the samples of Faster R-CNN come from torch's own generator
    with autocast(config.precision, lesson.device):
        losses = model(Pictures(images, sizes), truth(batch.targets, BACKGROUND[lesson.name]))
    boxes = torch.stack([loss for name, loss in losses.items() if "box" in name]).sum()
    classes = torch.stack(
        [loss for name, loss in losses.items() if "box" not in name]
    ).sum()  # and objectness
    lesson.optimizer.zero_grad(set_to_none=True)
    (classes + boxes).backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if config.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.clip, norm)
    lesson.broken = torch.maximum(lesson.broken, (~torch.isfinite(norm + classes + boxes)).float())
    lesson.optimizer.found_inf = lesson.broken  # type: ignore[attr-defined]
    lesson.optimizer.step()
    if lesson.average is not None:
        lesson.average.update()
    parts = {"loss": classes + boxes, "class_loss": classes, "box_loss": boxes, "gradient_norm": norm}
    return {name: value.detach() for name, value in parts.items()}


def truth(targets: Targets, background: int) -> list[dict[str, Tensor]]:
    """What torchvision calls the targets: per picture boxes [G, 4] and labels [G], beginning at
    `background`.
    """
    real = targets.labels >= 0
    rows = zip(targets.boxes, targets.labels, real, strict=True)
    return [{"boxes": boxes[mask], "labels": labels[mask] + background} for boxes, labels, mask in rows]


def measure(
    rival: Rival, data: Dataset, workers: int = 0, max_pixels: int = MAX_PIXELS
) -> dict[str, float | None]:
    """COCO's twelve numbers of a rival's answers for every picture of `data`."""
    answers: dict[int, Detections] = {}
    for batch in evaluation_batches(
        data, rival.preprocess, 8, workers, rival.device.type == "cuda", max_pixels
    ):
        indices = batch.indices.tolist()
        originals = [(int(height), int(width)) for height, width in data.sizes[indices]]
        answers |= zip(indices, rival.answer(batch.images, batch.targets.sizes, originals), strict=True)
    return coco_metrics(data, collect(data, [answers[index] for index in range(len(data))])).numbers


class Answering(Protocol):
    """What can be timed: our `Detector`, or a `Rival`."""

    preprocess: Preprocess
    device: torch.device

    def answer(self, images: Tensor, sizes: Tensor, originals: Sequence[tuple[int, int]]) -> list[Detections]:
        """A padded batch -> its detections."""


def milliseconds(detector: Answering, data: Dataset, pictures: int = 10) -> float:
    """Time for one picture of `data`, see `timings`."""
    return timings([detector], data, pictures)[0]


def timings(detectors: Sequence[Answering], data: Dataset, pictures: int = 10) -> list[float]:
    """Median milliseconds a picture of each detector, batch 1, taking turns so that a busy machine slows all
    of them alike.

    From the decoded and resized picture in memory to boxes in its own pixels: normalising, the network,
    choosing the answers. Each
    picture is answered once before it is timed; a data set of fewer than `pictures` is gone through several
    times.
    """
    chosen = range(min(pictures, len(data)))
    images = [read_image(data.path(index)) for index in chosen]
    times: list[list[float]] = [[] for _ in detectors]
    for lap in range(1 + -(-pictures // len(chosen))):
        for image in images:
            for detector, kept in zip(detectors, times, strict=True):
                prepared, sizes = detector.preprocess.stack([detector.preprocess.resized(image)])
                clock = time.perf_counter()
                detector.answer(
                    prepared, sizes, [(image.shape[1], image.shape[2])]
                )  # on the CPU in the end: it waits for the device
                if lap:
                    kept.append(1000 * (time.perf_counter() - clock))
    return [statistics.median(kept) for kept in times]
