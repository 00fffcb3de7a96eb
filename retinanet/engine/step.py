"""What a training works on, and one step of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.augment import Augment
from ..data.dataset import Dataset
from ..data.loader import Batch, training_batches
from ..errors import DivergenceError
from ..model.criterion import Criterion
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..view.draw import anchors_picture, sheet
from ..weights.checkpoint import build, postprocess_of, preprocess_of
from .detector import Detector
from .machine import autocast
from .optim import Average, build_optimizer

WATCHED = ("class_loss", "box_loss", "gradient_norm")


@dataclass
class Session:
    """What the loop works on."""

    config: TrainConfig
    training: Dataset
    validation: Dataset
    device: torch.device
    model: RetinaNet
    shipped: RetinaNet
    """The model that is evaluated and saved: the running average, or the model itself."""
    average: Average | None
    criterion: Criterion
    preprocess: Preprocess
    """How training wants its pictures; the detector has its own."""
    optimizer: torch.optim.Optimizer

    def detector(self) -> Detector:
        """The shipped model, as a user will hold it: in eval mode, so call `model.train()` after."""
        data, post = self.validation, postprocess_of(self.config.model)
        settings = {"device": self.device, "precision": self.config.precision}
        preprocess = preprocess_of(self.config.model)
        return Detector(self.shipped, preprocess, post, data.names, data.category_ids, **settings)  # type: ignore[arg-type]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of iterations start..stop-1, on the CPU."""
        config = self.config
        augment = Augment(config.flip, config.jitter, config.photometric)
        pin = self.device.type == "cuda"
        settings = (config.batch, config.seed, start, stop, config.workers or 0, pin, config.max_pixels)
        return training_batches(self.training, self.preprocess, augment, *settings)


def new_session(config: TrainConfig, training: Dataset, validation: Dataset, device: torch.device) -> Session:
    """Fresh weights, optimiser and average, from the seed."""
    torch.manual_seed(config.seed)
    model = build(config.model, len(training.names))
    if config.weights == "imagenet":
        model.backbone.load_imagenet()
        model.backbone.freeze()
    model = model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    average = Average(model, copy.deepcopy(model), config.ema) if config.ema else None
    rate = config.lr * config.batch / config.lr_batch
    optimizer = build_optimizer(model, config.optimizer, rate, config.momentum, config.weight_decay)
    shipped = average.model if average else model
    assert isinstance(shipped, RetinaNet)
    criterion = Criterion(**asdict(config.criterion))
    preprocess = preprocess_of(config.model, config.train_scale)
    return Session(config, training, validation, device, model, shipped, average, criterion, preprocess, optimizer)


def train_step(session: Session, batch: Batch, rate: float) -> dict[str, Tensor]:
    """One optimiser step; returns its losses, positives and gradient norm as tensors, so that nothing waits for a GPU."""
    for group in session.optimizer.param_groups:
        group["lr"] = rate
    batch = batch.to(session.device)
    images = session.preprocess.normalize(batch.images, batch.targets.sizes)
    with autocast(session.config.precision, session.device):
        logits, offsets = session.model(images)
    anchors = session.model.anchors(images)
    matched = session.criterion.match(anchors, batch.targets)
    losses = session.criterion(logits, offsets, anchors, matched)
    loss = losses["class_loss"] + losses["box_loss"]
    session.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [parameter.grad for parameter in session.model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if session.config.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(session.model.parameters(), session.config.clip, norm)
    # the fused optimisers read this flag on the device: a step that is not finite changes nothing, and nobody waits to know
    session.optimizer.found_inf = (~torch.isfinite(norm + loss.detach())).float()  # type: ignore[attr-defined]
    session.optimizer.step()
    if session.average is not None:
        session.average.update()
    numbers = {"loss": loss, **losses, "positives": matched.positives.mean(), "gradient_norm": norm}
    return {name: value.detach() for name, value in numbers.items()}


class Watch:
    """Remembers the first step whose loss or gradient was not finite, on the device, so that it is asked about only now and then."""

    def __init__(self, device: torch.device) -> None:
        self.first = torch.full((), -1, dtype=torch.long, device=device)
        self.values = torch.zeros(3, device=device)

    def note(self, iteration: int, numbers: dict[str, Tensor]) -> None:
        """Look at a step without waiting for it."""
        values = torch.stack([numbers[name].float() for name in WATCHED])
        new = ~values.isfinite().all() & (self.first < 0)
        self.values = torch.where(new, values, self.values)
        self.first = torch.where(new, iteration, self.first)

    def check(self, session: Session, folder: Path) -> None:
        """DivergenceError if there was such a step; it and those after it have changed no file."""
        first = int(self.first)
        if first < 0:
            return
        wrong = [name for name, value in zip(WATCHED, self.values.tolist(), strict=True) if not math.isfinite(value)]
        (batch,) = session.batches(first, first + 1)
        files = ", ".join(str(session.training.files[i]) for i in batch.indices.tolist())
        kept = "the weights of the last validation are" if (folder / "model.safetensors").exists() else "no weights were saved yet"
        raise DivergenceError(
            f"iteration {first + 1}: {' and '.join(wrong)} not finite, with the images {files}. "
            f"Lower --lr or set --clip; {kept} in {folder}."
        )


def batch_picture(session: Session, batch: Batch) -> Tensor:
    """The pictures of a batch as the network sees them, with their boxes and the anchors that answer for them."""
    anchors = session.model.anchors(batch.images)
    matched = session.criterion.match(anchors, batch.targets)
    flat = torch.cat(anchors)
    pictures = []
    for row in range(min(8, len(batch.targets))):
        real = batch.targets.labels[row] >= 0
        height, width = (int(side) for side in batch.targets.sizes[row])
        boxes, labels = batch.targets.boxes[row][real], batch.targets.labels[row][real]
        positive = flat[matched.labels[row] >= 0]
        pictures.append(anchors_picture(batch.images[row, :, :height, :width], boxes, labels, session.training.names, positive))
    return sheet(pictures, columns=2)
