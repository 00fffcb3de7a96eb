"""The detectors of Table 2 that are trained beside ours: torchvision's SSD and Faster R-CNN."""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
import torch.nn.functional as F
from timm.layers import GroupNorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from ..config.io import from_json
from ..config.schema import ModelConfig, TrainConfig
from ..data.augment import Augment
from ..data.dataset import Dataset
from ..data.images import MAX_PIXELS, read_image
from ..data.loader import Batch, evaluation_batches, training_batches
from ..data.sampler import Sampler, random_seed, repeat_factors
from ..device import autocast, describe, explain_errors, pick_device
from ..errors import ConfigError, DivergenceError, unknown_name_error
from ..evaluation.coco import coco_metrics
from ..evaluation.results import collect
from ..model.backbone import Backbone
from ..model.fuse_bn import freeze_folded
from ..model.preprocess import Preprocess
from ..model.retinanet import stride2_conv
from ..structures import Detections, Targets
from ..training.diagnose import WATCHED, NonFiniteWatch
from ..training.log import TrainLog, log_file
from ..training.optim import EMA, build_optimizer, lr_factor, scaled_rate
from ..training.setup import resolve_config
from ..weights.checkpoint import load_plain, preprocess_of, save_plain

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
    average: EMA | None
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
    config = resolve_config(config, device)
    folder.mkdir(parents=True, exist_ok=True)
    with explain_errors(), log_file(folder):
        lesson = begin(name, training, config, device)
        record = TrainLog(folder)
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
    if config.init_model is not None or not isinstance(config.batch, int):
        raise ConfigError(
            "rivals start from ImageNet weights or from scratch, with a batch that is a number: no --init, "
            "no --batch auto"
        )
    torch.manual_seed(config.seed)
    model = build_rival(name, config.model, len(training.names))
    if config.init == "imagenet":
        backbone = model.get_submodule("backbone.body")
        assert isinstance(backbone, Backbone)
        backbone.load_imagenet()
        backbone.freeze()
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = EMA(model, copy.deepcopy(model), config.ema) if config.ema else None
    optimizer = build_optimizer(model, config.optimizer, config.lr, config.momentum, config.weight_decay)
    preprocess = preprocess_of(config.model, config.train_scale)
    repeats = repeat_factors(training, config.repeat_threshold) if config.repeat_threshold else None
    sampler = Sampler(training.sizes, config.batch, config.seed, preprocess, repeats)
    return Lesson(
        name, config, model, average, optimizer, sampler, preprocess, device, torch.zeros((), device=device)
    )


def learn(lesson: Lesson, training: Dataset, iterations: int, record: TrainLog) -> None:
    """All steps, and a line of metrics.jsonl now and then, where DivergenceError comes up too."""
    config, watch = lesson.config, NonFiniteWatch(lesson.device)
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
    if config.max_grad_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), config.max_grad_norm, norm)
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


SSD_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
"""Sides of SSD300's default boxes by level, in sides of the padded picture (torchvision's, for COCO); the
last serves the sixth level.
"""

SSD_RATIOS = ([2], [2, 3], [2, 3], [2, 3], [2], [2])

SSD_EXTRA = (512, 256, 256)
"""Widths of the maps at 1/64, 1/128 and 1/256."""


class Pictures(ImageList):
    """A padded and normalised batch [B, 3, H, W] in the place of a list of pictures; `sizes` [B, 2] are
    theirs without the padding.
    """

    def __init__(self, images: Tensor, sizes: Tensor) -> None:
        super().__init__(images, [(int(height), int(width)) for height, width in sizes.tolist()])

    def __iter__(self) -> Iterator[Tensor]:
        return (
            image[:, :height, :width]
            for image, (height, width) in zip(self.tensors, self.image_sizes, strict=True)
        )


