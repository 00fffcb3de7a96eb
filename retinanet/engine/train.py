"""Training: one visible loop. Everything that a run needs is decided before it, printed, and written to config.json."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig, override, parse_budget, preset, to_json
from ..data.augment import Augment
from ..data.dataset import Dataset
from ..data.layout import hold_out, open_dataset
from ..data.loader import Batch, steps_per_epoch, training_batches
from ..data.validate import validate
from ..errors import ConfigError, DataError, DivergenceError
from ..model.criterion import Criterion
from ..model.preprocess import Preprocess
from ..model.retinanet import RetinaNet
from ..view.draw import anchors_picture, save, sheet
from ..weights.checkpoint import Card, build, postprocess_of, preprocess_of, save_model, versions, write_whole
from .detector import Detector
from .evaluate import Evaluation, evaluate, write_evaluation
from .machine import autocast, describe, pick_device, pick_precision, pick_workers
from .optim import Average, build_optimizer, lr_factor
from .record import Record, duration, log_file, new_folder, progress_bar

log = logging.getLogger("retinanet")

PROBE_STEPS = 6
"""Steps that are timed to turn minutes into iterations; the first half only warms up."""
MARGIN = 0.97
"""Share of a budget of minutes that is planned: other processes on the machine take the rest."""


def train(data: str | Path, preset: str | None = None, **settings: Any) -> Path:
    """Train a detector; the verb `train` as a function.

    data      a folder or file of annotated pictures: COCO, VOC or YOLO
    preset    tiny, r50-600 or r50-modern; None: tiny on a CPU, r50-modern on a GPU
    settings  any setting of `TrainConfig` and its parts, by name: budget="7min", out="runs/cells", gamma=1.0
    returns   the folder of the run, which `load` takes

    ConfigError, DataError, CheckpointError or DivergenceError say what is wrong and what to do.
    """
    config = preset_config(preset, str(settings.get("device", "auto")))
    for name in ("out", "images"):
        if settings.get(name) is not None:
            settings[name] = Path(settings[name])
    return run(data, override(config, settings), preset)


def preset_config(name: str | None, device: str = "auto") -> TrainConfig:
    """The preset of that name, or the one for this machine."""
    return preset(name or default_preset(device))


def default_preset(device: str = "auto") -> str:
    """The preset that a machine can carry: a step of ResNet-50 at 800 px takes 10 s on two cores."""
    return "tiny" if pick_device(device).type == "cpu" else "r50-modern"


def run(source: str | Path, config: TrainConfig, preset_name: str | None = None) -> Path:
    """Train on the data set at `source`; returns the folder of the run."""
    started = time.perf_counter()
    device = pick_device(config.device)
    config = settled(config, device)
    training, validation = open_training(source, config)
    fallback = f"{Path(source).resolve().stem}-{preset_name or default_preset(config.device)}"
    folder = new_folder(config.out, fallback)
    with log_file(folder):
        return _run(source, config, training, validation, folder, device, started)


def settled(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The config with everything decided that the machine decides."""
    if config.batch < 1 or config.validations < 1 or config.log_every < 1:
        raise ConfigError("batch, validations and log_every must be at least 1")
    if config.budget is not None:
        parse_budget(config.budget)
    model = config.model
    if config.weights == "none" and model.backbone_norm == "frozen":
        model = replace(model, backbone_norm="batch")
        log.info("from scratch: the backbone's batch norm is live, not frozen")
    precision = pick_precision(config.precision, device)
    return replace(config, model=model, precision=precision, workers=pick_workers(config.workers, device))