class Untouched(nn.Module):
    """In the place of torchvision's transform: `Pictures` are resized, normalised and padded, and answers
    stay in their pixels.
    """

    def forward(self, pictures: Pictures, targets: Any = None) -> tuple[Pictures, Any]:
        """Both as they are."""
        return pictures, targets

    def postprocess(self, answers: Any, sizes: Any, originals: Any) -> Any:
        """The answers as they are; `Rival.answer` knows the originals."""
        return answers


class FinerBackbone(Backbone):
    """`Backbone` with C2, the map at 1/4, before the others, and with the same first weights: the pyramid of
    Faster R-CNN begins there.
    """

    def __init__(self, name: str, norm: str, eps: float, stride: str) -> None:
        super().__init__(name, norm, eps, stride)
        info = self.body.feature_info
        quarters = [i for i, level in enumerate(info.info) if level["reduction"] == 4]
        if not quarters:
            raise ConfigError(
                f"backbone {name!r} has no map at 1/4 of the picture, where the pyramid of Faster R-CNN "
                f"begins"
            )
        layers: dict[str, Any] = {"norm_layer": GroupNorm} if norm == "group" else {}
        body = timm.create_model(
            name,
            features_only=True,
            out_indices=[quarters[-1], *info.out_indices],
            pretrained=False,
            **layers,
        )
        body = freeze_batch_norm_2d(body) if norm == "frozen" else body
        for layer in body.modules():
            if hasattr(layer, "running_var"):
                layer.eps = eps
        body.load_state_dict(self.body.state_dict())
        self.body = body
        if stride == "1x1":
            self._stride_first()
        if norm == "frozen":
            freeze_folded(body)
        self.channels = body.feature_info.channels()


class Maps(nn.Module):
    """images [B, 3, H, W] -> the maps that a head sees, by name: those of `body`, through `neck`;
    `out_channels` tells their width.
    """

    def __init__(self, body: Backbone, neck: nn.Module, out_channels: int | list[int]) -> None:
        super().__init__()
        self.body, self.neck, self.out_channels = body, neck, out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Finest first, named "0", "1", ... as torchvision's RoI pooling expects them."""
        maps: dict[str, Tensor] = self.neck(
            OrderedDict((str(i), level) for i, level in enumerate(self.body(images)))
        )
        return maps


class P6P7(LastLevelP6P7):
    """torchvision's, always on C5, with the care of `halved`."""

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """P3..P5, C3..C5 and the names of the levels -> P3..P7 and theirs."""
        p6 = stride2_conv(self.p6, c[-1])
        return [*p, p6, stride2_conv(self.p7, F.relu(p6))], [*names, "p6", "p7"]