def open_training(source: str | Path, config: TrainConfig) -> tuple[Dataset, Dataset]:
    """Training and validation split, both validated; without a validation split a seeded tenth of train is held out."""
    splits = open_dataset(source, config.layout, config.images)
    name = "train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else None
    if name is None:
        raise DataError(f"{source} has no training split, only {', '.join(splits)}")
    chosen = {"train": splits[name]} | ({"val": splits["val"]} if "val" in splits else {})
    checked = {}
    problems = []
    for split, data in chosen.items():
        try:
            checked[split], found = validate(data, config.invalid, max_pixels=config.max_pixels)
        except DataError as error:
            problems.append(error)
            continue
        if found:
            log.info("%s: %d problems met with --invalid %s (retinanet check lists them)", split, len(found), config.invalid)
    if problems:
        raise DataError("\n".join(map(str, problems)), [problem for error in problems for problem in error.problems])
    if "val" not in checked:
        checked["train"], checked["val"] = hold_out(checked["train"], config.seed)
        log.info("no validation split: %d images (a tenth, by seed %d) are held out of train", len(checked["val"]), config.seed)
    return checked["train"], checked["val"]


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
    optimizer: torch.optim.Optimizer

    def detector(self) -> Detector:
        """The shipped model, as a user will hold it: in eval mode, so call `model.train()` after."""
        data, post = self.validation, postprocess_of(self.config.model)
        settings = {"device": self.device, "precision": self.config.precision}
        return Detector(self.shipped, self.preprocess, post, data.names, data.category_ids, **settings)  # type: ignore[arg-type]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of iterations start..stop-1, on the CPU."""
        config = self.config
        augment = Augment(config.flip, config.jitter, config.photometric)
        pin = self.device.type == "cuda"
        settings = (config.batch, config.seed, start, stop, config.workers or 0, pin, config.max_pixels)
        return iter(training_batches(self.training, self.preprocess, augment, *settings))


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
    return Session(config, training, validation, device, model, shipped, average, criterion, preprocess_of(config.model), optimizer)


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
    limit = session.config.clip if session.config.clip is not None else math.inf
    norm = torch.nn.utils.clip_grad_norm_(session.model.parameters(), limit)
    session.optimizer.step()
    if session.average is not None:
        session.average.update()
    numbers = {"loss": loss, **losses, "positives": matched.positives.mean(), "gradient_norm": norm}
    return {name: value.detach() for name, value in numbers.items()}


def _run(
    source: str | Path, config: TrainConfig, training: Dataset, validation: Dataset, folder: Path, device: torch.device, started: float
) -> Path:
    session = new_session(config, training, validation, device)
    rate = config.lr * config.batch / config.lr_batch
    iterations, every = plan(session, started)
    about = {
        "data": str(source),
        "data_hash": training.fingerprint(),
        "images": len(training),
        "boxes": int((~training.crowd).sum()),
        "iterations": iterations,
        "config": to_json(config),
        "versions": versions(),
        "machine": describe(device),
    }
    write_whole(folder / "config.json", json.dumps(about, indent=1).encode())
    log.info("%d images of %d classes, %d boxes to train on; %d images to validate on", len(training), len(training.names), about["boxes"], len(validation))
    log.info("%s, %d px, %s, on %s", config.model.backbone, config.model.scale, config.precision, about["machine"])
    log.info("learning rate %.3g (%.3g for %d images, scaled to %d)", rate, config.lr, config.lr_batch, config.batch)
    epochs = iterations / steps_per_epoch(training, config.batch)
    log.info("%d iterations (%.1f epochs), validation every %d; %s", iterations, epochs, every, folder)

    record = Record(folder)
    best = -1.0
    seen, clock = 0, time.perf_counter()
    with progress_bar(iterations) as progress:
        for iteration, batch in enumerate(session.batches(0, iterations)):
            if iteration == 0:
                save(folder / "plots" / "first_batch.jpg", batch_picture(session, batch))
            factor = lr_factor(iteration, iterations, config.warmup, config.schedule)
            numbers = train_step(session, batch, rate * factor)
            seen += len(batch.targets)
            done = iteration + 1
            if done % config.log_every == 0 or done == iterations:
                values = {name: float(value) for name, value in numbers.items()}  # the one place that waits for the device
                speed = seen / (time.perf_counter() - clock)
                seen, clock = 0, time.perf_counter()
                record.row("train", done, **values, lr=rate * factor, images_per_second=speed)
                check_finite(values, done, batch, training, folder)
                left = (iterations - done) * len(batch.targets) / speed
                text = f"loss {values['loss']:.3f} (class {values['class_loss']:.3f}, box {values['box_loss']:.3f})"
                log.info(
                    "%d/%d  %s  lr %.2g  positives %.1f  %.1f images/s  %s left",
                    *(done, iterations, text, rate * factor, values["positives"], speed, duration(left)),
                )
                progress(done, text)
            if done % every == 0 or done == iterations:
                evaluation = validate_and_save(session, record, done, best, about, folder)
                best = max(best, evaluation.metrics["AP"] or 0.0)
                seen, clock = 0, time.perf_counter()
    record.plot()
    record.close()
    write_evaluation(folder, validation, evaluation, {**about, "split": validation.split, "iteration": iterations})
    log.info("done in %s: AP %.3f in validation; %s", duration(time.perf_counter() - started), evaluation.metrics["AP"] or 0.0, folder)
    return folder