class Coarser(nn.Module):
    """The maps of a backbone and three more, each half as fine: 1x1, ReLU, 3x3 with stride 2, ReLU, as in
    SSD300.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        widths = (in_channels, *SSD_EXTRA)
        self.narrow = nn.ModuleList(
            nn.Conv2d(before, after // 2, 1) for before, after in zip(widths, SSD_EXTRA, strict=False)
        )
        self.halve = nn.ModuleList(
            nn.Conv2d(after // 2, after, 3, stride=2, padding=1) for after in SSD_EXTRA
        )
        for conv in (*self.narrow, *self.halve):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """C3..C5 -> C3..C5 and the maps at 1/64, 1/128 and 1/256."""
        levels = list(maps.values())
        for narrow, halve in zip(self.narrow, self.halve, strict=True):
            levels.append(F.relu(stride2_conv(halve, F.relu(narrow(levels[-1])))))
        return OrderedDict((str(i), level) for i, level in enumerate(levels))


def faster_rcnn_fpn(config: ModelConfig, classes: int) -> nn.Module:
    """Faster R-CNN on P2..P6. As in the FPN paper: anchors of one size a level, twice as many pixels from
    level to level.
    """
    body = FinerBackbone(
        config.network.backbone,
        config.network.backbone_norm,
        config.network.backbone_eps,
        config.network.backbone_stride,
    )
    neck = FeaturePyramidNetwork(body.channels, config.network.channels, LastLevelMaxPool())
    # 32 px on P2 where ours are 32 px on P3
    anchors = AnchorGenerator(
        tuple((config.network.anchor_size * 8 * 2**level,) for level in range(5)),
        (config.network.anchor_ratios,) * 5,
    )
    answers = {
        "box_score_thresh": config.postprocess.score_threshold,
        "box_detections_per_img": config.postprocess.max_detections,
    }
    model: nn.Module = FasterRCNN(
        Maps(body, neck, config.network.channels), classes + 1, rpn_anchor_generator=anchors, **answers
    )
    return model


def ssd(config: ModelConfig, classes: int) -> nn.Module:
    """SSD on C3..C5 and three coarser maps, with the default boxes of SSD300: shares of the padded picture,
    whatever `anchor_size` is.
    """
    body = Backbone(
        config.network.backbone,
        config.network.backbone_norm,
        config.network.backbone_eps,
        config.network.backbone_stride,
    )
    maps = Maps(body, Coarser(body.channels[-1]), [*body.channels, *SSD_EXTRA])
    boxes = DefaultBoxGenerator(list(SSD_RATIOS), scales=list(SSD_SCALES))
    answers = {
        "score_thresh": config.postprocess.score_threshold,
        "detections_per_img": config.postprocess.max_detections,
    }
    model: nn.Module = SSD(
        maps, boxes, (config.preprocess.scale, config.preprocess.scale), classes + 1, **answers
    )
    return model


def retinanet_torchvision(config: ModelConfig, classes: int) -> nn.Module:
    """torchvision's own RetinaNet on P3..P7: four convolutions a subnet, L1, each picture divided by its own
    positives.
    """
    body = Backbone(
        config.network.backbone,
        config.network.backbone_norm,
        config.network.backbone_eps,
        config.network.backbone_stride,
    )
    neck = FeaturePyramidNetwork(
        body.channels, config.network.channels, P6P7(body.channels[-1], config.network.channels)
    )
    sizes = tuple(
        tuple(config.network.anchor_size * 8 * 2**level * scale for scale in config.network.anchor_scales)
        for level in range(5)
    )
    anchors = AnchorGenerator(sizes, (config.network.anchor_ratios,) * 5)
    answers = {
        "score_thresh": config.postprocess.score_threshold,
        "detections_per_img": config.postprocess.max_detections,
    }
    # its head is all sigmoids, so that the labels 0..K-1 need no background class
    model: nn.Module = RetinaNet(
        Maps(body, neck, config.network.channels), classes, anchor_generator=anchors, **answers
    )
    return model


RIVALS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "faster_rcnn_fpn": faster_rcnn_fpn,
    "ssd": ssd,
    "retinanet_torchvision": retinanet_torchvision,
}

BACKGROUND = {"faster_rcnn_fpn": 1, "ssd": 1, "retinanet_torchvision": 0}
"""How many labels the background takes before the classes."""


def build_rival(name: str, config: ModelConfig, classes: int) -> nn.Module:
    """A rival with fresh weights that takes `Pictures` and answers in their pixels; ConfigError for an
    unknown name.
    """
    if name not in RIVALS:
        raise unknown_name_error("rival", name, RIVALS)
    model = RIVALS[name](config, classes)
    model.transform = Untouched()
    heads = ("rpn.head", "roi_heads.box_predictor") if name == "faster_rcnn_fpn" else ("head",)
    for part in map(model.get_submodule, ("backbone", *heads)):
        # torchvision makes anchors in the number format of the maps and boxes in that of the offsets: bf16
        # would round them to 2 px
        part.register_forward_hook(in_fp32)
    return model


def in_fp32(module: nn.Module, given: Any, made: Any) -> Any:
    """A hook: what a module made, a tensor or a dict, list or tuple of them, in fp32."""
    if isinstance(made, Tensor):
        return made.float()
    if isinstance(made, dict):
        return OrderedDict((name, in_fp32(module, given, value)) for name, value in made.items())
    return type(made)(in_fp32(module, given, value) for value in made)