def validate_and_save(session: Session, record: Record, done: int, best: float, about: dict[str, Any], folder: Path) -> Evaluation:
    """Validation loss and AP of the shipped model; it is saved as model.safetensors, and as best.safetensors when it is."""
    config, data = session.config, session.validation
    detector = session.detector()
    evaluation = evaluate(detector, data, 2 * config.batch, config.workers or 0, session.criterion, config.max_pixels)
    session.model.train()
    metrics = evaluation.metrics
    numbers = {name: metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
    record.row("val", done, loss=sum(evaluation.losses.values()), **evaluation.losses, **numbers, threshold=metrics.threshold)
    shown = "  ".join(f"{name} {'-' if value is None else format(value, '.3f')}" for name, value in numbers.items())
    log.info("%d  validation: loss %.3f  %s", done, sum(evaluation.losses.values()), shown)
    card = Card(
        model=config.model,
        names=data.names,
        category_ids=data.category_ids,
        threshold=0.5 if metrics.threshold is None else metrics.threshold,
        about={**about, "iteration": done, "validation": numbers},
    )
    save_model(folder / "model.safetensors", session.shipped.state_dict(), card)
    if (metrics["AP"] or 0.0) > best:
        save_model(folder / "best.safetensors", session.shipped.state_dict(), card)
    record.plot()
    return evaluation


def plan(session: Session, started: float) -> tuple[int, int]:
    """How many iterations, and after how many each validation comes. Minutes become iterations here, once, after a probe."""
    config = session.config
    per_epoch = steps_per_epoch(session.training, config.batch)
    amount, unit = parse_budget(config.budget) if config.budget else (float(fitting_length(session)), "it")
    if unit != "s":
        iterations = max(1, round(amount * per_epoch if unit == "ep" else amount))
        return iterations, math.ceil(iterations / min(config.validations, iterations))
    step, picture = probe(session)
    spent = time.perf_counter() - started
    left = amount * MARGIN - spent
    once = picture * len(session.validation)
    validations = max(1, min(config.validations, 8, int(0.1 * left / once)))  # at most a tenth of the time is spent on looking
    iterations = int((left - validations * once) / step)
    if iterations < 1:
        raise ConfigError(
            f"a budget of {config.budget} does not hold one step: {spent:.0f} s to start, {once:.0f} s to validate, {step:.1f} s a step"
        )
    log.info(
        "budget %s: %.2f s a step and %.1f s a validation make %d iterations and %d validations",
        *(config.budget, step, once, iterations, validations),
    )
    return iterations, math.ceil(iterations / validations)


def fitting_length(session: Session) -> int:
    """Without a budget: 12 epochs as on COCO, but long enough for a small data set and no longer than the paper's 90k steps of 16."""
    shortest = 3000 if session.config.weights == "none" else 1500
    twelve = 12 * steps_per_epoch(session.training, session.config.batch)
    return min(max(twelve, shortest), 90_000 * 16 // session.config.batch)


def probe(session: Session) -> tuple[float, float]:
    """Seconds of a training step, data included, and of a picture in validation. The session is left as it was."""
    saved = copy.deepcopy((session.model.state_dict(), session.optimizer.state_dict()))
    average = copy.deepcopy(session.average.model.state_dict()) if session.average else None
    times = []
    clock = time.perf_counter()
    for batch in session.batches(0, PROBE_STEPS):
        train_step(session, batch, 0.0)
        if session.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - clock)
        clock = time.perf_counter()
    session.model.load_state_dict(saved[0])
    session.optimizer.load_state_dict(saved[1])
    if session.average is not None and average is not None:
        session.average.model.load_state_dict(average)
        session.average.updates = 0
    few = session.validation.subset(torch.arange(min(8, len(session.validation))).numpy())
    detector = session.detector()
    clock = time.perf_counter()
    evaluate(detector, few, min(8, 2 * session.config.batch), 0)
    picture = (time.perf_counter() - clock) / len(few)
    session.model.train()
    return sorted(times[PROBE_STEPS // 2 :])[(PROBE_STEPS - PROBE_STEPS // 2) // 2], picture


def check_finite(values: dict[str, float], iteration: int, batch: Batch, data: Dataset, folder: Path) -> None:
    """Stop at a loss that is not a number; what is on the disk is from before."""
    wrong = [name for name in ("class_loss", "box_loss", "gradient_norm") if not math.isfinite(values[name])]
    if wrong:
        files = ", ".join(str(data.files[i]) for i in batch.indices.tolist())
        raise DivergenceError(
            f"iteration {iteration}: {' and '.join(wrong)} not finite, with the images {files}. Lower --lr or set --clip; "
            f"the last validation's weights are in {folder}."
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
